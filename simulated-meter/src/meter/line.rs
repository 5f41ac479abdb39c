//! Invocation counters of one key: the next to send, the lowest that is taken.

use crate::dialect::CounterOnNewKey;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    send: u64,
    floor: u64,
}

/// Why a counter is not taken; the one that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unexpected(pub(super) u32);

const END: u64 = 1 << 32;

impl Line {
    /// The next counter to send with. None once 2^32 went out: it never begins again.
    pub(super) fn next(&mut self) -> Option<u32> {
        let next = u32::try_from(self.send).ok()?;
        self.send += 1;
        Some(next)
    }

    pub(super) fn expected(&self) -> u32 {
        u32::try_from(self.floor).unwrap_or(u32::MAX)
    }

    pub(super) fn check(&self, counter: u32, largest_step: Option<u32>) -> Result<(), Unexpected> {
        let counter = u64::from(counter);
        let far = largest_step.is_some_and(|step| counter > self.floor + u64::from(step));
        if counter < self.floor || far { Err(Unexpected(self.expected())) } else { Ok(()) }
    }

    /// Only for what is genuine: a forger must not raise it.
    pub(super) fn taken(&mut self, counter: u32) {
        self.floor = (u64::from(counter) + 1).min(END);
    }
}

/// The lines of a setup's unicast keys, kept through restarts.
///
/// A key that comes a second time goes on where it was: a meter that began again would repeat its own nonces, and what
/// a service can do about that is nothing.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    /// One for all keys, where counters go on.
    shared: Option<Line>,
    of_keys: Vec<(Vec<u8>, Line)>,
}

impl Lines {
    pub(super) fn new(dialect: CounterOnNewKey, key: &[u8], send: u32) -> Self {
        let line = Line { send: u64::from(send), floor: 0 };
        match dialect {
            CounterOnNewKey::Keep => Self { shared: Some(line), of_keys: Vec::new() },
            CounterOnNewKey::Reset => Self { shared: None, of_keys: vec![(key.to_vec(), line)] },
        }
    }

    pub(super) fn of(&mut self, key: &[u8]) -> &mut Line {
        if let Some(line) = &mut self.shared {
            return line;
        }
        let at = self.of_keys.iter().position(|(its, _)| its == key).unwrap_or_else(|| {
            self.of_keys.push((key.to_vec(), Line::default()));
            self.of_keys.len() - 1
        });
        &mut self.of_keys[at].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_the_last_counter_nothing_is_sent_and_nothing_taken() {
        let mut lines = Lines::new(CounterOnNewKey::Reset, b"key", u32::MAX);
        let line = lines.of(b"key");
        assert_eq!(line.next(), Some(u32::MAX));
        assert_eq!(line.next(), None);
        line.taken(u32::MAX);
        assert_eq!(line.check(u32::MAX, None), Err(Unexpected(u32::MAX)));
    }

    #[test]
    fn a_key_that_comes_again_goes_on_where_it_was() {
        let mut lines = Lines::new(CounterOnNewKey::Reset, b"old", 5);
        lines.of(b"new").next();
        lines.of(b"new").taken(8);
        assert_eq!(lines.of(b"old").next(), Some(5));
        assert_eq!(lines.of(b"new").next(), Some(1));
        assert_eq!(lines.of(b"new").expected(), 9);
        let mut kept = Lines::new(CounterOnNewKey::Keep, b"old", 5);
        assert_eq!((kept.of(b"old").next(), kept.of(b"new").next()), (Some(5), Some(6)));
    }
}
