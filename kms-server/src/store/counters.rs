//! Marks of transmit counters, beside the blocks: they change often, have no sequence number, and are one site's own.

use async_trait::async_trait;

use super::nouns::StoreError;
use kms_core::{
    BlockNo,
    counters::{allocator::Witnessed, mark::StoredMark},
};

/// Marks, ours and what the peer told of its own. Not verified here.
#[async_trait]
pub trait CounterStore: Send + Sync + 'static {
    /// A block's mark; `None`: no counter of it was ever reserved here.
    async fn counter_mark(&self, block: BlockNo) -> Result<Option<StoredMark>, StoreError>;

    /// All marks, in order of their blocks.
    async fn counter_marks(&self) -> Result<Vec<StoredMark>, StoreError>;

    /// Replaces the mark `expected` (`None`: there is none), on disk when this returns. False: another one is there by
    /// now, and stays. [`StoreError::NotWriter`] if this site does not write in the mark's epoch: that is looked at in
    /// the same transaction, in which no change of role is under way.
    async fn put_counter_mark(
        &self,
        expected: Option<&StoredMark>,
        mark: &StoredMark,
    ) -> Result<bool, StoreError>;

    /// The marks of the site of this name that were kept for it, in order of their blocks.
    async fn witnessed_marks(&self, site: &str) -> Result<Vec<(BlockNo, Witnessed)>, StoreError>;

    /// Keeps marks of another site, each if it is higher than the one that is kept.
    async fn witness_marks(
        &self,
        site: &str,
        marks: &[(BlockNo, Witnessed)],
    ) -> Result<(), StoreError>;
}
