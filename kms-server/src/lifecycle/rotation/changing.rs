//! One meter's record under change: what all steps of a key's life have in common.

use crate::{
    keyring::{Change, Taker},
    lifecycle::{
        error::LifecycleError,
        refusal::refusal,
        verbs::{Lifecycle, TRIES},
    },
};
use kms_core::{
    KeyKind, MeterId, MeterRecord, Record, RecordKey, SystemTitle,
    audit::{AuditOutcome, AuditedCall, Detail, Subject},
    block::BlockMark,
    life::{NotDone, choosing::Place},
};

/// A step that was done.
pub struct Stepped<T> {
    /// What the step says.
    pub said: T,
    /// The meter as it is now.
    pub meter: MeterRecord,
    /// The state that its block has now; none if nothing was changed.
    pub states: Vec<BlockMark>,
}

/// The key that a step is about, for the audit log.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    pub(super) place: Option<Place>,
    pub(super) version: u16,
    /// From now on it may be handed out without a proof of the other site.
    pub(super) without_proof: bool,
}

impl Lifecycle {
    /// Changes one meter by `step`, which says whether it changed anything; in the audit log as `call` when this returns.
    pub(super) async fn step<T>(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        about: About,
        step: impl Fn(&mut MeterRecord, u64) -> Result<(bool, T), NotDone>,
    ) -> Result<Stepped<T>, LifecycleError> {
        for attempt in 0..TRIES {
            match self.step_once(call, id, about, &step).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn step_once<T>(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        about: About,
        step: &impl Fn(&mut MeterRecord, u64) -> Result<(bool, T), NotDone>,
    ) -> Result<Stepped<T>, LifecycleError> {
        let title = self.title_of(id).await?;
        let key = (self.records.block_of(&title), RecordKey::meter(&title));
        let mut changes = self.writer.change_records([key]).await?;
        let change = changes.first_mut().ok_or_else(|| LifecycleError::NotFound(id.to_string()))?;
        let mut meter = meter_in(change, id, &title)?;
        let now_ms = self.clock.unix_ms();
        let (changed, said) = step(&mut meter, now_ms).map_err(refused)?;
        let block = Some(change.block());
        let subject = Subject { system_title: Some(title), block, ..Subject::meter(id) };
        let mut entry = call.entry(now_ms, subject, AuditOutcome::Done);
        entry = entry.with(if changed { Detail::Updated } else { Detail::Unchanged }, 1);
        for (detail, number) in about.details() {
            entry = entry.with(detail, number);
        }
        if about.without_proof && changed {
            entry = entry.with(Detail::WithoutProof, 1);
        }
        if changed {
            meter.changed_by = meter.changed_by.next(now_ms);
            change.put(Record::Meter(meter.clone()));
        }
        let states = self.writer.commit(changes, vec![entry]).await?;
        Ok(Stepped { said, meter, states })
    }

    pub(super) fn taker(&self) -> &Taker {
        &self.taker
    }
}

impl About {
    pub(super) fn details(self) -> impl Iterator<Item = (Detail, u64)> {
        let place = self.place.into_iter().flat_map(|Place { setup, kind }| {
            [(Detail::KeyKind, kind as u64), (Detail::SecuritySetup, setup.0.into())]
        });
        place.chain((self.version > 0).then_some((Detail::KeyVersion, self.version.into())))
    }
}

/// The meter's record, as the change has it.
pub(super) fn meter_in(
    change: &Change,
    id: &MeterId,
    title: &SystemTitle,
) -> Result<MeterRecord, LifecycleError> {
    match change.record(title)? {
        Some(Record::Meter(meter)) if meter.meter_id == *id => Ok(meter),
        _ => Err(LifecycleError::NotFound(id.to_string())),
    }
}

pub(super) fn refused(why: NotDone) -> LifecycleError {
    LifecycleError::Refused(refusal(why.code(), why.to_string()))
}

/// Counters are of keys that encrypt.
pub(super) const fn has_counters(kind: KeyKind) -> bool {
    matches!(kind, KeyKind::Guek | KeyKind::Gbek)
}
