//! Which of the two sites writes: signed records of each promotion and each demotion, and what follows from
//! them. They are the truth; what the database says of the role is a copy that each commit looks at.

use std::borrow::Borrow;

use super::{DomainId, DomainRecord, peer::PeerKind};
use crate::{
    BlockCount, BlockNo, Epoch, Position, Sequence,
    audit::{Signature, Verifies, is_signed},
    block::{BlockMark, Digest},
    codec::{BadEncoding, Reader, put_bytes},
};

crate::numbered! {
    /// The role of a site in its key domain.
    pub enum Role "role" {
        /// It writes.
        Primary = 1 "PRIMARY",
        /// It follows the site that writes, and can be promoted.
        Secondary = 2 "SECONDARY",
        /// It was the primary, and another site was promoted since: it writes no more, and what it wrote past
        /// the fork is to be set aside before it follows.
        Fenced = 3 "FENCED",
        /// It follows, and is never promoted.
        Replica = 4 "REPLICA",
    }
}

crate::numbered! {
    /// A change of who writes.
    pub enum RoleChange "change of role" {
        /// A site begins to write, in an epoch of its own.
        Promotion = 1 "PROMOTION",
        /// A site ends to write, so that the other one can be promoted without a loss.
        Demotion = 2 "DEMOTION",
    }
}

impl Epoch {
    /// Whether it is one of the site of even epochs.
    pub const fn is_even(self) -> bool {
        self.0.is_multiple_of(2)
    }

    /// The lowest epoch above this one that a site of the given parity may take.
    pub const fn next_of(self, even: bool) -> Self {
        let next = Self(self.0.saturating_add(1));
        if next.is_even() == even { next } else { Self(next.0.saturating_add(1)) }
    }
}

/// A promotion or a demotion. Commits to the states of all blocks at that time: what another site wrote beyond
/// them is its own, and parts from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRecord {
    /// The key domain.
    pub domain: DomainId,
    /// The operator's name for the site whose role changes.
    pub site: String,
    /// The change.
    pub change: RoleChange,
    /// The epoch that the site writes in from now on, or no more.
    pub epoch: Epoch,
    /// The highest epoch of which the site knew before.
    pub after: Epoch,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// All blocks, in order, as they were found: before they were brought into the new epoch.
    pub heads: Vec<(Position, Digest)>,
}

/// A role record and its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRoleRecord {
    /// The record.
    pub record: RoleRecord,
    /// Of the site's signing key, over [`RoleRecord::message`].
    pub signature: Signature,
}

impl RoleRecord {
    /// The message that is signed, which is its encoding.
    pub fn message(&self) -> Vec<u8> {
        let Self { domain, site, change, epoch, after, at_ms, heads } = self;
        let mut out = Vec::with_capacity(128 + heads.len() * HEAD_LEN);
        out.extend_from_slice(LABEL);
        out.extend_from_slice(&domain.0);
        put_bytes(&mut out, site.as_bytes());
        out.push(*change as u8);
        out.extend_from_slice(&epoch.0.to_be_bytes());
        out.extend_from_slice(&after.0.to_be_bytes());
        out.extend_from_slice(&at_ms.to_be_bytes());
        // A domain has at most 65,536 blocks.
        out.extend_from_slice(&(heads.len() as u32).to_be_bytes());
        for (position, digest) in heads {
            out.extend_from_slice(&position.epoch.0.to_be_bytes());
            out.extend_from_slice(&position.sequence.0.to_be_bytes());
            out.extend_from_slice(digest);
        }
        out
    }

