//! One value for many members: the token wraps it for some of them at a time, and it is stored in their records in one
//! commit. What was not done yet is done by whoever asks next, with the same value: the group's record names it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    AT_ONCE, PER_CALL_MAX,
    alone::{group_of, membership_of},
    showing::GroupView,
    steps::{alive, len_of, put, subject_of, withdraw_one},
};
use crate::{
    keyring::{Change, KeyToMake, KeyToShare, MadeValue},
    lifecycle::{
        error::LifecycleError,
        refusal::{Refusal, refusal},
        rotation::{not_made, not_taken},
        verbs::{Lifecycle, TRIES},
    },
};
use kms_core::{
    BlockNo, MeterId, MeterRecord, Protection, Record, RecordKey, RefusalCode, SystemTitle,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail},
    counters::Line,
    fact::{FactName, Group, GroupValue},
    life::{
        choosing::Place,
        grouping::{MemberState, holding, state_of},
        staging::{Made, Plan, Staging, Wish, plan, stage},
    },
};

/// Members that a value was brought to.
#[derive(Clone, Debug, Default)]
pub struct Brought {
    /// It is staged there since.
    pub staged: Vec<SystemTitle>,
    /// Members that it could not be staged at, and why.
    pub refused: Vec<(MeterId, Refusal)>,
    /// Members that have had no turn yet.
    pub left: usize,
}

/// What is to be brought, and how.
pub(super) struct Errand<'a> {
    pub(super) group: &'a Group,
    pub(super) value: GroupValue,
    pub(super) allow_unreplicated: bool,
}

/// A member that is to have it.
struct Target {
    title: SystemTitle,
    meter: MeterRecord,
    plan: Plan,
}

impl Brought {
    fn refuse(&mut self, id: MeterId, why: Refusal) {
        self.refused.push((id, why));
    }
}

fn another_staged() -> Refusal {
    let reason = "another value is staged there, which is not the group's: destroy that one first";
    refusal(RefusalCode::GroupKey, reason)
}

impl Errand<'_> {
    pub(super) fn place(&self) -> Place {
        Place { setup: self.group.setup, kind: self.value.kind }
    }

    /// The wish for one member.
    pub(super) fn wish(&self, call: &AuditedCall) -> Wish {
        Wish {
            place: self.place(),
            class_version: self.group.class_version,
            carrier: self.group.carrier,
            kek: None,
            protection: Some(Protection::Memory),
            request: call.request_id.as_str().to_owned(),
            allow_unreplicated: self.allow_unreplicated,
            under_compromised_kek: false,
        }
    }

    /// The members that do not have it.
    fn wanting(&self, view: &GroupView) -> Vec<SystemTitle> {
        let lacks = |meter: &MeterRecord| {
            state_of(meter, self.place(), self.value.fingerprint) == MemberState::NotStaged
        };
        let wanting = view.members.iter().filter(|it| it.record.as_ref().is_some_and(lacks));
        wanting.map(|member| member.title).collect()
    }

    /// Whether the value was said to be compromised at any member.
    pub(super) fn is_compromised(&self, view: &GroupView) -> bool {
        let of = |meter| state_of(meter, self.place(), self.value.fingerprint);
        let records = view.members.iter().filter_map(|member| member.record.as_ref());
        records.map(of).any(|state| state == MemberState::Compromised)
    }

    /// A member that has the value.
    fn source(&self, view: &GroupView) -> Option<SystemTitle> {
        view.members.iter().find_map(|member| {
            let meter = member.record.as_ref()?;
            let key = holding(meter, self.place(), self.value.fingerprint)?;
            (key.protection == Protection::Memory).then_some(member.title)
        })
    }

    /// An entry about a member that has it staged.
    pub(super) fn entry(
        &self,
        call: &AuditedCall,
        (meter, block): (&MeterRecord, BlockNo),
        (version, now_ms): (u16, u64),
    ) -> AuditEntry {
        let subject = subject_of(Some(&meter.meter_id), meter.system_title, block);
        let entry = call
            .entry(now_ms, subject, AuditOutcome::Done)
            .with(Detail::KeysAdded, 1)
            .with(Detail::KeyKind, self.value.kind as u64)
            .with(Detail::SecuritySetup, self.group.setup.0.into())
            .with(Detail::KeyVersion, version.into())
            .with(Detail::Group, FactName::of_group(&self.group.name).number());
        match self.allow_unreplicated {
            true => entry.with(Detail::WithoutProof, 1),
            false => entry,
        }
    }
}

