//! What goes on by itself: evidence that came by other ways than a report brings members on, and ends campaigns.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::table::Shared;
use crate::lifecycle::{error::LifecycleError, verbs::Lifecycle};
use kms_core::{
    SystemTitle,
    audit::AuditedCall,
    campaign::{row::Row, stepping::stand},
};

/// Between two looks: a push proves a key at any time.
const LOOK: Duration = Duration::from_secs(5);
/// Members that one look asks about.
const AT_ONCE: usize = 64;

impl Lifecycle {
    /// Runs until the process ends.
    pub async fn keep_campaigns(self: Arc<Self>) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.check_writes().is_err() {
                continue;
            }
            for shared in self.campaigns.all() {
                if let Err(error) = self.keep_campaign(&shared).await {
                    tracing::debug!(%error, "a campaign is not looked after yet");
                }
            }
        }
    }

    /// Brings members on that have shown their keys meanwhile.
    pub(super) async fn keep_campaign(&self, shared: &Shared) -> Result<(), LifecycleError> {
        let now_ms = self.clock.unix_ms();
        let mut held = shared.lock().await;
        let policy = held.driven.campaign.policy.clone();
        let after = held.looked;
        // All in turn: a sleeper is exposed for days.
        let (behind, before): (Vec<&Row>, Vec<&Row>) = held
            .driven
            .exposed(now_ms)
            .partition(|row| after.is_none_or(|after| row.title > after));
        let open: Vec<Row> = behind.into_iter().chain(before).take(AT_ONCE).cloned().collect();
        held.looked = open.last().map(|row| row.title);
        let titles: Vec<SystemTitle> = open.iter().map(|row| row.title).collect();
        let mut changed = Vec::new();
        for (mut row, title) in open.into_iter().zip(titles) {
            if held.busy.contains_key(&title) {
                continue;
            }
            let Ok(view) = self.get_by_title(&title).await else { continue };
            if stand(&view.record, &policy, &mut row) {
                if row.phase.is_over() {
                    row.lease = 0;
                }
                changed.push(row);
            }
        }
        let call = AuditedCall::new("kms-server", "Rotation/CampaignKept");
        self.store_rows(&call, &mut held, changed).await?;
        self.judge_held(&mut held).await
    }
}
