//! A simulated site: its database, which outlives everything but a rollback, and its nodes, which outlive nothing.

use std::{collections::BTreeSet, rc::Rc};

use kms_core::{
    BlockNo, Epoch, Head, Position, RecordKey, StoredRecord,
    audit::NodeId,
    block::{BlockMark, verified::Verified},
    counters::{
        Line,
        allocator::{Allocator, Mark, Witnessed},
    },
    freshness::Freshness,
    moment::Moment,
    replication::following::{Follower, Update},
    site::role::{RoleRecord, SignedRoleRecord, Standing},
};

use crate::{
    proofs::{NodeProofs, Paper},
    realm::{BLOCKS, FOUNDING, Realm},
};

/// The even site, the odd one, and the replica.
pub(crate) const SITES: usize = 3;
/// The replica.
pub(crate) const REPLICA: usize = 2;
/// The nodes of each site.
pub(crate) const NODES: usize = 2;

/// A node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Its site.
    pub(crate) site: usize,
    /// Its number there.
    pub(crate) node: usize,
}

/// A block as some writer once wrote it, and what became a part of it: the truth that no site knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// Its head.
    pub(crate) head: Head,
    /// Its records, in key order.
    pub(crate) records: Vec<StoredRecord>,
    /// The positions of all records that it ever had.
    pub(crate) history: BTreeSet<Position>,
}

impl State {
    /// Its place and digest.
    pub(crate) fn mark(&self) -> BlockMark {
        let Head { block, position, digest, .. } = self.head;
        BlockMark { block, position, digest }
    }

    /// The record under a key.
    pub(crate) fn record(&self, key: &RecordKey) -> Option<&StoredRecord> {
        self.records.iter().find(|record| record.key == *key)
    }
}

/// A site's database. A backup of it is a copy.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    /// The highest epoch that is known.
    pub(crate) epoch: Epoch,
    /// Whether the site writes in it.
    pub(crate) writes: bool,
    /// It was rolled back: nothing is written before an epoch above every one that is named was taken.
    pub(crate) restored: bool,
    /// The epoch that it took because of that; lines are used in it once the peer told what it knows of them.
    pub(crate) restored_in: Option<Epoch>,
    /// Role records, in their places.
    pub(crate) roles: Vec<SignedRoleRecord>,
    /// Blocks.
    pub(crate) blocks: Vec<Rc<State>>,
    /// Reservations of counters.
    pub(crate) marks: Vec<Option<Mark>>,
    /// What it knows of the marks of both writers.
    pub(crate) witness: [Vec<Option<Witnessed>>; 2],
    /// What was set aside.
    pub(crate) aside: BTreeSet<(BlockNo, Position)>,
    /// Lines that were set aside with a higher offset than the peer's: told to the peer.
    pub(crate) raised: Vec<Line>,
    /// The last complete report of each site's readiness.
    pub(crate) papers: [Option<Paper>; SITES],
}

impl Database {
    /// Of a site that was just enrolled.
    pub(crate) fn new(site: usize, realm: &Realm) -> Self {
        let state = |block: u32| {
            let head = realm.keys(block as usize).first_head(BlockNo(block), 1, FOUNDING);
            Rc::new(State { head, records: Vec::new(), history: BTreeSet::new() })
        };
        let none = || vec![None; BLOCKS as usize];
        Self {
            epoch: FOUNDING,
            writes: site == 0,
            restored: false,
            restored_in: None,
            roles: Vec::new(),
            blocks: (0..BLOCKS).map(state).collect(),
            marks: (0..BLOCKS).map(|block| Some(Mark::first(BlockNo(block), FOUNDING))).collect(),
            witness: [none(), none()],
            aside: BTreeSet::new(),
            raised: Vec::new(),
            papers: [const { None }; SITES],
        }
    }

    /// Whether blocks may be changed and counters reserved in this epoch: what each transaction looks at.
    pub(crate) fn admits(&self, epoch: Epoch) -> bool {
        self.writes && !self.restored && self.epoch == epoch
    }

