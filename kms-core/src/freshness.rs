//! The newest known state of each block: an older one, or another one of the same place, is not used.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    BlockNo, DomainId, Epoch, Position, Sequence,
    audit::{ChainTip, NodeId, Signature, Verifies, is_signed},
    block::{BlockMark, Digest},
};
use sha2::{Digest as _, Sha256};

/// The reason why a state of a block is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFresh {
    /// It is older than this one.
    Older(Position),
    /// It says that it is the newest known, and has other records.
    Forked,
}

/// The newest known state of each block: from what was signed, from the audit log, and from what this
/// process saw. Shared by who learns of it and who holds blocks against it. Never lowered.
#[derive(Default)]
pub struct Freshness(Mutex<State>);

#[derive(Default)]
struct State {
    newest: HashMap<BlockNo, Newest>,
    refusal: Option<Arc<str>>,
}

/// The newest known states of one block. One that was only heard of stands in events that nobody
/// signed yet: enough to refuse an older state, not enough to be signed for.
#[derive(Clone, Copy, Default)]
struct Newest {
    heard: Option<(Position, Digest)>,
    authentic: Option<(Position, Digest)>,
}

impl Newest {
    fn newest(&self) -> Option<(Position, Digest)> {
        // Of two at one place the authentic one.
        let (heard, authentic) = (self.heard?, self.authentic);
        Some(authentic.filter(|authentic| authentic.0 >= heard.0).unwrap_or(heard))
    }
}

fn raise(known: &mut Option<(Position, Digest)>, mark: &BlockMark) {
    if known.is_none_or(|(position, _)| position < mark.position) {
        *known = Some((mark.position, mark.digest));
    }
}

impl fmt::Debug for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Freshness").field("refusal", &self.state().refusal).finish_non_exhaustive()
    }
}

impl Freshness {
    /// An event says that the block was in this state: nothing older is used from now on.
    pub fn hear(&self, mark: &BlockMark) {
        raise(&mut self.state().newest.entry(mark.block).or_default().heard, mark);
    }

    /// The block was in this state: signed for, or verified by this process.
    pub fn know(&self, mark: &BlockMark) {
        let mut state = self.state();
        let newest = state.newest.entry(mark.block).or_default();
        raise(&mut newest.heard, mark);
        raise(&mut newest.authentic, mark);
    }

    /// Whether the block is known to have been in this state, or is known to be beyond it.
    pub fn confirms(&self, mark: &BlockMark) -> bool {
        let authentic = self.state().newest.get(&mark.block).and_then(|newest| newest.authentic);
        authentic.is_some_and(|(position, digest)| {
            position > mark.position || (position, digest) == (mark.position, mark.digest)
        })
    }

    /// Whether this is the newest authentic state of the block that is known.
    pub fn is_at(&self, mark: &BlockMark) -> bool {
        let authentic = self.state().newest.get(&mark.block).and_then(|newest| newest.authentic);
        authentic == Some((mark.position, mark.digest))
    }

    /// Whether the block is known to have been in another state at that very place: both can't be true.
    pub fn contradicts(&self, mark: &BlockMark) -> bool {
        let authentic = self.state().newest.get(&mark.block).and_then(|newest| newest.authentic);
        authentic
            .is_some_and(|(position, digest)| position == mark.position && digest != mark.digest)
    }

    /// The newest authentic state of a block that is known: signed for, or verified by this process.
    pub fn newest_authentic(&self, block: BlockNo) -> Option<BlockMark> {
        let authentic = self.state().newest.get(&block).and_then(|newest| newest.authentic);
        authentic.map(|(position, digest)| BlockMark { block, position, digest })
    }

    /// Holds an authentic state of a block against the newest known, and remembers it.
    pub fn admit(&self, mark: &BlockMark) -> Result<(), NotFresh> {
        let newest = self.state().newest.get(&mark.block).and_then(Newest::newest);
        match newest {
            Some((position, _)) if mark.position < position => Err(NotFresh::Older(position)),
            Some((position, digest)) if mark.position == position && mark.digest != digest => {
                Err(NotFresh::Forked)
            }
            _ => {
                self.know(mark);
                Ok(())
            }
        }
    }

