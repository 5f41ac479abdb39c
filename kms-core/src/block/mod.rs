//! Key blocks: the unit of wrapping, writing, replication, proof and sharding.
//!
//! Here the nouns; below, the rules: [`keys`] derives what a block is MACed and wrapped under,
//! [`verified`] believes what is stored or names what is wrong ([`known`]: without reading all of it again), [`extending`] adds our own changes,
//! [`accepting`] takes a peer's over as they are, [`returning`] brings a block that has parted back to the peer's
//! [`lineage`], [`reconciling`] merges what was set aside then ([`withdrawing`]: what waits for nobody), [`entering`]
//! brings a block into the epoch of a promotion, [`rotating`] under another secret, [`proof`] shows a peer that a block opens here, [`local`] keys the rows
//! that are one site's own.

pub mod accepting;
pub mod entering;
pub mod extending;
pub mod keys;
pub mod known;
pub mod lineage;
pub mod local;
pub mod proof;
pub mod reconciling;
pub mod returning;
pub mod rotating;
pub mod verified;
pub mod withdrawing;

use std::fmt;

use dlms::SystemTitle;

/// The number of a block within its key domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockNo(pub u32);

impl fmt::Display for BlockNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of blocks of a key domain. Fixed when the domain is created: 1 to 65,536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCount(u32);

/// A block count outside 1 to 65,536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key domain has 1 to 65536 blocks, not {0}")]
pub struct BadBlockCount(pub u32);

impl BlockCount {
    /// The number of blocks of a domain unless it says otherwise: 244 meters a block at one million.
    pub const DEFAULT: Self = Self(4096);

    /// Checks the bound.
    pub const fn new(count: u32) -> Result<Self, BadBlockCount> {
        match count {
            1..=65_536 => Ok(Self(count)),
            _ => Err(BadBlockCount(count)),
        }
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The block that `title` belongs to, for as long as the domain lives.
    pub fn block_of(self, title: &SystemTitle) -> BlockNo {
        let spread = spread(u64::from_be_bytes(*title.as_bytes()));
        // The upper bits choose the block; the lower ones are left for the place within it.
        BlockNo(((u128::from(spread) * u128::from(self.0)) >> 64) as u32)
    }
}

/// The number that [`spread`] makes this one of.
pub(crate) const fn unspread(spread: u64) -> u64 {
    let mut x = spread ^ (spread >> 31) ^ (spread >> 62);
    x = x.wrapping_mul(0x3196_42B2_D24D_8EC3);
    x = (x ^ (x >> 27) ^ (x >> 54)).wrapping_mul(0x96DE_1B17_3F11_9089);
    (x ^ (x >> 30) ^ (x >> 60)).wrapping_sub(0x9E37_79B9_7F4A_7C15)
}

/// Spreads the 8 bytes of a title over 64 bits: the finaliser of SplitMix64, a bijection.
///
/// Stored data depends on it (a title's block), so it can't change within a key domain. It needs no
/// secret: whoever picks titles to crowd one block makes that block slow for himself.
pub const fn spread(title: u64) -> u64 {
    let mut x = title.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Raised by each promotion; its parity names the site.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// The gapless number of a change within its block, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// The last change of a record or a block; ordered by epoch, then by sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The writer's epoch.
    pub epoch: Epoch,
    /// The change's number.
    pub sequence: Sequence,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.epoch.0, self.sequence.0)
    }
}

/// AES-256-CMAC under the block's `mac` key.
pub type RecordMac = [u8; 16];

/// SHA-256 over the MACs of a block's records, in key order.
pub type Digest = [u8; 32];

/// The head of a block: the block's statement of itself, MACed like a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The block.
    pub block: BlockNo,
    /// The version of the block secret that its records are wrapped and MACed under.
    pub secret_version: u32,
    /// Its last change.
    pub position: Position,
    /// The number of its records, tombstones included.
    pub count: u32,
    /// Over its records' MACs.
    pub digest: Digest,
    /// Over all of the above.
    pub mac: RecordMac,
}

/// The state of a block after a change: its position, and the digest over its records' MACs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockMark {
    /// The block.
    pub block: BlockNo,
    /// Its last change.
    pub position: Position,
    /// Over its records' MACs.
    pub digest: Digest,
}

#[cfg(test)]
mod known_tests;
#[cfg(test)]
mod returning_tests;
#[cfg(test)]
mod rules_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_titles_block_never_changes() {
        let title = SystemTitle::new(*b"LGZ\x00\x01\x02\x03\x04");
        assert_eq!(BlockCount::DEFAULT.block_of(&title), BlockNo(783));
    }

    #[test]
    fn blocks_of_running_serial_numbers_are_even() {
        let mut meters = vec![0u32; 4096];
        for serial in 0..1_000_000u64 {
            let title = SystemTitle::new((0x4B46_4D00_0000_0000 | serial).to_be_bytes());
            meters[BlockCount::DEFAULT.block_of(&title).0 as usize] += 1;
        }
        let (least, most) = (meters.iter().min().unwrap(), meters.iter().max().unwrap());
        assert!(*least > 170 && *most < 330, "{least} to {most} meters a block");
    }

    #[test]
    fn a_domain_without_blocks_is_refused() {
        assert_eq!(BlockCount::new(0), Err(BadBlockCount(0)));
        assert_eq!(BlockCount::new(65_537), Err(BadBlockCount(65_537)));
    }
}
