//! The other site's audit chains, as this one has copied and verified them. No part of any chain of our own.

use async_trait::async_trait;

use super::StoreError;
use kms_core::{
    Epoch,
    audit::{
        Checkpoint, NodeId, StoredEvent,
        copying::{Copied, Piece},
    },
};

/// Keeps copies of the other site's chains.
#[async_trait]
pub trait PeerAuditStore: Send + Sync + 'static {
    /// The chains of this site that there is a copy of, in order of their nodes.
    async fn peer_chains(&self, site: &str) -> Result<Vec<Copied>, StoreError>;

    /// Copied events of a node's chain behind number `after`, in order, at most `limit`.
    async fn peer_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError>;

    /// Copied heads of a node's chain behind number `after`, in order, at most `limit`.
    async fn peer_checkpoints(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreError>;

    /// A copy goes one step on by this piece, which was verified: all of it or nothing, on disk when this returns. False:
    /// the copy stands elsewhere than the step begins, and nothing was written.
    async fn append_peer_audit(
        &self,
        site: &str,
        step: (&Copied, &Copied),
        piece: &Piece,
    ) -> Result<bool, StoreError>;

    /// The chain was found cut or changed behind its copy, in this epoch. One that was found so before stays.
    async fn note_peer_audit_broken(&self, node: &NodeId, epoch: Epoch) -> Result<(), StoreError>;
}
