//! Nouns of two sites, as the store keeps them: who writes, whom we know, what a peer changed, and what was
//! set aside.

use async_trait::async_trait;

pub use super::nouns::RoleRow;
use super::nouns::{BlockChange, RecordChange, SealedSecret, StoreError};
use kms_core::{
    BlockNo, Head, Numbered as _, Position, RecordKey, RecordMac, StoredRecord,
    audit::Signature,
    block::BlockMark,
    counters::mark::StoredMark,
    freshness::SignedHeadTable,
    site::{
        peer::SignedPeer,
        role::{RoleChange, SignedRoleRecord},
    },
};

/// Said where the row of a peer is another one than a step was made from.
pub const PEER_ROW: &str = "the row of the peer";

/// A peer is enrolled, is enrolled anew, or is known with more of its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStep {
    /// The signature of the row that it was made from; `None`: there was none. Where another one is there by now,
    /// somebody else was first, and what he wrote stays: [`StoreError::Taken`].
    pub expected: Option<Signature>,
    /// The peer from now on.
    pub now: SignedPeer,
}

/// A change of role: all of it in one transaction, in which no commit is under way.
#[derive(Clone, Debug)]
pub struct RoleStep {
    /// The row that it starts from; another one is [`StoreError::NotWriter`].
    pub expected: RoleRow,
    /// The row afterwards.
    pub now: RoleRow,
    /// The signed record that it follows from; kept for ever.
    pub record: SignedRoleRecord,
    /// For a promotion of our own: the heads of all blocks in the new epoch, without records.
    pub blocks: Vec<BlockChange>,
    /// For such a promotion: the mark of each of these blocks' counters, in the same order.
    pub marks: Vec<StoredMark>,
    /// For such a promotion: blocks of which nothing is known, and which stay as they are.
    pub left: Vec<BlockNo>,
    /// With them, the number of the head table that is there, and the table over the new heads.
    pub table: Option<(Option<u64>, SignedHeadTable)>,
    /// For such a promotion of a site that was rolled back: the mark that goes. `None`: there is none.
    pub released: Option<Released>,
    /// It is the end of our own epoch, and not one that we hear of after our database was rolled back.
    pub ends: bool,
}

/// The mark of a rollback that a promotion releases. Another one that came meanwhile stays, and stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// The mark's signature.
    pub mark: Signature,
    /// The signature of the domain's record without it.
    pub domain: Signature,
}

impl RoleStep {
    /// The end of our own epoch: refused where a block stands elsewhere than its record says.
    pub fn ending(expected: RoleRow, now: RoleRow, record: SignedRoleRecord) -> Self {
        Self { ends: true, ..Self::without_blocks(expected, now, record) }
    }

    /// A change of role by which this site does not begin to write.
    pub fn without_blocks(expected: RoleRow, now: RoleRow, record: SignedRoleRecord) -> Self {
        let (blocks, marks, left) = Default::default();
        Self {
            expected,
            now,
            record,
            blocks,
            marks,
            left,
            table: None,
            released: None,
            ends: false,
        }
    }

    /// Whether it only keeps a record of a time that is over: nothing changes of who writes.
    pub fn is_past(&self) -> bool {
        let Self { expected, now, record, blocks, left, table, .. } = self;
        let adds_nothing = blocks.is_empty() && left.is_empty() && table.is_none();
        now == expected && adds_nothing && record.record.epoch < now.epoch
    }

    /// Whether a site that wrote ends to by its own demotion.
    pub fn ends_our_epoch(&self) -> bool {
        self.ends && self.expected.writes && self.record.record.change == RoleChange::Demotion
    }
}

/// A block as a peer has it, taken over as it is: numbers and MACs are the peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockAdoption {
    /// The state that it was made for; another one is [`StoreError::Conflict`].
    pub expected: BlockMark,
    /// The peer's head.
    pub head: Head,
    /// New seals, for a new secret version.
    pub seals: Vec<SealedSecret>,
    /// Records that are new here. Each replaces the one with its key.
    pub records: Vec<RecordChange>,
    /// Records that are here and not at the peer; their index entries go, too.
    pub gone: Vec<RecordKey>,
    /// Records as they stood here, which the peer never had: kept for people to decide about.
    pub set_aside: Vec<StoredRecord>,
}

