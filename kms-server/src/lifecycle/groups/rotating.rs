//! One new value for a group. It is made for the first member that can have it, in one commit with the group's record,
//! which names it from then on: whatever is lost after that, it is this value that the others are brought to.

use super::{
    bringing::{Brought, Errand},
    showing::{GroupMember, GroupView},
    steps::{alive, entry_of, group_state, len_of, put, put_fact, withdraw_one},
};
use crate::{
    keyring::KeyToMake,
    lifecycle::{
        error::LifecycleError,
        refusal::refusal,
        rotation::{not_made, not_taken},
        verbs::{Lifecycle, TRIES},
    },
};
use kms_core::{
    Fingerprint, KeyKind, MeterRecord, Record, RecordKey, SystemTitle,
    audit::AuditedCall,
    counters::Line,
    fact::{Fact, FactName, Group, GroupName, GroupValue, ValueStage},
    life::{
        NotDone,
        choosing::Place,
        staging::{Made, Plan, Staging, plan, stage},
    },
    ports::Proved,
};

/// How far a group's rotation is.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// The new value.
    pub value: GroupValue,
    /// It was begun before.
    pub already: bool,
    /// What this call brought to members.
    pub brought: Brought,
    /// Whether the other site has proved that it has what this call staged.
    pub proved: Proved,
}

/// A value that was made for one member, and is nowhere stored yet.
struct First {
    title: SystemTitle,
    plan: Plan,
    made: Made,
    secret_version: u32,
    lines: Vec<Line>,
}

/// A value of which nothing is known yet but its kind.
fn unmade(kind: KeyKind) -> GroupValue {
    let stage = ValueStage::Rotating;
    GroupValue {
        kind,
        since_ms: 0,
        fingerprint: Fingerprint([0; 16]),
        kcv: [0; 5],
        stage,
        made_here: true,
    }
}

impl Lifecycle {
    /// Has a new GBEK or GAK made for a group, or goes on with the one that its members are being brought to.
    pub async fn rotate_group_key(
        &self,
        call: &AuditedCall,
        (name, kind): (&GroupName, KeyKind),
        allow_unreplicated: bool,
    ) -> Result<Rotated, LifecycleError> {
        self.writer.check_writes()?;
        let mut view = self.show_group(name).await?;
        let already = view.group.rotating(kind).is_some();
        let mut first = None;
        if !already {
            check_begins(&view, kind)?;
            first = Some(self.begin(call, &view, (kind, allow_unreplicated)).await?);
            view = self.show_group(name).await?;
        }
        let value = *view.group.rotating(kind).ok_or(LifecycleError::Busy)?;
        let group = view.group.clone();
        let errand = Errand { group: &group, value, allow_unreplicated };
        if errand.is_compromised(&view) {
            return Err(group_state(format!(
                "the {kind} that group {name} is being brought to is compromised: end its rotation, leaving out the members \
                 that have it (`ami-tool group finish`), and rotate again"
            )));
        }
        let mut brought = self.bring(call, &errand, &view).await?;
        brought.staged.extend(first);
        let proved = self.prove_at(&brought.staged).await;
        Ok(Rotated { value, already, brought, proved })
    }

    /// Whether the other site has proved what these have.
    async fn prove_at(&self, titles: &[SystemTitle]) -> Proved {
        match titles.is_empty() {
            true => Proved::NotApplicable,
            false => self.proofs.prove(&self.blocks_of(titles)).await,
        }
    }

    /// Has the value made for the first member that can have it: its title.
    async fn begin(
        &self,
        call: &AuditedCall,
        view: &GroupView,
        (kind, allow_unreplicated): (KeyKind, bool),
    ) -> Result<SystemTitle, LifecycleError> {
        let errand = Errand { group: &view.group, value: unmade(kind), allow_unreplicated };
        let mut why = None;
        let members = view.members.iter();
        for (meter, title) in members.filter_map(|it| Some((it.record.as_ref()?, it.title))) {
            match self.plan_for(call, &errand, meter) {
                Ok(_) => match self.begin_at(call, &errand, (view, title)).await {
                    Ok(()) => return Ok(title),
                    // Of this member: the next one may have a KEK that opens.
                    Err(error @ LifecycleError::Refused(_)) => why = Some(error),
                    Err(error) => return Err(error),
                },
                Err(error) => why = Some(error),
            }
        }
        Err(why.unwrap_or_else(|| nobody(&view.group.name)))
    }

    fn plan_for(
        &self,
        call: &AuditedCall,
        errand: &Errand<'_>,
        meter: &MeterRecord,
    ) -> Result<Plan, LifecycleError> {
        let refused = |why: NotDone| {
            let reason = format!("meter {}: {why}", meter.meter_id);
            LifecycleError::Refused(refusal(why.code(), reason))
        };
        let (wish, now_ms) = (errand.wish(call), self.clock.unix_ms());
        let mut meter = meter.clone();
        withdraw_one(&mut meter, errand.group, (errand.value.kind, now_ms));
        match plan(&meter, &wish, &self.config.times, now_ms).map_err(refused)? {
            Staging::Make(plan) => Ok(plan),
            Staging::Already(_) => Err(group_state(format!(
                "meter {}: another value is staged there, which is not the group's: destroy that one first",
                meter.meter_id
            ))),
        }
    }

