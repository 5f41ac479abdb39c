//! Chains are read in pieces.

use kms_core::audit::{ChainTip, Checkpoint, StoredEvent};

/// Events of one page.
pub const PAGE_MAX: u32 = kms_core::wire::PAGE_MAX;

/// A piece of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// In order.
    pub events: Vec<StoredEvent>,
    /// Signed heads of this piece; on the last page, all that there are beyond it too.
    pub heads: Vec<Checkpoint>,
    /// Whether there was more to read.
    pub more: bool,
    /// Where the chain ends: of this node's own as this process knows it, not as the database says.
    pub tip: ChainTip,
}
