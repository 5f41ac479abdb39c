//! Following a peer's blocks, decided: when to connect, what is taken over next, what is asked for again, and when
//! nothing is read. An input in, outputs out; no connection, no store, no clock.
//!
//! Nothing is remembered that a crash could lose: the cursor of a block is the head that is stored here, so whatever was
//! under way is sent anew. A higher epoch than ours is looked into before anything else, and a block that is refused
//! keeps no other one waiting.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::{
    BlockNo, Epoch, Head, StoredRecord,
    block::{BlockMark, accepting::NotAccepted},
    moment::Moment,
    site::role::Standing,
};

/// Updates that were read and are not stored yet: beyond them nothing more is read.
pub const WINDOW: usize = 768;

/// Bytes of such updates: beyond them nothing more is read.
pub const WINDOW_BYTES: usize = 32 << 20;

/// Blocks taken over at the same time. What is written for a commit (its event, pages of indexes that all records touch,
/// the flush) is shared by as many.
pub const AT_ONCE: usize = 256;

/// Bytes of updates beyond which no further block is taken over at the same time.
pub const BYTES_AT_ONCE: usize = 8 << 20;

/// Whole blocks asked for at the same time.
pub const WHOLE_AT_ONCE: usize = 4;

/// Bytes of one block's records in pieces: beyond them it is refused.
pub const BLOCK_BYTES_MAX: usize = 256 << 20;

/// The longest time without a word of the peer, whose heartbeats come every few seconds.
pub const SILENCE_MAX: Duration = Duration::from_millis(10_000);

/// The time until the first attempt to connect again; doubled from one to the next.
pub const BACK_OFF_FIRST: Duration = Duration::from_millis(100);

/// The longest time between two attempts.
pub const BACK_OFF_MAX: Duration = Duration::from_millis(10_000);

/// The time for which a block that was refused as a whole is left alone; doubled from one refusal to the next.
pub const REFUSED_FIRST: Duration = Duration::from_millis(1_000);

/// The longest time for which it is left alone.
pub const REFUSED_MAX: Duration = Duration::from_millis(60_000);

/// What the peer says of itself, in each of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCard {
    /// The highest epoch that it knows.
    pub epoch: Epoch,
    /// Whether it writes in it.
    pub writes: bool,
}

/// A block of the peer, or what changed in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The peer's head.
    pub head: Head,
    /// All of its records, or those that changed since our state.
    pub records: Vec<StoredRecord>,
    /// Whether it is the whole block.
    pub whole: bool,
}

impl Update {
    fn block(&self) -> BlockNo {
        self.head.block
    }

    fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.body.len() + RECORD_BYTES).sum()
    }
}

/// A record without its body, roughly.
pub const RECORD_BYTES: usize = 112;

/// What is to be done about an update that was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The whole block is needed; for one that parted it is brought back.
    Whole,
    /// The role records are needed.
    RoleRecords,
    /// The peer is behind us: it has to follow.
    Leave,
}

impl Remedy {
    /// The remedy for a refusal.
    pub fn of(refusal: &NotAccepted) -> Self {
        match refusal {
            NotAccepted::NotPromoted { .. } => Self::RoleRecords,
            NotAccepted::Behind { .. } => Self::Leave,
            NotAccepted::Head
            | NotAccepted::SecretVersion { .. }
            | NotAccepted::Forked(_)
            | NotAccepted::Record(_)
            | NotAccepted::OlderRecord { .. }
            | NotAccepted::Twice(_)
            | NotAccepted::Incomplete(_) => Self::Whole,
        }
    }
}

/// An event that the follower takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Our own role, at the start and after each change.
    Role(Standing),
    /// The connection stands: the answer to [`Output::Connect`].
    Connected,
    /// The peer's card came, with an update or without one.
    Card(PeerCard),
    /// A piece of what changed in a block; `more`: others follow, of the same head and before any other block's.
    Piece {
        /// The peer's head.
        head: Head,
        /// Records.
        records: Vec<StoredRecord>,
        /// Whether further records of the block follow.
        more: bool,
    },
    /// A whole block came: the answer to [`Output::AskWhole`].
    Whole(Head, Vec<StoredRecord>),
    /// A whole block did not come; the reason, as a sentence.
    NoWhole(BlockNo, String),
    /// The block stands in this state in our database: an answer to [`Output::Adopt`]. Also where it stood there before.
    Stored(BlockMark),
    /// Our database had another state of the block than the one that was built on.
    Conflict(BlockNo),
    /// The update was not taken over.
    Refused {
        /// The block.
        block: BlockNo,
        /// What is to be done about it.
        remedy: Remedy,
        /// The reason, as a sentence.
        reason: String,
    },
    /// The peer's role records were admitted and are stored: the answer to [`Output::AskRoleRecords`]. Whoever wrote
    /// before is fenced by then.
    RoleRecords(Standing),
    /// They did not come, or one of them does not count; the reason, as a sentence.
    NoRoleRecords(String),
    /// Time went by.
    Tick,
    /// There is no connection any more, or none came about; the reason, as a sentence.
    Disconnected(String),
}

