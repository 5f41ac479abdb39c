//! One floor, and how it is stored.

use crate::{
    BlockNo, Fingerprint, RecordMac, SystemTitle,
    audit::NodeId,
    block::local::LocalKey,
    codec::{BadEncoding, Reader},
    counters::LineName,
    profile::FloorRule,
};

/// What was seen of one line. Merged by maximum: [`Floor::merge`] is commutative, associative and idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    highest: u32,
    /// Bit n: the counter n below the highest one was seen. Bit 0 is always set.
    seen: u64,
    /// A check of the message with the highest counter, by which it is known again.
    check: u32,
}

/// Bits that no line has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a floor: its highest counter is not among those that were seen")]
pub struct BadFloor;

impl Floor {
    /// After the first message of a line.
    pub const fn first(counter: u32, check: u32) -> Self {
        Self { highest: counter, seen: 1, check }
    }

    /// Bytes of [`Floor::to_bytes`].
    pub const LEN: usize = 16;

    /// To be stored.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.highest.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.seen.to_be_bytes());
        bytes[12..].copy_from_slice(&self.check.to_be_bytes());
        bytes
    }

    /// As it is stored.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, BadFloor> {
        let mut input = Reader::new(bytes);
        let mut parts = || Ok::<_, BadEncoding>((input.u32()?, input.u64()?, input.u32()?));
        let (highest, seen, check) = parts().map_err(|_| BadFloor)?;
        Self::new(highest, seen, check)
    }

    /// Of its parts.
    pub const fn new(highest: u32, seen: u64, check: u32) -> Result<Self, BadFloor> {
        // Below 0 there are no counters.
        let below_zero = highest < 63 && seen >> (highest + 1) != 0;
        if seen & 1 == 0 || below_zero { Err(BadFloor) } else { Ok(Self { highest, seen, check }) }
    }

    /// The highest counter that was seen.
    pub const fn highest(&self) -> u32 {
        self.highest
    }

    /// The bits of the counters from the highest one down.
    pub const fn seen(&self) -> u64 {
        self.seen
    }

    /// The check of the message with the highest counter.
    pub const fn check(&self) -> u32 {
        self.check
    }

    /// Whether a counter is known to have been seen. `None`: it is too far below for anybody to know.
    pub const fn has_seen(&self, counter: u32) -> Option<bool> {
        if counter > self.highest {
            return Some(false);
        }
        let below = self.highest - counter;
        if below >= FloorRule::WINDOW_MAX as u32 { None } else { Some(self.seen >> below & 1 == 1) }
    }

    /// Everything that either has seen.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let (mut high, low) = if (other.highest, other.check) > (self.highest, self.check) {
            (other, self)
        } else {
            (self, other)
        };
        let distance = high.highest - low.highest;
        high.seen |= low.seen.checked_shl(distance).unwrap_or(0);
        high
    }

    /// With one counter more.
    #[must_use]
    pub fn with(self, counter: u32, check: u32) -> Self {
        let one = Self::first(counter, check);
        if counter > self.highest {
            return self.merge(one);
        }
        let below = self.highest - counter;
        Self { seen: self.seen | 1u64.checked_shl(below).unwrap_or(0), ..self }
    }
}

/// A floor as a database keeps it: one row a line and node, so that nodes never write the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloorRow {
    /// The block of the meter whose transmissions they are.
    pub block: BlockNo,
    /// The line.
    pub line: LineName,
    /// The node that saw it.
    pub node: NodeId,
    /// When it wrote the row; milliseconds since 1970.
    pub at_ms: u64,
    /// [`Floor::to_bytes`].
    pub body: [u8; Floor::LEN],
    /// Under the block's [`LocalKey`].
    pub mac: RecordMac,
}

/// A place among all stored floors, by the time at which they were stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FloorPlace {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The block.
    pub block: BlockNo,
    /// The line.
    pub line: LineName,
    /// The node.
    pub node: NodeId,
}

impl FloorPlace {
    /// Before all that was stored at this time or later.
    pub const fn since(at_ms: u64) -> Self {
        let line =
            LineName { fingerprint: Fingerprint([0; 16]), originator: SystemTitle::new([0; 8]) };
        Self { at_ms, block: BlockNo(0), line, node: NodeId([0; 16]) }
    }
}

impl FloorRow {
    /// Its place.
    pub const fn place(&self) -> FloorPlace {
        let Self { at_ms, block, line, node, .. } = *self;
        FloorPlace { at_ms, block, line, node }
    }

    /// With its MAC.
    #[must_use]
    pub fn signed(self, key: &LocalKey) -> Self {
        Self { mac: key.mac(&self.mac_input()), ..self }
    }

    /// The floor, if this site wrote the row as it stands.
    pub fn verified(&self, key: &LocalKey) -> Option<Floor> {
        let is_authentic = key.is_authentic(&self.mac_input(), &self.mac);
        is_authentic.then(|| Floor::from_bytes(&self.body).ok()).flatten()
    }

    /// All fields have a fixed length.
    fn mac_input(&self) -> Vec<u8> {
        let Self { block, line: LineName { fingerprint, originator }, node, at_ms, body, mac: _ } =
            self;
        [
            b"ami.kms/receive-floor/1".as_slice(),
            &block.0.to_be_bytes(),
            &fingerprint.0,
            originator.as_bytes(),
            &node.0,
            &at_ms.to_be_bytes(),
            body,
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn floor() -> impl Strategy<Value = Floor> {
        // Close together and far apart.
        let counters = prop_oneof![0u32..200, any::<u32>()];
        prop::collection::vec((counters, 0u32..3), 1..30).prop_map(|seen| {
            let (first, check) = seen[0];
            seen.iter().fold(Floor::first(first, check), |floor, (counter, check)| {
                floor.with(*counter, *check)
            })
        })
    }

    proptest! {
        #[test]
        fn floors_merge_by_maximum_in_any_order_and_never_lower(a in floor(), b in floor(), c in floor(), counter in 0u32..200) {
            prop_assert_eq!(a.merge(b), b.merge(a));
            prop_assert_eq!(a.merge(b).merge(c), a.merge(b.merge(c)));
            prop_assert_eq!(a.merge(a), a);
            let merged = a.merge(b);
            prop_assert!(merged.highest() >= a.highest().max(b.highest()));
            for one in [a, b] {
                // What one has seen, the two together have not forgotten: it is seen, or below what is known.
                if one.has_seen(counter) != Some(false) {
                    prop_assert_ne!(merged.has_seen(counter), Some(false));
                }
            }
            prop_assert_eq!(Floor::from_bytes(&merged.to_bytes()), Ok(merged));
        }
    }

    #[test]
    fn bits_that_no_line_has_are_no_floor() {
        assert_eq!(Floor::new(5, 2, 0), Err(BadFloor));
        assert_eq!(Floor::new(0, 3, 0), Err(BadFloor));
        assert_eq!(Floor::new(1, 4 | 1, 0), Err(BadFloor));
        assert!(Floor::new(62, u64::MAX, 0).is_err());
        assert!(Floor::new(63, u64::MAX, 0).is_ok());
        assert!(Floor::new(u32::MAX, u64::MAX, 0).is_ok());
    }
}
