//! Whether a write is replicated: one round with the peer that began after the commit.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;

use super::{
    card::{Cards, SiteCard},
    grounds::Grounds,
    messages::{HeadsAsked, HeadsSaid},
    peer::Peer,
    status::Status,
};
use crate::store::ReadStore;
use kms_core::{
    Head,
    block::BlockMark,
    ports::{Replicated, ReplicationGate},
};

/// The time for the round itself, beside the wait at the peer.
const ROUND: Duration = Duration::from_millis(250);

/// Asks the peer whether it has what was committed here.
pub struct Confirming {
    peer: Arc<dyn Peer>,
    cards: Cards,
    store: Arc<dyn ReadStore>,
    status: Arc<Status>,
    wait: Duration,
    site: String,
}

impl Confirming {
    /// Waits for as long as the settings say.
    pub fn new(grounds: &Grounds) -> Self {
        let Grounds { config, peer, cards, store, status, .. } = grounds.clone();
        Self { peer, cards, store, status, wait: config.write_wait, site: config.peer }
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

impl Confirming {
    /// Whether it is the peer that answers, and knows of nobody else who writes. One that was promoted meanwhile, or knows of
    /// somebody who was, has no more say that this is kept; a replica in the peer's place has none: nobody promotes it.
    fn sees_us(&self, card: &SiteCard, marks: &[BlockMark]) -> bool {
        let is_peer = self.cards.is_of_domain(card) && card.site == self.site;
        is_peer && !card.writes && marks.iter().all(|mark| card.epoch == mark.position.epoch)
    }

    /// Whether the peer has what was committed, or a later state of ours. It can have none that is beyond what we
    /// have: then our database was rolled back, and what it has at that place is something else.
    async fn has(&self, mark: &BlockMark, heads: &[Head]) -> bool {
        let Some(head) = heads.iter().find(|head| head.block == mark.block) else { return false };
        if head.position == mark.position {
            return head.digest == mark.digest;
        }
        if head.position.epoch != mark.position.epoch || head.position < mark.position {
            return false;
        }
        let ours = self.store.position(mark.block).await.ok().flatten();
        let is_ours = ours.is_some_and(|ours| head.position <= ours);
        if ours.is_some() && !is_ours {
            self.status.suspect();
        }
        is_ours
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
        if !reached || !self.sees_us(&card, marks) {
            return Replicated::No;
        }
        for mark in marks {
            if !self.has(mark, &heads).await {
                return Replicated::No;
            }
        }
        Replicated::Yes
    }
}
