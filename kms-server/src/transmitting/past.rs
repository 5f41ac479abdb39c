//! What signed records tell of the time before: whether this site may have forgotten counter lines, and whether anybody who
//! is there now can say which.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::refused::NotSent;
use crate::keyring::{NotChanged, Roles};
use kms_core::{
    BlockNo, DomainRecord, Epoch, Position,
    block::BlockMark,
    counters::standing::{forgotten, may_have_forgotten, peer_had, unwitnessed},
    site::{
        peer::{EnrolledIn, Peer, PeerKind},
        role::RoleRecord,
    },
};

/// The past, read once an epoch.
pub(super) struct Past {
    roles: Arc<Roles>,
    read: Mutex<Option<Arc<Known>>>,
}

/// Whoever may say what this site forgot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Witness {
    /// There is no other site.
    Nobody,
    /// The peer, which remembers since this epoch, as it says; `None`: it was not asked yet.
    Peer(Option<Epoch>),
}

/// The past, as of an epoch.
pub(super) struct Known {
    epoch: Epoch,
    records: Vec<RoleRecord>,
    /// Since when this site and the other one that may write know each other.
    met: Option<EnrolledIn>,
}

impl Past {
    pub(super) fn new(roles: Arc<Roles>) -> Self {
        Self { roles, read: Mutex::default() }
    }

    /// As of this epoch: each record verified.
    pub(super) async fn known(&self, epoch: Epoch) -> Result<Arc<Known>, NotSent> {
        if let Some(known) = self.read().as_ref().filter(|known| known.epoch == epoch) {
            return Ok(Arc::clone(known));
        }
        let failed = |error: NotChanged| NotSent::Unavailable(error.to_string().into());
        let records = self.roles.records().await.map_err(failed)?;
        let peers = self.roles.peers().await.map_err(failed)?;
        let is_writer = |peer: &&Peer| peer.kind != PeerKind::Replica;
        let met = peers.iter().find(is_writer).and_then(|peer| peer.enrolled_in);
        let records = records.into_iter().map(|signed| signed.record).collect();
        let known = Arc::new(Known { epoch, records, met });
        *self.read() = Some(Arc::clone(&known));
        Ok(known)
    }

    /// The other site may have been enrolled anew, within the epoch.
    pub(super) fn look_again(&self) {
        *self.read() = None;
    }

    /// Held for a look, never across an `.await`.
    fn read(&self) -> MutexGuard<'_, Option<Arc<Known>>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Whether this site may have forgotten lines of the block when it was promoted to this epoch.
    pub(super) fn may_have_forgotten(&self, block: BlockNo) -> bool {
        may_have_forgotten(&self.records, block, self.epoch)
    }

    /// The epoch before which nothing that is known of a line of this block counts.
    pub(super) fn since(
        &self,
        domain: &DomainRecord,
        block: BlockNo,
        witness: Witness,
    ) -> Option<Epoch> {
        match witness {
            Witness::Nobody => self.may_have_forgotten(block).then_some(self.epoch),
            Witness::Peer(remembers) => {
                unwitnessed(domain, &self.records, block, self.met, remembers)
            }
        }
    }

    /// The newest epoch of this site's that may have begun without lines of the block.
    pub(super) fn forgotten(&self, domain: &DomainRecord, block: BlockNo) -> Option<Epoch> {
        forgotten(domain, &self.records, block)
    }

    /// The same, if the peer can say which.
    pub(super) fn witnessed(
        &self,
        domain: &DomainRecord,
        block: BlockNo,
        remembers: Option<Epoch>,
    ) -> Option<Epoch> {
        let since = self.since(domain, block, Witness::Peer(remembers));
        self.forgotten(domain, block).filter(|epoch| Some(*epoch) > since)
    }

    /// Whether the peer is to be asked before a line that was written at this position is used: in an epoch that began
    /// without lines, and in later ones where nothing was written of the line since.
    pub(super) fn is_to_be_asked(
        &self,
        domain: &DomainRecord,
        (block, remembers): (BlockNo, Option<Epoch>),
        at: Position,
    ) -> bool {
        let witnessed = self.witnessed(domain, block, remembers);
        witnessed.is_some_and(|epoch| epoch == self.epoch || at.epoch < epoch)
    }

    /// Whether the peer had what was written at this position of a block.
    pub(super) fn peer_had(&self, domain: &DomainRecord, head: &BlockMark, at: Position) -> bool {
        peer_had(domain, &self.records, head, at)
    }
}