/// An action that the follower asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Connect to the peer. Answered by [`Input::Connected`] or [`Input::Disconnected`].
    Connect,
    /// Send our card and the heads of all of our blocks as they are stored now.
    Hello,
    /// Fetch the peer's role records from this epoch on, admit and store them. Answered by [`Input::RoleRecords`] or
    /// [`Input::NoRoleRecords`].
    AskRoleRecords(Epoch),
    /// Take this over if it can be. Answered by [`Input::Stored`], [`Input::Conflict`] or [`Input::Refused`].
    Adopt(Update),
    /// Fetch the whole block. Answered by [`Input::Whole`] or [`Input::NoWhole`].
    AskWhole(BlockNo),
    /// Tell the peer that the block stands here in this state.
    Acknowledge(BlockMark),
    /// Tell the peer where the block stands here now: what it sent of it is not taken over, and is not under way any more.
    /// Else what is refused would fill up what the peer may be ahead by, and no other block came.
    LetGo(BlockNo),
    /// End the connection, or the attempt to make one. Not answered: nothing of it is told any more.
    Disconnect,
    /// Try again after this time: worth a line in the log, with the reason.
    Wait(Duration, String),
    /// A block was refused, and why: worth a line in the log and an alarm.
    Report(BlockNo, String),
}

/// The state of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// This site does not follow: it writes, or its role is not known yet.
    Idle,
    /// The next attempt is due then.
    Waiting(Moment),
    /// The connection is being made.
    Connecting,
    /// It stands, and the peer was heard last then.
    Open(Moment),
}

/// What is known of a block that was refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    again: Moment,
    times: u32,
    reason: String,
}

/// A block that is being taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Busy {
    whole: bool,
    bytes: usize,
}

/// The state of following one peer. Bounded by [`WINDOW`], [`WINDOW_BYTES`], [`BLOCK_BYTES_MAX`] and the number of blocks.
#[derive(Debug)]
pub struct Follower {
    standing: Option<Standing>,
    link: Link,
    /// Connections in a row that came to nothing.
    failures: u32,
    /// Role records are being fetched: nothing is taken over before they are admitted.
    asking: bool,
    /// The peer writes no more in our epoch, and was asked for the record of that.
    asked_for_end: bool,
    /// The pieces of a block that is not complete yet.
    pieces: Option<Update>,
    queue: VecDeque<Update>,
    /// Blocks that are being taken over. They are answered for even if the connection is lost.
    busy: BTreeMap<BlockNo, Busy>,
    /// Whole blocks that are wanted, and those that are asked for.
    wanted: BTreeSet<BlockNo>,
    asked: BTreeSet<BlockNo>,
    refused: BTreeMap<BlockNo, Refusal>,
}

impl Default for Follower {
    fn default() -> Self {
        Self {
            standing: None,
            link: Link::Idle,
            failures: 0,
            asking: false,
            asked_for_end: false,
            pieces: None,
            queue: VecDeque::new(),
            busy: BTreeMap::new(),
            wanted: BTreeSet::new(),
            asked: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }
}

impl Follower {
    /// Takes what happened, and says what is to be done, in order.
    pub fn step(&mut self, now: Moment, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.take(now, input, &mut outputs);
        self.go_on(now, &mut outputs);
        outputs
    }

    /// Whether the next message is to be read off the connection. Not while enough is under way: the transport makes the
    /// peer wait.
    pub fn may_read(&self) -> bool {
        let bytes = self.queue.iter().map(Update::bytes).sum::<usize>() + self.busy_bytes();
        let room = self.queue.len() + self.busy.len() < WINDOW && bytes < WINDOW_BYTES;
        matches!(self.link, Link::Open(_)) && !self.asking && room
    }

    /// The state of the connection.
    pub fn link(&self) -> Link {
        self.link
    }

    /// The blocks that were refused as a whole, and why.
    pub fn refused(&self) -> impl Iterator<Item = (BlockNo, &str)> {
        self.refused.iter().map(|(block, refusal)| (*block, refusal.reason.as_str()))
    }

    /// The number of updates that are under way.
    pub fn under_way(&self) -> usize {
        self.queue.len() + self.busy.len() + self.asked.len()
    }