    /// The position of the newest known state of a block.
    pub fn newest(&self, block: BlockNo) -> Option<Position> {
        self.state().newest.get(&block).and_then(Newest::newest).map(|(position, _)| position)
    }

    /// Whether an authentic state of a block is known that is newer than this one.
    pub fn is_past(&self, block: BlockNo, position: Position) -> bool {
        let authentic = self.state().newest.get(&block).and_then(|newest| newest.authentic);
        authentic.is_some_and(|(newest, _)| position < newest)
    }

    /// No block is opened while it is not known which states are the newest; `None` ends that.
    pub fn refuse(&self, reason: Option<&str>) {
        self.state().refusal = reason.map(Arc::from);
    }

    /// The reason why no block is opened; `None`: blocks are opened.
    pub fn refusal(&self) -> Option<Arc<str>> {
        self.state().refusal.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest state of each block of a site, and the ends of all of its audit chains at that time.
/// Later states stand in the events behind these ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadTable {
    /// Raised with each that is signed.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// In order of their nodes.
    pub tips: Vec<ChainTip>,
    /// By block.
    pub heads: Vec<(Position, Digest)>,
}

/// [`HeadTable`], as the token signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHeadTable {
    /// Its number once more, to compare by.
    pub number: u64,
    /// [`HeadTable::encode`].
    pub body: Vec<u8>,
    /// Over [`HeadTable::message`].
    pub signature: Signature,
}

/// Raised when the layout below changes.
const SCHEMA: u8 = 1;

impl HeadTable {
    /// The canonical bytes: schema ‖ number ‖ time ‖ count of ends, each node ‖ number ‖ hash ‖ count of
    /// blocks, each epoch ‖ sequence ‖ digest.
    pub fn encode(&self) -> Vec<u8> {
        let Self { number, at_ms, tips, heads } = self;
        let mut out = Vec::with_capacity(25 + 56 * tips.len() + 48 * heads.len());
        out.push(SCHEMA);
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&at_ms.to_be_bytes());
        out.extend_from_slice(&(tips.len() as u32).to_be_bytes());
        for ChainTip { node, sequence, hash } in tips {
            out.extend_from_slice(&node.0);
            out.extend_from_slice(&sequence.to_be_bytes());
            out.extend_from_slice(hash);
        }
        out.extend_from_slice(&(heads.len() as u32).to_be_bytes());
        for (position, digest) in heads {
            out.extend_from_slice(&position.epoch.0.to_be_bytes());
            out.extend_from_slice(&position.sequence.0.to_be_bytes());
            out.extend_from_slice(digest);
        }
        out
    }

    /// The table in `body`, if all of it is one.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut rest = body;
        let [SCHEMA] = take::<1>(&mut rest)? else { return None };
        let (number, at_ms) = (number(&mut rest)?, number(&mut rest)?);
        let count = u32::from_be_bytes(take(&mut rest)?);
        let tips = (0..count)
            .map(|_| {
                let node = NodeId(take(&mut rest)?);
                Some(ChainTip { node, sequence: self::number(&mut rest)?, hash: take(&mut rest)? })
            })
            .collect::<Option<Vec<_>>>()?;
        let count = u32::from_be_bytes(take(&mut rest)?);
        let heads = (0..count)
            .map(|_| {
                let epoch = Epoch(self::number(&mut rest)?);
                let sequence = Sequence(self::number(&mut rest)?);
                Some((Position { epoch, sequence }, take(&mut rest)?))
            })
            .collect::<Option<Vec<_>>>()?;
        (rest.is_empty() && tips.is_sorted_by(|a: &ChainTip, b| a.node < b.node)).then_some(Self {
            number,
            at_ms,
            tips,
            heads,
        })
    }

    /// The message that is signed of a table with these bytes.
    pub fn message(domain: &DomainId, body: &[u8]) -> Vec<u8> {
        let root = Sha256::digest(body);
        [b"ami.kms/head-table/1".as_slice(), &domain.0, &root].concat()
    }

    /// The end of this chain at that time.
    pub fn tip_of(&self, node: NodeId) -> ChainTip {
        let at = self.tips.binary_search_by_key(&node, |tip| tip.node);
        at.map_or(ChainTip::empty(node), |at| self.tips[at])
    }

    /// A chain ends here now.
    pub fn set_tip(&mut self, tip: ChainTip) {
        match self.tips.binary_search_by_key(&tip.node, |tip| tip.node) {
            Ok(at) => self.tips[at] = tip,
            Err(at) => self.tips.insert(at, tip),
        }
    }

    /// A block stood there once.
    pub fn raise(&mut self, mark: &BlockMark) {
        if let Some(newest) = self.heads.get_mut(mark.block.0 as usize)
            && newest.0 < mark.position
        {
            *newest = (mark.position, mark.digest);
        }
    }

    /// Each block's newest state.
    pub fn marks(&self) -> impl Iterator<Item = BlockMark> {
        (0..).zip(&self.heads).map(|(block, (position, digest))| BlockMark {
            block: BlockNo(block),
            position: *position,
            digest: *digest,
        })
    }
}

