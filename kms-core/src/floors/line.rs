//! The judgement of one message, and what is remembered of the last ones.

use super::floor::Floor;

/// A message whose tag has verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its invocation counter.
    pub counter: u32,
    /// A part of its tag, to know the same message again: the tag has verified, so nobody but the meter can have made
    /// another one.
    pub check: u32,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It was not seen before. So many counters were left out since the last one.
    New {
        /// The counters left out.
        skipped: u32,
    },
    /// The same message was seen a moment ago: a call that was sent again, or twice.
    Duplicate,
    /// Its counter is below the floor, or was seen before and the message is not remembered.
    Below {
        /// The lowest counter that would be new.
        floor: u32,
    },
    /// The meter has used its counter for another message.
    OtherMessage,
}

/// One line in memory: its floor, and the messages that are remembered as they were, so that a call that is sent again
/// gets the same answer.
#[derive(Clone, Debug, Default)]
pub struct Line {
    floor: Option<Floor>,
    recent: Vec<Message>,
    /// Of `recent`, those that were there when the last interval began.
    old: usize,
    /// The floor has risen since it was last taken for storing.
    changed: bool,
}

impl Line {
    /// The most messages that are remembered within two intervals: what a whole batch brings of one meter.
    pub const RECENT_MAX: usize = 1_024;
    /// The messages that are remembered for longer.
    pub const KEPT: usize = 4;

    /// Judges a message, and takes a new one in. With `window`, a message that far below the highest counter is new
    /// if its counter was not seen.
    pub fn judge(&mut self, message: Message, window: u8) -> Judged {
        let judged = self.look(message, window);
        if let Judged::New { .. } = judged {
            let Message { counter, check } = message;
            let first = || Floor::first(counter, check);
            self.take(self.floor.map_or_else(first, |floor| floor.with(counter, check)), message);
        }
        judged
    }

    /// The judgement that a message would get now. Nothing is taken in.
    pub fn look(&self, message: Message, window: u8) -> Judged {
        let Message { counter, check } = message;
        if let Some(known) = self.recent.iter().rev().find(|known| known.counter == counter) {
            return if known.check == check { Judged::Duplicate } else { Judged::OtherMessage };
        }
        let Some(floor) = self.floor else { return Judged::New { skipped: 0 } };
        if counter > floor.highest() {
            return Judged::New { skipped: counter - floor.highest() - 1 };
        }
        if counter == floor.highest() {
            return if floor.check() == check { Judged::Duplicate } else { Judged::OtherMessage };
        }
        let within = floor.highest() - counter < u32::from(window);
        if within && floor.has_seen(counter) == Some(false) {
            return Judged::New { skipped: 0 };
        }
        Judged::Below { floor: floor.highest().saturating_add(1) }
    }

    /// The highest counter that was seen; `None`: none was.
    pub fn highest(&self) -> Option<u32> {
        Some(self.floor?.highest())
    }

    fn take(&mut self, floor: Floor, message: Message) {
        self.floor = Some(floor);
        self.changed = true;
        if self.recent.len() >= Self::RECENT_MAX {
            self.forget(Self::RECENT_MAX / 2);
        }
        self.recent.push(message);
    }

    /// What somebody else saw of this line: it never lowers what was seen here.
    pub fn merge(&mut self, other: Floor) {
        self.floor = Some(self.floor.map_or(other, |floor| floor.merge(other)));
    }

    /// What the other site saw of this line, which is to be stored here: it never lowers what was seen here.
    pub fn adopt(&mut self, other: Floor) {
        let before = self.floor;
        self.merge(other);
        self.changed |= self.floor != before;
    }

    /// The floor, if it has risen since this was asked last.
    pub fn risen(&mut self) -> Option<Floor> {
        std::mem::take(&mut self.changed).then_some(self.floor).flatten()
    }

    /// The floor could not be stored: it is to be asked for again.
    pub fn not_stored(&mut self) {
        self.changed = true;
    }

    /// An interval has passed: what was remembered for a whole one is forgotten, but for the last few.
    pub fn pass(&mut self) {
        let keep = self.recent.len().saturating_sub(Self::KEPT);
        self.forget(self.old.min(keep));
        self.old = self.recent.len();
        if self.recent.capacity() > 4 * Self::KEPT && self.recent.len() <= Self::KEPT {
            self.recent.shrink_to_fit();
        }
    }

    fn forget(&mut self, oldest: usize) {
        self.recent.drain(..oldest.min(self.recent.len()));
        self.old = self.old.saturating_sub(oldest);
    }

    /// The floor as it stands.
    pub fn floor(&self) -> Option<Floor> {
        self.floor
    }