    async fn begin_at(
        &self,
        call: &AuditedCall,
        errand: &Errand<'_>,
        (view, title): (&GroupView, SystemTitle),
    ) -> Result<(), LifecycleError> {
        for attempt in 0..TRIES {
            let first = self.make_first(call, errand, (view, title)).await?;
            match self.store_first(call, errand, first).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    /// The value, and where its counters begin: above the lines of all keys that members may hold.
    async fn make_first(
        &self,
        call: &AuditedCall,
        errand: &Errand<'_>,
        (view, title): (&GroupView, SystemTitle),
    ) -> Result<First, LifecycleError> {
        let own = (self.records.block_of(&title), RecordKey::meter(&title));
        let changes = self.writer.change_records([own]).await?;
        let change = changes.first().ok_or(LifecycleError::Busy)?;
        let Some(Record::Meter(meter)) = change.record(&title)? else {
            return Err(LifecycleError::Busy);
        };
        let plan = self.plan_for(call, errand, &meter)?;
        let secret_version = change.secret_version();
        let block = change.into();
        let wanted = KeyToMake { block, under: None, len: len_of(&plan), kek: &plan.kek_wrapped };
        let made = self.taker.make_keys(&[wanted]).await.map_err(not_made)?;
        let made = made.into_iter().next().ok_or_else(|| not_taken("no key was made"))?;
        let made = self.made_of(made.map_err(|why| not_taken(&why.to_string()))?)?;
        drop(changes);
        let value = GroupValue { fingerprint: made.fingerprint, ..errand.value };
        let of_value = Errand { value, ..*errand };
        let lines = self.lines_for(&of_value, &one_of_each(view, errand.place())).await?;
        Ok(First { title, plan, made, secret_version, lines })
    }

    /// Commits the member's key, its lines and the group's record, if all is as it was planned for.
    async fn store_first(
        &self,
        call: &AuditedCall,
        errand: &Errand<'_>,
        first: First,
    ) -> Result<(), LifecycleError> {
        let First { title, plan: planned, made, secret_version, lines } = first;
        let own = (self.records.block_of(&title), RecordKey::meter(&title));
        let name = &errand.group.name;
        let group_at = self.place_of(name);
        let of_lines = lines
            .iter()
            .map(|line| (self.counting.block_of(&line.name), RecordKey::line(&line.name)));
        let mut changes = self.writer.change_records(of_lines.chain([own, group_at])).await?;
        let at = |block| changes.iter().find(|it| it.block() == block).ok_or(LifecycleError::Busy);
        let mut group = alive(at(group_at.0)?.fact(&FactName::of_group(name)), name)?;
        let (kind, change) = (errand.value.kind, at(own.0)?);
        let Some(Record::Meter(mut meter)) = change.record(&title)? else {
            return Err(LifecycleError::Busy);
        };
        let same = self.plan_for(call, errand, &meter)? == planned;
        if !same
            || change.secret_version() != secret_version
            || [KeyKind::Gbek, KeyKind::Gak].into_iter().any(|it| group.rotating(it).is_some())
            || !group.has(&title)
        {
            return Err(LifecycleError::Busy);
        }
        let now_ms = self.clock.unix_ms();
        let value = GroupValue {
            since_ms: after_all(&group, kind, now_ms),
            fingerprint: made.fingerprint,
            kcv: made.kcv,
            ..errand.value
        };
        group.put_value(value);
        withdraw_one(&mut meter, errand.group, (kind, now_ms));
        stage(&mut meter, &errand.wish(call), &planned, made, now_ms);
        meter.changed_by = meter.changed_by.next(now_ms);
        let entries = vec![
            entry_of(call, (name, group_at.0), now_ms),
            Errand { value, ..*errand }.entry(call, (&meter, own.0), (planned.version, now_ms)),
        ];
        put(&mut changes, own.0, Record::Meter(meter));
        put_fact(&mut changes, group_at.0, Fact::Group(group));
        self.put_lines(errand, &mut changes, &lines)?;
        self.writer.commit(changes, entries).await?;
        Ok(())
    }
}

fn nobody(name: &GroupName) -> LifecycleError {
    group_state(format!("group {name} has no member that could have a key"))
}

/// Members that differ in the keys of this place: what one of each has says where a new line begins.
fn one_of_each(view: &GroupView, place: Place) -> Vec<SystemTitle> {
    let mut seen = Vec::new();
    let mut titles = Vec::new();
    for GroupMember { title, record, .. } in &view.members {
        let Some(meter) = record else { continue };
        let live = place.versions(meter).filter(|key| key.is_live());
        let has: Vec<Fingerprint> = live.map(|key| key.fingerprint).collect();
        let policy = &meter.policy;
        let is = (has, policy.profile.clone(), policy.client_title, policy.client_titles.clone());
        if !seen.contains(&is) {
            seen.push(is);
            titles.push(*title);
        }
    }
    titles
}

/// A time after all values of the kind: the newest is the latest, whatever clocks say.
fn after_all(group: &Group, kind: KeyKind, now_ms: u64) -> u64 {
    let of_kind = group.values.iter().filter(|value| value.kind == kind);
    let latest = of_kind.map(|value| value.since_ms.saturating_add(1)).max().unwrap_or_default();
    now_ms.max(latest)
}

fn check_begins(view: &GroupView, kind: KeyKind) -> Result<(), LifecycleError> {
    let GroupView { group, members } = view;
    let name = &group.name;
    let other = if kind == KeyKind::Gak { KeyKind::Gbek } else { KeyKind::Gak };
    if group.rotating(other).is_some() {
        return Err(group_state(format!(
            "the rotation of the {other} of group {name} is under way: end that one first"
        )));
    }
    if kind == KeyKind::Gak && !group.authenticated {
        return Err(group_state(format!(
            "the broadcasts of group {name} have no tag: it has no GAK"
        )));
    }
    if members.is_empty() {
        return Err(group_state(format!("group {name} has no members")));
    }
    Ok(())
}
