//! The newest enrolment of each other site that this server has seen. A row of an enrolment before it is genuine, since our
//! token signed it, and old: what a site signed with a token that was replaced counts for nothing new.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, OnceLock, PoisonError},
};

use sha2::{Digest as _, Sha256};

use kms_core::site::peer::Peer;

/// An enrolment that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenPeer {
    /// The site.
    pub site: String,
    /// Epoch and time of it: a later one has a higher place.
    pub place: (u64, u64),
    /// SHA-256 of what our token signed.
    pub digest: [u8; 32],
}

/// Keeps what was seen outside the database.
pub trait PeerMemory: Send + Sync + 'static {
    /// All of it; nothing, where nothing was ever kept.
    fn read(&self) -> io::Result<Vec<SeenPeer>>;
    /// Keeps all of it.
    fn keep(&self, seen: &[SeenPeer]) -> io::Result<()>;
}

/// What was seen, in this process and, where there is a memory, before it.
#[derive(Default)]
pub(super) struct SeenPeers {
    memory: OnceLock<Box<dyn PeerMemory>>,
    /// Held for a look and for the file, never across an `.await`.
    seen: Mutex<BTreeMap<String, SeenPeer>>,
}

impl SeenPeer {
    fn of(peer: &Peer) -> Self {
        let epoch = peer.enrolled_in.map_or(0, |it| it.last.0);
        let digest = Sha256::digest(peer.message()).into();
        Self { site: peer.site.clone(), place: (epoch, peer.enrolled_ms), digest }
    }

    /// Whether this one is not the newest that is known, if `known` was seen.
    fn is_behind(&self, known: &Self) -> bool {
        self.place < known.place || self.place == known.place && self.digest != known.digest
    }
}

impl SeenPeers {
    /// From now on it outlives the process.
    pub(super) fn remember_in(&self, memory: Box<dyn PeerMemory>) -> io::Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(memory.read()?.into_iter().map(|peer| (peer.site.clone(), peer)));
        let _ = self.memory.set(memory);
        Ok(())
    }

    /// Sees a peer as it is stored, its signature verified. False: a newer enrolment of it was seen.
    pub(super) fn admit(&self, peer: &Peer) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SeenPeer::of(peer);
        if let Some(known) = seen.get(&peer.site) {
            if now.is_behind(known) {
                return false;
            }
            if now == *known {
                return true;
            }
        }
        seen.insert(peer.site.clone(), now);
        let all: Vec<SeenPeer> = seen.values().cloned().collect();
        if let Some(Err(error)) = self.memory.get().map(|memory| memory.keep(&all)) {
            tracing::error!(%error, "an enrolment is not noted outside the database");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::{
        DomainId, Epoch,
        site::peer::{EnrolledIn, PeerKind},
    };

    #[test]
    fn invariant_5_a_peer_goes_back_to_no_enrolment_before_the_newest_that_was_seen() {
        let peer = |last, enrolled_ms, key| Peer {
            domain: DomainId([7; 16]),
            site: "south".to_owned(),
            kind: PeerKind::Odd,
            signing: [key; 65],
            transport_block: Vec::new(),
            enrolled_ms,
            former: Vec::new(),
            enrolled_in: Some(EnrolledIn { first: Epoch(2), last: Epoch(last) }),
            tokens: None,
        };
        let seen = SeenPeers::default();
        assert!(seen.admit(&peer(2, 9, 1)) && seen.admit(&peer(2, 9, 1)));
        assert!(seen.admit(&peer(2, 10, 2)) && seen.admit(&peer(4, 3, 3)));
        assert!(!seen.admit(&peer(2, 10, 2)) && !seen.admit(&peer(4, 3, 4)));
        let old = Peer { enrolled_in: None, ..peer(2, 99, 5) };
        assert!(!seen.admit(&old) && seen.admit(&peer(4, 3, 3)));
    }
}
