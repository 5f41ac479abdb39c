//! The allocator of one block's sequences at one node: reserves durably before it gives anything out, burns what it can't
//! account for, and gives nothing out where another node holds the block or the database was rolled back. No IO: what to
//! write comes out, and what became of it goes in.
//!
//! No sequence is given out twice whatever a clock says: a reservation is compared with what is stored and raised in one
//! transaction, so two nodes never have one range. The clock only decides when another node may take the block over.

use std::{collections::BTreeMap, time::Duration};

use super::line::{Line, LineName, NoCounterEpoch, Offset, SEQUENCES, invocation_counter};
use crate::{BlockNo, Epoch, audit::NodeId, moment::Moment};

/// Sequences that one reservation adds: at most so many of a line are burnt by a crash.
pub const RANGE: u32 = 1_024;

/// The first sequence of a counter epoch. A floor says "greater than", so a meter that begins with 0 would take counter 0
/// for a replay.
pub const FIRST: u32 = 1;

/// The last sequences of a counter epoch, which serve key transfer only: so that a key can always be replaced.
pub const FOR_TRANSFER: u32 = 256;

/// The time for which a reservation is used before it is renewed.
pub const HOLD: Duration = Duration::from_millis(10_000);

/// The time for which another node has to see a reservation unchanged before it takes the block over.
pub const TAKE_OVER: Duration = Duration::from_millis(15_000);

/// The reservation of a block, as the site's database has it. Never lowered within an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The block.
    pub block: BlockNo,
    /// The site's epoch.
    pub epoch: Epoch,
    /// All sequences below may have been used.
    pub end: u32,
    /// The node that transmits for the block; `None`: it gave it back.
    pub holder: Option<NodeId>,
    /// Raised with each reservation.
    pub term: u64,
}

impl Mark {
    /// Of a block whose site begins to write in `epoch`: it stands there before anything is reserved, so that a mark that is
    /// missing later is always a fault.
    pub const fn first(block: BlockNo, epoch: Epoch) -> Self {
        Self { block, epoch, end: FIRST, holder: None, term: 0 }
    }
}

/// What a witness outside the database knows of a block's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Witnessed {
    /// The epoch.
    pub epoch: Epoch,
    /// The end of what was reserved in it.
    pub end: u32,
}

/// The use of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Messages of all kinds.
    Traffic,
    /// The transfer of a new key.
    KeyTransfer,
    /// HLS authentication, which comes before it.
    Hls,
    /// A message for a broadcast group: some of its members may use a key that is staged.
    Broadcast,
    /// A read that finds out which keys a meter holds.
    Probe,
}

/// A wish for a counter.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The line.
    pub line: &'a Line,
    /// Whether the peer proved the line's record as it is, or there is no peer: a site that says so is a single one.
    pub proved: bool,
    /// The use.
    pub purpose: Purpose,
}

/// The reason why no counter is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllocated {
    /// The site does not write.
    #[error("this site does not transmit: it does not write")]
    DoesNotWrite,
    /// Nothing is reserved, or it was used up, or is due to be renewed.
    #[error("a range of the block is to be reserved first")]
    Reserve,
    /// The inherited counter was never declared.
    #[error("the key was imported, and nobody has declared its last invocation counter")]
    Undeclared,
    /// The peer has not proved the line: it could go on below it.
    #[error("the peer has not proved the counter's line yet")]
    Unproved,
    /// No counter epoch is left, or none yet.
    #[error(transparent)]
    CounterEpoch(#[from] NoCounterEpoch),
    /// The rest of the counter epoch is for key transfer: the line is to be raised, or the key replaced.
    #[error(
        "the line's last {FOR_TRANSFER} counters of this epoch are for key transfer: raise it, or replace the key"
    )]
    ForTransfer,
    /// Not even those are left.
    #[error("no counter of this epoch is left in the block: the site has to take a higher epoch")]
    NoneLeft,
}

/// The reason why nothing is to be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReserved {
    /// The site does not write.
    #[error("this site does not transmit: it does not write")]
    DoesNotWrite,
    /// No witness was asked since the start, and the site is not a single one.
    #[error("no witness outside the database has confirmed where the block's counters stand")]
    NotWitnessed,
    /// The database knows less than a witness, or than this process.
    #[error("counters up to {} of epoch {} were reserved, and the database does not know it: it was rolled back; take a higher epoch", known.end, known.epoch.0)]
    RolledBack {
        /// What the database has.
        found: Option<Witnessed>,
        /// What is known.
        known: Witnessed,
    },
    /// The block has no mark of the epoch: one stands there from the beginning of each epoch on.
    #[error("block {block} has no mark of its counters of epoch {}: it was taken away or put back outside this service; take a higher epoch", epoch.0)]
    MarkGone {
        /// The block.
        block: BlockNo,
        /// The site's epoch.
        epoch: Epoch,
    },
    /// The database is of a higher epoch.
    #[error("the block's counters are of epoch {}: this process missed a change of role", .0.0)]
    HigherEpoch(Epoch),
    /// Another node transmits for the block.
    #[error("node {holder} transmits for the block")]
    Held {
        /// The node.
        holder: NodeId,
    },
    /// The block's sequences of this epoch are used up.
    #[error("no counter of this epoch is left in the block: the site has to take a higher epoch")]
    NoneLeft,
}