    /// The record in the bytes of a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEncoding> {
        let mut input = Reader::new(bytes.strip_prefix(LABEL).ok_or(BadEncoding)?);
        let domain = DomainId(input.array()?);
        let site = input.text()?.to_owned();
        let change = crate::Numbered::from_number(input.u8()?).ok_or(BadEncoding)?;
        let (epoch, after) = (Epoch(input.u64()?), Epoch(input.u64()?));
        let at_ms = input.u64()?;
        let count = input.u32()? as usize;
        if input.left() != count.checked_mul(HEAD_LEN).ok_or(BadEncoding)? {
            return Err(BadEncoding);
        }
        let head = |input: &mut Reader<'_>| {
            let (epoch, sequence) = (Epoch(input.u64()?), Sequence(input.u64()?));
            Ok((Position { epoch, sequence }, input.array()?))
        };
        let heads = (0..count).map(|_| head(&mut input)).collect::<Result<_, _>>()?;
        input.end()?;
        Ok(Self { domain, site, change, epoch, after, at_ms, heads })
    }

    /// The state in which it found a block; `None`: it says nothing of it.
    pub fn found(&self, block: BlockNo) -> Option<BlockMark> {
        let (position, digest) = *self.heads.get(usize::try_from(block.0).ok()?)?;
        Some(BlockMark { block, position, digest })
    }

    /// Its place among the role records of its domain: a site demotes itself after its promotion.
    pub fn place(&self) -> (Epoch, RoleChange) {
        (self.epoch, self.change)
    }

    /// Whether it says of each block of a domain, once, where it stood.
    pub fn covers(&self, blocks: BlockCount) -> bool {
        u32::try_from(self.heads.len()) == Ok(blocks.get())
    }
}

/// What was verified counts without its signature.
impl Borrow<RoleRecord> for SignedRoleRecord {
    fn borrow(&self) -> &RoleRecord {
        &self.record
    }
}

impl SignedRoleRecord {
    /// Whether the holder of `key` signed it.
    pub fn is_signed_by(&self, key: &impl Verifies) -> bool {
        is_signed(key, &self.record.message(), &self.signature)
    }
}

const LABEL: &[u8] = b"ami.kms/role/1";
const HEAD_LEN: usize = 8 + 8 + 32;

/// A site's role, and the epoch that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The role.
    pub role: Role,
    /// The highest epoch that is known: the one that the primary writes in.
    pub epoch: Epoch,
    /// Whether somebody writes in it: not between a demotion and the promotion that follows it.
    pub open: bool,
}

impl Standing {
    /// Whether this site may change blocks and reserve counters.
    pub const fn writes(&self) -> bool {
        matches!(self.role, Role::Primary) && self.open
    }

    /// What follows for the site of `domain` from the role records of its domain, which were verified and are
    /// in their places. Whether a site that follows is fenced stands with its blocks: see
    /// [`Standing::with_parted`].
    pub fn of<R: Borrow<RoleRecord>>(domain: &DomainRecord, records: &[R]) -> Self {
        let (epoch, open) = match records.last().map(Borrow::borrow) {
            None => (domain.epoch, true),
            Some(newest) => (newest.epoch, newest.change == RoleChange::Promotion),
        };
        let role = match domain.kind {
            PeerKind::Replica => Role::Replica,
            kind if kind.owns(epoch) => Role::Primary,
            _ => Role::Secondary,
        };
        Self { role, epoch, open }
    }

    /// The standing of a site with blocks that have parted from the peer's: a site that follows is fenced until
    /// what it wrote past the fork was set aside.
    #[must_use]
    pub fn with_parted(self, parted: bool) -> Self {
        match self.role {
            Role::Secondary if parted => Self { role: Role::Fenced, ..self },
            _ => self,
        }
    }

    /// The standing of a site that never writes, whatever its parity says.
    #[must_use]
    pub fn of_replica(self) -> Self {
        Self { role: Role::Replica, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RoleRecord {
        let head = |n: u64| (Position { epoch: Epoch(2), sequence: Sequence(n) }, [n as u8; 32]);
        RoleRecord {
            domain: DomainId([7; 16]),
            site: "north".to_owned(),
            change: RoleChange::Promotion,
            epoch: Epoch(3),
            after: Epoch(2),
            at_ms: 12,
            heads: (0..3).map(head).collect(),
        }
    }

    #[test]
    fn a_role_record_comes_back_from_its_message_and_from_no_other() {
        let message = record().message();
        assert_eq!(RoleRecord::decode(&message), Ok(record()));
        for end in 0..message.len() {
            assert_eq!(RoleRecord::decode(&message[..end]), Err(BadEncoding), "cut at {end}");
        }
        assert_eq!(RoleRecord::decode(&[message, vec![0]].concat()), Err(BadEncoding));
    }

    #[test]
    fn the_next_epoch_is_the_lowest_of_the_sites_parity() {
        assert_eq!(Epoch(2).next_of(false), Epoch(3));
        assert_eq!(Epoch(2).next_of(true), Epoch(4));
        assert_eq!(Epoch(3).next_of(true), Epoch(4));
    }
}
