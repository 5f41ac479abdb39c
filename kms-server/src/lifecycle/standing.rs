//! A person's decisions about one meter: its policy, and that a deleted one may come back.

use super::{
    error::LifecycleError,
    import::checks::known_profile,
    refusal::{Refusal, refusal},
    verbs::{Lifecycle, TRIES},
    view::MeterView,
};
use kms_core::{
    FormerKey, MeterId, MeterPolicy, Record, RecordKey, RefusalCode, SystemTitle,
    audit::{AuditOutcome, AuditedCall, Detail, Subject},
    block::BlockMark,
};

/// A deleted meter that may come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readmitted {
    /// Milliseconds since 1970: sealed files are taken that were sealed later.
    pub deleted_ms: u64,
    /// Key values that stay known.
    pub keys_known: usize,
    /// Of those, values that were active, and may come back.
    pub keys_that_may_come_back: usize,
}

impl Lifecycle {
    /// Replaces a meter's policy. What was done is in the audit log as `call` when this returns; a
    /// failure is for the caller to record. What comes back is the meter, and the state that its block has now.
    pub async fn set_policy(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        policy: &MeterPolicy,
    ) -> Result<(MeterView, Vec<BlockMark>), LifecycleError> {
        for attempt in 0..TRIES {
            match self.set_policy_once(call, id, policy, attempt).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                Err(error) => return Err(error),
                Ok((title, states)) => return Ok((self.get_by_title(&title).await?, states)),
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn set_policy_once(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        policy: &MeterPolicy,
        attempt: u32,
    ) -> Result<(SystemTitle, Vec<BlockMark>), LifecycleError> {
        let not_found = || LifecycleError::NotFound(id.to_string());
        let title = self.title_of(id).await?;
        if attempt > 0
            && let Some(reason) = self.index_lie(id, &title).await?
        {
            return Err(LifecycleError::Damaged { reason });
        }
        let key = (self.records.block_of(&title), RecordKey::meter(&title));
        let mut changes = self.writer.change_records([key]).await?;
        let change = changes.first_mut().ok_or_else(not_found)?;
        let Some(Record::Meter(mut meter)) = change.record(&title)? else {
            return Err(not_found());
        };
        if meter.meter_id != *id {
            return Err(not_found());
        }
        if let Some(name) =
            policy.profile.as_ref().filter(|_| meter.policy.profile != policy.profile)
        {
            known_profile(&self.profiles, name)?;
        }
        let now_ms = self.clock.unix_ms();
        let block = Some(change.block());
        let subject = Subject { system_title: Some(title), block, ..Subject::meter(id) };
        let detail = if meter.policy == *policy { Detail::Unchanged } else { Detail::Updated };
        let entry = call.entry(now_ms, subject, AuditOutcome::Done).with(detail, 1);
        meter.policy = policy.clone();
        // Later than every file that was sealed until now, also where it confirms what is there: none of
        // them brings another policy.
        meter.changed_by = meter.changed_by.next(now_ms);
        change.put(Record::Meter(meter));
        let states = self.writer.commit(changes, vec![entry]).await?;
        Ok((title, states))
    }

    /// Lets a deleted meter come back: what is sealed after its deletion, or comes in clear where that is
    /// allowed, creates it again, without the keys that were given up. To readmit it twice changes
    /// nothing. What was done is in the audit log as `call` when this returns; a failure is for the caller
    /// to record. What comes back besides is the state that its block has now.
    pub async fn readmit(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        title: &SystemTitle,
    ) -> Result<(Readmitted, Vec<BlockMark>), LifecycleError> {
        for attempt in 0..TRIES {
            match self.readmit_once(call, id, title).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn readmit_once(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        title: &SystemTitle,
    ) -> Result<(Readmitted, Vec<BlockMark>), LifecycleError> {
        let not_found = || LifecycleError::NotFound(format!("{id} with system title {title}"));
        let mut changes = self.writer.change(&[self.records.block_of(title)]).await?;
        let change = changes.first_mut().ok_or_else(not_found)?;
        let mut tombstone = match change.record(title)? {
            // A buried record's id is not always known: then the title alone names it.
            Some(Record::Tombstone(tombstone))
                if tombstone.meter_id.as_ref().is_none_or(|known| known == id) =>
            {
                tombstone
            }
            Some(Record::Meter(meter)) if meter.meter_id == *id => {
                return Err(LifecycleError::Refused(not_deleted()));
            }
            _ => return Err(not_found()),
        };
        if tombstone.keys.len() > FormerKey::MAX {
            return Err(LifecycleError::Refused(worn_out(tombstone.keys.len())));
        }
        let readmitted = Readmitted {
            deleted_ms: tombstone.deleted_ms,
            keys_known: tombstone.keys.len(),
            keys_that_may_come_back: tombstone
                .keys
                .iter()
                .filter(|key| key.may_come_back())
                .count(),
        };
        let now_ms = self.clock.unix_ms();
        let block = Some(change.block());
        let subject = Subject { system_title: Some(*title), block, ..Subject::meter(id) };
        let mut entry = call.entry(now_ms, subject, AuditOutcome::Done);
        if tombstone.readmitted_ms.is_some() {
            entry = entry.with(Detail::Unchanged, 1);
        } else {
            tombstone.readmitted_ms = Some(now_ms);
            change.put(Record::Tombstone(tombstone));
        }
        let states = self.writer.commit(changes, vec![entry]).await?;
        Ok((readmitted, states))
    }
}

fn not_deleted() -> Refusal {
    refusal(RefusalCode::MeterNotDeleted, "the meter is not deleted: there is nothing to readmit")
}

fn worn_out(keys: usize) -> Refusal {
    let most = FormerKey::MAX;
    refusal(
        RefusalCode::TooManyFormerKeys,
        format!(
            "the meter had {keys} keys, and a readmitted one may have had {most}: it stays deleted"
        ),
    )
}
