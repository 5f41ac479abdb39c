//! What this node knows of each block's counters: the machine that gives them out, and the lines as they were read last.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use crate::keyring::Lines;
use kms_core::{
    BlockNo, Epoch, Position,
    audit::NodeId,
    block::BlockMark,
    counters::{
        Line, LineName,
        allocator::{Allocator, Mark, Witnessed},
    },
    moment::Moment,
};

/// One block's counters at this node.
pub(super) struct BlockCounters {
    pub(super) allocator: Allocator,
    /// Which answer of the witness it knows.
    pub(super) witnessed: u64,
    /// The mark that nobody who was asked knows more than.
    pub(super) confirmed: Option<Mark>,
    /// A mark that stands in the database and is not remembered outside it yet.
    pub(super) unkept: Option<Witnessed>,
    /// A mark that the other site is to know before it is used.
    pub(super) untold: Option<Witnessed>,
    /// The block, as its lines were read last.
    pub(super) read: Option<BlockMark>,
    pub(super) lines: BTreeMap<LineName, (Line, Position)>,
    /// Records of the block that can't be read: each may be a line.
    pub(super) damaged: usize,
    /// The peer has the block up to here.
    pub(super) peers: Option<Position>,
    /// The epoch in which the peer told what it set aside of the block's lines, and that is in ours.
    pub(super) merged: Option<Epoch>,
    /// The epoch since which the peer has lost nothing of the block, as it said last.
    pub(super) remembers: Option<Epoch>,
    /// The epoch in which what was set aside here is in our lines.
    pub(super) own_merged: Option<Epoch>,
    /// The peer is not asked again before.
    pub(super) not_before: Moment,
}

impl BlockCounters {
    fn new(block: BlockNo, node: NodeId) -> Self {
        Self {
            allocator: Allocator::new(block, node),
            witnessed: 0,
            confirmed: None,
            unkept: None,
            untold: None,
            read: None,
            lines: BTreeMap::new(),
            damaged: 0,
            peers: None,
            merged: None,
            remembers: None,
            own_merged: None,
            not_before: Moment::default(),
        }
    }

    /// Takes in lines that were just read.
    pub(super) fn take(&mut self, lines: Lines) {
        let Lines { mark, lines, damaged } = lines;
        self.read = Some(mark);
        self.lines = lines;
        self.damaged = damaged;
    }

    /// Whether the peer is known to have what was written at this position, having seen our epoch.
    pub(super) fn is_peers(&self, position: Position, epoch: Epoch) -> bool {
        self.peers.is_some_and(|peers| peers.epoch == epoch && position <= peers)
    }
}

/// A block's counters, one task at a time.
pub(super) type Shared = Arc<tokio::sync::Mutex<BlockCounters>>;

/// All blocks that were transmitted for. Bounded by the domain's blocks and their lines.
pub(super) struct Blocks {
    node: NodeId,
    known: Mutex<HashMap<BlockNo, Shared>>,
}

impl Blocks {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, known: Mutex::default() }
    }

    pub(super) fn of(&self, block: BlockNo) -> Shared {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(tokio::sync::Mutex::new(BlockCounters::new(block, self.node)));
        Arc::clone(known.entry(block).or_insert_with(new))
    }

    pub(super) fn all(&self) -> Vec<(BlockNo, Shared)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(block, counters)| (*block, Arc::clone(counters))).collect()
    }
}