/// The part of a block's sequences that this node may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    /// Lines that were not used yet start here.
    start: u32,
    end: u32,
    term: u64,
    until: Moment,
}

/// A reservation that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    at: Moment,
    start: u32,
    mark: Mark,
}

/// A reservation of another node that is being watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watched {
    holder: NodeId,
    term: u64,
    since: Moment,
    /// The holder serves what is forwarded to it, or is silent; `None`: it was not asked.
    answers: Option<bool>,
}

/// The state of one block's counters at one node. Bounded by the lines of the block.
#[derive(Debug)]
pub struct Allocator {
    block: BlockNo,
    node: NodeId,
    /// The epoch that the site writes in.
    epoch: Option<Epoch>,
    /// The highest mark that a witness or this process knows of.
    known: Option<Witnessed>,
    witnessed: bool,
    held: Option<Held>,
    asked: Option<Asked>,
    watched: Option<Watched>,
    /// Of each line that was used: the highest offset, and the next sequence under that.
    next: BTreeMap<LineName, (Offset, u32)>,
}

impl Allocator {
    /// For a block, at a node that has just started: it gives nothing out before a witness was asked.
    pub fn new(block: BlockNo, node: NodeId) -> Self {
        Self {
            block,
            node,
            epoch: None,
            known: None,
            witnessed: false,
            held: None,
            asked: None,
            watched: None,
            next: BTreeMap::new(),
        }
    }

    /// The site writes in this epoch now, or does not write. Whatever was reserved before is not used on.
    pub fn stand(&mut self, epoch: Option<Epoch>) {
        if self.epoch != epoch {
            self.epoch = epoch;
            // Terms begin anew: one that was seen before says nothing of how long it has stood.
            self.watched = None;
            self.let_go();
        }
    }

    /// A witness was asked: at the start, and whenever it can be reached. `known`: the mark of this site's that it knows
    /// of. A setting that says that this is a single site is an answer, too.
    pub fn witness(&mut self, known: Option<Witnessed>) {
        self.witnessed = true;
        self.remember(known);
    }

    /// This server itself, or another witness, remembers that so much was reserved: told before anything is given out, and no
    /// answer of the witness that is to be asked.
    pub fn remember(&mut self, known: Option<Witnessed>) {
        self.known = self.known.max(known);
        let held = self.epoch.zip(self.held).map(|(epoch, it)| Witnessed { epoch, end: it.end });
        if held < known {
            self.let_go();
        }
    }

    /// Whether a reservation over `stored` goes on with what this node holds, and nobody can have taken it over meanwhile.
    pub fn goes_on(&self, now: Moment, stored: &Mark) -> bool {
        let margin = TAKE_OVER.saturating_sub(HOLD);
        self.held.is_some_and(|held| {
            (held.term, held.end) == (stored.term, stored.end) && now < held.until + margin
        })
    }

    /// Whether `stored` is the last that this node wrote, as far as is known.
    pub fn is_own(&self, stored: &Mark) -> bool {
        stored.holder == Some(self.node) && self.known == Some(Witnessed::from(stored))
    }

    /// What is to be written in the place of `stored`, if that still is what is stored, in one transaction that also sees
    /// that the site writes in this epoch. Then [`Allocator::reserved`], or [`Allocator::let_go`].
    pub fn reserve(&mut self, now: Moment, stored: Option<&Mark>) -> Result<Mark, NotReserved> {
        let epoch = self.epoch.ok_or(NotReserved::DoesNotWrite)?;
        if !self.witnessed {
            return Err(NotReserved::NotWitnessed);
        }
        let stored = stored.filter(|mark| mark.epoch >= epoch).ok_or_else(|| {
            self.let_go();
            NotReserved::MarkGone { block: self.block, epoch }
        })?;
        if stored.epoch > epoch {
            return Err(NotReserved::HigherEpoch(stored.epoch));
        }
        self.check_known(epoch, stored)?;
        let (start, end) = self.range_behind(now, stored)?;
        let term = stored.term + 1;
        let mark = Mark { block: self.block, epoch, end, holder: Some(self.node), term };
        self.asked = Some(Asked { at: now, start, mark });
        Ok(mark)
    }

    fn check_known(&mut self, epoch: Epoch, stored: &Mark) -> Result<(), NotReserved> {
        let found = Some(Witnessed::from(stored));
        let more = self.known.filter(|known| found < Some(*known) && known.epoch >= epoch);
        let Some(known) = more else { return Ok(()) };
        self.let_go();
        Err(NotReserved::RolledBack { found, known })
    }

