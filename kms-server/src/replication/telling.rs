//! What this site wrote alone is told to the site that writes: there people decide about it, and here it becomes known
//! what they decided. A record that is known to be compromised there acts at once.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{fencing::OURSELVES, grounds::Grounds, messages::Known};
use crate::{
    keyring::Adopter,
    store::sites::{DivergenceAsked, Divergent, DivergentName},
};
use kms_core::audit::{AuditOutcome, AuditedCall, Detail, Subject};

/// The interval at which is looked whether something waits.
const LOOK: Duration = Duration::from_secs(1);
/// The interval at which is asked again what was decided.
const ASK: Duration = Duration::from_secs(5);
/// Records in one message.
pub const REPORTED_AT_ONCE: u32 = 64;
/// Bytes of records in one message; one record is told whatever its size.
const BYTES_AT_ONCE: usize = 512 << 10;

/// Tells the site that writes.
pub struct Telling {
    grounds: Grounds,
    adopter: Arc<Adopter>,
}

impl Telling {
    /// Keeps by `adopter` what was decided.
    pub fn new(grounds: Grounds, adopter: Arc<Adopter>) -> Self {
        Self { grounds, adopter }
    }

    /// Runs until the process ends. Any server of a site may tell: to be told twice changes nothing.
    pub async fn run(&self) {
        let mut told = 0;
        loop {
            let waits = self.grounds.store.count_undecided().await.unwrap_or(told);
            self.grounds.status.undecided(waits);
            if waits == 0 {
                told = 0;
                sleep(LOOK).await;
                continue;
            }
            match self.tell_all().await {
                Ok(()) => told = waits,
                Err(error) => {
                    tracing::debug!(%error, "what was set aside is not told to the peer yet");
                }
            }
            self.until_more(told).await;
        }
    }

    /// Waits until it is to be asked again, or more was set aside.
    async fn until_more(&self, told: u64) {
        for _ in 0..ASK.as_secs() / LOOK.as_secs() {
            sleep(LOOK).await;
            let waits = self.grounds.store.count_undecided().await.unwrap_or(told);
            self.grounds.status.undecided(waits);
            if waits != told {
                return;
            }
        }
    }

    /// Tells all that waits, page by page, and keeps what was decided. A site that writes tells nobody.
    pub async fn tell_all(&self) -> Result<(), String> {
        let Grounds { store, peer, cards, status, .. } = &self.grounds;
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let mut after: Option<DivergentName> = None;
        loop {
            let card = cards.now().await.map_err(|error| said(&error))?;
            if card.writes {
                return Ok(());
            }
            let asked = DivergenceAsked::open(after, REPORTED_AT_ONCE);
            let mut rows = store.divergence(asked).await.map_err(|error| said(&error))?;
            cut(&mut rows);
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.name());
            let told = peer.report_divergence(card, rows.clone()).await;
            let (card, known) = told.map_err(|error| said(&error))?;
            status.heard(&card);
            self.keep(rows, known).await?;
        }
    }

    async fn keep(&self, rows: Vec<Divergent>, known: Vec<Known>) -> Result<(), String> {
        let mut decided = Vec::new();
        for (row, known) in rows.into_iter().zip(known) {
            match known {
                Ok(Some(by)) => decided.push(Divergent { decided: Some(by), ..row }),
                Ok(None) => {}
                Err(reason) => {
                    let block = row.block.0;
                    tracing::debug!(block, reason, "the peer does not take what was set aside");
                }
            }
        }
        if decided.is_empty() {
            return Ok(());
        }
        let call = AuditedCall::new(OURSELVES, "Replication/ReportDivergence");
        let entry = call.entry(self.grounds.clock.unix_ms(), Subject::NONE, AuditOutcome::Done);
        let entry = entry.with(Detail::Items, decided.len() as u64);
        self.adopter.keep_decided(decided, entry).await.map_err(|error| error.to_string())
    }
}

/// As many rows as one message may have.
fn cut(rows: &mut Vec<Divergent>) {
    let mut bytes = 0;
    let fits = |row: &&Divergent| {
        bytes += row.record.body.len() + 128;
        bytes <= BYTES_AT_ONCE
    };
    let fitting = rows.iter().take_while(fits).count();
    rows.truncate(fitting.max(1));
}
