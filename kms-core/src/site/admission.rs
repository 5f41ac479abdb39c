//! Which role records a site accepts.

use super::{
    DomainRecord,
    peer::{Peer, PeerKind},
    role::{RoleRecord, SignedRoleRecord},
};
use crate::audit::PublicKey;

/// The keys that role records are signed with.
pub struct Signers {
    /// Of this site.
    pub ours: PublicKey,
    /// Of the other sites.
    pub peers: Vec<Peer>,
}

/// The reason why a role record is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Placeholder.
    #[error("not signed by the site that its epoch names")]
    Signature,
}

/// Whether `new` may follow `before`.
pub fn admit(
    domain: &DomainRecord,
    signers: &Signers,
    _before: &[RoleRecord],
    new: &SignedRoleRecord,
) -> Result<(), NotAdmitted> {
    let even = new.record.epoch.is_even();
    let kind = if even { PeerKind::Even } else { PeerKind::Odd };
    let key = if even == domain.even {
        Some(&signers.ours)
    } else {
        signers.peers.iter().find(|peer| peer.kind == kind).map(|peer| &peer.signing)
    };
    key.filter(|key| new.is_signed_by(key)).map(|_| ()).ok_or(NotAdmitted::Signature)
}