    /// The states of all blocks.
    pub(crate) fn heads(&self) -> Vec<BlockMark> {
        self.blocks.iter().map(|state| state.mark()).collect()
    }
}

/// A write that was answered, or is about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Write {
    /// The block.
    pub(crate) block: BlockNo,
    /// Its last record's position.
    pub(crate) position: Position,
}

/// Work that a node has begun. It may be cut off before each of them.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    /// Commit a change of a block.
    Commit { expected: BlockMark, state: Box<State>, client: bool },
    /// Ask the peer for a write, then answer whoever wrote.
    Answer { write: Write, asked: bool },
    /// Take an update over if it can be.
    Adopt(Box<Update>),
    /// Store what was decided of it.
    Store { expected: BlockMark, after: Box<Verified>, aside: Vec<StoredRecord> },
    /// Connect to a peer.
    Connect,
    /// The connection was lost.
    Lost,
    /// A call that asked for a block was lost.
    NoWhole(BlockNo),
    /// Change the role by this record. `restore`: the rollback of the database that it releases, by its number.
    ChangeRole { record: Box<RoleRecord>, heads: Vec<BlockMark>, restore: Option<u32> },
    /// Reserve sequences of a block.
    Reserve(usize),
    /// Commit the reservation.
    CommitMark { block: usize, stored: Option<Mark>, mark: Mark },
}

/// A node of a site.
#[derive(Debug)]
pub(crate) struct Node {
    /// It runs.
    pub(crate) up: bool,
    /// Its process is frozen: it does nothing, and its clock goes on.
    pub(crate) frozen: bool,
    /// Its machine is paused: its clock stands still, too.
    pub(crate) paused: bool,
    /// Milliseconds by which its clock is behind the world's.
    pub(crate) behind: u64,
    /// The role as it last saw it.
    pub(crate) standing: Standing,
    /// The timeline of the database that its memory is of.
    pub(crate) timeline: u32,
    /// Its memory of blocks.
    pub(crate) freshness: Freshness,
    /// It follows a peer with this.
    pub(crate) follower: Follower,
    /// Its connection to a peer: its number, and the node at the other end.
    pub(crate) connection: Option<(u64, Place)>,
    /// Connections of followers to it: number, follower, and the states that it sent.
    pub(crate) followers: Vec<(u64, Place, Vec<BlockMark>)>,
    /// What the other writer has of each block, as it said itself.
    pub(crate) acknowledged: Vec<Option<BlockMark>>,
    /// Counters of each block.
    pub(crate) allocators: Vec<Allocator>,
    /// Work that it has begun.
    pub(crate) tasks: Vec<Task>,
    /// Writes whose round with the peer was begun: its number and the write.
    pub(crate) rounds: Vec<(u64, Write)>,
    /// Proofs and reports of readiness.
    pub(crate) proving: NodeProofs,
}

impl Node {
    /// A node that has just started.
    pub(crate) fn start(place: Place, standing: Standing) -> Self {
        let id = NodeId([(place.site * NODES + place.node) as u8 + 1; 16]);
        let allocators = (0..BLOCKS).map(|block| Allocator::new(BlockNo(block), id)).collect();
        Self {
            up: true,
            frozen: false,
            paused: false,
            behind: 0,
            standing,
            timeline: 0,
            freshness: Freshness::default(),
            follower: Follower::default(),
            connection: None,
            followers: Vec::new(),
            acknowledged: vec![None; BLOCKS as usize],
            allocators,
            tasks: Vec::new(),
            rounds: Vec::new(),
            proving: NodeProofs::new(),
        }
    }

    /// Whether it does anything at the moment.
    pub(crate) fn runs(&self) -> bool {
        self.up && !self.frozen && !self.paused
    }

    /// The moment by its own clock.
    pub(crate) fn now(&self, world_ms: u64) -> Moment {
        Moment::from_ms(world_ms.saturating_sub(self.behind))
    }
}
