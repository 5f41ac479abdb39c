//! Whether a write is replicated: one round with the peer that began after the commit.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;

use super::{
    card::Cards,
    grounds::Grounds,
    messages::{HeadsAsked, HeadsSaid},
    peer::Peer,
    status::Status,
};
use kms_core::{
    block::BlockMark,
    ports::{Replicated, ReplicationGate},
};

/// The time for the round itself, beside the wait at the peer.
const ROUND: Duration = Duration::from_millis(250);

/// Asks the peer whether it has what was committed here.
pub struct Confirming {
    peer: Arc<dyn Peer>,
    cards: Cards,
    status: Arc<Status>,
    wait: Duration,
}

impl Confirming {
    /// Waits for as long as the settings say.
    pub fn new(grounds: &Grounds) -> Self {
        let Grounds { config, peer, cards, status, .. } = grounds.clone();
        Self { peer, cards, status, wait: config.write_wait }
    }

    async fn ask(&self, marks: &[BlockMark]) -> Option<HeadsSaid> {
        let card = self.cards.now().await.ok()?;
        let at_least = marks.iter().map(|mark| (mark.block, mark.position)).collect();
        let blocks = marks.iter().map(|mark| mark.block).collect();
        let wait_ms = u32::try_from(self.wait.as_millis()).unwrap_or(u32::MAX);
        let asked = HeadsAsked { blocks, at_least, wait_ms };
        let answer = timeout(self.wait + ROUND, self.peer.list_heads(card, asked)).await.ok()?;
        answer.inspect_err(|error| tracing::debug!(%error, "a write is not confirmed")).ok()
    }
}

#[async_trait]
impl ReplicationGate for Confirming {
    async fn replicated(&self, marks: &[BlockMark]) -> Replicated {
        if marks.is_empty() {
            return Replicated::NotApplicable;
        }
        if self.wait.is_zero() {
            return Replicated::No;
        }
        let Some(HeadsSaid { card, heads, reached }) = self.ask(marks).await else {
            return Replicated::No;
        };
        self.status.heard(&card);
        let has = |mark: &BlockMark| {
            heads.iter().any(|head| {
                let at = (head.block, head.position.epoch) == (mark.block, mark.position.epoch);
                let same = head.position == mark.position && head.digest == mark.digest;
                at && (same || head.position > mark.position)
            })
        };
        // A peer that was promoted meanwhile, or knows of somebody who was, has no more say that this is kept.
        let sees_us = marks.iter().all(|mark| card.epoch == mark.position.epoch) && !card.writes;
        if reached && sees_us && marks.iter().all(has) { Replicated::Yes } else { Replicated::No }
    }
}
