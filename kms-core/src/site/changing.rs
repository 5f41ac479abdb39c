//! How a site begins to write and ends to: the role records that it signs. Each tells the states of all blocks as the
//! site has them.

use std::borrow::Borrow;

use super::{
    DomainRecord,
    role::{Role, RoleChange, RoleRecord, Standing},
};
use crate::{
    BlockNo, Epoch, Position, Sequence,
    block::{BlockMark, keys::digest},
};

/// A site that is about to change its role.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Its domain record.
    pub domain: &'a DomainRecord,
    /// Its standing.
    pub standing: Standing,
    /// The states of all blocks as they are stored, verified, in order. The transaction that changes the role makes sure
    /// that they still are.
    pub heads: &'a [BlockMark],
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

/// The reason why a site can't change its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotChanged {
    /// It follows for ever.
    #[error("this site is a read-only replica: it is never promoted, and has no epoch to end")]
    Replica,
    /// It writes already, and was not restored.
    #[error("this site writes already, in epoch {}", .0.0)]
    Writes(Epoch),
    /// It does not write, so that there is nothing to end.
    #[error("this site does not write: epoch {} is not open, or not its own", .0.0)]
    DoesNotWrite(Epoch),
    /// The states of the blocks are not those of all blocks, each once.
    #[error("the state of block {0} is missing")]
    Missing(BlockNo),
    /// A block is of an epoch above the one that would be taken: role records are missing here.
    #[error("block {block} is of epoch {}, which is not below {}", of.0, taken.0)]
    Beyond {
        /// The block.
        block: BlockNo,
        /// Its epoch.
        of: Epoch,
        /// The epoch that the site would take.
        taken: Epoch,
    },
    /// There is no higher epoch.
    #[error("there is no epoch above {}", .0.0)]
    NoneLeft(Epoch),
}

impl Site<'_> {
    /// The record of a promotion of this site, to be signed. `above`: what a site takes that was restored, perhaps
    /// while it writes: an epoch above every one that its peer, a coordinator or two people name.
    pub fn promotion(&self, above: Option<Epoch>) -> Result<RoleRecord, NotChanged> {
        let Standing { role, epoch: known, .. } = self.standing;
        let Some(even) = self.domain.kind.parity().filter(|_| role != Role::Replica) else {
            return Err(NotChanged::Replica);
        };
        if self.standing.writes() && above.is_none() {
            return Err(NotChanged::Writes(known));
        }
        let least = above.map_or(known, |above| above.max(known));
        let epoch = least.next_of(even);
        if epoch <= least || epoch.is_even() != even {
            return Err(NotChanged::NoneLeft(least));
        }
        self.record(RoleChange::Promotion, epoch)
    }

    /// The record of a demotion of this site, to be signed.
    pub fn demotion(&self) -> Result<RoleRecord, NotChanged> {
        if self.standing.role == Role::Replica {
            return Err(NotChanged::Replica);
        }
        if !self.standing.writes() {
            return Err(NotChanged::DoesNotWrite(self.standing.epoch));
        }
        self.record(RoleChange::Demotion, self.standing.epoch)
    }

    fn record(&self, change: RoleChange, epoch: Epoch) -> Result<RoleRecord, NotChanged> {
        let blocks = self.domain.blocks.get();
        let is_missing = |block: &u32| {
            let mark = self.heads.get(*block as usize);
            mark.is_none_or(|mark| mark.block != BlockNo(*block))
        };
        if let Some(block) = (0..blocks).find(is_missing) {
            return Err(NotChanged::Missing(BlockNo(block)));
        }
        if let Some(more) = self.heads.get(blocks as usize) {
            return Err(NotChanged::Missing(more.block));
        }
        let is_beyond = |mark: &&BlockMark| match change {
            RoleChange::Promotion => mark.position.epoch >= epoch,
            RoleChange::Demotion => mark.position.epoch > epoch,
        };
        if let Some(mark) = self.heads.iter().find(is_beyond) {
            let of = mark.position.epoch;
            return Err(NotChanged::Beyond { block: mark.block, of, taken: epoch });
        }
        Ok(RoleRecord {
            domain: self.domain.domain,
            site: self.domain.site.clone(),
            change,
            epoch,
            after: self.standing.epoch,
            at_ms: self.at_ms,
            heads: self.heads.iter().map(|mark| (mark.position, mark.digest)).collect(),
        })
    }
}

