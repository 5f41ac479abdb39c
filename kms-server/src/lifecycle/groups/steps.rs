//! What the steps of a group have in common.

use crate::{
    hsm::KeyLen,
    keyring::Change,
    lifecycle::{error::LifecycleError, refusal::refusal},
};
use kms_core::{
    BlockNo, KeyKind, KeyState, MeterId, MeterRecord, Record, RefusalCode, StateReason,
    SystemTitle,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    fact::{Fact, FactName, Group, GroupName},
    life::staging::Plan,
};

pub(super) fn group_state(reason: impl Into<String>) -> LifecycleError {
    LifecycleError::Refused(refusal(RefusalCode::GroupState, reason))
}

fn no_such_group(name: &GroupName) -> LifecycleError {
    let reason = format!("there is no broadcast group {name}: `ami-tool group list` shows them");
    LifecycleError::Refused(refusal(RefusalCode::NoSuchGroup, reason))
}

/// The group, unless it was given up.
pub(super) fn alive(fact: Option<Fact>, name: &GroupName) -> Result<Group, LifecycleError> {
    match fact {
        Some(Fact::Group(group)) if group.deleted_ms.is_none() => Ok(group),
        _ => Err(no_such_group(name)),
    }
}

/// An entry about a group, which is named by the beginning of its hash.
pub(super) fn entry_of(
    call: &AuditedCall,
    (name, block): (&GroupName, BlockNo),
    now_ms: u64,
) -> AuditEntry {
    let subject = Subject { block: Some(block), ..Subject::NONE };
    call.entry(now_ms, subject, AuditOutcome::Done)
        .with(Detail::Group, FactName::of_group(name).number())
}

/// A meter, for the audit log.
pub(super) fn subject_of(id: Option<&MeterId>, title: SystemTitle, block: BlockNo) -> Subject {
    Subject { meter_id: id.cloned(), system_title: Some(title), block: Some(block) }
}

/// Stages a record in its block.
pub(super) fn put(changes: &mut [Change], block: BlockNo, record: Record) {
    if let Some(change) = changes.iter_mut().find(|change| change.block() == block) {
        change.put(record);
    }
}

/// Stages a fact in its block.
pub(super) fn put_fact(changes: &mut [Change], block: BlockNo, fact: Fact) {
    put(changes, block, Record::Fact(fact));
}

/// The length of a key that is to be made.
pub(super) const fn len_of(plan: &Plan) -> KeyLen {
    if plan.value_len == 32 { KeyLen::Aes256 } else { KeyLen::Aes128 }
}

/// Gives up what was staged of one kind for the group and never handed out: nobody has it, so another value may take its
/// place. Whether there was anything.
pub(super) fn withdraw_one(
    meter: &mut MeterRecord,
    group: &Group,
    (kind, now_ms): (KeyKind, u64),
) -> bool {
    let mut changed = false;
    for key in meter.keys.iter_mut().filter(|key| key.kind == kind && key.setup == group.setup) {
        let mut values = group.values.iter().filter(|value| value.kind == kind);
        let of_group = values.any(|value| value.fingerprint == key.fingerprint);
        let never_sent = key.life.transfer.as_ref().is_some_and(|it| it.sent_ms.is_none());
        if of_group && never_sent && key.state == KeyState::PreActive {
            key.go_on(KeyState::Deactivated, StateReason::Withdrawn, now_ms);
            changed = true;
        }
    }
    changed
}
