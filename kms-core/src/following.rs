//! Following the other servers of one database, decided: which resident blocks are read anew, which are
//! closed instead, and since when nothing was heard.
//!
//! A block that is resident and older than what is stored is read anew. What can't be read anew in time
//! is closed: whoever asks for it opens it then, and a deleted key opens nothing. What can't be read
//! because the database is away stays, and [`Follower::not_following`] says since when.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{BlockNo, Position, moment::Moment};

/// Blocks read anew at the same time: enough to keep one core verifying while others wait for the
/// database.
const AT_ONCE: usize = 8;

/// The longest time, in milliseconds, from when a change is heard of until its block is closed. The
/// poll hears of it after 500 ms at the latest, so this keeps within the second that is promised.
const WAIT_MAX_MS: u64 = 350;

/// The time for which a block that failed for a reason that stays is left alone before it is read
/// anew again.
const RETRY_FAILED: Duration = Duration::from_millis(2_000);

/// A block of which was heard where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The block.
    pub block: BlockNo,
    /// The position that is stored.
    pub stored: Position,
    /// The position that is resident; `None`: it is not open.
    pub resident: Option<Position>,
}

/// An event that the follower takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The database said where blocks stand.
    Positions(Vec<Heard>),
    /// The database said nothing, or a block could not be read because it is away; why, as a sentence.
    Nothing(String),
    /// A block that was to be read anew is as new as what is stored, or not resident any more.
    Renewed(BlockNo),
    /// Reading a block anew took too long.
    TooSlow(BlockNo),
    /// A block can't be read anew.
    Failed {
        /// The block.
        block: BlockNo,
        /// The reason, as a sentence.
        reason: String,
        /// Whether what is resident must not be used on: a newer authentic state is known, or there is
        /// no room for it.
        close: bool,
    },
    /// Reading a block anew ended because the database is away.
    Away {
        /// The block.
        block: BlockNo,
        /// The message of the database, as a sentence.
        reason: String,
    },
    /// Time went by.
    Tick,
}

/// An action that the follower asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Read this block anew; stored is at least this position. Answered by [`Input::Renewed`],
    /// [`Input::TooSlow`], [`Input::Failed`] or [`Input::Away`].
    Renew(BlockNo, Position),
    /// Close these blocks: they were not read anew in time.
    CloseLate(Vec<BlockNo>),
    /// Close this block: what is resident must not be used on.
    Close(BlockNo),
    /// From now on nothing is heard: worth a line in the log.
    FellSilent(String),
    /// It is heard again, after so many milliseconds: worth a line in the log.
    HeardAgain(u64),
}

/// The reason why this process does not follow the others' changes, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFollowing {
    /// Milliseconds for which nothing was heard; 0: it is heard, but blocks can't be read anew.
    pub since_ms: u64,
    /// The reason, as a sentence.
    pub reason: String,
}

/// The state of following. Bounded by the number of blocks.
#[derive(Debug, Default)]
pub struct Follower {
    /// The moment since which nothing is heard, and the reason.
    silent: Option<(Moment, String)>,
    /// Blocks that could not be read anew, when that was last tried, and why.
    failed: HashMap<BlockNo, (Moment, String)>,
    behind: Behind,
    /// The number of blocks that are being read anew.
    renewing: usize,
}

impl Follower {
    /// Takes what happened, and says what is to be done, in order.
    pub fn step(&mut self, now: Moment, input: Input) -> Vec<Output> {
        let mut outputs = self.take(now, input);
        let late = self.behind.late(now);
        outputs.extend(self.close_late(late));
        while self.renewing < AT_ONCE
            && let Some((block, stored)) = self.behind.next()
        {
            self.renewing += 1;
            outputs.push(Output::Renew(block, stored));
        }
        outputs
    }

