//! The writer of a chain, where commits can get lost: what is awaited, what may still come, what is written
//! again, and when nothing more is. A step of the store in, the next step out; no store, no lock, and no
//! clock, since nothing here is a matter of time: what seems lost is forgotten by its number.
//!
//! A store that does not answer may have committed, or may yet. So its end is looked for, once before its caller
//! is answered, and again before anything else is written: it is there, or it is not (yet) and another one is
//! written behind the same end. Of all those only one can ever land, since each says which end it stands behind.
//! Any other end was made by somebody who is not this writer.

use super::{AuditEntry, ChainTip, StoredEvent};

/// Ends that are remembered as late. A transaction outlives its caller by seconds, not by so many
/// further commits.
const LATE_MAX: usize = 64;

/// State of a chain's writer between two turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainWriter {
    tip: ChainTip,
    /// The end after a commit whose outcome is not known.
    awaited: Option<ChainTip>,
    /// Earlier ones behind the same end, looked for and not found: each may still come to its end, and
    /// then none of the others can.
    late: Vec<ChainTip>,
}

impl ChainWriter {
    /// A writer behind `tip`, which awaits nothing.
    pub fn new(tip: ChainTip) -> Self {
        Self { tip, awaited: None, late: Vec::new() }
    }

    /// A turn: `entries` go behind the chain's end, all or none.
    pub fn turn<'a>(&'a mut self, entries: &'a [AuditEntry]) -> Turn<'a> {
        Turn { writer: self, entries, looked_again: false, lost: false }
    }

    /// The chain ends here: what was awaited is there, or can't come any more.
    fn ends_at(&mut self, tip: ChainTip) {
        *self = Self::new(tip);
    }

    /// The awaited commit is not there (yet).
    fn is_late(&mut self, awaited: ChainTip) {
        if self.late.len() == LATE_MAX {
            self.late.remove(0);
        }
        self.late.push(awaited);
        self.awaited = None;
    }
}

/// Something that the store has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The turn begins; the store was not asked yet.
    Begin,
    /// The chain ends there in the database: the answer to [`Step::Look`].
    Found(ChainTip),
    /// The events are committed.
    Committed,
    /// The outcome is not known.
    Lost,
    /// They were not written: the chain ends elsewhere.
    Moved,
    /// They were not written, for another reason.
    Refused,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read where the chain ends in the database.
    Look,
    /// Commit `events` behind `behind`.
    Write {
        /// The chain's end.
        behind: ChainTip,
        /// The turn's entries in their place.
        events: Vec<StoredEvent>,
        /// That end is of a commit that seemed lost, and is news.
        landed: bool,
    },
    /// The entries are committed, and the chain ends here. The turn is over.
    Done(ChainTip),
    /// The store's answer is the turn's outcome. The turn is over.
    GiveUp,
    /// Somebody else wrote into the chain: nothing more is to be written behind it. The turn is over.
    Broken,
}

/// One turn of a writer.
#[derive(Debug)]
pub struct Turn<'a> {
    writer: &'a mut ChainWriter,
    entries: &'a [AuditEntry],
    /// This turn's own commit was lost: it is looked for once, before anybody is answered.
    lost: bool,
    /// An end that was in the way was looked for already. Once a turn: two in a row are not ours.
    looked_again: bool,
}