/// The state to be told of a block whose own head can't be believed, by a site that takes over from one that is lost:
/// the newest one that somebody signed for or this process verified; else the one of the newest role record; else the
/// one of the beginning. Never one that only the database says.
pub fn last_known<R: Borrow<RoleRecord>>(
    domain: &DomainRecord,
    known: &[R],
    block: BlockNo,
    authentic: Option<BlockMark>,
) -> BlockMark {
    let told = known.iter().rev().find_map(|record| record.borrow().found(block));
    let newest = authentic.into_iter().chain(told).max_by_key(|mark| mark.position);
    newest.unwrap_or_else(|| BlockMark {
        block,
        position: Position { epoch: domain.epoch, sequence: Sequence(0) },
        digest: digest(std::iter::empty()),
    })
}

/// The blocks that would lose something if the site with these states were promoted now, after the peer was demoted:
/// those that do not stand where the demotion says that the peer ended. None: a switchover loses nothing.
pub fn behind<R: Borrow<RoleRecord>>(known: &[R], heads: &[BlockMark]) -> Vec<BlockNo> {
    let newest = known.last().map(Borrow::borrow);
    let Some(ended) = newest.filter(|newest| newest.change == RoleChange::Demotion) else {
        return heads.iter().map(|mark| mark.block).collect();
    };
    let is_there = |mark: &&BlockMark| ended.found(mark.block) == Some(**mark);
    heads.iter().filter(|mark| !is_there(mark)).map(|mark| mark.block).collect()
}