    fn take(&mut self, now: Moment, input: Input) -> Vec<Output> {
        match input {
            Input::Positions(heard) => {
                heard.into_iter().for_each(|heard| self.note(now, heard));
                let silent = self.silent.take();
                silent
                    .map(|(since, _)| Output::HeardAgain(now.ms_since(since)))
                    .into_iter()
                    .collect()
            }
            Input::Nothing(reason) => self.fall_silent(now, reason),
            Input::Renewed(block) => {
                self.renewing = self.renewing.saturating_sub(1);
                self.failed.remove(&block);
                Vec::new()
            }
            Input::TooSlow(block) => {
                self.renewing = self.renewing.saturating_sub(1);
                self.close_late(vec![block])
            }
            Input::Away { block: _, reason } => {
                // Heard of again at the next poll, if that is answered.
                self.renewing = self.renewing.saturating_sub(1);
                self.fall_silent(now, reason)
            }
            Input::Failed { block, reason, close } => {
                self.renewing = self.renewing.saturating_sub(1);
                self.failed.insert(block, (now, reason));
                close.then_some(Output::Close(block)).into_iter().collect()
            }
            Input::Tick => Vec::new(),
        }
    }

    /// Following begins, perhaps anew: nothing is being read.
    pub fn begin(&mut self) {
        self.renewing = 0;
    }

    /// A block is well again by another way: opened, or read anew because of doubt.
    pub fn is_well(&mut self, block: BlockNo) {
        self.failed.remove(&block);
    }

    /// Whether blocks wait to be read anew, so that time going by may change something.
    pub fn is_waiting(&self) -> bool {
        !self.behind.order.is_empty()
    }

    /// Whether nothing is heard.
    pub fn is_silent(&self) -> bool {
        self.silent.is_some()
    }

    /// The reason why this process does not follow the others, and for how long; `None`: it follows
    /// them.
    pub fn not_following(&self, now: Moment) -> Option<NotFollowing> {
        if let Some((since, reason)) = &self.silent {
            let since_ms = now.ms_since(*since).max(1);
            return Some(NotFollowing { since_ms, reason: reason.clone() });
        }
        let (_, reason) = self.failed.values().max_by_key(|(at, _)| *at)?;
        let count = self.failed.len();
        let reason = format!("{count} blocks can't be read anew: {reason}");
        Some(NotFollowing { since_ms: 0, reason })
    }

    fn note(&mut self, now: Moment, Heard { block, stored, resident }: Heard) {
        if resident.is_none_or(|resident| resident >= stored) {
            self.failed.remove(&block);
            return;
        }
        let left_alone = |(at, _): &(Moment, String)| now < *at + RETRY_FAILED;
        if !self.failed.get(&block).is_some_and(left_alone) {
            self.behind.add(now, block, stored);
        }
    }

    fn fall_silent(&mut self, now: Moment, reason: String) -> Vec<Output> {
        match &mut self.silent {
            Some((_, known)) => {
                *known = reason;
                Vec::new()
            }
            silent @ None => {
                *silent = Some((now, reason.clone()));
                vec![Output::FellSilent(reason)]
            }
        }
    }

    /// Unless the database is away: then they stay.
    fn close_late(&self, late: Vec<BlockNo>) -> Vec<Output> {
        if late.is_empty() || self.is_silent() { Vec::new() } else { vec![Output::CloseLate(late)] }
    }
}

/// Blocks that wait to be read anew, the longest waiting first.
#[derive(Debug, Default)]
struct Behind {
    order: VecDeque<BlockNo>,
    /// The stored position of each, and the moment since which it waits.
    known: HashMap<BlockNo, (Position, Moment)>,
}

impl Behind {
    fn add(&mut self, now: Moment, block: BlockNo, stored: Position) {
        let (position, _) = self.known.entry(block).or_insert_with(|| {
            self.order.push_back(block);
            (stored, now)
        });
        *position = stored.max(*position);
    }

    fn next(&mut self) -> Option<(BlockNo, Position)> {
        let block = self.order.pop_front()?;
        self.known.remove(&block).map(|(stored, _)| (block, stored))
    }

