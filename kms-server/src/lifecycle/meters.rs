//! One meter: made, looked at, deleted.

use super::{
    error::LifecycleError,
    groups::{group_of, membership_of, still_member},
    import::{
        meter::{ImportResult, ImportRules, NewMeter},
        run::Imports,
    },
    refusal::{Refusal, refusal},
    verbs::{Lifecycle, TRIES},
    view::MeterView,
};
use crate::keyring::Found;
use kms_core::{
    FormerKey, MeterId, Record, RecordKey, RefusalCode,
    audit::{AuditOutcome, AuditedCall, Subject},
    block::BlockMark,
    life::NotDone,
    record::Tombstone,
};

/// A meter that was made.
#[derive(Clone, Debug)]
pub struct Created {
    /// The meter.
    pub view: MeterView,
    /// Things worth a look.
    pub warnings: Vec<String>,
    /// The state that its block has now.
    pub states: Vec<BlockMark>,
}

impl Lifecycle {
    /// Creates one meter; the warnings are worth a look. Refused if it exists. What is done or
    /// [`LifecycleError::Refused`] is in the audit log as `call` when this returns; what failed
    /// otherwise is for the caller to record.
    pub async fn create(
        &self,
        call: &AuditedCall,
        meter: NewMeter,
        rules: ImportRules,
    ) -> Result<Created, LifecycleError> {
        let (id, title) = (meter.meter_id.clone(), meter.system_title);
        match self.records.find(&id).await? {
            Found::At(_) => return Err(LifecycleError::AlreadyExists(id.to_string())),
            Found::Unsure(reason) => return Err(LifecycleError::Damaged { reason }),
            Found::Nowhere { .. } => {}
        }
        // An index that has lost the meter must not let it be made a second time.
        if let Some(Record::Meter(known)) = self.records.read(&title).await? {
            return Err(LifecycleError::AlreadyExists(known.meter_id.to_string()));
        }
        let planned = rules.dry_run.then(|| self.planned(&meter));
        let Imports { results, states } = self.import(call, vec![meter], rules).await?;
        let Some(ImportResult { outcome, warnings }) = results.into_iter().next() else {
            let reason = "an import of one line has no result".to_owned();
            return Err(LifecycleError::OurFault { reason });
        };
        outcome?;
        if let Some(planned) = planned {
            let warnings = warnings.iter().map(|warning| format!("; warning: {warning}"));
            let reason = format!("{planned}{}; nothing was changed", warnings.collect::<String>());
            return Err(LifecycleError::Refused(Refusal { code: RefusalCode::DryRun, reason }));
        }
        Ok(Created { view: self.get_by_title(&title).await?, warnings, states })
    }

    /// What would be made, for a dry run.
    fn planned(&self, meter: &NewMeter) -> String {
        let NewMeter { meter_id, system_title, keys, .. } = meter;
        let block = self.records.block_of(system_title).0;
        let keys = keys.iter().map(|key| {
            let (kind, protection) = (key.kind.word(), key.wanted_protection().word());
            format!(" {kind} (setup {}, {protection})", key.setup.0)
        });
        let keys = keys.collect::<Vec<_>>().join(",");
        format!("{meter_id} ({system_title}) would be created in block {block} with the keys{keys}")
    }

    /// The meter with this id.
    pub async fn get(&self, id: &MeterId) -> Result<MeterView, LifecycleError> {
        let title = self.title_of(id).await?;
        let view = self.get_by_title(&title).await?;
        // Deleted, and made anew under another id, between the two.
        if view.record.meter_id == *id {
            Ok(view)
        } else {
            Err(LifecycleError::NotFound(id.to_string()))
        }
    }

    /// Deletes a meter; a tombstone with its keys' fingerprints stays. A deletion is in the audit log as
    /// `call` when this returns; a failure is for the caller to record. What comes back is the state that its block
    /// has now.
    pub async fn delete(
        &self,
        call: &AuditedCall,
        id: &MeterId,
    ) -> Result<Vec<BlockMark>, LifecycleError> {
        for attempt in 0..TRIES {
            match self.delete_once(call, id).await {
                Err(LifecycleError::Busy) => self.step_back(attempt).await,
                done => return done,
            }
        }
        Err(LifecycleError::Busy)
    }

    async fn delete_once(
        &self,
        call: &AuditedCall,
        id: &MeterId,
    ) -> Result<Vec<BlockMark>, LifecycleError> {
        let not_found = || LifecycleError::NotFound(id.to_string());
        let title = self.title_of(id).await?;
        let block = self.records.block_of(&title);
        let setups = self.setups_of(&title).await?;
        let members = setups.iter().map(|setup| membership_of(&title, *setup));
        let keys = members.chain([RecordKey::meter(&title)]).map(|key| (block, key));
        let mut changes = self.writer.change_records(keys).await?;
        let change = changes.first_mut().ok_or_else(not_found)?;
        let Some(Record::Meter(meter)) = change.record(&title)? else {
            return Err(not_found());
        };
        if meter.meter_id != *id {
            return Err(not_found());
        }
        if meter.legal_hold_ms.is_some() {
            let why = NotDone::LegalHold;
            return Err(LifecycleError::Refused(refusal(why.code(), why.to_string())));
        }
        // What would go with it is the group's, and the group has to know that one who has its key is gone.
        let mut groups = setups.iter().filter_map(|setup| group_of(change, &title, *setup));
        if let Some(group) = groups.next() {
            return Err(still_member(&group.group));
        }
        drop(groups);
        let now_ms = self.clock.unix_ms();
        let block = Some(change.block());
        let subject = Subject { system_title: Some(title), block, ..Subject::meter(id) };
        let entry = call.entry(now_ms, subject, AuditOutcome::Done);
        change.put(Record::Tombstone(Tombstone {
            keys: FormerKey::of(&meter),
            meter_id: Some(meter.meter_id),
            system_title: title,
            deleted_ms: now_ms,
            changed_by: meter.changed_by,
            readmitted_ms: None,
        }));
        Ok(self.writer.commit(changes, vec![entry]).await?)
    }
}
