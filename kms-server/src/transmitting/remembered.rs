//! What this server remembers of its site's marks outside the database, and what is wrong with those in it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::refused::NotSent;
use kms_core::{
    BlockNo,
    counters::allocator::Witnessed,
    ports::{CounterMemory, WitnessFailed},
};

/// What is known of each block's mark.
pub(super) struct Remembered {
    memory: Arc<dyn CounterMemory>,
    known: Mutex<BTreeMap<BlockNo, Witnessed>>,
    faults: Mutex<Vec<String>>,
    /// Why nothing can be remembered, since that failed last.
    failure: Mutex<Option<String>>,
}

impl Remembered {
    pub(super) fn new(memory: Arc<dyn CounterMemory>) -> Self {
        let known = Mutex::new(memory.known().into_iter().collect());
        Self { memory, known, faults: Mutex::default(), failure: Mutex::default() }
    }

    pub(super) fn of(&self, block: BlockNo) -> Option<Witnessed> {
        lock(&self.known).get(&block).copied()
    }

    /// On disk when this returns: nothing of what a mark reserves is given out before.
    pub(super) async fn keep(&self, marks: Vec<(BlockNo, Witnessed)>) -> Result<(), NotSent> {
        let kept = self.memory.keep(marks.clone()).await;
        *lock(&self.failure) = kept.as_ref().err().map(|WitnessFailed(why)| {
            format!("counters: marks can't be remembered outside the database, and nothing is sent: {why}")
        });
        kept.map_err(|error| NotSent::Unavailable(error.0.into()))?;
        let mut known = lock(&self.known);
        for (block, mark) in marks {
            let kept = known.entry(block).or_insert(mark);
            *kept = (*kept).max(mark);
        }
        Ok(())
    }

    pub(super) fn all(&self) -> BTreeMap<BlockNo, Witnessed> {
        lock(&self.known).clone()
    }

    /// The faults that a look at all marks found replace the earlier ones; a new one goes to the log.
    pub(super) fn found(&self, faults: Vec<String>) {
        let mut known = lock(&self.faults);
        for fault in faults.iter().filter(|fault| !known.contains(fault)) {
            tracing::error!("{fault}");
        }
        *known = faults;
    }

    pub(super) fn faults(&self) -> Vec<String> {
        lock(&self.failure).iter().chain(lock(&self.faults).iter()).cloned().collect()
    }
}

/// Held for a look, never across an `.await`.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
