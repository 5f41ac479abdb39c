//! The two sites that may write, for one that follows for ever: all of its calls go to one of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{future::join_all, stream::BoxStream};
use tokio::time::timeout;

use super::{
    card::SiteCard,
    failure::PeerError,
    messages::{
        AuditAsked, AuditSaid, BlockProof, BlockUpdate, Followed, HeadTablesSaid, HeadsAsked,
        HeadsSaid, Known, MarksAsked, MarksSaid,
    },
    peer::Peer,
};
use crate::store::sites::Divergent;
use kms_core::{
    BlockNo, Epoch,
    block::BlockMark,
    floors::{FloorPlace, FloorRow},
    ports::MetersMessage,
    site::{readiness::SignedReadiness, role::SignedRoleRecord},
};

/// The longest time in which a site is asked for its card.
const PATIENCE: Duration = Duration::from_secs(2);

/// The two sites that may write, one of them at a time.
pub struct EitherSite {
    sites: [(String, Arc<dyn Peer>); 2],
    current: AtomicUsize,
}

impl EitherSite {
    /// The first of these, until it is turned.
    pub fn new(first: (String, Arc<dyn Peer>), second: (String, Arc<dyn Peer>)) -> Self {
        Self { sites: [first, second], current: AtomicUsize::new(0) }
    }

    /// The place of the one that is asked now.
    pub(super) fn at(&self) -> usize {
        self.current.load(Ordering::Acquire) % 2
    }

    /// The one at this place is asked from now on.
    pub(super) fn turn_to(&self, at: usize) {
        self.current.store(at, Ordering::Release);
    }

    /// The one at this place.
    pub(super) fn of(&self, at: usize) -> &dyn Peer {
        let [first, second] = &self.sites;
        if at == 0 { first.1.as_ref() } else { second.1.as_ref() }
    }

    fn now(&self) -> &dyn Peer {
        self.of(self.at())
    }

    /// The cards of those that answer, each with its place.
    pub(super) async fn cards(&self, ours: &SiteCard) -> Vec<(usize, SiteCard)> {
        let ask = |(at, (site, peer)): (usize, &(String, Arc<dyn Peer>))| {
            let (site, peer) = (site.clone(), Arc::clone(peer));
            let asked = HeadsAsked { blocks: vec![BlockNo(0)], ..HeadsAsked::default() };
            async move {
                let said = timeout(PATIENCE, peer.list_heads(ours.clone(), asked)).await;
                let card = said.ok()?.ok()?.card;
                (card.site == site && card.domain == ours.domain).then_some((at, card))
            }
        };
        let said = join_all(self.sites.iter().enumerate().map(ask)).await;
        said.into_iter().flatten().collect()
    }
}

#[async_trait]
impl Peer for EitherSite {
    async fn list_heads(&self, card: SiteCard, asked: HeadsAsked) -> Result<HeadsSaid, PeerError> {
        self.now().list_heads(card, asked).await
    }

    async fn fetch_blocks(
        &self,
        card: SiteCard,
        blocks: Vec<BlockNo>,
    ) -> Result<BoxStream<'static, Result<BlockUpdate, PeerError>>, PeerError> {
        self.now().fetch_blocks(card, blocks).await
    }

    async fn follow(&self, card: SiteCard, cursors: Vec<BlockMark>) -> Result<Followed, PeerError> {
        self.now().follow(card, cursors).await
    }

    async fn prove(
        &self,
        card: SiteCard,
        challenges: Vec<(BlockNo, [u8; 32])>,
        report: Option<SignedReadiness>,
    ) -> Result<(SiteCard, Vec<BlockProof>), PeerError> {
        self.now().prove(card, challenges, report).await
    }

    async fn exchange_marks(
        &self,
        card: SiteCard,
        asked: MarksAsked,
    ) -> Result<MarksSaid, PeerError> {
        self.now().exchange_marks(card, asked).await
    }

    async fn role_records(
        &self,
        card: SiteCard,
        from: Epoch,
    ) -> Result<BoxStream<'static, Result<SignedRoleRecord, PeerError>>, PeerError> {
        self.now().role_records(card, from).await
    }

    async fn report_divergence(
        &self,
        card: SiteCard,
        rows: Vec<Divergent>,
    ) -> Result<(SiteCard, Vec<Known>), PeerError> {
        self.now().report_divergence(card, rows).await
    }

    async fn hand_evidence(
        &self,
        card: SiteCard,
        messages: Vec<MetersMessage>,
    ) -> Result<SiteCard, PeerError> {
        self.now().hand_evidence(card, messages).await
    }

    async fn floors(
        &self,
        card: SiteCard,
        after: FloorPlace,
    ) -> Result<(SiteCard, Vec<FloorRow>), PeerError> {
        self.now().floors(card, after).await
    }

    async fn head_tables(&self, card: SiteCard) -> Result<HeadTablesSaid, PeerError> {
        self.now().head_tables(card).await
    }

    async fn audit(&self, card: SiteCard, asked: AuditAsked) -> Result<AuditSaid, PeerError> {
        self.now().audit(card, asked).await
    }
}
