//! Bounds of the copies of another site's audit log: who has that site's server, and not its token, fills no database
//! here, and takes no place from the chains that its token has signed.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ChainTip, NodeId,
    copying::{Copied, Piece},
};

/// Chains of the other site that are copied: each server of it that ever was has one.
pub const CHAINS_MAX: usize = 1_024;
/// Chains among them of which its token has signed nothing yet: servers that have just begun.
pub const UNSIGNED_CHAINS_MAX: usize = 64;
/// Events of all copies that stand behind what its token has signed. A server signs after 100,000 events at the latest.
pub const UNSIGNED_MAX: u64 = 131_072;
/// Events in one piece, and heads.
pub const PIECE_EVENTS: usize = 500;
/// Bytes of events in one piece. A single event may be longer.
pub const PIECE_BYTES: usize = 256 << 10;

/// The reason why more of the other site's audit log is not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// A piece is longer than both sites have agreed.
    #[error(
        "a piece of the audit chain of node {node} has {events} events, {heads} heads and {bytes} bytes, which is more \
         than a piece may have"
    )]
    TooLong {
        /// Its chain.
        node: NodeId,
        /// Its events.
        events: usize,
        /// Its heads.
        heads: usize,
        /// The bytes of its events.
        bytes: usize,
    },
    /// Too much is copied that its token has not signed.
    #[error(
        "its token has not signed {events} events of its audit chains: none behind event {at} of node {node} is copied \
         before it signs"
    )]
    Unsigned {
        /// The chain.
        node: NodeId,
        /// The end of its copy.
        at: u64,
        /// So many are not signed, of all chains.
        events: u64,
    },
    /// Too many chains have no signed head.
    #[error(
        "its token has signed nothing of {UNSIGNED_CHAINS_MAX} audit chains: no further one is copied before it does, \
         the one of node {0} neither"
    )]
    UnsignedChains(NodeId),
    /// It has more chains than are copied.
    #[error("it has more than {CHAINS_MAX} audit chains: the one of node {0} is not copied")]
    TooManyChains(NodeId),
}

/// Room for more, in one look at the other site's chains.
#[derive(Debug)]
pub struct Room {
    /// The ends that its token has signed in the newest table that it has shown.
    signed: BTreeMap<NodeId, u64>,
    chains: usize,
    /// Of these chains its token has signed nothing.
    headless: BTreeSet<NodeId>,
    unsigned: u64,
}

impl Piece {
    /// Whether a piece is as short as both sites have agreed.
    pub fn fits(&self, node: NodeId) -> Result<(), NotTaken> {
        let (events, heads) = (self.events.len(), self.heads.len());
        let bytes = self.events.iter().map(|event| event.body.len()).sum();
        let is_short = events <= PIECE_EVENTS && heads <= PIECE_EVENTS;
        if is_short && (bytes <= PIECE_BYTES || events == 1) {
            return Ok(());
        }
        Err(NotTaken::TooLong { node, events, heads, bytes })
    }
}

impl Room {
    /// Beside these copies, where the token has signed these ends.
    pub fn beside(copies: &[Copied], signed: &[ChainTip]) -> Self {
        let signed = signed.iter().map(|tip| (tip.node, tip.sequence)).collect();
        let (chains, headless) = (copies.len(), BTreeSet::new());
        let mut this = Self { signed, chains, headless, unsigned: 0 };
        this.unsigned = copies.iter().map(|copy| this.unsigned_of(copy)).sum();
        let headless = copies.iter().filter(|copy| this.signed_of(copy) == 0);
        this.headless = headless.map(|copy| copy.tip.node).collect();
        this
    }

    /// A chain of which nothing is copied yet.
    pub fn begin(&mut self, node: NodeId) -> Result<(), NotTaken> {
        if self.chains >= CHAINS_MAX {
            return Err(NotTaken::TooManyChains(node));
        }
        if !self.signed.contains_key(&node) {
            if self.headless.len() >= UNSIGNED_CHAINS_MAX {
                return Err(NotTaken::UnsignedChains(node));
            }
            self.headless.insert(node);
        }
        self.chains += 1;
        Ok(())
    }

