//! What time brings to meters' keys: looked at again and again in what is resident, written by the site that writes.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::lifecycle::{error::LifecycleError, verbs::Lifecycle};
use kms_core::{
    BlockNo, Record, RecordKey, SystemTitle,
    audit::{AuditOutcome, AuditedCall, Subject},
    life::due,
};

/// The interval between two looks: graces and delays are days.
const LOOK: Duration = Duration::from_secs(30);
/// Meters of one commit.
const AT_ONCE: usize = 256;

impl Lifecycle {
    /// Runs until the process ends.
    pub async fn keep_dates(self: Arc<Self>) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.pass_dates().await {
                tracing::debug!(%error, "what is due of meters' keys is not done yet");
            }
        }
    }

    /// Does what is due now: the number of meters.
    pub async fn pass_dates(&self) -> Result<usize, LifecycleError> {
        let now_ms = self.clock.unix_ms();
        let mut done = 0;
        for (block, titles) in self.dates.due(now_ms) {
            if self.writer.check_writes().is_err() {
                return Ok(done);
            }
            for some in titles.chunks(AT_ONCE) {
                // A block that can't be read keeps none of the others waiting.
                match self.pass_block(block, some).await {
                    Ok(passed) => done += passed,
                    Err(error) => {
                        tracing::warn!(%error, block = block.0, "what is due of meters' keys is not done yet");
                    }
                }
            }
        }
        Ok(done)
    }

    async fn pass_block(
        &self,
        block: BlockNo,
        titles: &[SystemTitle],
    ) -> Result<usize, LifecycleError> {
        let keys = titles.iter().map(|title| (block, RecordKey::meter(title)));
        let mut changes = self.writer.change_records(keys).await?;
        let now_ms = self.clock.unix_ms();
        let call = AuditedCall::new("kms-server", "Rotation/Due");
        let mut entries = Vec::new();
        for change in &mut changes {
            for title in titles {
                let Ok(Some(Record::Meter(mut meter))) = change.record(title) else { continue };
                if !due::pass(&mut meter, now_ms) {
                    continue;
                }
                let subject = Subject {
                    system_title: Some(*title),
                    block: Some(block),
                    ..Subject::meter(&meter.meter_id)
                };
                entries.push(call.entry(now_ms, subject, AuditOutcome::Done));
                meter.changed_by = meter.changed_by.next(now_ms);
                change.put(Record::Meter(meter));
            }
        }
        let done = entries.len();
        self.writer.commit(changes, entries).await?;
        Ok(done)
    }
}