    /// The messages that are remembered.
    pub fn remembered(&self) -> usize {
        self.recent.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    use super::*;

    const NEW: Judged = Judged::New { skipped: 0 };

    fn message(counter: u32) -> Message {
        Message { counter, check: counter.wrapping_mul(7) }
    }

    #[test]
    fn a_counter_that_falls_is_replayed_and_the_same_message_is_a_duplicate() {
        let mut line = Line::default();
        assert_eq!(line.judge(message(10), 0), NEW);
        assert_eq!(line.judge(message(10), 0), Judged::Duplicate);
        assert_eq!(line.judge(message(13), 0), Judged::New { skipped: 2 });
        assert_eq!(line.judge(message(12), 0), Judged::Below { floor: 14 });
        assert_eq!(line.judge(message(10), 0), Judged::Duplicate, "a batch that was sent again");
        assert_eq!(line.judge(Message { check: 1, ..message(13) }, 0), Judged::OtherMessage);
        assert_eq!(line.judge(Message { check: 1, ..message(10) }, 0), Judged::OtherMessage);
        // The end of a line: nothing comes above.
        assert_eq!(line.judge(message(u32::MAX), 0), Judged::New { skipped: u32::MAX - 14 });
        assert_eq!(line.judge(message(0), 0), Judged::Below { floor: u32::MAX });
    }

    #[test]
    fn a_look_takes_nothing_in() {
        let mut line = Line::default();
        line.judge(message(10), 0);
        for counter in [9, 10, 11] {
            let looked = line.look(message(counter), 0);
            assert_eq!(line.look(message(counter), 0), looked);
            assert_eq!((line.floor(), line.remembered()), (Some(Floor::first(10, 70)), 1));
        }
        assert_eq!(line.judge(message(11), 0), NEW);
    }

    #[test]
    fn a_window_lets_in_what_comes_late_once() {
        let mut line = Line::default();
        assert_eq!(line.judge(message(100), 8), NEW);
        assert_eq!(line.judge(message(93), 8), NEW);
        assert_eq!(line.judge(message(92), 8), Judged::Below { floor: 101 });
        (0..3).for_each(|_| line.pass());
        for late in [95, 96, 97, 98, 99] {
            assert_eq!(line.judge(message(late), 8), NEW);
        }
        (0..3).for_each(|_| line.pass());
        // Seen, and remembered no more: not new, whatever it is.
        assert_eq!(line.judge(message(93), 8), Judged::Below { floor: 101 });
        assert_eq!(line.judge(message(95), 8), Judged::Below { floor: 101 });
        assert_eq!(line.judge(message(94), 8), NEW);
    }

    #[test]
    fn what_somebody_else_saw_is_replayed_here_and_a_restart_knows_its_last_message() {
        let mut line = Line::default();
        line.merge(Floor::first(50, message(50).check));
        assert_eq!(line.judge(message(49), 0), Judged::Below { floor: 51 });
        assert_eq!(line.judge(message(50), 0), Judged::Duplicate);
        assert_eq!(line.risen(), None, "nothing was seen here");
        assert_eq!(line.judge(message(51), 0), NEW);
        line.merge(Floor::first(40, 0));
        assert_eq!(line.risen().map(|floor| floor.highest()), Some(51));
        assert_eq!(line.risen(), None);
        line.not_stored();
        assert!(line.risen().is_some());
        // What the other site saw is stored here, too, once: two sites don't tell each other the same for ever.
        line.adopt(Floor::first(60, 1));
        assert!(line.risen().is_some());
        line.adopt(Floor::first(60, 1));
        assert_eq!(line.risen(), None);
    }

    #[test]
    fn what_is_remembered_has_a_bound_and_passes() {
        let mut line = Line::default();
        for counter in 0..5_000 {
            assert_eq!(line.judge(message(counter), 0), NEW);
            assert!(line.remembered() <= Line::RECENT_MAX);
        }
        // A batch of this interval that is sent again is harmless, also when an interval passes in between.
        line.pass();
        assert_eq!(line.judge(message(4_700), 0), Judged::Duplicate);
        line.pass();
        assert_eq!(
            (line.remembered(), line.judge(message(4_998), 0)),
            (Line::KEPT, Judged::Duplicate)
        );
        assert_eq!(line.judge(message(4_700), 0), Judged::Below { floor: 5_000 });
    }

    proptest! {
        #[test]
        fn invariant_5_no_message_is_new_twice_whatever_comes_in_between(
            window in prop::sample::select(&[0u8, 1, 8, 64][..]),
            steps in prop::collection::vec((0u32..120, 0u32..2, 0u8..10), 1..300),
        ) {
            let (mut line, mut stored, mut new) = (Line::default(), None::<Floor>, BTreeMap::new());
            for (counter, check, event) in steps {
                match event {
                    0 => line.pass(),
                    // What was stored comes back after a start: a flush came just before it.
                    1 => {
                        stored = line.floor();
                        line = Line::default();
                        stored.into_iter().for_each(|floor| line.merge(floor));
                    }
                    2 => stored.into_iter().for_each(|floor| line.merge(floor)),
                    _ => {
                        let judged = line.judge(Message { counter, check }, window);
                        let before = new.get(&counter).copied();
                        match judged {
                            Judged::New { .. } => {
                                prop_assert_eq!(before, None, "counter {} was new before", counter);
                                new.insert(counter, check);
                            }
                            Judged::Duplicate => prop_assert_eq!(before, Some(check)),
                            Judged::OtherMessage => prop_assert!(before.is_some_and(|seen| seen != check)),
                            Judged::Below { floor } => prop_assert!(counter < floor),
                        }
                    }
                }
            }
        }
    }
}