impl Lifecycle {
    /// Brings a value to the members that do not have it, as many as one call does.
    pub(super) async fn bring(
        &self,
        call: &AuditedCall,
        errand: &Errand<'_>,
        view: &GroupView,
    ) -> Result<Brought, LifecycleError> {
        let wanting = errand.wanting(view);
        let mut brought =
            Brought { left: wanting.len().saturating_sub(PER_CALL_MAX), ..Brought::default() };
        if wanting.is_empty() {
            return Ok(brought);
        }
        // What somebody said others know is brought to nobody else.
        if errand.is_compromised(view) {
            return Ok(Brought { left: wanting.len(), ..Brought::default() });
        }
        let source = errand.source(view).ok_or_else(|| no_value(errand))?;
        let turn = wanting.get(..PER_CALL_MAX.min(wanting.len())).unwrap_or_default();
        for some in turn.chunks(AT_ONCE) {
            self.bring_some(call, errand, (source, some), &mut brought).await?;
        }
        Ok(brought)
    }

    async fn bring_some(
        &self,
        call: &AuditedCall,
        errand: &Errand<'_>,
        (source, titles): (SystemTitle, &[SystemTitle]),
        brought: &mut Brought,
    ) -> Result<(), LifecycleError> {
        for attempt in 0..TRIES {
            let mut some = Brought::default();
            match self.bring_once(call, errand, (source, titles), &mut some).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                Err(error) => return Err(error),
                Ok(()) => {
                    brought.staged.extend(some.staged);
                    brought.refused.extend(some.refused);
                    return Ok(());
                }
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn bring_once(
        &self,
        call: &AuditedCall,
        errand: &Errand<'_>,
        (source, titles): (SystemTitle, &[SystemTitle]),
        brought: &mut Brought,
    ) -> Result<(), LifecycleError> {
        let lines = self.lines_for(errand, titles).await?;
        let of_lines = lines
            .iter()
            .map(|line| (self.counting.block_of(&line.name), RecordKey::line(&line.name)));
        let of_meters = titles.iter().chain([&source]).flat_map(|title| {
            let block = self.records.block_of(title);
            let member = membership_of(title, errand.group.setup);
            [(block, RecordKey::meter(title)), (block, member)]
        });
        let own = [self.place_of(&errand.group.name)];
        let all: Vec<_> = of_lines.chain(of_meters).chain(own).collect();
        let mut changes = self.writer.change_records(all).await?;
        self.check_wanted(errand, &changes)?;
        let now_ms = self.clock.unix_ms();
        let wish = errand.wish(call);
        let targets = self.targets(errand, &changes, (titles, &wish, now_ms), brought)?;
        let made = self.share(errand, &changes, source, &targets).await?;
        let mut entries = Vec::new();
        for (target, made) in targets.into_iter().zip(made) {
            let Target { title, mut meter, plan } = target;
            let made = match made {
                Ok(made) => self.made_of(made)?,
                Err(why) => {
                    brought.refuse(meter.meter_id, refusal(RefusalCode::NotTaken, why.to_string()));
                    continue;
                }
            };
            stage(&mut meter, &wish, &plan, made, now_ms);
            meter.changed_by = meter.changed_by.next(now_ms);
            let block = self.records.block_of(&title);
            entries.push(errand.entry(call, (&meter, block), (plan.version, now_ms)));
            put(&mut changes, block, Record::Meter(meter));
            brought.staged.push(title);
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.put_lines(errand, &mut changes, &lines)?;
        self.writer.commit(changes, entries).await?;
        Ok(())
    }

    /// Whether the group still wants its members to have this value.
    fn check_wanted(&self, errand: &Errand<'_>, changes: &[Change]) -> Result<(), LifecycleError> {
        let (name, block) = (&errand.group.name, self.place_of(&errand.group.name).0);
        let change = changes.iter().find(|it| it.block() == block).ok_or(LifecycleError::Busy)?;
        let group = alive(change.fact(&FactName::of_group(name)), name)?;
        let wanted = group.wanted(errand.value.kind).map(|value| value.fingerprint);
        if wanted == Some(errand.value.fingerprint) { Ok(()) } else { Err(LifecycleError::Busy) }
    }

    /// The members that get it now. Who can't is told why.
    fn targets(
        &self,
        errand: &Errand<'_>,
        changes: &[Change],
        turn: (&[SystemTitle], &Wish, u64),
        brought: &mut Brought,
    ) -> Result<Vec<Target>, LifecycleError> {
        let (titles, wish, now_ms) = turn;
        let mut targets = Vec::with_capacity(titles.len());
        for title in titles {
            let block = self.records.block_of(title);
            let change = changes.iter().find(|it| it.block() == block);
            let change = change.ok_or(LifecycleError::Busy)?;
            let Ok(Some(Record::Meter(mut meter))) = change.record(title) else { continue };
            let its = group_of(change, title, errand.group.setup);
            let is_member = its.is_some_and(|its| its.group == errand.group.name);
            let has = holding(&meter, errand.place(), errand.value.fingerprint).is_some();
            if !is_member || has {
                continue;
            }
            // What was staged for the group before and never left is in nobody's way.
            withdraw_one(&mut meter, errand.group, (errand.value.kind, now_ms));
            match plan(&meter, wish, &self.config.times, now_ms) {
                Ok(Staging::Make(plan)) => targets.push(Target { title: *title, meter, plan }),
                Ok(Staging::Already(_)) => brought.refuse(meter.meter_id, another_staged()),
                Err(why) => {
                    brought.refuse(meter.meter_id, refusal(why.code(), why.to_string()));
                }
            }
        }
        Ok(targets)
    }

    /// Has the token wrap the value for these members.
    async fn share(
        &self,
        errand: &Errand<'_>,
        changes: &[Change],
        source: SystemTitle,
        targets: &[Target],
    ) -> Result<Vec<Result<MadeValue, crate::hsm::NotMade>>, LifecycleError> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let of = |title: &SystemTitle| {
            let block = self.records.block_of(title);
            changes.iter().find(|change| change.block() == block).ok_or(LifecycleError::Busy)
        };
        let from = of(&source)?;
        // What is stored there may be under another secret of the block by now.
        let Ok(Some(Record::Meter(meter))) = from.record(&source) else {
            return Err(no_value(errand));
        };
        let key = holding(&meter, errand.place(), errand.value.fingerprint);
        let key = key.ok_or_else(|| no_value(errand))?;
        let shared = KeyToShare {
            change: from,
            wrapped: &key.wrapped,
            fingerprint: errand.value.fingerprint,
        };
        let mut wanted = Vec::with_capacity(targets.len());
        for Target { title, plan, .. } in targets {
            wanted.push(KeyToMake {
                block: of(title)?.into(),
                under: None,
                len: len_of(plan),
                kek: &plan.kek_wrapped,
            });
        }
        self.taker.share_key(&shared, &wanted).await.map_err(not_made)
    }

    pub(super) fn made_of(&self, made: MadeValue) -> Result<Made, LifecycleError> {
        let MadeValue { stored, for_meter } = made;
        let kcv = stored.kcv.ok_or_else(|| not_taken("a key has no check value"))?;
        let (wrapped, fingerprint) = (stored.wrapped, stored.fingerprint);
        Ok(Made { id: self.key_id()?, for_meter, wrapped, fingerprint, kcv })
    }

    /// The counter lines that these members ask for: the value has one for each of the utility's titles, whoever has it.
    pub(super) async fn lines_for(
        &self,
        errand: &Errand<'_>,
        titles: &[SystemTitle],
    ) -> Result<Vec<Line>, LifecycleError> {
        let mut lines: BTreeMap<_, Line> = BTreeMap::new();
        // Of a value that was used before it came here, nobody knows but who declares it.
        if !errand.value.made_here {
            return Ok(Vec::new());
        }
        for title in titles {
            let Some(Record::Meter(meter)) = self.records.read(title).await? else { continue };
            let its = self.read_lines_of(&meter, errand.place(), errand.value.fingerprint).await?;
            for line in its {
                let known = lines.entry(line.name).or_insert(line);
                *known = known.merged(&line);
            }
        }
        Ok(lines.into_values().collect())
    }

    /// Puts lines beside what stands: a line rises and never falls, and one that nobody has declared stays so.
    pub(super) fn put_lines(
        &self,
        errand: &Errand<'_>,
        changes: &mut [Change],
        lines: &[Line],
    ) -> Result<(), LifecycleError> {
        debug_assert!(errand.value.made_here || lines.is_empty());
        for line in lines {
            let block = self.counting.block_of(&line.name);
            let change = changes.iter_mut().find(|it| it.block() == block);
            let change = change.ok_or(LifecycleError::Busy)?;
            let stands = change.line(&line.name)?;
            let merged = match stands {
                Some(stands) if stands.offset.is_none() => stands,
                Some(stands) => stands.merged(line),
                None => *line,
            };
            if stands != Some(merged) {
                change.put(Record::Line(merged));
            }
        }
        Ok(())
    }

    /// The blocks of these meters, each once.
    pub(super) fn blocks_of(&self, titles: &[SystemTitle]) -> Vec<BlockNo> {
        let blocks: BTreeSet<BlockNo> =
            titles.iter().map(|title| self.records.block_of(title)).collect();
        blocks.into_iter().collect()
    }
}

fn no_value(errand: &Errand<'_>) -> LifecycleError {
    let kind = errand.value.kind;
    let reason = format!(
        "no member has the {kind} of group {} any more, so nobody can be brought to it: end its rotation, leaving all \
         out, and have a new one made",
        errand.group.name
    );
    LifecycleError::Refused(refusal(RefusalCode::GroupState, reason))
}
