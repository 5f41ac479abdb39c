//! What can't be done with one member alone: a GAK of its own would end the authenticated broadcasts of its group, a GBEK of
//! its own takes it out of them, and a deletion takes with it what the group has to know.

use crate::{
    keyring::Change,
    lifecycle::{error::LifecycleError, refusal::refusal, verbs::Lifecycle},
};
use kms_core::{
    KeyKind, Record, RecordKey, RefusalCode, SecuritySetup, SystemTitle,
    fact::{Fact, FactName, GroupName, Membership},
    life::choosing::Place,
};

/// Members that a refusal names; of the others it says how many they are.
const NAMED_MAX: usize = 16;

/// The record of a meter's membership with one of its setups: it lies in the meter's block.
pub(in crate::lifecycle) fn membership_of(title: &SystemTitle, setup: SecuritySetup) -> RecordKey {
    RecordKey::fact(&FactName::of_membership(title, setup))
}

/// The group that a meter is a member of with this setup, as its block has it.
pub(in crate::lifecycle) fn group_of(
    change: &Change,
    title: &SystemTitle,
    setup: SecuritySetup,
) -> Option<Membership> {
    match change.fact(&FactName::of_membership(title, setup)) {
        Some(Fact::Membership(membership)) if membership.stands() => Some(membership),
        _ => None,
    }
}

/// The group whose broadcasts a key of this meter alone would break.
pub(in crate::lifecycle) fn concerned(
    change: &Change,
    title: &SystemTitle,
    place: Place,
) -> Option<GroupName> {
    let membership = group_of(change, title, place.setup)?;
    let concerns = match place.kind {
        KeyKind::Gbek => true,
        KeyKind::Gak => membership.authenticated,
        _ => false,
    };
    concerns.then_some(membership.group)
}

/// A meter is not deleted while it is a member.
pub(in crate::lifecycle) fn still_member(group: &GroupName) -> LifecycleError {
    let reason = format!(
        "the meter is a member of broadcast group {group}, and knows its GBEK: take it out first (`ami-tool group \
         remove {group} …`), so that the group wants another one"
    );
    LifecycleError::Refused(refusal(RefusalCode::GroupMember, reason))
}

fn is_groups(group: &GroupName) -> LifecycleError {
    let reason = format!(
        "the meter's GBEK is that of broadcast group {group}, one value for all of its members: rotate it with the \
         group (`ami-tool group rotate {group}`)"
    );
    LifecycleError::Refused(refusal(RefusalCode::GroupKey, reason))
}

fn breaks(group: &GroupName, members: &str) -> LifecycleError {
    let reason = format!(
        "broadcast group {group} is authenticated with this GAK ({members}): a meter with a GAK of its own would refuse \
         its broadcasts. Rotate the GAK with the group (`ami-tool group rotate {group} GAK`), or take the meter out first"
    );
    LifecycleError::Refused(refusal(RefusalCode::BreaksBroadcast, reason))
}

/// So many more than are named.
pub(super) fn and_more(all: usize, named: usize) -> String {
    match all.saturating_sub(named) {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}

impl Lifecycle {
    /// Why a key of this kind is not staged at one member alone, with the group and its members named.
    pub(in crate::lifecycle) async fn not_alone(
        &self,
        group: &GroupName,
        kind: KeyKind,
    ) -> LifecycleError {
        if kind != KeyKind::Gak {
            return is_groups(group);
        }
        match self.members_named(group).await {
            Ok(members) => breaks(group, &members),
            // Without its members' names it is refused all the same.
            Err(_) => breaks(group, "its members can't be read now"),
        }
    }

    async fn members_named(&self, name: &GroupName) -> Result<String, LifecycleError> {
        let group = self.group(name).await?;
        let first = group.members.get(..NAMED_MAX.min(group.members.len())).unwrap_or_default();
        let mut names = Vec::with_capacity(first.len());
        for title in first {
            names.push(match self.records.read(title).await? {
                Some(Record::Meter(meter)) => meter.meter_id.to_string(),
                _ => title.to_string(),
            });
        }
        let more = and_more(group.members.len(), names.len());
        Ok(format!("members: {}{more}", names.join(", ")))
    }

    /// The setups in which a meter has keys, as its record says.
    pub(in crate::lifecycle) async fn setups_of(
        &self,
        title: &SystemTitle,
    ) -> Result<Vec<SecuritySetup>, LifecycleError> {
        let Some(Record::Meter(meter)) = self.records.read(title).await? else {
            return Ok(Vec::new());
        };
        let mut setups: Vec<SecuritySetup> = meter.keys.iter().map(|key| key.setup).collect();
        setups.dedup();
        Ok(setups)
    }
}