    /// A copy goes on from one state to the next.
    pub fn go_on(&mut self, from: &Copied, to: &Copied) -> Result<(), NotTaken> {
        let (before, after) = (self.unsigned_of(from), self.unsigned_of(to));
        let events = self.unsigned.saturating_sub(before).saturating_add(after);
        if after > before && events > UNSIGNED_MAX {
            let ChainTip { node, sequence: at, .. } = from.tip;
            return Err(NotTaken::Unsigned { node, at, events });
        }
        self.unsigned = events;
        Ok(())
    }

    /// The last event of a copy that its token has signed: by a head of the chain, or by a table of all ends.
    fn signed_of(&self, copy: &Copied) -> u64 {
        copy.signed.max(self.signed.get(&copy.tip.node).copied().unwrap_or(0))
    }

    fn unsigned_of(&self, copy: &Copied) -> u64 {
        copy.tip.sequence.saturating_sub(self.signed_of(copy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::StoredEvent;

    fn node(n: u64) -> NodeId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&n.to_be_bytes());
        NodeId(id)
    }

    fn copy(n: u64, sequence: u64, signed: u64) -> Copied {
        let tip = ChainTip { node: node(n), sequence, hash: [0; 32] };
        Copied { tip, signed, broken_in: None }
    }

    fn piece(events: usize, bytes: usize) -> Piece {
        let body = vec![0; bytes];
        let event = StoredEvent { node: node(1), sequence: 1, hash: [0; 32], body };
        Piece { events: vec![event; events], heads: Vec::new() }
    }

    #[test]
    fn a_piece_is_as_long_as_agreed_and_a_single_event_may_be_longer() {
        let fits = |events, bytes| piece(events, bytes).fits(node(1)).is_ok();
        assert!(fits(0, 0) && fits(PIECE_EVENTS, 1) && fits(1, PIECE_BYTES + 1));
        assert!(fits(2, PIECE_BYTES / 2));
        assert!(!fits(PIECE_EVENTS + 1, 1) && !fits(2, PIECE_BYTES / 2 + 1));
    }

    #[test]
    fn events_that_no_token_has_signed_are_copied_to_a_bound_over_all_chains() {
        let copies = [copy(1, 90_000, 0), copy(2, 50_000, 20_000)];
        let mut room = Room::beside(&copies, &[copy(2, 45_000, 0).tip]);
        // 90,000 of the first, 5,000 of the second.
        let left = UNSIGNED_MAX - 95_000;
        let most = copy(1, 90_000 + left, 0);
        assert_eq!(room.go_on(&copies[0], &most), Ok(()));
        let more = copy(2, 50_001, 20_000);
        let full = NotTaken::Unsigned { node: node(2), at: 50_000, events: UNSIGNED_MAX + 1 };
        assert_eq!(room.go_on(&copies[1], &more), Err(full));
        // A head makes room, and where there are as many or fewer than before, it goes on.
        assert_eq!(room.go_on(&copies[1], &copy(2, 50_001, 50_001)), Ok(()));
        assert_eq!(room.go_on(&most, &copy(1, 90_000 + left, 1)), Ok(()));
        assert_eq!(room.go_on(&copy(2, 50_001, 50_001), &copy(2, 50_002, 50_001)), Ok(()));
    }

    #[test]
    fn chains_that_no_token_has_signed_take_no_place_from_those_that_it_has() {
        let mut room = Room::beside(&[], &[copy(5_000, 3, 0).tip]);
        for n in 0..UNSIGNED_CHAINS_MAX as u64 {
            assert_eq!(room.begin(node(n)), Ok(()));
        }
        assert_eq!(room.begin(node(900)), Err(NotTaken::UnsignedChains(node(900))));
        assert_eq!(room.begin(node(5_000)), Ok(()));
        // Those that are copied and have a head are none of them.
        let copies: Vec<Copied> = (0..CHAINS_MAX as u64 - 1).map(|n| copy(n, 9, 9)).collect();
        let mut room = Room::beside(&copies, &[]);
        assert_eq!(room.begin(node(5_000)), Ok(()));
        assert_eq!(room.begin(node(5_001)), Err(NotTaken::TooManyChains(node(5_001))));
    }
}
