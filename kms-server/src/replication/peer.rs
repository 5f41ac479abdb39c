//! The port to the other site.

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::{
    card::SiteCard,
    failure::PeerError,
    messages::{
        AuditAsked, AuditSaid, BlockProof, BlockUpdate, Followed, HeadTablesSaid, HeadsAsked,
        HeadsSaid, Known, MarksAsked, MarksSaid,
    },
};
use crate::store::sites::Divergent;
use kms_core::{
    BlockNo, Epoch,
    block::BlockMark,
    floors::{FloorPlace, FloorRow},
    ports::MetersMessage,
    site::{readiness::SignedReadiness, role::SignedRoleRecord},
};

/// The other site. Calls are made one by one; each bears our card.
#[async_trait]
pub trait Peer: Send + Sync + 'static {
    /// Where blocks stand there.
    async fn list_heads(&self, card: SiteCard, asked: HeadsAsked) -> Result<HeadsSaid, PeerError>;

    /// Whole blocks, piece by piece.
    async fn fetch_blocks(
        &self,
        card: SiteCard,
        blocks: Vec<BlockNo>,
    ) -> Result<BoxStream<'static, Result<BlockUpdate, PeerError>>, PeerError>;

    /// What changes there after these states.
    async fn follow(&self, card: SiteCard, cursors: Vec<BlockMark>) -> Result<Followed, PeerError>;

    /// Has these blocks proved there, each with its nonce; and hands over the report of the round before.
    async fn prove(
        &self,
        card: SiteCard,
        challenges: Vec<(BlockNo, [u8; 32])>,
        report: Option<SignedReadiness>,
    ) -> Result<(SiteCard, Vec<BlockProof>), PeerError>;

    /// Has it remember our marks, and asks what it remembers.
    async fn exchange_marks(
        &self,
        card: SiteCard,
        asked: MarksAsked,
    ) -> Result<MarksSaid, PeerError>;

    /// The role records that it knows from this epoch on, one by one, since each has the state of every block. Not
    /// verified.
    async fn role_records(
        &self,
        card: SiteCard,
        from: Epoch,
    ) -> Result<BoxStream<'static, Result<SignedRoleRecord, PeerError>>, PeerError>;

    /// Tells it what this site wrote alone; what it knows of each.
    async fn report_divergence(
        &self,
        card: SiteCard,
        rows: Vec<Divergent>,
    ) -> Result<(SiteCard, Vec<Known>), PeerError>;

    /// Hands it messages of meters that show which keys they have. It has taken them if it says that it writes.
    async fn hand_evidence(
        &self,
        card: SiteCard,
        messages: Vec<MetersMessage>,
    ) -> Result<SiteCard, PeerError>;

    /// A page of the receive floors that it has stored after this place, in order; none: that was all. Not verified.
    async fn floors(
        &self,
        card: SiteCard,
        after: FloorPlace,
    ) -> Result<(SiteCard, Vec<FloorRow>), PeerError>;

    /// Its head table, and the newest of ours that it has seen. Not verified.
    async fn head_tables(&self, card: SiteCard) -> Result<HeadTablesSaid, PeerError>;

    /// Its audit chains, and a piece of one. Not verified.
    async fn audit(&self, card: SiteCard, asked: AuditAsked) -> Result<AuditSaid, PeerError>;
}
