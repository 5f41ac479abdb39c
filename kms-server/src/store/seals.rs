//! Seals of former block secrets, and how they go: with the rows that are MACed under such a secret and are in no
//! record.

use async_trait::async_trait;

use super::nouns::StoreError;
use kms_core::{BlockNo, RecordMac, counters::mark::StoredMark, floors::FloorRow};

/// A block's former secrets go, and what hung on them is MACed under the present one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retirement {
    /// The block.
    pub block: BlockNo,
    /// Seals of versions below this one go.
    pub below: u32,
    /// The mark of its counters as it stands, and as it is to stand: the same, under another MAC.
    pub mark: Option<(StoredMark, StoredMark)>,
    /// The receive floors likewise, each by the MAC that it has.
    pub floors: Vec<(RecordMac, FloorRow)>,
}

/// Former seals.
#[async_trait]
pub trait SealStore: Send + Sync + 'static {
    /// The blocks that have a seal of a version below the one that they are under, in order.
    async fn former_seals(&self) -> Result<Vec<BlockNo>, StoreError>;

    /// Retires, on disk when this returns: all of it or nothing. False: a mark or a floor is another one by now.
    async fn retire_seals(&self, retirement: &Retirement) -> Result<bool, StoreError>;
}
