//! Receive floors, as the store keeps them: rows of this site's own that change often and are no records. Opaque here:
//! whoever reads verifies their MACs.

use async_trait::async_trait;

use super::nouns::StoreError;
use kms_core::{
    BlockNo,
    audit::NodeId,
    floors::{FloorPlace, FloorRow},
};

/// Whether a node has stored all that it knew when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloorRun {
    /// The node.
    pub node: NodeId,
    /// When this was written; milliseconds since 1970.
    pub at_ms: u64,
    /// It ended, and everything is stored.
    pub ended: bool,
}

/// Receive floors.
#[async_trait]
pub trait FloorStore: Send + Sync + 'static {
    /// The floors of a block, of all nodes.
    async fn floors(&self, block: BlockNo) -> Result<Vec<FloorRow>, StoreError>;

    /// Floors that nodes but this one wrote, in the order of their places, after this one; at most `limit`.
    async fn floors_after(
        &self,
        place: &FloorPlace,
        but: &NodeId,
        limit: u32,
    ) -> Result<Vec<FloorRow>, StoreError>;

    /// How the node's last run stands; `None`: it never had floors.
    async fn floor_run(&self, node: &NodeId) -> Result<Option<FloorRun>, StoreError>;

    /// Rows come to be or are replaced, each by its line and node, and the run stands as it is said: all or
    /// nothing, on disk when this returns.
    async fn put_floors(&self, rows: &[FloorRow], run: &FloorRun) -> Result<(), StoreError>;
}