    fn take(&mut self, now: Moment, input: Input, outputs: &mut Vec<Output>) {
        match input {
            Input::Role(standing) => self.change_role(now, standing, outputs),
            Input::Connected if self.link == Link::Connecting => {
                // What became of the former connection's work meanwhile says nothing of this one.
                self.forget_connection();
                self.link = Link::Open(now);
                outputs.push(Output::Hello);
            }
            Input::Connected | Input::Tick => {}
            Input::Card(card) => self.see(now, card, outputs),
            Input::Piece { head, records, more } => {
                self.hear(now);
                self.assemble(now, Update { head, records, whole: false }, more, outputs);
            }
            Input::Whole(head, records) => {
                if self.asked.remove(&head.block) {
                    self.queue.push_back(Update { head, records, whole: true });
                }
            }
            Input::NoWhole(block, reason) => {
                if self.asked.remove(&block) {
                    self.refuse(now, block, reason, outputs);
                }
            }
            Input::Stored(mark) => {
                self.busy.remove(&mark.block);
                self.refused.remove(&mark.block);
                if matches!(self.link, Link::Open(_)) {
                    self.failures = 0;
                    outputs.push(Output::Acknowledge(mark));
                }
            }
            Input::Conflict(block) => {
                self.busy.remove(&block);
                self.wanted.insert(block);
            }
            Input::Refused { block, remedy, reason } => {
                if remedy == Remedy::RoleRecords {
                    self.ask_role_records(outputs);
                }
                match self.busy.remove(&block) {
                    Some(Busy { whole: true, .. }) => self.refuse(now, block, reason, outputs),
                    _ => {
                        if remedy != Remedy::Leave {
                            self.wanted.insert(block);
                        }
                        self.let_go(block, outputs);
                    }
                }
            }
            Input::RoleRecords(standing) => {
                self.asking = false;
                self.change_role(now, standing, outputs);
            }
            Input::NoRoleRecords(reason) => {
                self.asking = false;
                self.end(now, reason, outputs);
            }
            Input::Disconnected(reason) => self.lose(now, reason, outputs),
        }
    }

    /// What follows from the state, whatever has happened.
    fn go_on(&mut self, now: Moment, outputs: &mut Vec<Output>) {
        match self.link {
            Link::Waiting(at) if at <= now => {
                self.link = Link::Connecting;
                outputs.push(Output::Connect);
            }
            // What is not read can't be heard.
            Link::Open(_) if !self.may_read() => self.hear(now),
            Link::Open(heard) if now > heard + SILENCE_MAX => {
                self.end(now, "nothing was heard of the peer".to_owned(), outputs);
            }
            _ => {}
        }
        if !matches!(self.link, Link::Open(_)) || self.asking {
            return;
        }
        let due: Vec<BlockNo> = self
            .refused
            .iter()
            .filter(|(_, it)| it.again <= now)
            .map(|(block, _)| *block)
            .collect();
        let is_idle =
            |block: &BlockNo| !self.asked.contains(block) && !self.busy.contains_key(block);
        self.wanted.extend(due.into_iter().filter(is_idle));
        while self.asked.len() < WHOLE_AT_ONCE
            && let Some(block) = self.wanted.pop_first()
        {
            // Until it is there nothing else of the block is of use.
            self.queue.retain(|update| update.block() != block);
            if let Some(refusal) = self.refused.get_mut(&block) {
                refusal.again = now + REFUSED_MAX;
            }
            self.asked.insert(block);
            outputs.push(Output::AskWhole(block));
        }
        while self.busy.len() < AT_ONCE
            && self.busy_bytes() < BYTES_AT_ONCE
            && let Some(update) = self.next()
        {
            let busy = Busy { whole: update.whole, bytes: update.bytes() };
            self.busy.insert(update.block(), busy);
            outputs.push(Output::Adopt(update));
        }
    }

    fn busy_bytes(&self) -> usize {
        self.busy.values().map(|busy| busy.bytes).sum()
    }

    /// The first update of a block that is not being taken over.
    fn next(&mut self) -> Option<Update> {
        let at = self.queue.iter().position(|update| !self.busy.contains_key(&update.block()))?;
        self.queue.remove(at)
    }

    fn hear(&mut self, now: Moment) {
        if let Link::Open(heard) = &mut self.link {
            *heard = now;
        }
    }

    fn change_role(&mut self, now: Moment, standing: Standing, outputs: &mut Vec<Output>) {
        self.standing = Some(standing);
        match (standing.writes(), self.link) {
            (true, link) => {
                self.forget_connection();
                self.link = Link::Idle;
                if matches!(link, Link::Open(_) | Link::Connecting) {
                    outputs.push(Output::Disconnect);
                }
            }
            (false, Link::Idle) => self.link = Link::Waiting(now),
            _ => {}
        }
    }