    /// Takes those out that wait for too long.
    fn late(&mut self, now: Moment) -> Vec<BlockNo> {
        let mut late = Vec::new();
        while let Some(block) = self.order.front() {
            let since = self.known.get(block).map_or_else(Moment::default, |(_, since)| *since);
            if now.ms_since(since) <= WAIT_MAX_MS {
                break;
            }
            late.extend(self.next().map(|(block, _)| block));
        }
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Sequence};

    fn at(sequence: u64) -> Position {
        Position { epoch: Epoch(1), sequence: Sequence(sequence) }
    }

    fn ms(ms: u64) -> Moment {
        Moment::from_ms(ms)
    }

    /// A block that is stored at 2 and resident at 1.
    fn behind(block: u32) -> Heard {
        Heard { block: BlockNo(block), stored: at(2), resident: Some(at(1)) }
    }

    fn heard(blocks: impl IntoIterator<Item = u32>) -> Input {
        Input::Positions(blocks.into_iter().map(behind).collect())
    }

    fn renewals(outputs: &[Output]) -> Vec<u32> {
        let renewed = |output: &Output| match output {
            Output::Renew(block, _) => Some(block.0),
            _ => None,
        };
        outputs.iter().filter_map(renewed).collect()
    }

    #[test]
    fn only_what_is_resident_and_older_is_read_anew() {
        let mut follower = Follower::default();
        let closed = Heard { resident: None, ..behind(1) };
        let as_new = Heard { resident: Some(at(2)), ..behind(2) };
        let input = Input::Positions(vec![closed, as_new, behind(3)]);
        assert_eq!(follower.step(ms(0), input), [Output::Renew(BlockNo(3), at(2))]);
        assert!(!follower.is_waiting());
    }

