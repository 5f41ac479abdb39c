//! The states of blocks that were changed here: what a further change of them need not read again.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kms_core::{BlockNo, block::known::Known, moment::Moment};

/// The time after which all of a block is read again with its next change: damage in a record that nobody asks for is
/// found then, if not before.
const WHOLE_EVERY_MS: u64 = 600_000;

/// A state, and when all of it was read.
#[derive(Clone)]
pub(super) struct State {
    pub(super) known: Arc<Known>,
    pub(super) since: Moment,
}

/// Known states, in a bounded memory. They have no secrets.
pub(super) struct KnownStates {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    states: BTreeMap<BlockNo, State>,
    bytes: usize,
    /// Where the search for one that gives way goes on.
    hand: BlockNo,
}

impl KnownStates {
    /// None yet, and never more than this.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, kept: Mutex::default() }
    }

    /// The state of a block, unless it is to be read as a whole now.
    pub(super) fn get(&self, block: BlockNo, now: Moment) -> Option<State> {
        let state = self.kept().states.get(&block).cloned();
        state.filter(|state| now.ms_since(state.since) < WHOLE_EVERY_MS)
    }

    /// Keeps the state of a block; others give way, in turn.
    pub(super) fn put(&self, block: BlockNo, state: State) {
        let mut kept = self.kept();
        kept.remove(block);
        let bytes = state.known.bytes();
        while kept.bytes + bytes > self.bytes_max {
            let Some(next) = kept.next() else { return };
            kept.hand = next;
            kept.remove(next);
        }
        kept.bytes += bytes;
        kept.states.insert(block, state);
    }

    /// Keeps nothing of a block.
    pub(super) fn forget(&self, block: BlockNo) {
        self.kept().remove(block);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn remove(&mut self, block: BlockNo) {
        if let Some(state) = self.states.remove(&block) {
            self.bytes -= state.known.bytes();
        }
    }

    fn next(&self) -> Option<BlockNo> {
        let behind = (Bound::Excluded(self.hand), Bound::Unbounded);
        let next = self.states.range(behind).next().or_else(|| self.states.iter().next());
        next.map(|(block, _)| *block)
    }
}

#[cfg(test)]
mod tests {
    use kms_core::{
        DomainId, Epoch,
        block::keys::{BlockKeys, SUBKEYS_LEN},
        block::verified::Verified,
    };

    use super::*;

    fn known(block: u32) -> State {
        let keys = BlockKeys::new(DomainId([1; 16]), &[7; SUBKEYS_LEN]).unwrap();
        let head = keys.first_head(BlockNo(block), 1, Epoch(2));
        let empty = Verified::of_any_age(head, Vec::new(), &keys).unwrap();
        State { known: Arc::new(Known::of(&empty).unwrap()), since: Moment::from_ms(0) }
    }

    fn has(states: &KnownStates, block: u32) -> bool {
        states.get(BlockNo(block), Moment::from_ms(1)).is_some()
    }

    #[test]
    fn no_more_is_kept_than_fits() {
        let each = known(0).known.bytes();
        let states = KnownStates::new(3 * each);
        for block in 0..1_000 {
            states.put(BlockNo(block), known(block));
            assert!(has(&states, block), "the newest is kept");
            let kept = states.kept();
            assert!(kept.states.len() <= 3 && kept.bytes == kept.states.len() * each);
        }
        states.put(BlockNo(999), known(999));
        assert_eq!(states.kept().states.len(), 3, "the same one again takes no other's place");
        states.forget(BlockNo(999));
        assert_eq!((has(&states, 999), states.kept().bytes), (false, 2 * each));

        let none = KnownStates::new(each - 1);
        none.put(BlockNo(1), known(1));
        assert!(!has(&none, 1));
    }

    #[test]
    fn after_ten_minutes_all_of_a_block_is_read_again() {
        let states = KnownStates::new(1 << 20);
        states.put(BlockNo(1), known(1));
        let at = |ms| states.get(BlockNo(1), Moment::from_ms(ms)).is_some();
        assert!(at(599_999) && !at(600_000));
    }
}