    /// Where lines start that were not used yet, and where the range ends that is to be reserved.
    fn range_behind(&mut self, now: Moment, stored: &Mark) -> Result<(u32, u32), NotReserved> {
        let mine = self.held.filter(|held| (held.term, held.end) == (stored.term, stored.end));
        let more = (stored.end / RANGE + 1).saturating_mul(RANGE).min(SEQUENCES);
        let Some(held) = mine else {
            self.let_go();
            self.wait_for_others(now, stored)?;
            // What is below may have been used.
            return if more > stored.end {
                Ok((stored.end, more))
            } else {
                Err(NotReserved::NoneLeft)
            };
        };
        // A range that is only renewed is not burnt.
        let is_left = self.next.values().all(|(_, next)| *next < held.end);
        Ok((held.start, if is_left { held.end } else { more }))
    }

    /// Another node's reservation is left alone while that node answers, and until it was seen unchanged for long enough.
    fn wait_for_others(&mut self, now: Moment, stored: &Mark) -> Result<(), NotReserved> {
        let Some(holder) = stored.holder.filter(|holder| *holder != self.node) else {
            return Ok(());
        };
        let term = stored.term;
        let same = self.watched.filter(|watched| watched.holder == holder);
        let answers = same.and_then(|watched| watched.answers);
        let same = same.filter(|watched| watched.term == term);
        let watched = same.unwrap_or(Watched { holder, term, since: now, answers });
        self.watched = Some(watched);
        let is_gone = watched.answers != Some(true) && now >= watched.since + TAKE_OVER;
        if is_gone { Ok(()) } else { Err(NotReserved::Held { holder }) }
    }

    /// What was forwarded to the node that holds the block was answered, or not. One that answers is not taken over from,
    /// however seldom it is asked: each take-over burns what is left of its range.
    pub fn heard(&mut self, now: Moment, holder: NodeId, answers: bool) {
        let Some(watched) = self.watched.as_mut().filter(|it| it.holder == holder) else { return };
        if watched.answers == Some(true) && !answers {
            watched.since = now;
        }
        watched.answers = Some(answers);
    }

    /// The holder is asked: until somebody says that it is silent, it is taken to serve.
    pub fn asks(&mut self, holder: NodeId) {
        if let Some(watched) = self.watched.as_mut().filter(|it| it.holder == holder) {
            watched.answers = watched.answers.or(Some(true));
        }
    }

    /// The mark that was asked for last was written.
    pub fn reserved(&mut self, mark: &Mark) {
        let asked = self.asked.take().filter(|asked| asked.mark == *mark);
        let Some(Asked { at, start, mark }) = asked else { return };
        self.known = self.known.max(Some(Witnessed { epoch: mark.epoch, end: mark.end }));
        self.watched = None;
        self.held = Some(Held { start, end: mark.end, term: mark.term, until: at + HOLD });
    }

    /// The mark that was asked for last is not written: what is held stays.
    pub fn withdraw(&mut self) {
        self.asked = None;
    }

    /// It is not known whether the mark was written, or another node was quicker: what was held is burnt.
    pub fn let_go(&mut self) {
        self.held = None;
        self.asked = None;
        self.next.clear();
    }

    /// Whether this node transmits for the block at this moment, as far as it knows.
    pub fn holds(&self, now: Moment) -> bool {
        self.held.is_some_and(|held| now < held.until)
    }

    /// The mark to write so that another node need not wait, for a node that stops in order. It gives nothing out after
    /// that.
    pub fn give_back(&mut self, stored: &Mark) -> Option<Mark> {
        let as_held = |held: &Held| (held.term, held.end) == (stored.term, stored.end);
        let held = self.held.filter(as_held)?;
        self.let_go();
        Some(Mark { holder: None, term: held.term + 1, ..*stored })
    }

    /// An invocation counter, which nobody was given before and nobody will be.
    pub fn allocate(&mut self, now: Moment, wish: &Wish<'_>) -> Result<u32, NotAllocated> {
        let epoch = self.epoch.ok_or(NotAllocated::DoesNotWrite)?;
        let held = self.held.filter(|held| now < held.until).ok_or(NotAllocated::Reserve)?;
        let offset = wish.line.offset.ok_or(NotAllocated::Undeclared)?;
        if !wish.proved {
            return Err(NotAllocated::Unproved);
        }
        // Whoever read the line before it was raised gets what it has been raised to.
        let used = self.next.get(&wish.line.name).filter(|(used, _)| *used >= offset);
        let (offset, next) = used.copied().unwrap_or((offset, held.start));
        let counter_epoch = offset.counter_epoch(epoch)?;
        if matches!(wish.purpose, Purpose::Traffic | Purpose::Broadcast)
            && next >= SEQUENCES - FOR_TRANSFER
        {
            return Err(NotAllocated::ForTransfer);
        }
        if next >= SEQUENCES {
            return Err(NotAllocated::NoneLeft);
        }
        if next >= held.end {
            return Err(NotAllocated::Reserve);
        }
        self.next.insert(wish.line.name, (offset, next + 1));
        Ok(invocation_counter(counter_epoch, next))
    }

    /// The counters that are left to a line in this epoch, those for key transfer included: worth a metric.
    pub fn left(&self, name: &LineName) -> u32 {
        let start =
            self.held.map_or(self.known.map_or(FIRST, |known| known.end), |held| held.start);
        SEQUENCES - self.next.get(name).map_or(start, |(_, next)| *next).min(SEQUENCES)
    }
}

#[cfg(test)]
mod tests;
