//! The descent of a block: through which states it came to the epoch that it is written in. What a site has of
//! it and what is in no lineage of the peer's is that site's alone.

use crate::{Epoch, Position};

use super::BlockMark;

/// The states in which promotions found a block, from the one to its present epoch back to the first one. Within an
/// epoch one site writes, so each state up to such a mark is an ancestor, and none beyond it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    epoch: Epoch,
    /// The newest first.
    marks: Vec<BlockMark>,
}

impl Lineage {
    /// The lineage of a block that is written in `epoch`. `found` says where the verified promotion to an epoch
    /// found the block; `None` of the founding epoch, and of one that nobody knows.
    pub fn of(epoch: Epoch, found: impl Fn(Epoch) -> Option<BlockMark>) -> Self {
        let (mut at, mut marks) = (epoch, Vec::new());
        while let Some(mark) = found(at).filter(|mark| mark.position.epoch < at) {
            at = mark.position.epoch;
            marks.push(mark);
        }
        Self { epoch, marks }
    }

    /// The epoch that it leads to.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The last state that a block of a lower epoch can have in common with this one: where it parted if it is
    /// beyond, where it stood in between if it is not. `None`: no promotion since then is known.
    pub fn fork(&self, ours: Epoch) -> Option<BlockMark> {
        let below = |mark: &&BlockMark| mark.position.epoch <= ours;
        self.marks.iter().find(below).filter(|_| ours < self.epoch).copied()
    }

    /// Whether the site of this parity had what was written at this position and is a part of the block: it wrote it, or
    /// went on from it.
    pub fn was_at(&self, even: bool, position: Position) -> bool {
        let epochs = self.marks.iter().map(|mark| mark.position.epoch).chain([self.epoch]);
        let mut theirs = epochs.filter(|epoch| epoch.is_even() == even);
        self.has(position) && theirs.any(|epoch| epoch >= position.epoch)
    }

    /// Whether what was written at this position became a part of the block.
    pub fn has(&self, position: Position) -> bool {
        let mark = self.marks.iter().find(|mark| mark.position.epoch == position.epoch);
        match mark {
            Some(mark) => position.sequence <= mark.position.sequence,
            None => position.epoch == self.epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockNo, Sequence};

    fn at(epoch: u64, sequence: u64) -> Position {
        Position { epoch: Epoch(epoch), sequence: Sequence(sequence) }
    }

    fn mark(epoch: u64, sequence: u64) -> BlockMark {
        BlockMark { block: BlockNo(3), position: at(epoch, sequence), digest: [0; 32] }
    }

    /// Epoch 5 found it at (3, 15), which had found it at (2, 10); epoch 4 was the other site's alone.
    fn lineage() -> Lineage {
        Lineage::of(Epoch(5), |epoch| match epoch.0 {
            5 => Some(mark(3, 15)),
            4 => Some(mark(2, 12)),
            3 => Some(mark(2, 10)),
            _ => None,
        })
    }

    #[test]
    fn a_state_is_an_ancestor_up_to_where_the_promotion_found_its_epoch() {
        let ancestors = [at(5, 99), at(3, 15), at(3, 11), at(2, 10), at(2, 0)];
        assert!(ancestors.into_iter().all(|position| lineage().has(position)));
        let parted = [at(3, 16), at(2, 11), at(2, 12), at(4, 1), at(1, 1), at(6, 1)];
        assert!(!parted.into_iter().any(|position| lineage().has(position)));
    }

    #[test]
    fn two_blocks_parted_at_the_newest_state_that_is_not_beyond_the_lower_epoch() {
        assert_eq!(lineage().fork(Epoch(4)), Some(mark(3, 15)));
        assert_eq!(lineage().fork(Epoch(3)), Some(mark(3, 15)));
        assert_eq!(lineage().fork(Epoch(2)), Some(mark(2, 10)));
        assert_eq!((lineage().fork(Epoch(1)), lineage().fork(Epoch(5))), (None, None));
    }

    #[test]
    fn a_site_had_what_it_wrote_and_what_it_went_on_from() {
        let odd = [at(2, 10), at(3, 15), at(5, 2)];
        assert!(odd.into_iter().all(|position| lineage().was_at(false, position)));
        assert!(lineage().was_at(true, at(2, 10)));
        // The even site has not written since, and what parted is nobody's.
        assert!(!lineage().was_at(true, at(3, 15)) && !lineage().was_at(true, at(5, 2)));
        assert!(!lineage().was_at(true, at(4, 1)) && !lineage().was_at(false, at(2, 11)));
    }

    #[test]
    fn a_promotion_that_found_a_later_state_than_its_own_leads_nowhere() {
        let endless = Lineage::of(Epoch(5), |_| Some(mark(5, 1)));
        assert_eq!(endless.fork(Epoch(4)), None);
    }
}
