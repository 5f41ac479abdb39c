//! Pieces that were handed on to be written and are not written yet, for each connection. A reader that takes
//! nothing for too long has his connection cut: there is no other way to get back what he holds.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{accounts::Taken, ledger::Ledger};

/// The writes of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Writes(Arc<Mutex<Pending>>);

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    /// Since when, oldest first.
    since: BTreeMap<u64, Instant>,
}

impl Writes {
    /// For how long the oldest piece has waited for its reader.
    pub(crate) fn waited(&self) -> Duration {
        let pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.since.values().next().map_or(Duration::ZERO, Instant::elapsed)
    }

    fn begin(&self) -> u64 {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = pending.next;
        pending.next += 1;
        pending.since.insert(number, Instant::now());
        number
    }

    fn end(&self, number: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).since.remove(&number);
    }
}

/// The part of a call's ledger that is settled once a piece of its answer has been written.
#[derive(Default)]
pub(crate) struct Settlement {
    /// The call's own.
    pub(crate) ledger: Ledger,
    /// Answers that end in the piece.
    pub(crate) answers: usize,
    /// The room of their messages.
    pub(crate) taken: Vec<Taken>,
}

/// A piece of an answer. HTTP/2 drops it when its last byte went to the connection, or when nobody wants it
/// any more; then what its messages have cost is given back.
pub(crate) struct Piece {
    bytes: Bytes,
    writes: Writes,
    number: u64,
    settlement: Settlement,
}

impl Piece {
    pub(crate) fn new(bytes: Bytes, writes: &Writes, settlement: Settlement) -> Self {
        let number = writes.begin();
        Self { bytes, writes: writes.clone(), number, settlement }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.writes.end(self.number);
        let Settlement { ledger, answers, taken } = std::mem::take(&mut self.settlement);
        ledger.written(answers);
        drop(taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_piece_is_the_one_that_waits() {
        let writes = Writes::default();
        assert_eq!(writes.waited(), Duration::ZERO);
        let piece = || {
            let bytes = Bytes::from_static(b"answer");
            Bytes::from_owner(Piece::new(bytes, &writes, Settlement::default()))
        };
        let first = piece();
        std::thread::sleep(Duration::from_millis(20));
        let second = piece();
        assert!(writes.waited() >= Duration::from_millis(20));
        let slice = first.slice(2..);
        drop(first);
        assert!(writes.waited() >= Duration::from_millis(20));
        drop(slice);
        assert!(writes.waited() < Duration::from_millis(20));
        drop(second);
        assert_eq!(writes.waited(), Duration::ZERO);
    }
}
