//! A group with its members, and how far each is with its keys: read from the meters' own records.

use std::collections::BTreeMap;

use super::{alone::membership_of, steps::alive};
use crate::lifecycle::{error::LifecycleError, verbs::Lifecycle};
use kms_core::{
    BlockNo, KeyKind, MeterId, MeterRecord, Record, RecordKey, SystemTitle,
    fact::{Fact, FactName, Group, GroupName},
    life::{
        choosing::Place,
        grouping::{MemberState, holding, state_of},
    },
};

/// Blocks that one page of the list of groups looks through: a group lies in any of them.
pub const GROUPS_BLOCKS_A_PAGE: u32 = 256;

/// A member, and how far it is.
#[derive(Clone, Debug)]
pub struct GroupMember {
    /// `None`: its record is gone, or can't be read.
    pub meter_id: Option<MeterId>,
    /// Its title.
    pub title: SystemTitle,
    /// With the GBEK that it is to have.
    pub gbek: MemberState,
    /// With the GAK; `None`: the group has none.
    pub gak: Option<MemberState>,
    /// The version of that GBEK at this meter; 0: it has none.
    pub gbek_version: u16,
    /// The same of the GAK.
    pub gak_version: u16,
    /// Its record, where it is a member by its own block's word.
    pub(super) record: Option<MeterRecord>,
}

/// A group with its members.
#[derive(Clone, Debug)]
pub struct GroupView {
    /// The group.
    pub group: Group,
    /// Its members, in the order of their titles.
    pub members: Vec<GroupMember>,
}

impl GroupMember {
    /// Whether it has confirmed the value of this kind.
    pub fn is_confirmed(&self, kind: KeyKind) -> bool {
        match kind {
            KeyKind::Gak => self.gak.is_some_and(MemberState::is_confirmed),
            _ => self.gbek.is_confirmed(),
        }
    }

    fn of(group: &Group, title: SystemTitle, record: Option<MeterRecord>) -> Self {
        let far = |kind| record.as_ref().and_then(|meter| far(group, kind, meter));
        let nothing = match record {
            Some(_) => MemberState::NotStaged,
            None => MemberState::Gone,
        };
        let (gbek, gbek_version) = far(KeyKind::Gbek).unwrap_or((nothing, 0));
        let (gak, gak_version) = far(KeyKind::Gak).unwrap_or((nothing, 0));
        Self {
            meter_id: record.as_ref().map(|meter| meter.meter_id.clone()),
            title,
            gbek,
            gak: group.wanted(KeyKind::Gak).map(|_| gak),
            gbek_version,
            gak_version,
            record,
        }
    }
}

/// How far a meter is with the value of this kind, and in which version.
fn far(group: &Group, kind: KeyKind, meter: &MeterRecord) -> Option<(MemberState, u16)> {
    let place = Place { setup: group.setup, kind };
    let value = group.wanted(kind)?.fingerprint;
    let version = holding(meter, place, value).map_or(0, |key| key.version);
    Some((state_of(meter, place, value), version))
}

/// The record of a member, where its block says that it is one.
fn member_of(group: &Group, both: &[Option<Record>]) -> Option<MeterRecord> {
    match both {
        [Some(Record::Meter(meter)), Some(Record::Fact(Fact::Membership(its)))]
            if its.stands() && its.group == group.name =>
        {
            Some(meter.clone())
        }
        _ => None,
    }
}

impl GroupView {
    /// Whether no member is behind with the value of this kind.
    pub fn is_complete(&self, kind: KeyKind) -> bool {
        self.members.iter().all(|member| member.is_confirmed(kind))
    }
}

impl Lifecycle {
    /// A group with its members.
    pub async fn show_group(&self, name: &GroupName) -> Result<GroupView, LifecycleError> {
        let group = self.group(name).await?;
        let mut by_block: BTreeMap<BlockNo, Vec<SystemTitle>> = BTreeMap::new();
        for title in &group.members {
            by_block.entry(self.records.block_of(title)).or_default().push(*title);
        }
        let mut members = Vec::with_capacity(group.members.len());
        for (block, titles) in by_block {
            let keys: Vec<RecordKey> = titles
                .iter()
                .flat_map(|title| [RecordKey::meter(title), membership_of(title, group.setup)])
                .collect();
            let read = self.records.stand(block, &keys).await?;
            for (title, both) in titles.iter().zip(read.chunks(2)) {
                let record = member_of(&group, both);
                members.push(GroupMember::of(&group, *title, record));
            }
        }
        members.sort_by_key(|member| member.title);
        Ok(GroupView { group, members })
    }

    /// The groups in some blocks from this one on; and the block where the next page begins, if there is one.
    pub async fn list_groups(
        &self,
        from: BlockNo,
    ) -> Result<(Vec<Group>, Option<BlockNo>), LifecycleError> {
        let end = self.records.blocks().get().min(from.0.saturating_add(GROUPS_BLOCKS_A_PAGE));
        let mut groups = Vec::new();
        for block in from.0..end {
            for fact in self.records.facts_of(BlockNo(block), FactName::GROUP).await? {
                let Fact::Group(Group { name, .. }) = &fact else { continue };
                let name = name.clone();
                groups.extend(alive(Some(fact), &name));
            }
        }
        Ok((groups, (end < self.records.blocks().get()).then_some(BlockNo(end))))
    }
}