impl Turn<'_> {
    /// The step after this answer.
    pub fn step(&mut self, input: Input) -> Step {
        match input {
            Input::Begin if self.writer.awaited.is_some() => Step::Look,
            Input::Begin => self.write(false),
            Input::Found(end) => self.found(end),
            Input::Committed => {
                let tip = self.writer.awaited.unwrap_or(self.writer.tip);
                self.writer.ends_at(tip);
                Step::Done(tip)
            }
            // Looked for at once: what is there is no loss. Else it stays awaited, and the next turn looks.
            Input::Lost if !self.lost => {
                self.lost = true;
                Step::Look
            }
            Input::Lost => Step::GiveUp,
            Input::Moved => self.moved(),
            Input::Refused => {
                self.writer.awaited = None;
                Step::GiveUp
            }
        }
    }

    /// The database was asked for the end because a commit is awaited: it is there or it is not (yet). Any
    /// other end was made by somebody else.
    fn found(&mut self, end: ChainTip) -> Step {
        let writer = &mut *self.writer;
        if self.lost {
            if writer.awaited != Some(end) {
                return Step::GiveUp;
            }
            writer.ends_at(end);
            return Step::Done(end);
        }
        if writer.awaited == Some(end) || writer.late.contains(&end) {
            writer.ends_at(end);
            return self.write(true);
        }
        if end != writer.tip {
            return Step::Broken;
        }
        if let Some(awaited) = writer.awaited {
            writer.is_late(awaited);
        }
        self.write(false)
    }

    /// Another end is in the way: if a commit that seemed lost has come to it after all, it is one of ours.
    fn moved(&mut self) -> Step {
        self.writer.awaited = None;
        if self.looked_again {
            return Step::Broken;
        }
        let Some(late) = self.writer.late.pop() else { return Step::Broken };
        self.looked_again = true;
        self.writer.awaited = Some(late);
        Step::Look
    }

    fn write(&mut self, landed: bool) -> Step {
        let behind = self.writer.tip;
        let mut tip = behind;
        let append = |entry: &AuditEntry| {
            let (next, event) = tip.append(entry.clone());
            tip = next;
            event
        };
        let events = self.entries.iter().map(append).collect();
        // Before the store is asked: whatever happens to whoever asks it, the next turn looks.
        self.writer.awaited = Some(tip);
        Step::Write { behind, events, landed }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AuditOutcome, AuditedCall, NodeId, Subject};
    use super::*;

    fn entry(n: u64) -> AuditEntry {
        AuditedCall::new("x", "y").entry(n, Subject::NONE, AuditOutcome::Done)
    }

    fn start() -> ChainTip {
        ChainTip::empty(NodeId([1; 16]))
    }

    /// The end behind `tip` once these entries stand there.
    fn after(tip: ChainTip, entries: &[AuditEntry]) -> ChainTip {
        entries.iter().fold(tip, |tip, entry| tip.append(entry.clone()).0)
    }

    /// The place that a turn of one entry wants for it: the end before it, and whether that end is news.
    fn place(step: Step) -> (ChainTip, bool) {
        let Step::Write { behind, events, landed } = step else { panic!("{step:?}") };
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].sequence, behind.sequence + 1);
        (behind, landed)
    }

    /// Turns whose commits all get lost behind `start()`, each looked for in vain by the next one.
    fn losing(writer: &mut ChainWriter, numbers: std::ops::Range<u64>) {
        for n in numbers {
            let entries = [entry(n)];
            let mut turn = writer.turn(&entries);
            let mut step = turn.step(Input::Begin);
            if step == Step::Look {
                step = turn.step(Input::Found(start()));
            }
            assert_eq!(place(step), (start(), false));
            assert_eq!(turn.step(Input::Lost), Step::Look);
            assert_eq!(turn.step(Input::Found(start())), Step::GiveUp);
        }
    }

    #[test]
    fn entries_go_behind_the_end_one_after_the_other_and_the_next_ones_behind_them() {
        let mut writer = ChainWriter::new(start());
        let entries = [entry(1), entry(2)];
        let mut turn = writer.turn(&entries);
        let Step::Write { behind, events, landed } = turn.step(Input::Begin) else { panic!() };
        assert_eq!((behind, landed), (start(), false));
        assert_eq!(events.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 2]);
        let end = after(start(), &entries);
        assert_eq!(events[1].hash, end.hash);
        assert_eq!(turn.step(Input::Committed), Step::Done(end));
        assert_eq!(place(writer.turn(&[entry(3)]).step(Input::Begin)), (end, false));
    }

    #[test]
    fn what_the_store_refused_is_not_awaited() {
        let mut writer = ChainWriter::new(start());
        let entries = [entry(1)];
        let mut turn = writer.turn(&entries);
        turn.step(Input::Begin);
        assert_eq!(turn.step(Input::Refused), Step::GiveUp);
        assert_eq!(writer, ChainWriter::new(start()));
    }

    #[test]
    fn a_lost_commit_is_looked_for_and_if_it_is_there_the_chain_goes_on_behind_it() {
        let mut writer = ChainWriter::new(start());
        losing(&mut writer, 0..1);
        let end = after(start(), &[entry(0)]);
        let entries = [entry(1)];
        let mut turn = writer.turn(&entries);
        assert_eq!(turn.step(Input::Begin), Step::Look);
        assert_eq!(place(turn.step(Input::Found(end))), (end, true));
        assert_eq!(turn.step(Input::Committed), Step::Done(after(end, &entries)));
    }

    #[test]
    fn invariant_4_a_lost_commit_that_is_there_is_no_loss_and_is_answered_as_done() {
        let mut writer = ChainWriter::new(start());
        let entries = [entry(1)];
        let mut turn = writer.turn(&entries);
        turn.step(Input::Begin);
        assert_eq!(turn.step(Input::Lost), Step::Look);
        let end = after(start(), &entries);
        assert_eq!(turn.step(Input::Found(end)), Step::Done(end));
        assert_eq!(writer, ChainWriter::new(end));
    }

    #[test]
    fn a_lost_commit_that_is_not_there_and_forgotten_once_another_is_committed() {
        let mut writer = ChainWriter::new(start());
        losing(&mut writer, 0..1);
        let entries = [entry(1)];
        let mut turn = writer.turn(&entries);
        assert_eq!(turn.step(Input::Begin), Step::Look);
        assert_eq!(place(turn.step(Input::Found(start()))), (start(), false));
        let end = after(start(), &entries);
        assert_eq!(turn.step(Input::Committed), Step::Done(end));
        assert_eq!(writer, ChainWriter::new(end));
    }

    #[test]
    fn a_look_that_fails_leaves_the_commit_awaited() {
        let mut writer = ChainWriter::new(start());
        losing(&mut writer, 0..1);
        assert_eq!(writer.turn(&[entry(1)]).step(Input::Begin), Step::Look);
        assert_eq!(writer.turn(&[entry(1)]).step(Input::Begin), Step::Look);
    }

    #[test]
    fn a_turn_that_was_left_in_the_middle_of_a_write_is_looked_for() {
        let mut writer = ChainWriter::new(start());
        assert_eq!(place(writer.turn(&[entry(1)]).step(Input::Begin)), (start(), false));
        assert_eq!(writer.turn(&[entry(2)]).step(Input::Begin), Step::Look);
    }

    #[test]
    fn whichever_of_several_lost_commits_is_found_the_chain_goes_on_behind_it() {
        for landed in 0..3 {
            let mut writer = ChainWriter::new(start());
            losing(&mut writer, 0..3);
            let end = after(start(), &[entry(landed)]);
            let entries = [entry(9)];
            let mut turn = writer.turn(&entries);
            assert_eq!(turn.step(Input::Begin), Step::Look);
            assert_eq!(place(turn.step(Input::Found(end))), (end, true));
        }
    }

    #[test]
    fn a_late_commit_that_lands_after_the_look_is_found_by_a_second_one() {
        for landed in 0..2 {
            let mut writer = ChainWriter::new(start());
            losing(&mut writer, 0..2);
            let end = after(start(), &[entry(landed)]);
            let entries = [entry(9)];
            let mut turn = writer.turn(&entries);
            assert_eq!(turn.step(Input::Begin), Step::Look);
            assert_eq!(place(turn.step(Input::Found(start()))), (start(), false));
            assert_eq!(turn.step(Input::Moved), Step::Look);
            assert_eq!(place(turn.step(Input::Found(end))), (end, true));
            assert_eq!(turn.step(Input::Committed), Step::Done(after(end, &entries)));
        }
    }

    #[test]
    fn a_chain_that_moves_twice_in_a_turn_is_not_moved_by_us() {
        let mut writer = ChainWriter::new(start());
        losing(&mut writer, 0..3);
        let entries = [entry(9)];
        let mut turn = writer.turn(&entries);
        turn.step(Input::Begin);
        turn.step(Input::Found(start()));
        assert_eq!(turn.step(Input::Moved), Step::Look);
        assert_eq!(place(turn.step(Input::Found(start()))), (start(), false));
        assert_eq!(turn.step(Input::Moved), Step::Broken);
    }

    #[test]
    fn a_chain_that_moved_although_nothing_was_lost_is_broken() {
        let mut writer = ChainWriter::new(start());
        let entries = [entry(1)];
        let mut turn = writer.turn(&entries);
        turn.step(Input::Begin);
        assert_eq!(turn.step(Input::Moved), Step::Broken);
    }

    #[test]
    fn an_end_that_nobody_of_us_made_is_broken() {
        let strange = after(start(), &[entry(77)]);
        let mut writer = ChainWriter::new(start());
        losing(&mut writer, 0..3);
        let entries = [entry(9)];
        let mut turn = writer.turn(&entries);
        turn.step(Input::Begin);
        assert_eq!(turn.step(Input::Found(strange)), Step::Broken);
    }

    #[test]
    fn the_oldest_of_too_many_late_ones_is_forgotten() {
        let all = LATE_MAX as u64 + 2;
        for (landed, is_known) in [(0, false), (1, true), (all - 1, true)] {
            let mut writer = ChainWriter::new(start());
            // The last one is awaited, and not late yet.
            losing(&mut writer, 0..all);
            assert_eq!(writer.late.len(), LATE_MAX);
            let entries = [entry(999)];
            let mut turn = writer.turn(&entries);
            turn.step(Input::Begin);
            let step = turn.step(Input::Found(after(start(), &[entry(landed)])));
            assert_eq!(step != Step::Broken, is_known, "{landed}");
        }
    }
}
