//! The cost of one call's messages, from the first byte of each until the last byte of its answer has
//! been written. Messages are answered in the order they came, so what was taken for the oldest is given
//! back with the first answer.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::accounts::Taken;

/// The ledger of one call; its request writes, its answer settles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    /// The room of messages that are not answered yet, oldest first.
    open: VecDeque<Taken>,
    /// Messages that have begun to arrive.
    begun: u64,
    /// Answers that were written, or nothing is left of the call that could be.
    written: u64,
}

impl Ledger {
    /// A message has begun to arrive.
    pub(crate) fn begin(&self, taken: Taken) {
        self.with(|entries| {
            entries.open.push_back(taken);
            entries.begun += 1;
        });
    }

    /// So many answers are on their way out; what their messages have cost.
    pub(crate) fn answered(&self, answers: usize) -> Vec<Taken> {
        self.with(|entries| {
            let known = answers.min(entries.open.len());
            entries.open.drain(..known).collect()
        })
    }

    /// So many answers have been written.
    pub(crate) fn written(&self, answers: usize) {
        self.with(|entries| entries.written += answers as u64);
    }

    /// Whether there was a message, and all there were have been answered, to the last byte.
    pub(crate) fn is_settled(&self) -> bool {
        self.with(|entries| {
            entries.begun > 0 && entries.open.is_empty() && entries.written >= entries.begun
        })
    }

    /// Whether no message is under way: none begun, or all of them answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.with(|entries| entries.open.is_empty() && entries.written >= entries.begun)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Entries) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