/// The promotions of a site that followed an epoch of its own, or left epochs out: each took a counter epoch from every
/// key that no switchover would have taken.
pub fn above<R: Borrow<RoleRecord>>(domain: &DomainRecord, records: &[R]) -> u32 {
    let is_above = |record: &&RoleRecord| {
        let RoleRecord { epoch, after, change, .. } = **record;
        let even = epoch.is_even();
        domain.kind.owns(epoch)
            && change == RoleChange::Promotion
            && (after.is_even() == even || epoch != after.next_of(even))
    };
    records.iter().map(Borrow::borrow).filter(is_above).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BlockCount, Position, Sequence,
        site::{DomainId, peer::PeerKind},
    };

    fn domain(even: bool) -> DomainRecord {
        DomainRecord {
            domain: DomainId([7; 16]),
            blocks: BlockCount::new(3).unwrap(),
            site: "south".to_owned(),
            epoch: Epoch(2),
            kind: PeerKind::of_epochs(even),
            canaries: Vec::new(),
            created_ms: 0,
            signature: None,
        }
    }

    fn heads(epoch: u64) -> Vec<BlockMark> {
        let position = |n| Position { epoch: Epoch(epoch), sequence: Sequence(n) };
        let mark = |n: u32| BlockMark {
            block: BlockNo(n),
            position: position(u64::from(n)),
            digest: [n as u8; 32],
        };
        (0..3).map(mark).collect()
    }

    fn standing(role: Role, epoch: u64, open: bool) -> Standing {
        Standing { role, epoch: Epoch(epoch), open }
    }

    #[test]
    fn a_promotion_takes_the_next_epoch_of_the_sites_parity_and_tells_where_all_blocks_stood() {
        let (domain, heads) = (domain(false), heads(2));
        let standing = standing(Role::Secondary, 2, true);
        let site = Site { domain: &domain, standing, heads: &heads, at_ms: 5 };
        let record = site.promotion(None).unwrap();
        assert_eq!(
            (record.change, record.epoch, record.after),
            (RoleChange::Promotion, Epoch(3), Epoch(2))
        );
        assert!(heads.iter().all(|mark| record.found(mark.block) == Some(*mark)));
        assert_eq!(site.promotion(Some(Epoch(6))).unwrap().epoch, Epoch(7));
        assert_eq!(site.promotion(Some(Epoch(1))).unwrap().epoch, Epoch(3));
        assert_eq!(
            site.promotion(Some(Epoch(u64::MAX))),
            Err(NotChanged::NoneLeft(Epoch(u64::MAX)))
        );
    }

    #[test]
    fn a_primary_is_promoted_once_more_after_a_restore_only() {
        let (domain, heads) = (domain(true), heads(2));
        let standing = standing(Role::Primary, 2, true);
        let site = Site { domain: &domain, standing, heads: &heads, at_ms: 5 };
        assert_eq!(site.promotion(None), Err(NotChanged::Writes(Epoch(2))));
        assert_eq!(site.promotion(Some(Epoch(2))).unwrap().epoch, Epoch(4));
        let closed = Site { standing: Standing { open: false, ..standing }, ..site };
        assert_eq!(closed.promotion(None).unwrap().epoch, Epoch(4));
    }

    #[test]
    fn invariant_7_who_does_not_write_ends_nothing_and_a_replica_begins_nothing() {
        let (domain, heads) = (domain(true), heads(2));
        let site = |standing| Site { domain: &domain, standing, heads: &heads, at_ms: 5 };
        let primary = site(standing(Role::Primary, 2, true));
        let record = primary.demotion().unwrap();
        assert_eq!(
            (record.change, record.epoch, record.after),
            (RoleChange::Demotion, Epoch(2), Epoch(2))
        );
        for (role, open) in [(Role::Primary, false), (Role::Secondary, true), (Role::Fenced, true)]
        {
            let refused = NotChanged::DoesNotWrite(Epoch(2));
            assert_eq!(site(standing(role, 2, open)).demotion(), Err(refused));
        }
        let replica = site(standing(Role::Secondary, 2, true).of_replica());
        assert_eq!(replica.promotion(Some(Epoch(9))), Err(NotChanged::Replica));
    }

    #[test]
    fn a_change_of_role_tells_of_each_block_once_and_of_none_from_beyond_it() {
        let domain = domain(false);
        let standing = standing(Role::Secondary, 2, true);
        let refused = |heads: &[BlockMark]| {
            Site { domain: &domain, standing, heads, at_ms: 5 }.promotion(None).unwrap_err()
        };
        assert_eq!(refused(&heads(2)[..2]), NotChanged::Missing(BlockNo(2)));
        assert_eq!(
            refused(&[&heads(2)[..], &heads(2)[..1]].concat()),
            NotChanged::Missing(BlockNo(0))
        );
        let beyond = NotChanged::Beyond { block: BlockNo(0), of: Epoch(4), taken: Epoch(3) };
        assert_eq!(refused(&heads(4)), beyond);
    }

    #[test]
    fn a_switchover_loses_nothing_where_each_block_stands_where_the_demoted_site_ended() {
        let domain = domain(true);
        let all = heads(2);
        let standing = standing(Role::Primary, 2, true);
        let ended = Site { domain: &domain, standing, heads: &all, at_ms: 5 }.demotion().unwrap();
        assert_eq!(behind(&[&ended], &all), []);
        let mut late = all.clone();
        late[1].position.sequence = Sequence(0);
        assert_eq!(behind(&[&ended], &late), [BlockNo(1)]);
        assert_eq!(behind::<RoleRecord>(&[], &late).len(), 3);
    }

    #[test]
    fn promotions_above_an_epoch_are_those_that_no_switchover_would_have_taken() {
        let promotion = |epoch, after| RoleRecord {
            domain: DomainId([7; 16]),
            site: "x".to_owned(),
            change: RoleChange::Promotion,
            epoch: Epoch(epoch),
            after: Epoch(after),
            at_ms: 0,
            heads: Vec::new(),
        };
        let in_order = [promotion(3, 2), promotion(4, 3), promotion(5, 4)];
        assert_eq!((above(&domain(true), &in_order), above(&domain(false), &in_order)), (0, 0));
        // Above its own epoch; above one that it left out; and of the other site.
        let records = [promotion(4, 2), promotion(10, 5), promotion(7, 2)];
        assert_eq!((above(&domain(true), &records), above(&domain(false), &records)), (2, 1));
        let ends = RoleRecord { change: RoleChange::Demotion, ..promotion(10, 10) };
        assert_eq!(above(&domain(true), &[ends]), 0);
    }
}