/// A changed block: its head, and the records that changed after some position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockChanges {
    /// The head as it stands.
    pub head: Head,
    /// In the order of their positions.
    pub records: Vec<StoredRecord>,
}

/// A record that one site wrote and the other never had, when the other was promoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergent {
    /// Its block.
    pub block: BlockNo,
    /// The record, as it was written.
    pub record: StoredRecord,
    /// The site that wrote it.
    pub site: String,
    /// The time at which it was set aside, milliseconds since 1970.
    pub at_ms: u64,
    /// What was decided; `None`: nothing yet.
    pub decided: Option<Decided>,
}

/// A decision about a divergent record. The first one stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The decision.
    pub resolution: Resolution,
    /// Milliseconds since 1970; 0: a release that did not keep it.
    pub at_ms: u64,
    /// The name in the certificate of who decided; empty likewise.
    pub by: String,
}

/// The name of a divergent record; they are in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DivergentName {
    /// Its block.
    pub block: BlockNo,
    /// Its key.
    pub key: RecordKey,
    /// Its place.
    pub position: Position,
    /// Its MAC: a site that was rolled back may write two records at one place.
    pub mac: RecordMac,
}

impl Divergent {
    /// Its name.
    pub fn name(&self) -> DivergentName {
        let StoredRecord { key, position, mac, .. } = &self.record;
        DivergentName { block: self.block, key: *key, position: *position, mac: *mac }
    }
}

/// A page of what was set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DivergenceAsked {
    /// After this one.
    pub after: Option<DivergentName>,
    /// Of this block; `None`: of all.
    pub block: Option<BlockNo>,
    /// Nothing that was decided.
    pub undecided: bool,
    /// At most so many.
    pub limit: u32,
}

impl DivergenceAsked {
    /// Of all there are, in order.
    pub const fn first(limit: u32) -> Self {
        Self { after: None, block: None, undecided: false, limit }
    }

    /// Of all that nobody has decided about.
    pub const fn open(after: Option<DivergentName>, limit: u32) -> Self {
        Self { after, block: None, undecided: true, limit }
    }
}

kms_core::numbered! {
    /// A decision about a divergent record.
    pub enum Resolution "resolution" {
        /// Its keys were brought into the record that stands.
        Merged = 1 "MERGED",
        /// Nothing of it is used.
        Discarded = 2 "DISCARDED",
    }
}

impl Resolution {
    fn kept(number: i64) -> Result<Self, StoreError> {
        let known = u8::try_from(number).ok().and_then(Self::from_number);
        known.ok_or_else(|| StoreError::Damaged(format!("there is no resolution {number}")))
    }
}

impl Decided {
    /// A decision as a database keeps it.
    pub(super) fn kept(
        (number, at_ms, by): (Option<i64>, Option<i64>, Option<String>),
    ) -> Result<Option<Self>, StoreError> {
        let Some(number) = number else { return Ok(None) };
        let resolution = Resolution::kept(number)?;
        let at_ms = at_ms.and_then(|at_ms| u64::try_from(at_ms).ok()).unwrap_or(0);
        Ok(Some(Self { resolution, at_ms, by: by.unwrap_or_default() }))
    }
}

/// The right to follow the peer for all servers of this site. Lost with its connection to the database.
#[async_trait]
pub trait FollowerLock: Send + 'static {
    /// Ends when the lock is known to be lost.
    async fn until_lost(&mut self) -> StoreError;
}

/// A lock over a database that no other process has: never lost.
#[derive(Clone, Copy, Debug)]
pub struct AloneLock;

#[async_trait]
impl FollowerLock for AloneLock {
    async fn until_lost(&mut self) -> StoreError {
        std::future::pending().await
    }
}
