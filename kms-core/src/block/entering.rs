//! A block brought into a new epoch by a promotion: the same records under a new head, so that every change
//! from here on parts from what another site writes in its old epoch.

use super::{BlockMark, Head, keys::BlockKeys};
use crate::{Epoch, Position};

/// A head that can't be brought into an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotEntered {
    /// The head's MAC is wrong: nothing is known of the block.
    #[error("the head is not what this block's writer wrote")]
    Head,
    /// Epochs only rise.
    #[error("the block stands in epoch {}, which is not below", .0.0)]
    Epoch(Epoch),
}

/// The head of the block in `epoch`: records, count and digest stay.
pub fn enter(keys: &BlockKeys, head: &Head, epoch: Epoch) -> Result<Head, NotEntered> {
    if !keys.head_is_authentic(head) {
        return Err(NotEntered::Head);
    }
    if head.position.epoch >= epoch {
        return Err(NotEntered::Epoch(head.position.epoch));
    }
    let position = Position { epoch, ..head.position };
    let mut entered = Head { position, ..head.clone() };
    entered.mac = keys.head_mac(&entered);
    Ok(entered)
}

/// Whether `head` is that of the block at `before`, brought into a higher epoch and not changed since: what is
/// resident of it holds. Its MAC is for the caller to verify.
pub fn is_entry(before: &BlockMark, head: &Head) -> bool {
    before.block == head.block
        && before.digest == head.digest
        && before.position.sequence == head.position.sequence
        && before.position.epoch < head.position.epoch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockNo, DomainId, Sequence, block::keys::SUBKEYS_LEN};

    fn keys() -> BlockKeys {
        BlockKeys::new(DomainId([1; 16]), &[2; SUBKEYS_LEN]).unwrap()
    }

    #[test]
    fn invariant_7_a_promoted_block_has_its_records_and_another_epoch() {
        let found = keys().first_head(BlockNo(3), 1, Epoch(2));
        let entered = enter(&keys(), &found, Epoch(3)).unwrap();
        assert!(keys().head_is_authentic(&entered));
        assert_eq!(entered.position, Position { epoch: Epoch(3), sequence: Sequence(0) });
        assert_eq!((entered.count, entered.digest), (found.count, found.digest));
        let before =
            BlockMark { block: BlockNo(3), position: found.position, digest: found.digest };
        assert!(is_entry(&before, &entered) && !is_entry(&before, &found));
        let changed = Head { digest: [9; 32], ..entered.clone() };
        assert!(!is_entry(&before, &changed));
        let later = Position { sequence: Sequence(1), ..entered.position };
        assert!(!is_entry(&before, &Head { position: later, ..entered.clone() }));
        assert_eq!(enter(&keys(), &entered, Epoch(3)), Err(NotEntered::Epoch(Epoch(3))));
        assert_eq!(enter(&keys(), &changed, Epoch(5)), Err(NotEntered::Head));
    }
}
