//! The port to the other site.

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::{
    card::SiteCard,
    failure::PeerError,
    messages::{BlockProof, BlockUpdate, Followed, HeadTablesSaid, HeadsAsked, HeadsSaid},
};
use kms_core::{
    BlockNo, Epoch,
    block::BlockMark,
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

    /// The role records that it knows from this epoch on. Not verified.
    async fn role_records(
        &self,
        card: SiteCard,
        from: Epoch,
    ) -> Result<Vec<SignedRoleRecord>, PeerError>;

    /// Its head table, and the newest of ours that it has seen. Not verified.
    async fn head_tables(&self, card: SiteCard) -> Result<HeadTablesSaid, PeerError>;
}