impl SignedHeadTable {
    /// The table, if the holder of `key` signed it for `domain`.
    pub fn open(&self, domain: &DomainId, key: &impl Verifies) -> Option<HeadTable> {
        if !is_signed(key, &HeadTable::message(domain, &self.body), &self.signature) {
            return None;
        }
        HeadTable::decode(&self.body).filter(|table| table.number == self.number)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(sequence: u64, digest: u8) -> BlockMark {
        let position = Position { epoch: Epoch(2), sequence: Sequence(sequence) };
        BlockMark { block: BlockNo(3), position, digest: [digest; 32] }
    }

    #[test]
    fn invariant_5_an_older_state_and_another_one_of_the_same_place_are_refused() {
        let fresh = Freshness::default();
        assert_eq!(fresh.admit(&mark(5, 1)), Ok(()));
        assert_eq!(fresh.admit(&mark(5, 1)), Ok(()));
        assert_eq!(fresh.admit(&mark(4, 1)), Err(NotFresh::Older(mark(5, 1).position)));
        assert_eq!(fresh.admit(&mark(5, 2)), Err(NotFresh::Forked));
        // A state that is only heard of counts as well, and nothing lowers it.
        fresh.hear(&mark(7, 1));
        fresh.hear(&mark(6, 1));
        assert_eq!(fresh.admit(&mark(6, 1)), Err(NotFresh::Older(mark(7, 1).position)));
        assert_eq!(fresh.newest(BlockNo(3)), Some(mark(7, 1).position));
        // It is not signed for before somebody saw it.
        assert!(fresh.is_past(BlockNo(3), mark(4, 1).position));
        assert!(!fresh.is_past(BlockNo(3), mark(5, 1).position));
        assert!(fresh.confirms(&mark(5, 1)) && fresh.confirms(&mark(4, 9)));
        assert!(!fresh.confirms(&mark(5, 2)) && !fresh.confirms(&mark(7, 1)));
        assert!(fresh.contradicts(&mark(5, 2)) && !fresh.contradicts(&mark(5, 1)));
        assert!(!fresh.contradicts(&mark(4, 2)) && !fresh.contradicts(&mark(7, 2)));
        assert_eq!(fresh.admit(&mark(7, 1)), Ok(()));
        assert!(fresh.confirms(&mark(7, 1)));
    }

    #[test]
    fn a_table_comes_back_and_nothing_else_is_one() {
        let tip = |node| ChainTip { node: NodeId([node; 16]), sequence: 9, hash: [node; 32] };
        let heads = vec![(mark(1, 1).position, [1; 32]), (mark(2, 2).position, [2; 32])];
        let mut table = HeadTable { number: 4, at_ms: 5, tips: vec![tip(1), tip(3)], heads };
        table.set_tip(tip(2));
        assert_eq!((table.tip_of(NodeId([2; 16])), table.tips.len()), (tip(2), 3));
        let body = table.encode();
        assert_eq!(HeadTable::decode(&body), Some(table));
        for len in 0..body.len() {
            assert_eq!(HeadTable::decode(&body[..len]), None);
        }
        assert_eq!(HeadTable::decode(&[&body[..], &[0]].concat()), None);
        let mut other = body;
        other[0] = 2;
        assert_eq!(HeadTable::decode(&other), None);
    }
}
