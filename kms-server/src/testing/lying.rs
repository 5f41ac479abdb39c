//! A site that changes what another one says: whoever has its process. What it does not change is the other one's.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use kms_core::{
    BlockNo, Epoch,
    block::BlockMark,
    floors::{FloorPlace, FloorRow},
    ports::MetersMessage,
    site::{readiness::SignedReadiness, role::SignedRoleRecord},
};

use super::{
    pair::{Network, beside},
    site_common::Site,
};
use crate::{
    app::{Beside, OperatingSystem},
    replication::{
        AuditAsked, AuditSaid, BlockProof, BlockUpdate, Followed, Grounds, HeadTablesSaid,
        HeadsAsked, HeadsSaid, Known, MarksAsked, MarksSaid, Peer, PeerError, SiteCard,
    },
    store::sites::Divergent,
};

type Audit = dyn Fn(AuditAsked, AuditSaid) -> Result<AuditSaid, PeerError> + Send + Sync;
type Heads = dyn Fn(HeadsSaid) -> HeadsSaid + Send + Sync;
type Marks = dyn Fn(MarksSaid) -> MarksSaid + Send + Sync;

/// What it changes.
pub(super) struct Lies {
    pub(super) audit: Box<Audit>,
    pub(super) heads: Box<Heads>,
    pub(super) marks: Box<Marks>,
}

impl Default for Lies {
    fn default() -> Self {
        Self {
            audit: Box::new(|_, said| Ok(said)),
            heads: Box::new(|said| said),
            marks: Box::new(|said| said),
        }
    }
}

struct Lying {
    other: Arc<dyn Peer>,
    lies: Lies,
}

/// What goes on at a site beside serving, none of it started, with another site that lies.
pub(super) fn beside_a_liar(site: &Site, network: &Network, lies: Lies) -> (Grounds, Beside) {
    let to = if site.domain.site == "north" { network.south } else { network.north };
    let (grounds, _) = beside(site, network, to);
    let other = Arc::clone(&grounds.peer);
    let grounds = Grounds { peer: Arc::new(Lying { other, lies }), ..grounds };
    let random = Arc::new(OperatingSystem);
    let beside = Beside::new(grounds.clone(), &site.keyring, site.measured.clone(), random);
    (grounds, beside)
}

#[async_trait]
impl Peer for Lying {
    async fn list_heads(&self, card: SiteCard, asked: HeadsAsked) -> Result<HeadsSaid, PeerError> {
        Ok((self.lies.heads)(self.other.list_heads(card, asked).await?))
    }

    async fn fetch_blocks(
        &self,
        card: SiteCard,
        blocks: Vec<BlockNo>,
    ) -> Result<BoxStream<'static, Result<BlockUpdate, PeerError>>, PeerError> {
        self.other.fetch_blocks(card, blocks).await
    }

    async fn follow(&self, card: SiteCard, cursors: Vec<BlockMark>) -> Result<Followed, PeerError> {
        self.other.follow(card, cursors).await
    }

    async fn prove(
        &self,
        card: SiteCard,
        challenges: Vec<(BlockNo, [u8; 32])>,
        report: Option<SignedReadiness>,
    ) -> Result<(SiteCard, Vec<BlockProof>), PeerError> {
        self.other.prove(card, challenges, report).await
    }

    async fn exchange_marks(
        &self,
        card: SiteCard,
        asked: MarksAsked,
    ) -> Result<MarksSaid, PeerError> {
        Ok((self.lies.marks)(self.other.exchange_marks(card, asked).await?))
    }

    async fn role_records(
        &self,
        card: SiteCard,
        from: Epoch,
    ) -> Result<BoxStream<'static, Result<SignedRoleRecord, PeerError>>, PeerError> {
        self.other.role_records(card, from).await
    }

    async fn report_divergence(
        &self,
        card: SiteCard,
        rows: Vec<Divergent>,
    ) -> Result<(SiteCard, Vec<Known>), PeerError> {
        self.other.report_divergence(card, rows).await
    }

    async fn hand_evidence(
        &self,
        card: SiteCard,
        messages: Vec<MetersMessage>,
    ) -> Result<SiteCard, PeerError> {
        self.other.hand_evidence(card, messages).await
    }

    async fn floors(
        &self,
        card: SiteCard,
        after: FloorPlace,
    ) -> Result<(SiteCard, Vec<FloorRow>), PeerError> {
        self.other.floors(card, after).await
    }

    async fn head_tables(&self, card: SiteCard) -> Result<HeadTablesSaid, PeerError> {
        self.other.head_tables(card).await
    }

    async fn audit(&self, card: SiteCard, asked: AuditAsked) -> Result<AuditSaid, PeerError> {
        (self.lies.audit)(asked, self.other.audit(card, asked).await?)
    }
}
