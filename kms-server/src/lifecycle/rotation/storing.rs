//! Keys that the token made are stored with their counter lines, each if its meter is still as it was planned for: one commit for
//! all of them.

use std::collections::{BTreeMap, BTreeSet};

use super::changing::{About, has_counters, meter_in, refused};
use crate::{
    keyring::Change,
    lifecycle::{
        error::LifecycleError,
        groups::{concerned, membership_of},
        verbs::Lifecycle,
    },
};
use kms_core::{
    BlockNo, Fingerprint, MeterId, MeterRecord, Record, RecordKey, SystemTitle,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    counters::{Line, LineName, Offset},
    life::{
        choosing::Place,
        staging::{Made, Plan, Staging, Wish, plan, stage},
    },
    profile::CountersOnNewKey,
};

/// A key that the token made, and what it was made for.
pub(super) struct Fresh<'a> {
    pub(super) id: &'a MeterId,
    pub(super) title: SystemTitle,
    pub(super) wish: &'a Wish,
    pub(super) plan: Plan,
    pub(super) made: Made,
    /// It is wrapped under this secret of the block.
    pub(super) secret_version: u32,
    /// What the lines that it gets stand on.
    pub(super) lines: Lines,
}

/// The titles that a new key gets counter lines for, and the keys whose lines say where they begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    /// The utility's, towards the meter in the key's setup.
    titles: BTreeSet<SystemTitle>,
    /// All versions that the meter may hold: it may have used the newest, whatever is preferred.
    former: BTreeSet<Fingerprint>,
}

/// Why a key was not stored.
pub(super) enum NotStored {
    /// Its meter was changed meanwhile: the plan is another one.
    Changed,
    /// It can't be.
    Failed(LifecycleError),
}

impl Lines {
    pub(super) fn of(meter: &MeterRecord, place: Place) -> Self {
        if !has_counters(place.kind) {
            return Self::default();
        }
        let clients = meter.policy.client_titles.as_slice().iter();
        let of_setup = clients.filter(|it| it.setup == place.setup).map(|it| it.title);
        let live = place.versions(meter).filter(|key| key.is_live());
        Self {
            titles: of_setup.chain(meter.policy.client_title).collect(),
            former: live.map(|key| key.fingerprint).collect(),
        }
    }

    fn names(&self, fingerprint: Fingerprint) -> impl Iterator<Item = LineName> {
        self.titles.iter().map(move |originator| LineName { fingerprint, originator: *originator })
    }
}

type Changes = BTreeMap<BlockNo, Change>;

