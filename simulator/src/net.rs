//! Messages between sites, and what becomes of them on their way.

use std::rc::Rc;

use kms_core::{
    BlockNo, Epoch, Head, StoredRecord,
    block::BlockMark,
    counters::{Line, allocator::Witnessed},
    replication::following::PeerCard,
    site::role::SignedRoleRecord,
};

use crate::site::{Place, Write};

/// What a message says.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// A follower begins: where its blocks stand, and lines that it set aside.
    Hello(Vec<BlockMark>, Vec<Line>),
    /// The peer is there, and its counters' marks are these.
    Alive(Vec<Option<Witnessed>>),
    /// What changed in a block, or a piece of it.
    Piece { head: Head, records: Vec<StoredRecord>, more: bool },
    /// Ask for a whole block.
    AskWhole(BlockNo),
    /// A whole block.
    Whole(Head, Vec<StoredRecord>),
    /// A block stands so at the follower; lines that it set aside.
    Stored(BlockMark, Vec<Line>),
    /// Ask for role records.
    AskRoles,
    /// Role records.
    Roles(Vec<Rc<SignedRoleRecord>>),
    /// Ask whether a write is there.
    Round(u64, Write),
    /// Whether it is.
    Reached(u64, bool),
    /// Ask what is known of our marks.
    AskMarks,
    /// What is.
    Marks(Vec<Option<Witnessed>>),
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Who sent it.
    pub(crate) from: Place,
    /// Who is to get it.
    pub(crate) to: Place,
    /// The connection of a follower that it belongs to.
    pub(crate) connection: Option<u64>,
    /// What the sender says of itself.
    pub(crate) card: PeerCard,
    /// What it says.
    pub(crate) body: Body,
    /// It was changed on its way.
    pub(crate) tampered: bool,
}

impl Message {
    /// Turns one bit of what is authenticated; `false`: there is none in it.
    pub(crate) fn tamper(&mut self, bit: usize) -> bool {
        let turned = match &mut self.body {
            Body::Piece { head, records, .. } | Body::Whole(head, records) => {
                turn_block(head, records, bit);
                true
            }
            Body::Roles(records) => match records.last_mut() {
                Some(last) => {
                    let mut changed = (**last).clone();
                    turn(&mut changed.signature, bit);
                    if bit.is_multiple_of(2) {
                        changed.signature = last.signature;
                        changed.record.epoch = Epoch(changed.record.epoch.0 + 2);
                    }
                    *last = Rc::new(changed);
                    true
                }
                None => false,
            },
            _ => false,
        };
        self.tampered |= turned;
        turned
    }
}

fn turn(bytes: &mut [u8], bit: usize) {
    let len = bytes.len();
    if let Some(byte) = bytes.get_mut(bit / 8 % len.max(1)) {
        *byte ^= 1 << (bit % 8);
    }
}

fn turn_block(head: &mut Head, records: &mut [StoredRecord], bit: usize) {
    let which = bit % (records.len() + 1);
    match (records.get_mut(which), bit / 7 % 4) {
        (Some(record), 0) => turn(&mut record.body, bit),
        (Some(record), 1) => turn(&mut record.mac, bit),
        (Some(record), 2) => record.position.sequence.0 ^= 1,
        (Some(_), _) => records.reverse_keys(),
        (None, 0) => head.count ^= 1,
        (None, 1) => turn(&mut head.digest, bit),
        (None, 2) => turn(&mut head.mac, bit),
        (None, _) => head.position.sequence.0 ^= 1,
    }
}

/// Exchanges what two records say, under their keys.
trait Swap {
    fn reverse_keys(&mut self);
}

impl Swap for [StoredRecord] {
    fn reverse_keys(&mut self) {
        if let [first, .., last] = self {
            std::mem::swap(&mut first.body, &mut last.body);
            std::mem::swap(&mut first.mac, &mut last.mac);
        } else if let [only] = self {
            turn(&mut only.body, 9);
        }
    }
}
