//! What meters have shown to a site that follows is handed to the one that writes: their messages and nothing else, so that
//! it need not believe us.

use std::sync::Arc;

use async_trait::async_trait;

use super::{card::Cards, grounds::Grounds, peer::Peer, status::Status};
use kms_core::ports::{EvidenceCourier, MetersMessage};

/// Hands messages to the peer, if that one writes.
pub struct Handing {
    peer: Arc<dyn Peer>,
    cards: Cards,
    status: Arc<Status>,
}

impl Handing {
    /// To the peer of these.
    pub fn new(grounds: &Grounds) -> Self {
        let Grounds { peer, cards, status, .. } = grounds.clone();
        Self { peer, cards, status }
    }
}

#[async_trait]
impl EvidenceCourier for Handing {
    async fn hand(&self, messages: Vec<MetersMessage>) -> bool {
        let Ok(card) = self.cards.now().await else { return false };
        if card.writes {
            return false;
        }
        match self.peer.hand_evidence(card, messages).await {
            Ok(theirs) => {
                self.status.heard(&theirs);
                theirs.writes
            }
            Err(error) => {
                tracing::debug!(%error, "what meters have shown is not handed to the peer yet");
                false
            }
        }
    }
}
