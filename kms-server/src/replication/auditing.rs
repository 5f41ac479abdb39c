//! Each site keeps a copy of the other one's audit chains, events and signed heads: so that an auditor reads here who did
//! what there when that site is gone, and so that a chain which is cut or changed there is known of here.
//!
//! A copy goes on from where it ends, piece by piece; there is no other cursor. Each piece is verified by the rules of a
//! whole chain and by the key of the other site's token before it is kept.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    grounds::Grounds,
    messages::{AuditAsked, AuditSaid},
    reporting::Reporting,
};
use crate::{
    audit::{PAGE_MAX, Page, Verification},
    store::{AuditStore, StoreError, peer_audit::PeerAuditStore},
};
use kms_core::audit::{
    AuditEvent, Broken, ChainTip, NodeId, SiteKeys, StoredEvent, Verifier,
    copying::{Copied, Piece},
};

/// Between two looks: so much of what was done last may be lost with the other site.
const LOOK: Duration = Duration::from_secs(2);
/// Pieces that are copied in one look. The next one goes on from there.
const PIECES_A_LOOK: usize = 32;
/// Chains of the other site that are copied: each server of it that ever was has one.
const CHAINS_MAX: usize = 1_024;
/// Bytes of events in one piece. A single event may be longer.
const PIECE_BYTES: usize = 256 << 10;
/// Events in one piece, and heads.
const PIECE_EVENTS: u32 = 500;

/// Where our own chains are, and the copies of the other site's.
pub trait Chains: AuditStore + PeerAuditStore {}
impl<T: AuditStore + PeerAuditStore + ?Sized> Chains for T {}

/// Copies the other site's chains, shows the copies, and gives pieces of our own.
pub struct Auditing {
    grounds: Grounds,
    reporting: Arc<Reporting>,
    chains: Arc<dyn Chains>,
}

impl Auditing {
    /// Keeps copies in `chains`.
    pub fn new(grounds: Grounds, reporting: Arc<Reporting>, chains: Arc<dyn Chains>) -> Self {
        Self { grounds, reporting, chains }
    }

