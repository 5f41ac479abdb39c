//! What the messages of one call cost, from the first byte of each until the last byte of its answer has
//! been written. Messages are answered in the order they came, so what was taken for the oldest is given
//! back with the first answer.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use super::accounts::Taken;

/// Of one call; its request writes, its answer settles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    /// What was taken for messages that are not answered yet, oldest first.
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

/// Reads the frames of gRPC messages: a flag, a length in four bytes, the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Framing {
    prefix: u8,
    length: u32,
    left: usize,
}

/// What came next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A part of a prefix.
    Prefix,
    /// The end of a prefix: of a message of so many bytes. One of none has ended with it.
    Begun(usize),
    /// A part of a message.
    Part,
    /// The rest of a message.
    Ended,
}

impl Framing {
    const PREFIX: u8 = 5;

    /// Whether nothing of a message has come yet.
    pub(crate) fn is_between(&self) -> bool {
        *self == Self::default()
    }

    /// Reads one step; how many bytes of `data` it took. `data` is not empty.
    pub(crate) fn step(&mut self, data: &[u8]) -> (usize, Step) {
        if self.prefix < Self::PREFIX {
            let take = usize::from(Self::PREFIX - self.prefix).min(data.len());
            for byte in &data[..take] {
                // The flag goes out at the top while the length comes in.
                self.length = self.length << 8 | u32::from(*byte);
            }
            self.prefix += take as u8;
            if self.prefix < Self::PREFIX {
                return (take, Step::Prefix);
            }
            self.left = self.length as usize;
            let begun = Step::Begun(self.left);
            if self.left == 0 {
                *self = Self::default();
            }
            return (take, begun);
        }
        let take = self.left.min(data.len());
        self.left -= take;
        if self.left > 0 {
            return (take, Step::Part);
        }
        *self = Self::default();
        (take, Step::Ended)
    }

    /// Reads all of `data`; how many messages end in it.
    pub(crate) fn ends(&mut self, mut data: &[u8]) -> usize {
        let mut ends = 0;
        while !data.is_empty() {
            let (took, step) = self.step(data);
            data = &data[took..];
            ends += usize::from(matches!(step, Step::Ended | Step::Begun(0)));
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(len: usize) -> Vec<u8> {
        [&[1u8][..], &(len as u32).to_be_bytes(), &vec![0xFF; len]].concat()
    }

    proptest! {
        #[test]
        fn messages_are_told_apart_however_they_are_cut(
            lengths in prop::collection::vec(0usize..300, 0..6),
            half in 1usize..200,
            piece in 1usize..64,
        ) {
            let whole: Vec<u8> = lengths.iter().flat_map(|len| message(*len)).collect();
            let mut framing = Framing::default();
            let ends: usize = whole.chunks(piece).map(|part| framing.ends(part)).sum();
            prop_assert_eq!(ends, lengths.len());
            prop_assert!(framing.is_between());
            prop_assert_eq!(framing.ends(&message(200)[..half]), 0);
            prop_assert!(!framing.is_between());
        }
    }
}
