//! What is written with events of the chain, in one transaction.

use crate::store::{
    BlockChange, ChainLink, StoreError, WriteStore,
    approvals::ApprovalStep,
    keks::KekStep,
    sites::{BlockAdoption, Divergent, PeerStep, RoleStep},
};
use kms_core::Head;

/// The kinds of it: one for each method of the store.
pub(super) enum Written {
    Changes(Vec<BlockChange>),
    Adoptions(Vec<BlockAdoption>),
    Role(Box<RoleStep>),
    Peer(Box<PeerStep>),
    Approval(Box<ApprovalStep>),
    Divergence(Vec<Divergent>),
    Keks(Box<KekStep>),
}

impl Written {
    /// Events alone.
    pub(super) const NOTHING: Self = Self::Changes(Vec::new());

    /// The heads of which the events say where their blocks stand. Those of a change of role stand in a
    /// signed table in the same transaction, so nobody has to say it: no restart looks for them anywhere
    /// else.
    pub(super) fn heads(&self) -> Vec<&Head> {
        match self {
            Self::Changes(changes) => changes.iter().map(|change| &change.head).collect(),
            Self::Adoptions(adoptions) => adoptions.iter().map(|adoption| &adoption.head).collect(),
            Self::Role(_)
            | Self::Peer(_)
            | Self::Approval(_)
            | Self::Divergence(_)
            | Self::Keks(_) => Vec::new(),
        }
    }

    /// Writes it with its events, or neither.
    pub(super) async fn write(
        &self,
        store: &dyn WriteStore,
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        match self {
            Self::Changes(changes) => store.commit(changes, audit).await,
            Self::Adoptions(adoptions) => store.adopt(adoptions, audit).await,
            Self::Role(step) => store.change_role(step, audit).await,
            Self::Peer(step) => store.put_peer(step, audit).await,
            Self::Approval(step) => store.put_approval(step, audit).await,
            Self::Divergence(divergent) => store.put_divergence(divergent, audit).await,
            Self::Keks(step) => store.put_site_keks(step, audit).await,
        }
    }
}