    /// Runs until the process ends.
    pub async fn run(&self) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look().await {
                tracing::debug!(error, "the peer's audit log was not copied");
            }
        }
    }

    /// Copies what is new, and says what is wrong with the peer's chains.
    pub async fn look(&self) -> Result<(), String> {
        let Grounds { cards, status, config, .. } = &self.grounds;
        let keys = self.keys().await?;
        let said = self.ask(AuditAsked::default()).await?;
        let card = cards.now().await.map_err(|error| error.to_string())?;
        let epoch = card.epoch.max(said.card.epoch);
        let copies = self.copies().await?;
        let new = said.chains.iter().filter(|told| !copies.iter().any(|it| is_of(it, told)));
        let new: Vec<Copied> = new.map(|told| Copied::nothing_of(told.node)).collect();
        let (mut faults, mut budget) = (Vec::new(), PIECES_A_LOOK);
        for copy in copies.into_iter().chain(new).take(CHAINS_MAX) {
            let told = said.chains.iter().find(|told| is_of(&copy, told));
            let Err(broken) = self.go_on(copy, told, &keys, &mut budget).await? else { continue };
            // A standby can't note it, and tells it all the same.
            if let Err(error) = self.chains.note_peer_audit_broken(&copy.tip.node, epoch).await {
                tracing::debug!(%error, "a break of the peer's audit chain is not noted");
            }
            // Whoever was promoted since has seen it: a restored site cuts what it lost, and begins another chain.
            if copy.broken_in.is_none_or(|known| known >= epoch) {
                faults.push(format!(
                    "site {}: {broken}; what was copied here before stays: `ami-tool audit verify --of {0}`",
                    config.peer
                ));
            }
        }
        status.audit_broken(faults);
        Ok(())
    }

    /// Copies what one chain has more, as far as the budget goes.
    async fn go_on(
        &self,
        mut copy: Copied,
        told: Option<&ChainTip>,
        keys: &SiteKeys,
        budget: &mut usize,
    ) -> Result<Result<(), Broken>, String> {
        if let Err(broken) = copy.held_against(told) {
            return Ok(Err(broken));
        }
        while *budget > 0 {
            *budget -= 1;
            let asked = AuditAsked {
                node: Some(copy.tip.node),
                after: copy.tip.sequence,
                heads_after: copy.signed,
            };
            let AuditSaid { piece, .. } = self.ask(asked).await?;
            if piece.events.is_empty() && piece.heads.is_empty() {
                break;
            }
            let copied = self.signed_again(&copy, &piece).await.map_err(|it| it.to_string())?;
            let next = match copy.with(&piece, &copied, keys) {
                Ok(next) => next,
                Err(broken) => return Ok(Err(broken)),
            };
            let kept =
                self.chains.append_peer_audit(&self.grounds.config.peer, (&copy, &next), &piece);
            if !kept.await.map_err(|error| error.to_string())? {
                // Another server of this site copies it too.
                break;
            }
            copy = next;
        }
        Ok(Ok(()))
    }

    /// The copied events that heads of this piece sign: heads are signed behind the events.
    async fn signed_again(
        &self,
        copy: &Copied,
        piece: &Piece,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let mut events = Vec::new();
        for head in &piece.heads {
            let sequence = head.tip.sequence;
            if (1..copy.tip.sequence).contains(&sequence) {
                events.extend(self.chains.peer_events(&copy.tip.node, sequence - 1, 1).await?);
            }
        }
        Ok(events)
    }

    async fn ask(&self, asked: AuditAsked) -> Result<AuditSaid, String> {
        let Grounds { peer, cards, status, config, .. } = &self.grounds;
        let card = cards.now().await.map_err(|error| error.to_string())?;
        let said = peer.audit(card, asked).await.map_err(|error| error.to_string())?;
        if said.card.site != config.peer {
            return Err(format!("site {} answers", said.card.site));
        }
        status.heard(&said.card);
        Ok(said)
    }

    /// For the peer: our chains, and a piece of the one that it asks for. What a database gives that somebody changed, is
    /// found by who verifies it.
    pub async fn piece(&self, asked: AuditAsked) -> Result<(Vec<ChainTip>, Piece), StoreError> {
        // First the ends: no piece is shorter than what is told.
        let chains = self.chains.audit_chains().await?;
        let Some(node) = asked.node else { return Ok((chains, Piece::default())) };
        let mut events = self.chains.audit_events(&node, asked.after, PIECE_EVENTS).await?;
        let mut bytes = 0;
        let fit = events.iter().take_while(|event| {
            bytes += event.body.len();
            bytes <= PIECE_BYTES
        });
        let fit = fit.count().max(1);
        events.truncate(fit);
        let last = events.last().map_or(asked.after, |event| event.sequence);
        let heads = self.chains.audit_checkpoints(&node, asked.heads_after, PIECE_EVENTS).await?;
        let heads = heads.into_iter().filter(|head| head.tip.sequence <= last).collect();
        Ok((chains, Piece { events, heads }))
    }

    /// The other site's name.
    pub fn peer(&self) -> &str {
        &self.grounds.config.peer
    }

    /// Whose signatures count for the other site.
    pub async fn keys(&self) -> Result<SiteKeys, String> {
        let keys = self.reporting.keys_of(self.peer()).await?;
        keys.ok_or_else(|| "the peer is not enrolled here".to_owned())
    }

    async fn copies(&self) -> Result<Vec<Copied>, String> {
        self.chains.peer_chains(self.peer()).await.map_err(|error| error.to_string())
    }

    /// Where the copies end, and which of them has the newest event.
    pub async fn ends(&self) -> Result<(Vec<ChainTip>, Option<NodeId>), StoreError> {
        let copies = self.chains.peer_chains(self.peer()).await?;
        let mut newest = None;
        for Copied { tip, .. } in &copies {
            let last =
                self.chains.peer_events(&tip.node, tip.sequence.saturating_sub(1), 1).await?;
            let last = last.first().and_then(|event| AuditEvent::decode(&event.body).ok());
            newest = newest.max(last.map(|event| (event.entry.at_ms, tip.node)));
        }
        Ok((copies.into_iter().map(|copy| copy.tip).collect(), newest.map(|(_, node)| node)))
    }

    /// Events of a copy behind number `after`, as of a chain of our own. `None`: there is no such copy.
    pub async fn page(
        &self,
        node: NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Option<Page>, StoreError> {
        let copies = self.chains.peer_chains(self.peer()).await?;
        let Some(copy) = copies.into_iter().find(|copy| copy.tip.node == node) else {
            return Ok(None);
        };
        let limit = limit.min(PAGE_MAX);
        let mut events = self.chains.peer_events(&node, after, limit).await?;
        // The copy goes on meanwhile: what came later is for the next page.
        events.retain(|event| event.sequence <= copy.tip.sequence);
        let more = events.len() >= limit as usize;
        let last = if more { events.last().map_or(after, |it| it.sequence) } else { copy.signed };
        let mut heads = self.chains.peer_checkpoints(&node, after, PAGE_MAX).await?;
        heads.retain(|head| head.tip.sequence <= last);
        Ok(Some(Page { events, heads, more, tip: copy.tip }))
    }

    /// Checks all of a copy. `None`: there is no such one.
    pub async fn verify(&self, node: NodeId) -> Result<Option<Verification>, String> {
        let mut verifier = Verifier::new(ChainTip::empty(node), self.keys().await?);
        let Some(known) = self.copies().await?.into_iter().find(|it| it.tip.node == node) else {
            return Ok(None);
        };
        let broken = loop {
            let page = self.page(node, verifier.tip().sequence, PAGE_MAX).await;
            let Some(page) = page.map_err(|error| error.to_string())? else { break None };
            if let Err(broken) = walk(&mut verifier, &page) {
                break Some(broken);
            }
            if !page.more {
                break verifier.finish(Some(known.tip)).err();
            }
        };
        Ok(Some(Verification { tip: verifier.tip(), heads: verifier.heads_seen(), broken }))
    }
}

fn is_of(copy: &Copied, told: &ChainTip) -> bool {
    copy.tip.node == told.node
}

fn walk(verifier: &mut Verifier, page: &Page) -> Result<(), Broken> {
    for head in &page.heads {
        verifier.head(head.clone())?;
    }
    page.events.iter().try_for_each(|event| verifier.event(event).map(drop))
}
