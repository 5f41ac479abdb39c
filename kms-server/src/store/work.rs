//! What becomes true together with events of the audit log, and is checked before any database is asked:
//! shared by all implementations.

use super::{
    BlockChange, ChainLink, StoreError,
    approvals::ApprovalStep,
    keks::KekStep,
    rules,
    sites::{BlockAdoption, Divergent, PeerStep, RoleStep},
};
use kms_core::BlockNo;

/// The methods of [`super::WriteStore`] that bring events.
#[derive(Clone, Copy)]
pub(super) enum Work<'a> {
    Commit(&'a [BlockChange]),
    Adopt(&'a [BlockAdoption]),
    ChangeRole(&'a RoleStep),
    PutPeer(&'a PeerStep),
    PutApproval(&'a ApprovalStep),
    PutDivergence(&'a [Divergent]),
    PutSiteKeks(&'a KekStep),
}

impl Work<'_> {
    /// Checks everything that can be known without the database.
    pub(super) fn check(&self, audit: &ChainLink<'_>) -> Result<(), StoreError> {
        match self {
            Self::Commit(changes) => rules::check(changes)?,
            Self::Adopt(adoptions) => rules::check_adoptions(adoptions)?,
            Self::ChangeRole(step) => rules::check_role(step)?,
            Self::PutPeer(_)
            | Self::PutApproval(_)
            | Self::PutDivergence(_)
            | Self::PutSiteKeks(_) => {}
        }
        rules::check_audit(audit)
    }

    /// The first block that it changes: named where the database gave it up for somebody else's sake.
    pub(super) fn first_block(&self) -> Option<BlockNo> {
        let first = |changes: &[BlockChange]| changes.iter().map(|change| change.head.block).min();
        match self {
            Self::Commit(changes) => first(changes),
            Self::Adopt(adoptions) => adoptions.iter().map(|adoption| adoption.head.block).min(),
            Self::ChangeRole(step) => first(&step.blocks),
            Self::PutPeer(_)
            | Self::PutApproval(_)
            | Self::PutDivergence(_)
            | Self::PutSiteKeks(_) => None,
        }
    }
}
