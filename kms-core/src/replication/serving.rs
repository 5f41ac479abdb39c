//! What a follower is sent of a block, from where it says that it stands. A cursor is a head that is stored at the follower;
//! one that is beyond ours says something of ours.

use crate::{Position, block::BlockMark, block::lineage::Lineage};

/// What a follower needs of a block to stand where we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing: it stands where we do.
    Nothing,
    /// The records after this position, and the head. If more is missing, the follower finds it out by the digest.
    After(Position),
    /// The whole block: the follower's has parted from ours, or of its epoch nothing is known.
    Whole,
    /// The follower has a state of our own epoch that we don't have: our database was rolled back. Nothing more is to be
    /// written before a higher epoch was taken.
    RolledBack(Position),
    /// The follower is of a higher epoch than the block here: we are the one that has to follow.
    Ahead(Position),
}

/// What is due of our block, whose lineage this is, to a follower whose block is at `cursor`.
pub fn due(ours: &BlockMark, lineage: &Lineage, cursor: &BlockMark) -> Due {
    let (here, there) = (ours.position, cursor.position);
    if there == here {
        return match cursor.digest == ours.digest {
            true => Due::Nothing,
            false => Due::Whole,
        };
    }
    if there.epoch > here.epoch {
        return Due::Ahead(there);
    }
    if there.epoch == here.epoch && there > here {
        return Due::RolledBack(there);
    }
    if there.epoch == here.epoch || lineage.has(there) { Due::After(there) } else { Due::Whole }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockNo, Epoch, Sequence};

    fn mark(epoch: u64, sequence: u64, digest: u8) -> BlockMark {
        let position = Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
        BlockMark { block: BlockNo(1), position, digest: [digest; 32] }
    }

    #[test]
    fn a_follower_gets_what_is_after_its_cursor_and_all_of_a_block_that_parted() {
        let ours = mark(3, 20, 1);
        let lineage = Lineage::of(Epoch(3), |epoch| (epoch.0 == 3).then(|| mark(2, 10, 9)));
        let due = |cursor| due(&ours, &lineage, &cursor);
        assert_eq!(due(ours), Due::Nothing);
        assert_eq!(due(mark(3, 20, 2)), Due::Whole);
        assert_eq!(due(mark(3, 19, 2)), Due::After(mark(3, 19, 2).position));
        assert_eq!(due(mark(2, 10, 9)), Due::After(mark(2, 10, 9).position));
        assert_eq!(due(mark(2, 11, 9)), Due::Whole);
        assert_eq!(due(mark(1, 5, 9)), Due::Whole);
        assert_eq!(due(mark(3, 21, 1)), Due::RolledBack(mark(3, 21, 1).position));
        assert_eq!(due(mark(4, 1, 1)), Due::Ahead(mark(4, 1, 1).position));
    }
}
