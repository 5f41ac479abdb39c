//! A group as such: made, given up, and its rotation ended. Its own record changes, and no meter's.

use std::collections::BTreeSet;

use super::{
    alone::and_more,
    showing::GroupMember,
    steps::{alive, entry_of, group_state},
};
use crate::{
    keyring::Change,
    lifecycle::{
        error::LifecycleError,
        refusal::refusal,
        verbs::{Lifecycle, TRIES},
    },
};
use kms_core::{
    BlockNo, Fingerprint, KeyKind, MeterId, Record, RecordKey, RefusalCode,
    audit::AuditedCall,
    block::BlockMark,
    fact::{Fact, FactName, Group, GroupName, ValueStage},
};

/// What becomes of a group's record.
pub(super) type Step<'a> =
    dyn Fn(Option<Group>, u64) -> Result<Group, LifecycleError> + Send + Sync + 'a;

impl Lifecycle {
    /// The group of this name, as it is stored.
    pub async fn group(&self, name: &GroupName) -> Result<Group, LifecycleError> {
        alive(self.records.fact(&FactName::of_group(name)).await?, name)
    }

    /// The block and key of a group's record.
    pub(super) fn place_of(&self, name: &GroupName) -> (BlockNo, RecordKey) {
        let fact = FactName::of_group(name);
        (self.records.block_of_fact(&fact), RecordKey::fact(&fact))
    }

    /// Changes a group's record alone.
    pub(super) async fn step_group(
        &self,
        call: &AuditedCall,
        name: &GroupName,
        step: &Step<'_>,
    ) -> Result<(Group, Vec<BlockMark>), LifecycleError> {
        for attempt in 0..TRIES {
            match self.step_group_once(call, name, step).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn step_group_once(
        &self,
        call: &AuditedCall,
        name: &GroupName,
        step: &Step<'_>,
    ) -> Result<(Group, Vec<BlockMark>), LifecycleError> {
        let mut changes = self.writer.change_records([self.place_of(name)]).await?;
        let change: &mut Change = changes.first_mut().ok_or(LifecycleError::Busy)?;
        let known = match change.fact(&FactName::of_group(name)) {
            Some(Fact::Group(group)) => Some(group),
            _ => None,
        };
        let now_ms = self.clock.unix_ms();
        let group = step(known, now_ms)?;
        change.put(Record::Fact(Fact::Group(group.clone())));
        let entry = entry_of(call, (name, change.block()), now_ms);
        let states = self.writer.commit(changes, vec![entry]).await?;
        Ok((group, states))
    }

    /// Makes a group, of which `like` says what it is. One that was given up may be made anew.
    pub async fn create_group(
        &self,
        call: &AuditedCall,
        like: &Group,
    ) -> Result<(Group, Vec<BlockMark>), LifecycleError> {
        let step = |known: Option<Group>, now_ms: u64| {
            if known.is_some_and(|group| group.deleted_ms.is_none()) {
                return Err(group_state(format!(
                    "there is a broadcast group {} already",
                    like.name
                )));
            }
            Ok(Group {
                created_ms: now_ms,
                deleted_ms: None,
                wants_ms: None,
                values: Vec::new(),
                members: Vec::new(),
                ..like.clone()
            })
        };
        self.step_group(call, &like.name, &step).await
    }

    /// Gives up a group that has no members.
    pub async fn delete_group(
        &self,
        call: &AuditedCall,
        name: &GroupName,
    ) -> Result<Vec<BlockMark>, LifecycleError> {
        let step = |known: Option<Group>, now_ms: u64| {
            let mut group = alive(known.map(Fact::Group), name)?;
            if !group.members.is_empty() {
                let count = group.members.len();
                return Err(group_state(format!("{count} meters are members of group {name}")));
            }
            group.deleted_ms = Some(now_ms);
            group.values.iter_mut().for_each(|value| value.stage = ValueStage::Former);
            Ok(group)
        };
        self.step_group(call, name, &step).await.map(|(_, states)| states)
    }

    /// Ends the rotation of a group's key: what members were brought to is its value. Those that have not confirmed it are
    /// named by whoever ends it, exactly.
    pub async fn finish_group_rotation(
        &self,
        call: &AuditedCall,
        (name, kind): (&GroupName, KeyKind),
        left_out: &BTreeSet<MeterId>,
    ) -> Result<(Group, Vec<BlockMark>), LifecycleError> {
        let view = self.show_group(name).await?;
        let target = target_of(&view.group, kind)?;
        let behind = view.members.iter().filter(|member| !member.is_confirmed(kind));
        check_named(behind, left_out)?;
        let roll = view.group.members.clone();
        let step = |known: Option<Group>, _| {
            let mut group = alive(known.map(Fact::Group), name)?;
            let same = group.rotating(kind).is_some_and(|value| value.fingerprint == target);
            if !same || group.members != roll {
                return Err(LifecycleError::Busy);
            }
            group.settle(kind);
            Ok(group)
        };
        // Another one was faster: he sees what it is now.
        let moved = || group_state(format!("group {name} was changed meanwhile: look again"));
        self.step_group(call, name, &step).await.map_err(|error| match error {
            LifecycleError::Busy => moved(),
            error => error,
        })
    }
}

/// The value that members are being brought to.
fn target_of(group: &Group, kind: KeyKind) -> Result<Fingerprint, LifecycleError> {
    let name = &group.name;
    let none = || group_state(format!("no rotation of the {kind} of group {name} is under way"));
    group.rotating(kind).map(|value| value.fingerprint).ok_or_else(none)
}

/// A member's name; its title, where nobody can say its name.
fn name_of(member: &GroupMember) -> String {
    member.meter_id.as_ref().map_or_else(|| member.title.to_string(), MeterId::to_string)
}

fn list(names: &[&String]) -> String {
    let named: Vec<&str> = names.iter().take(16).map(|name| name.as_str()).collect();
    format!("{}{}", named.join(", "), and_more(names.len(), named.len()))
}

/// Whether exactly these were named.
fn check_named<'m>(
    behind: impl Iterator<Item = &'m GroupMember>,
    left_out: &BTreeSet<MeterId>,
) -> Result<(), LifecycleError> {
    let behind: BTreeSet<String> = behind.map(name_of).collect();
    let said: BTreeSet<String> = left_out.iter().map(MeterId::to_string).collect();
    if behind == said {
        return Ok(());
    }
    let missing: Vec<&String> = behind.difference(&said).collect();
    let reason = match missing.is_empty() {
        false => format!(
            "members that have not confirmed the key would hear no broadcast, and are not named as left out: {}",
            list(&missing)
        ),
        true => format!(
            "these have confirmed the key, or are no members, and are not left out: {}",
            list(&said.difference(&behind).collect::<Vec<_>>())
        ),
    };
    Err(LifecycleError::Refused(refusal(RefusalCode::MembersNotNamed, reason)))
}
