//! Rotation by itself: a campaign begins when meters are due for one.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::starting::Starting;
use crate::lifecycle::{error::LifecycleError, verbs::Lifecycle};
use kms_core::audit::AuditedCall;

/// Between two looks: ages are days.
const LOOK: Duration = Duration::from_secs(600);
/// Days have so many milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

impl Lifecycle {
    /// Runs until the process ends: begins campaigns that are due, while this site writes.
    pub async fn keep_schedules(self: Arc<Self>) {
        if self.schedules.is_empty() {
            return;
        }
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.begin_due().await {
                tracing::debug!(%error, "scheduled rotations are not looked at yet");
            }
        }
    }

    /// Begins what is due: the names of the campaigns.
    pub async fn begin_due(&self) -> Result<Vec<String>, LifecycleError> {
        let mut begun = Vec::new();
        if self.check_writes().is_err() {
            return Ok(begun);
        }
        let known = self.stored_campaigns().await?;
        for schedule in self.schedules.iter() {
            let is_ones = |name: &str| {
                name.strip_prefix(schedule.name.as_str()).is_some_and(|rest| rest.starts_with('.'))
            };
            // One at a time: who is due meanwhile comes with the next.
            if known.iter().any(|it| is_ones(&it.name) && !it.status.is_over()) {
                continue;
            }
            let day = self.clock.unix_ms() / DAY_MS;
            let name = format!("{}.{day}", schedule.name);
            if known.iter().any(|it| it.name == name) {
                continue;
            }
            let wanted = Starting {
                name: name.clone(),
                policy: schedule.policy.clone(),
                selection: schedule.selection.clone(),
                dry_run: true,
                more: false,
            };
            let call = AuditedCall::new("kms-server", "Rotation/Scheduled");
            if self.start_campaign(&call, &wanted).await?.added == 0 {
                continue;
            }
            let wanted = Starting { dry_run: false, ..wanted };
            let started = self.start_campaign(&call, &wanted).await?;
            tracing::info!(campaign = %name, members = started.added, "a scheduled rotation begins");
            begun.push(name);
        }
        Ok(begun)
    }
}