    /// A higher epoch than ours is looked into before anything else. One of a lower epoch has nothing for us: it will see
    /// ours and follow.
    fn see(&mut self, now: Moment, card: PeerCard, outputs: &mut Vec<Output>) {
        self.hear(now);
        let Some(standing) = self.standing else { return };
        let has_ended = card.epoch == standing.epoch && standing.open && !card.writes;
        if card.epoch > standing.epoch {
            self.ask_role_records(outputs);
        } else if has_ended && !self.asked_for_end {
            // Once a connection: who can show no demotion is followed all the same.
            self.failures = 0;
            self.asked_for_end = true;
            self.ask_role_records(outputs);
        } else if card.epoch < standing.epoch {
            let reason =
                format!("the peer is of epoch {}, below our {}", card.epoch.0, standing.epoch.0);
            self.end(now, reason, outputs);
        } else {
            self.failures = 0;
        }
    }

    fn ask_role_records(&mut self, outputs: &mut Vec<Output>) {
        let may_ask = matches!(self.link, Link::Open(_)) && !self.asking;
        let Some(standing) = self.standing.filter(|_| may_ask) else { return };
        self.asking = true;
        outputs.push(Output::AskRoleRecords(standing.epoch));
    }

    fn assemble(&mut self, now: Moment, piece: Update, more: bool, outputs: &mut Vec<Output>) {
        let block = piece.block();
        let update = match self.pieces.take() {
            Some(mut begun) if begun.head == piece.head => {
                begun.records.extend(piece.records);
                begun
            }
            // The peer left a block in its middle: it is not complete, so it is asked for.
            Some(left) => {
                self.wanted.insert(left.block());
                piece
            }
            None => piece,
        };
        if update.bytes() > BLOCK_BYTES_MAX {
            self.refuse(now, block, "it is larger than a block may be".to_owned(), outputs);
        } else if more {
            self.pieces = Some(update);
        } else {
            self.put(update, outputs);
        }
    }

    fn put(&mut self, update: Update, outputs: &mut Vec<Output>) {
        let block = update.block();
        if self.asked.contains(&block)
            || self.wanted.contains(&block)
            || self.refused.contains_key(&block)
        {
            return self.let_go(block, outputs);
        }
        if self.standing.is_some_and(|standing| update.head.position.epoch > standing.epoch) {
            self.ask_role_records(outputs);
        }
        // Whoever reads although there is no room gets it as a whole later.
        match self.queue.len() < WINDOW {
            true => self.queue.push_back(update),
            false => drop(self.wanted.insert(block)),
        }
    }

    fn refuse(&mut self, now: Moment, block: BlockNo, reason: String, outputs: &mut Vec<Output>) {
        let times = self.refused.get(&block).map_or(0, |refusal| refusal.times);
        let again = now + doubled(REFUSED_FIRST, times, REFUSED_MAX);
        let refusal = Refusal { again, times: times.saturating_add(1), reason: reason.clone() };
        self.refused.insert(block, refusal);
        outputs.push(Output::Report(block, reason));
        self.let_go(block, outputs);
    }

    fn let_go(&self, block: BlockNo, outputs: &mut Vec<Output>) {
        if matches!(self.link, Link::Open(_)) {
            outputs.push(Output::LetGo(block));
        }
    }

    fn end(&mut self, now: Moment, reason: String, outputs: &mut Vec<Output>) {
        if matches!(self.link, Link::Open(_) | Link::Connecting) {
            outputs.push(Output::Disconnect);
            self.lose(now, reason, outputs);
        }
    }

    /// The connection is gone: what was read of it will be sent anew.
    fn lose(&mut self, now: Moment, reason: String, outputs: &mut Vec<Output>) {
        self.forget_connection();
        match self.link {
            Link::Idle | Link::Waiting(_) => {}
            Link::Connecting | Link::Open(_) => {
                let wait = doubled(BACK_OFF_FIRST, self.failures, BACK_OFF_MAX);
                self.failures = self.failures.saturating_add(1);
                self.link = Link::Waiting(now + wait);
                outputs.push(Output::Wait(wait, reason));
            }
        }
    }

    fn forget_connection(&mut self) {
        self.asking = false;
        self.asked_for_end = false;
        self.pieces = None;
        self.queue.clear();
        self.wanted.clear();
        self.asked.clear();
    }
}

/// A time that doubles from one failure to the next, up to a bound.
fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    let factor = 1u32.checked_shl(times.min(16)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(most)
}

#[cfg(test)]
mod tests;