    #[test]
    fn eight_are_read_at_once_and_the_next_when_one_is_done() {
        let mut follower = Follower::default();
        let outputs = follower.step(ms(0), heard(0..10));
        assert_eq!(renewals(&outputs), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(follower.is_waiting());
        let outputs = follower.step(ms(1), Input::Renewed(BlockNo(3)));
        assert_eq!(outputs, [Output::Renew(BlockNo(8), at(2))]);
    }

    #[test]
    fn however_a_reading_ends_its_place_is_free_again() {
        let reason = || "why".to_owned();
        let endings: [fn(BlockNo, String) -> Input; 4] = [
            |block, _| Input::Renewed(block),
            |block, _| Input::TooSlow(block),
            |block, reason| Input::Failed { block, reason, close: false },
            |block, reason| Input::Away { block, reason },
        ];
        for ending in endings {
            let mut follower = Follower::default();
            for block in 0..3 * AT_ONCE as u32 {
                let outputs = follower.step(ms(0), heard([block]));
                assert_eq!(renewals(&outputs), [block]);
                follower.step(ms(0), ending(BlockNo(block), reason()));
            }
        }
        let mut follower = Follower::default();
        follower.step(ms(0), heard(0..8));
        follower.begin();
        assert_eq!(renewals(&follower.step(ms(0), heard([9]))), [9], "nobody reads any more");
    }

    #[test]
    fn the_newest_position_that_was_heard_of_counts() {
        let mut follower = Follower::default();
        follower.step(ms(0), heard(0..9));
        let newer = Heard { stored: at(7), ..behind(8) };
        follower.step(ms(1), Input::Positions(vec![newer]));
        follower.step(ms(2), heard([8]));
        let outputs = follower.step(ms(3), Input::Renewed(BlockNo(0)));
        assert_eq!(outputs, [Output::Renew(BlockNo(8), at(7))]);
    }

    #[test]
    fn what_waits_for_too_long_is_closed() {
        let mut follower = Follower::default();
        follower.step(ms(0), heard(0..10));
        assert_eq!(follower.step(ms(WAIT_MAX_MS), Input::Tick), []);
        let outputs = follower.step(ms(WAIT_MAX_MS + 1), Input::Tick);
        assert_eq!(outputs, [Output::CloseLate(vec![BlockNo(8), BlockNo(9)])]);
        assert!(!follower.is_waiting());
    }

    #[test]
    fn what_takes_too_long_to_read_is_closed() {
        let mut follower = Follower::default();
        follower.step(ms(0), heard([4]));
        let outputs = follower.step(ms(500), Input::TooSlow(BlockNo(4)));
        assert_eq!(outputs, [Output::CloseLate(vec![BlockNo(4)])]);
    }

    #[test]
    fn while_the_database_is_away_everything_stays() {
        let mut follower = Follower::default();
        follower.step(ms(0), heard(0..9));
        let outputs = follower.step(ms(10), Input::Nothing("it is gone".to_owned()));
        assert_eq!(outputs, [Output::FellSilent("it is gone".to_owned())]);
        // Told once; the reason is the last one.
        assert_eq!(follower.step(ms(20), Input::Nothing("still".to_owned())), []);
        let told = NotFollowing { since_ms: 20, reason: "still".to_owned() };
        assert_eq!(follower.not_following(ms(30)), Some(told));
        assert_eq!(follower.step(ms(900), Input::TooSlow(BlockNo(0))), []);
        let outputs = follower.step(ms(910), Input::Positions(Vec::new()));
        assert_eq!(outputs, [Output::HeardAgain(900)]);
        assert_eq!(follower.not_following(ms(910)), None);
    }

    #[test]
    fn a_block_that_can_t_be_read_because_the_database_is_away_is_no_fault_of_its_own() {
        let mut follower = Follower::default();
        follower.step(ms(0), heard([1]));
        let away = Input::Away { block: BlockNo(1), reason: "refused".to_owned() };
        assert_eq!(follower.step(ms(1), away), [Output::FellSilent("refused".to_owned())]);
        // Heard of again, it is read at once.
        let outputs = follower.step(ms(2), heard([1]));
        assert_eq!(renewals(&outputs), [1]);
    }

    #[test]
    fn a_block_that_failed_is_named_and_left_alone_for_two_seconds() {
        let mut follower = Follower::default();
        follower.step(ms(0), heard([1]));
        let reason = "block 1 is damaged".to_owned();
        let failed = Input::Failed { block: BlockNo(1), reason, close: false };
        assert_eq!(follower.step(ms(0), failed), []);
        let told = follower.not_following(ms(1)).unwrap();
        assert_eq!(told.since_ms, 0);
        assert_eq!(told.reason, "1 blocks can't be read anew: block 1 is damaged");
        assert_eq!(follower.step(ms(1_999), heard([1])), []);
        assert_eq!(renewals(&follower.step(ms(2_000), heard([1]))), [1]);
    }

    #[test]
    fn what_must_not_be_used_on_is_closed_at_once() {
        let mut follower = Follower::default();
        follower.step(ms(0), heard([1]));
        let failed = Input::Failed { block: BlockNo(1), reason: "stale".to_owned(), close: true };
        assert_eq!(follower.step(ms(0), failed), [Output::Close(BlockNo(1))]);
    }

    #[test]
    fn a_failure_is_forgotten_when_the_block_is_as_new_as_what_is_stored() {
        let mut follower = Follower::default();
        for (nth, well) in [
            Input::Positions(vec![Heard { resident: Some(at(2)), ..behind(1) }]),
            Input::Positions(vec![Heard { resident: None, ..behind(1) }]),
            Input::Renewed(BlockNo(1)),
        ]
        .into_iter()
        .enumerate()
        {
            let reason = "damaged".to_owned();
            follower.step(ms(0), Input::Failed { block: BlockNo(1), reason, close: false });
            assert!(follower.not_following(ms(0)).is_some(), "{nth}");
            follower.step(ms(1), well);
            assert_eq!(follower.not_following(ms(1)), None, "{nth}");
        }
    }
}
