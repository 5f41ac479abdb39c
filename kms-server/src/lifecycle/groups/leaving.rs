//! Meters leave a group. Whoever may have its GBEK can read and forge what is broadcast, so the group wants another one
//! since. What was staged there and never handed out is withdrawn.

use std::collections::BTreeSet;

use super::{
    AT_ONCE,
    alone::membership_of,
    steps::{alive, entry_of, put_fact, subject_of, withdraw_one},
};
use crate::{
    keyring::Change,
    lifecycle::{
        error::LifecycleError,
        refusal::{Refusal, refusal},
        verbs::{Lifecycle, TRIES},
    },
};
use kms_core::{
    KeyKind, MeterId, MeterRecord, Record, RecordKey, RefusalCode, SystemTitle,
    audit::{AuditOutcome, AuditedCall, Detail},
    block::BlockMark,
    fact::{Fact, FactName, Group, GroupName},
    life::{choosing::Place, grouping::state_of},
};

/// Meters that left a group.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// How many.
    pub removed: usize,
    /// The group wants another GBEK.
    pub wants_gbek: bool,
    /// Meters that were no members, and the like.
    pub refused: Vec<(MeterId, Refusal)>,
    /// The states that blocks have now.
    pub states: Vec<BlockMark>,
}

impl Lifecycle {
    /// Takes meters out of a group: by their ids, and by title those whose records are gone.
    pub async fn remove_members(
        &self,
        call: &AuditedCall,
        name: &GroupName,
        (ids, titles): (&[MeterId], &[SystemTitle]),
    ) -> Result<Left, LifecycleError> {
        self.writer.check_writes()?;
        let group = self.group(name).await?;
        let (mut left, mut leavers) = (Left::default(), titles.to_vec());
        for id in ids {
            match self.title_of(id).await {
                Ok(title) if group.has(&title) => leavers.push(title),
                Ok(_) | Err(LifecycleError::NotFound(_)) => {
                    left.refused.push((id.clone(), no_member()));
                }
                Err(error) => return Err(error),
            }
        }
        let leavers: BTreeSet<SystemTitle> =
            leavers.into_iter().filter(|title| group.has(title)).collect();
        let leavers: Vec<SystemTitle> = leavers.into_iter().collect();
        left.wants_gbek = group.wants_ms.is_some();
        for some in leavers.chunks(AT_ONCE) {
            self.leave_some(call, (name, some), &mut left).await?;
        }
        Ok(left)
    }

    async fn leave_some(
        &self,
        call: &AuditedCall,
        (name, some): (&GroupName, &[SystemTitle]),
        left: &mut Left,
    ) -> Result<(), LifecycleError> {
        for attempt in 0..TRIES {
            match self.leave_once(call, (name, some)).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                Err(error) => return Err(error),
                Ok((removed, wants, states)) => {
                    left.removed += removed;
                    left.wants_gbek |= wants;
                    left.states.extend(states);
                    return Ok(());
                }
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn leave_once(
        &self,
        call: &AuditedCall,
        (name, some): (&GroupName, &[SystemTitle]),
    ) -> Result<(usize, bool, Vec<BlockMark>), LifecycleError> {
        let setup = self.group(name).await?.setup;
        let at = self.place_of(name);
        let of_meters = some.iter().flat_map(|title| {
            let block = self.records.block_of(title);
            [(block, RecordKey::meter(title)), (block, membership_of(title, setup))]
        });
        let mut changes = self.writer.change_records(of_meters.chain([at])).await?;
        let own = changes.iter().find(|it| it.block() == at.0).ok_or(LifecycleError::Busy)?;
        let mut group = alive(own.fact(&FactName::of_group(name)), name)?;
        let now_ms = self.clock.unix_ms();
        let (mut entries, mut removed) = (Vec::new(), 0);
        for title in some {
            let Ok(place) = group.members.binary_search(title) else { continue };
            let block = self.records.block_of(title);
            let change = changes.iter_mut().find(|it| it.block() == block);
            let change = change.ok_or(LifecycleError::Busy)?;
            let (meter, knows) = leaves(change, &group, title, now_ms);
            group.members.remove(place);
            // Where nobody can say what it has, it may have it.
            if knows {
                // Later than every value that it may have, whatever clocks say.
                let values = group.in_flight(KeyKind::Gbek).map(|value| value.since_ms);
                let newest = values.max().unwrap_or_default();
                group.wants_ms = group.wants_ms.max(Some(now_ms.max(newest)));
            }
            let id = meter.as_ref().map(|meter| &meter.meter_id);
            let subject = subject_of(id, *title, block);
            let entry = call.entry(now_ms, subject, AuditOutcome::Done);
            entries.push(
                entry
                    .with(Detail::Updated, 1)
                    .with(Detail::Group, FactName::of_group(name).number()),
            );
            removed += 1;
        }
        if removed == 0 {
            return Ok((0, group.wants_ms.is_some(), Vec::new()));
        }
        entries.push(entry_of(call, (name, at.0), now_ms));
        let wants = group.wants_ms.is_some();
        put_fact(&mut changes, at.0, Fact::Group(group));
        Ok((removed, wants, self.writer.commit(changes, entries).await?))
    }
}

fn no_member() -> Refusal {
    refusal(RefusalCode::GroupMember, "it is no member of this group")
}

/// Ends a meter's membership in its own block. Its record, and whether it may know what the group sends under.
fn leaves(
    change: &mut Change,
    group: &Group,
    title: &SystemTitle,
    now_ms: u64,
) -> (Option<MeterRecord>, bool) {
    end_membership(change, group, title, now_ms);
    let Ok(Some(Record::Meter(mut meter))) = change.record(title) else {
        return (None, group.in_flight(KeyKind::Gbek).next().is_some());
    };
    let place = Place { setup: group.setup, kind: KeyKind::Gbek };
    let mut values = group.in_flight(KeyKind::Gbek);
    let knows = values.any(|value| state_of(&meter, place, value.fingerprint).may_hold());
    drop(values);
    if withdraw(&mut meter, group, now_ms) {
        meter.changed_by = meter.changed_by.next(now_ms);
        change.put(Record::Meter(meter.clone()));
    }
    (Some(meter), knows)
}

fn end_membership(change: &mut Change, group: &Group, title: &SystemTitle, now_ms: u64) {
    if let Some(Fact::Membership(mut its)) =
        change.fact(&FactName::of_membership(title, group.setup))
        && its.stands()
        && its.group == group.name
    {
        its.left_ms = Some(now_ms);
        change.put(Record::Fact(Fact::Membership(its)));
    }
}

/// Gives up what was staged for the group and never handed out. Whether there was anything.
fn withdraw(meter: &mut MeterRecord, group: &Group, now_ms: u64) -> bool {
    let both = [KeyKind::Gbek, KeyKind::Gak];
    both.map(|kind| withdraw_one(meter, group, (kind, now_ms))).contains(&true)
}
