//! Site KEKs: the signed rows that say how far their rotation is, and the seals of block secrets under two of them.

use async_trait::async_trait;

use super::nouns::{ChainLink, SealedSecret, StoreError};
use kms_core::{
    BlockNo,
    audit::Signature,
    site::keks::{KekId, Looked, SignedSiteKeks},
};

/// Said where the row of a token's site KEKs is another one than a step was made from.
pub const KEK_ROW: &str = "the row of this token's site KEKs";

/// A new KEK, and the former one whose seals get twins under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twins {
    /// The new one.
    pub new: KekId,
    /// The former one.
    pub former: KekId,
}

/// A seal under the former KEK, and the one under the new KEK beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The block.
    pub block: BlockNo,
    /// Under the former one.
    pub former: SealedSecret,
    /// Under the new one; `None`: not yet.
    pub twin: Option<SealedSecret>,
}

/// What becomes of seals with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealsThen {
    /// Nothing.
    Stay,
    /// Every one has a twin, or the step is none: [`StoreError::Conflict`].
    HaveTwins(Twins),
    /// The same, and none comes under the former KEK from now on.
    Closed(Twins),
    /// The same, and those under the former KEK go.
    Gone(Twins),
}

/// A step of the rotation of a site KEK: all of it in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekStep {
    /// The signature of the row that it was made from; `None`: there was none. Where another one is there by now, somebody
    /// else was first, and what he wrote stays: [`StoreError::Taken`].
    pub expected: Option<Signature>,
    /// The row from now on.
    pub now: SignedSiteKeks,
    /// What becomes of seals.
    pub seals: SealsThen,
}

/// Reads the rows of site KEKs.
#[async_trait]
pub trait KekRows: Send + Sync + 'static {
    /// One for each token that rotates its site KEK, or did. Not verified.
    async fn site_keks(&self) -> Result<Vec<SignedSiteKeks>, StoreError>;
}

/// Rotates them.
#[async_trait]
pub trait KekStore: KekRows {
    /// Seals under the former KEK behind this block and version, in order, at most `limit`.
    async fn pairs(
        &self,
        twins: Twins,
        after: Option<(BlockNo, u32)>,
        limit: u32,
    ) -> Result<Vec<Pair>, StoreError>;

    /// How many there are; what was proved is for the caller to say.
    async fn count_pairs(&self, twins: Twins) -> Result<Looked, StoreError>;

    /// A secret gets a seal under the new KEK, if its seal under the former one is there still, on disk when this returns.
    /// False: it is gone, or somebody else was first.
    async fn add_twin(
        &self,
        block: BlockNo,
        former: &KekId,
        twin: &SealedSecret,
    ) -> Result<bool, StoreError>;

    /// Takes a step, with its events.
    async fn put_site_keks(&self, step: &KekStep, audit: ChainLink<'_>) -> Result<(), StoreError>;
}
