//! Meters come into a group. That one is a member stands in its own block; the group's record has its title.

use super::{
    AT_ONCE,
    alone::membership_of,
    bringing::{Brought, Errand},
    steps::{alive, entry_of, put_fact, subject_of},
};
use crate::lifecycle::{
    error::LifecycleError,
    refusal::{Refusal, refusal},
    verbs::{Lifecycle, TRIES},
};
use kms_core::{
    KeyKind, MeterId, MeterRecord, Protection, Record, RecordKey, RefusalCode, SystemTitle,
    audit::{AuditOutcome, AuditedCall, Detail},
    block::BlockMark,
    fact::{Fact, FactName, Group, GroupName, GroupValue, MEMBERS_MAX, Membership, ValueStage},
    life::{choosing::Place, grouping::fits},
};

/// Meters that came into a group.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    /// Members that are new.
    pub added: usize,
    /// Members that have the group's keys staged since.
    pub staged: usize,
    /// Meters that are no members, or have not got its keys, and why.
    pub refused: Vec<(MeterId, Refusal)>,
    /// The states that blocks have now.
    pub states: Vec<BlockMark>,
}

/// A meter that is to come in.
struct Newcomer {
    id: MeterId,
    title: SystemTitle,
}

impl Lifecycle {
    /// Takes meters into a group. Whoever does not have its GBEK has it staged.
    pub async fn add_members(
        &self,
        call: &AuditedCall,
        (name, ids): (&GroupName, &[MeterId]),
        allow_unreplicated: bool,
    ) -> Result<Joined, LifecycleError> {
        self.writer.check_writes()?;
        let group = self.group(name).await?;
        let mut joined = Joined::default();
        let records = self.records_of(ids, &mut joined).await?;
        let newcomer = |meter: &MeterRecord| Newcomer {
            id: meter.meter_id.clone(),
            title: meter.system_title,
        };
        let newcomers: Vec<Newcomer> = records.iter().map(newcomer).collect();
        let shared = shared_by_all(&group, &records);
        let like = self.like(&group, &records).await?;
        for some in newcomers.chunks(AT_ONCE) {
            self.join_some(call, (name, some), (shared, like.as_ref()), &mut joined).await?;
        }
        self.bring_all(call, name, allow_unreplicated, &mut joined).await?;
        Ok(joined)
    }