impl Lifecycle {
    /// Commits these keys, of a meter each, with their lines: as many as are still as they were planned for, all at once or
    /// none. The records of their meters come back.
    pub(super) async fn store_fresh(
        &self,
        call: &AuditedCall,
        fresh: &[Fresh<'_>],
    ) -> Result<Vec<Result<MeterRecord, NotStored>>, LifecycleError> {
        let changes =
            self.writer.change_records(fresh.iter().flat_map(|it| self.concerned(it))).await?;
        let mut changes: Changes =
            changes.into_iter().map(|change| (change.block(), change)).collect();
        let now_ms = self.clock.unix_ms();
        let mut entries = Vec::new();
        let mut stored = Vec::with_capacity(fresh.len());
        for one in fresh {
            let meter = self.stage_fresh(&mut changes, one, now_ms);
            if meter.is_ok() {
                let block = Some(self.records.block_of(&one.title));
                let system_title = Some(one.title);
                let subject = Subject { system_title, block, ..Subject::meter(one.id) };
                entries.push(said(call.entry(now_ms, subject, AuditOutcome::Done), one));
            }
            stored.push(meter);
        }
        if !entries.is_empty() {
            self.writer.commit(changes.into_values().collect(), entries).await?;
        }
        Ok(stored)
    }

    /// The records that a key stands on, and those that it becomes.
    fn concerned(&self, fresh: &Fresh<'_>) -> Vec<(BlockNo, RecordKey)> {
        let Fresh { title, made, lines, .. } = fresh;
        let values = lines.former.iter().chain([&made.fingerprint]);
        let names = values.flat_map(|it| lines.names(*it));
        let names = names.map(|it| (self.counting.block_of(&it), RecordKey::line(&it)));
        let block = self.records.block_of(title);
        let member = membership_of(title, fresh.wish.place.setup);
        names.chain([(block, RecordKey::meter(title)), (block, member)]).collect()
    }

    /// Puts one key and its lines into the blocks that are under change.
    fn stage_fresh(
        &self,
        changes: &mut Changes,
        fresh: &Fresh<'_>,
        now_ms: u64,
    ) -> Result<MeterRecord, NotStored> {
        let Fresh { id, title, wish, plan: planned, made, secret_version, lines } = fresh;
        let own = self.records.block_of(title);
        let change = changes.get(&own).ok_or(NotStored::Changed)?;
        let mut meter = meter_in(change, id, title).map_err(NotStored::Failed)?;
        let now = plan(&meter, wish, &self.config.times, now_ms);
        let now = now.map_err(|why| NotStored::Failed(refused(why)))?;
        let same_plan = matches!(&now, Staging::Make(plan) if plan == planned);
        if !same_plan
            || concerned(change, title, wish.place).is_some()
            || change.secret_version() != *secret_version
            || Lines::of(&meter, wish.place) != *lines
        {
            return Err(NotStored::Changed);
        }
        let lines = self.lines_of(changes, &meter, fresh);
        stage(&mut meter, wish, planned, made.clone(), now_ms);
        meter.changed_by = meter.changed_by.next(now_ms);
        let records = lines.into_iter().map(|line| (self.counting.block_of(&line.name), line));
        let records = records.map(|(block, line)| (block, Record::Line(line)));
        for (block, record) in records.chain([(own, Record::Meter(meter.clone()))]) {
            changes.get_mut(&block).ok_or(NotStored::Changed)?.put(record);
        }
        Ok(meter)
    }

    /// Where the counters of a new key begin. As low as the parity allows where the meter's profile says that it begins anew;
    /// above the former key's line where it keeps its counters, or nobody knows. A former line that nobody declared says
    /// nothing, and neither does this one then.
    fn lines_of(&self, changes: &Changes, meter: &MeterRecord, fresh: &Fresh<'_>) -> Vec<Line> {
        let offset = |name: LineName| {
            let change = changes.get(&self.counting.block_of(&name))?;
            change.line(&name).ok().flatten()?.offset
        };
        self.begin_lines(meter, (&fresh.lines, fresh.made.fingerprint), offset)
    }

    fn begin_lines(
        &self,
        meter: &MeterRecord,
        (lines, fingerprint): (&Lines, Fingerprint),
        offset: impl Fn(LineName) -> Option<Offset>,
    ) -> Vec<Line> {
        let profile = meter.policy.profile.as_ref().and_then(|name| self.profiles.get(name));
        let resets = profile.is_some_and(|it| it.counters_on_new_key == CountersOnNewKey::Reset);
        let Lines { titles: _, former } = lines;
        let begins_anew = resets || former.is_empty();
        let epoch = self.counting.standing().epoch;
        let line = |name: LineName| {
            let before =
                former.iter().filter_map(|it| offset(LineName { fingerprint: *it, ..name }));
            let line = match before.max() {
                _ if begins_anew => Line::of_new_key(name, epoch),
                Some(offset) => Line::after(name, offset, epoch),
                None => Ok(Line::undeclared(name)),
            };
            // Without room above the former one it waits to be declared, as an imported key does.
            line.unwrap_or(Line::undeclared(name))
        };
        lines.names(fingerprint).map(line).collect()
    }
}

impl Lifecycle {
    /// The same of a key whose meter is not under change, as its lines are stored now.
    pub(in crate::lifecycle) async fn read_lines_of(
        &self,
        meter: &MeterRecord,
        place: Place,
        fingerprint: Fingerprint,
    ) -> Result<Vec<Line>, LifecycleError> {
        let lines = Lines::of(meter, place);
        let mut known = BTreeMap::new();
        for name in lines.former.iter().flat_map(|it| lines.names(*it)) {
            let block = self.counting.block_of(&name);
            let of_block = self.counting.lines(block).await?.lines;
            known.insert(name, of_block.get(&name).and_then(|(line, _)| line.offset));
        }
        let offset = |name: LineName| known.get(&name).copied().flatten();
        Ok(self.begin_lines(meter, (&lines, fingerprint), offset))
    }
}

fn said(entry: AuditEntry, fresh: &Fresh<'_>) -> AuditEntry {
    let Fresh { wish, plan, .. } = fresh;
    let about = About { place: Some(wish.place), version: plan.version, without_proof: false };
    let entry = entry.with(Detail::KeysAdded, 1);
    let entry = about.details().fold(entry, |entry, (detail, number)| entry.with(detail, number));
    match wish.allow_unreplicated {
        true => entry.with(Detail::WithoutProof, 1),
        false => entry,
    }
}
