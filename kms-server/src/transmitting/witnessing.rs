//! The witness of our marks: asked at the start and whenever there is something to tell it. While a process runs, its own
//! memory suffices, so that a partition does not stop transmitting.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::blocks::BlockCounters;
use kms_core::{BlockNo, counters::allocator::Witnessed, moment::Moment, ports::WitnessSaid};

/// The most marks in one message.
const MARKS_MAX: usize = 8_192;

/// What the witness knows, and what it is to be told.
pub(super) struct Witnessing {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Answers there were so far; 0: nobody was asked.
    answers: u64,
    marks: BTreeMap<BlockNo, Witnessed>,
    to_tell: BTreeMap<BlockNo, Witnessed>,
    /// It did not answer, and is not asked of a single mark before.
    not_before: Moment,
}

impl Witnessing {
    /// A single site has no witness, and says so.
    pub(super) fn new(single_site: bool) -> Self {
        let known = Known { answers: u64::from(single_site), ..Known::default() };
        Self { known: Mutex::new(known) }
    }

    /// Tells a block's counters what the witness knows, if there is news. `began_here`: the site's epoch began while this
    /// process ran.
    pub(super) fn tell(&self, counters: &mut BlockCounters, block: BlockNo, began_here: bool) {
        let known = self.known();
        if known.answers > counters.witnessed {
            counters.witnessed = known.answers;
            counters.allocator.witness(known.marks.get(&block).copied());
        } else if counters.witnessed == 0 && began_here {
            // All that was ever reserved in it was reserved since.
            counters.allocator.witness(None);
        }
    }

    /// A mark has risen.
    pub(super) fn note(&self, block: BlockNo, mark: Witnessed) {
        let mut known = self.known();
        let to_tell = known.to_tell.entry(block).or_insert(mark);
        *to_tell = (*to_tell).max(mark);
    }

    pub(super) fn note_all(&self, marks: Vec<(BlockNo, Witnessed)>) {
        marks.into_iter().for_each(|(block, mark)| self.note(block, mark));
    }

    pub(super) fn to_tell(&self) -> Vec<(BlockNo, Witnessed)> {
        let mut known = self.known();
        let rest = match known.to_tell.keys().nth(MARKS_MAX).copied() {
            Some(next) => known.to_tell.split_off(&next),
            None => BTreeMap::new(),
        };
        std::mem::replace(&mut known.to_tell, rest).into_iter().collect()
    }

    pub(super) fn take(&self, said: WitnessSaid) {
        let mut known = self.known();
        known.answers += 1;
        for (block, mark) in said.marks {
            let kept = known.marks.entry(block).or_insert(mark);
            *kept = (*kept).max(mark);
        }
    }

    pub(super) fn not_before(&self) -> Moment {
        self.known().not_before
    }

    /// It did not answer just now; `None`: it did.
    pub(super) fn is_away_until(&self, moment: Option<Moment>) {
        self.known().not_before = moment.unwrap_or_default();
    }

    pub(super) fn was_asked(&self) -> bool {
        self.known().answers > 0
    }

    /// Held for a few comparisons, never across an `.await`.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