    /// The records of these meters; those that there are not are refused.
    async fn records_of(
        &self,
        ids: &[MeterId],
        joined: &mut Joined,
    ) -> Result<Vec<MeterRecord>, LifecycleError> {
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            match self.get(id).await {
                Ok(view) => records.push(view.record),
                Err(LifecycleError::NotFound(_)) => joined.refused.push((id.clone(), no_meter())),
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }

    /// A meter that all others are to be like.
    async fn like(
        &self,
        group: &Group,
        records: &[MeterRecord],
    ) -> Result<Option<MeterRecord>, LifecycleError> {
        match group.members.first() {
            Some(title) => self.meter_at(title).await,
            None => Ok(records.first().cloned()),
        }
    }

    async fn meter_at(&self, title: &SystemTitle) -> Result<Option<MeterRecord>, LifecycleError> {
        match self.records.read(title).await? {
            Some(Record::Meter(meter)) => Ok(Some(meter)),
            _ => Ok(None),
        }
    }

    /// What the group has, and new members do not.
    async fn bring_all(
        &self,
        call: &AuditedCall,
        name: &GroupName,
        allow_unreplicated: bool,
        joined: &mut Joined,
    ) -> Result<(), LifecycleError> {
        for kind in [KeyKind::Gbek, KeyKind::Gak] {
            let view = self.show_group(name).await?;
            let Some(value) = view.group.wanted(kind).copied() else { continue };
            // The settled GAK is what members come with.
            if kind == KeyKind::Gak && value.stage != ValueStage::Rotating {
                continue;
            }
            let group = view.group.clone();
            let errand = Errand { group: &group, value, allow_unreplicated };
            let Brought { staged, refused, .. } = self.bring(call, &errand, &view).await?;
            joined.staged += staged.len();
            joined.refused.extend(refused);
        }
        Ok(())
    }

    async fn join_some(
        &self,
        call: &AuditedCall,
        (name, some): (&GroupName, &[Newcomer]),
        how: (Option<GroupValue>, Option<&MeterRecord>),
        joined: &mut Joined,
    ) -> Result<(), LifecycleError> {
        for attempt in 0..TRIES {
            let mut now = Joined::default();
            match self.join_once(call, (name, some), how, &mut now).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                Err(error) => return Err(error),
                Ok(()) => {
                    joined.added += now.added;
                    joined.refused.extend(now.refused);
                    joined.states.extend(now.states);
                    return Ok(());
                }
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn join_once(
        &self,
        call: &AuditedCall,
        (name, some): (&GroupName, &[Newcomer]),
        how: (Option<GroupValue>, Option<&MeterRecord>),
        joined: &mut Joined,
    ) -> Result<(), LifecycleError> {
        let setup = self.group(name).await?.setup;
        let at = self.place_of(name);
        let of_meters = some.iter().flat_map(|Newcomer { title, .. }| {
            let block = self.records.block_of(title);
            [(block, RecordKey::meter(title)), (block, membership_of(title, setup))]
        });
        let mut changes = self.writer.change_records(of_meters.chain([at])).await?;
        let own = changes.iter().find(|it| it.block() == at.0).ok_or(LifecycleError::Busy)?;
        let mut group = alive(own.fact(&FactName::of_group(name)), name)?;
        let before = group.clone();
        let now_ms = self.clock.unix_ms();
        let mut entries = Vec::new();
        for Newcomer { id, title } in some {
            let block = self.records.block_of(title);
            let change = changes.iter_mut().find(|it| it.block() == block);
            let change = change.ok_or(LifecycleError::Busy)?;
            let known = change.fact(&FactName::of_membership(title, setup));
            let meter = match change.record(title)? {
                Some(Record::Meter(meter)) if meter.meter_id == *id => meter,
                _ => return Err(LifecycleError::Busy),
            };
            match enters(&mut group, &meter, (known, how), now_ms) {
                Ok(None) => {}
                Ok(Some(membership)) => {
                    change.put(Record::Fact(Fact::Membership(membership)));
                    let subject = subject_of(Some(id), *title, block);
                    let entry = call.entry(now_ms, subject, AuditOutcome::Done);
                    entries.push(
                        entry
                            .with(Detail::Created, 1)
                            .with(Detail::Group, FactName::of_group(name).number()),
                    );
                    joined.added += 1;
                }
                Err(why) => joined.refused.push((id.clone(), why)),
            }
        }
        if group == before && entries.is_empty() {
            return Ok(());
        }
        entries.push(entry_of(call, (name, at.0), now_ms));
        put_fact(&mut changes, at.0, Fact::Group(group));
        joined.states = self.writer.commit(changes, entries).await?;
        Ok(())
    }
}

fn no_meter() -> Refusal {
    refusal(RefusalCode::UnfitForGroup, "there is no such meter")
}

fn full() -> Refusal {
    let reason = format!("the group has {MEMBERS_MAX} members, and that is the most");
    refusal(RefusalCode::GroupState, reason)
}

/// Takes a meter into a group, unless it is in there: the membership that is to be stored then.
fn enters(
    group: &mut Group,
    meter: &MeterRecord,
    (known, how): (Option<Fact>, (Option<GroupValue>, Option<&MeterRecord>)),
    now_ms: u64,
) -> Result<Option<Membership>, Refusal> {
    let (shared, like) = how;
    let title = meter.system_title;
    let stands = match known {
        Some(Fact::Membership(known)) if known.stands() => Some(known),
        _ => None,
    };
    if let Some(known) = &stands
        && known.group != group.name
    {
        let reason = format!("it is a member of group {} with this setup", known.group);
        return Err(refusal(RefusalCode::GroupMember, reason));
    }
    fits(group, meter, like).map_err(|why| refusal(RefusalCode::UnfitForGroup, why.to_string()))?;
    if !group.has(&title) && group.members.len() >= MEMBERS_MAX {
        return Err(full());
    }
    group.add(title);
    if group.authenticated && group.wanted(KeyKind::Gak).is_none() {
        group.values.extend(value_of(meter, group, KeyKind::Gak));
    }
    if let Some(shared) = shared
        && group.wanted(KeyKind::Gbek).is_none()
    {
        group.put_value(shared);
    }
    Ok(match stands {
        Some(_) => None,
        None => Some(Membership {
            title,
            setup: group.setup,
            group: group.name.clone(),
            authenticated: group.authenticated,
            since_ms: now_ms,
            left_ms: None,
        }),
    })
}

/// The value of this kind that a meter came with.
fn value_of(meter: &MeterRecord, group: &Group, kind: KeyKind) -> Option<GroupValue> {
    let key = Place { setup: group.setup, kind }.preferred(meter)?;
    Some(GroupValue {
        kind,
        since_ms: key.created_ms,
        fingerprint: key.fingerprint,
        kcv: key.kcv.unwrap_or_default(),
        stage: ValueStage::Settled,
        made_here: false,
    })
}

/// The GBEK that all of these came with: it is the group's, where that has none. Of meters with a GBEK each, none is.
fn shared_by_all(group: &Group, meters: &[MeterRecord]) -> Option<GroupValue> {
    let place = Place { setup: group.setup, kind: KeyKind::Gbek };
    let in_memory = |meter: &MeterRecord| {
        place.preferred(meter).is_some_and(|key| key.protection == Protection::Memory)
    };
    let mut values = meters.iter().map(|meter| value_of(meter, group, KeyKind::Gbek));
    let first = values.next()??;
    let is_one = values.all(|value| value.is_some_and(|it| it.fingerprint == first.fingerprint));
    (is_one && meters.iter().all(in_memory)).then_some(first)
}
