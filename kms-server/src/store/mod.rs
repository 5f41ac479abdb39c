//! The database: blocks, their records, and the indexes that find a meter. `sqlx` is said only here.
//!
//! The store keeps what it is given and checks no MAC: whoever reads (the keyring) verifies. What it
//! does guarantee: a commit is all or nothing and on disk when it returns, a block's sequence has no
//! gap, and no two writers extend the same head.

mod indexing;
pub mod measured;
pub mod postgres;
pub mod rules;
pub mod sites;
pub mod sqlite;
mod work;

use async_trait::async_trait;

use kms_core::{
    BlockNo, DomainRecord, Fingerprint, Head, MeterId, Position, RecordKey, StoredRecord,
    SystemTitle,
    audit::{AuditEntry, ChainTip, Checkpoint, NodeId, StoredEvent},
    freshness::SignedHeadTable,
    site::{peer::SignedPeer, role::SignedRoleRecord},
};

use sites::{BlockAdoption, BlockChanges, Divergent, FollowerLock, RoleRow, RoleStep};

/// The errors of a store, cut by what the caller can do about them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else extended this block first: read it again and decide anew.
    #[error("block {0} was changed by another writer")]
    Conflict(BlockNo),
    /// Another meter has this id or this title.
    #[error("{what} {value} belongs to another meter")]
    Taken {
        /// "meter id" or "system title".
        what: &'static str,
        /// The value that clashed.
        value: String,
    },
    /// The change contradicts the rules of this trait: a fault in our code. Nothing was written.
    #[error("a change of block {block} breaks a rule: {rule}")]
    Rule {
        /// The block.
        block: BlockNo,
        /// The rule.
        rule: &'static str,
    },
    /// This site does not write, or not in the epoch of the change: its role changed meanwhile. Nothing was
    /// written.
    #[error("this site's role changed: it stands in epoch {}, and {}", .0.epoch.0, if .0.writes { "writes" } else { "does not write" })]
    NotWriter(RoleRow),
    /// The audit chain does not end where its next events were to be put. Nothing was written.
    #[error("the audit chain of node {0} does not end where this process left it")]
    AuditMoved(NodeId),
    /// The audit log can't be written, so nothing else was either.
    #[error("the audit log can't be written: {reason}")]
    AuditNotWritten {
        /// One sentence for people.
        reason: String,
    },
    /// The database holds what no version of this program wrote.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// The database is a standby: it follows another one and takes no changes. Nothing was written.
    #[error(
        "the database is a standby and takes no changes: write through a server at its primary"
    )]
    ReadOnly,
    /// The database is a primary and takes no changes all the same. Nothing was written.
    #[error(
        "the database is a primary that takes no changes: set `default_transaction_read_only = off` \
         for the server, the database and the role"
    )]
    ReadOnlyPrimary,
    /// The database can't be reached or has failed; the change may or may not be there.
    #[error("the database is not reachable: {reason}")]
    Unreachable {
        /// One sentence for people.
        reason: String,
    },
}

/// A block secret, sealed for one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSecret {
    /// The version of the block's secret.
    pub secret_version: u32,
    /// The site KEK that it is sealed under.
    pub kek_id: [u8; 16],
    /// Opaque.
    pub sealed: Vec<u8>,
}

/// All of a block. Records are in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    /// Its head.
    pub head: Head,
    /// One seal a token that may open it.
    pub seals: Vec<SealedSecret>,
    /// Its records.
    pub records: Vec<StoredRecord>,
}

/// The entry of the indexes for a record. Not MACed: a hint where to look, verified against the
/// record by the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexEntry {
    /// A meter that is alive: its id and title find it, its keys' fingerprints find duplicates.
    Meter {
        /// Unique among the living.
        meter_id: MeterId,
        /// Of all key versions that have one.
        fingerprints: Vec<Fingerprint>,
        /// Of keys that it had before it was deleted and readmitted.
        former: Vec<Fingerprint>,
    },
    /// A tombstone: its id finds it no more. Its fingerprints stay.
    Tombstone {
        /// Of the keys that it had.
        former: Vec<Fingerprint>,
    },
    /// No meter: nothing to find.
    Nothing,
}

/// One record's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordChange {
    /// Replaces the record of the same key, or is new.
    pub record: StoredRecord,
    /// Replaces its index entry.
    pub index: IndexEntry,
}

/// The change of one block: extends `expected` to `head` by exactly the records that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockChange {
    /// The position it builds on; `None`: the block does not exist yet.
    pub expected: Option<Position>,
    /// The new head. Its sequence is the old one plus the number of records; epochs never fall.
    pub head: Head,
    /// New seals, for a new block or a new secret version.
    pub seals: Vec<SealedSecret>,
    /// In sequence order: numbers run from the old sequence + 1 to the head's.
    pub records: Vec<RecordChange>,
}

/// The beginning of a key domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    /// Its record.
    pub domain: DomainRecord,
    /// All of its blocks, each without a record: none comes to be later.
    pub blocks: Vec<BlockChange>,
    /// The signed table of their heads.
    pub table: SignedHeadTable,
    /// Role records of the domain that a site joins; none of one that is new.
    pub role_records: Vec<SignedRoleRecord>,
    /// The other sites that a site knows from the beginning: those that it joins.
    pub peers: Vec<SignedPeer>,
}

impl Founding {
    /// A domain that begins here, without another site.
    pub const fn new(
        domain: DomainRecord,
        blocks: Vec<BlockChange>,
        table: SignedHeadTable,
    ) -> Self {
        Self { domain, blocks, table, role_records: Vec::new(), peers: Vec::new() }
    }

    /// The role that the site begins with. One that joins others does not write, whatever its parity: what
    /// it founds is the beginning, and the others are beyond that.
    fn role(&self) -> RoleRow {
        let begins = RoleRow::founding(&self.domain);
        let newest = self.role_records.iter().map(|record| record.record.epoch).max();
        let joins = newest.is_some() || !self.peers.is_empty();
        let epoch = newest.map_or(begins.epoch, |newest| newest.max(begins.epoch));
        RoleRow { epoch, writes: begins.writes && !joins }
    }
}

/// Where a meter is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedMeter {
    /// The operator's name.
    pub meter_id: MeterId,
    /// Its title, hence its block.
    pub system_title: SystemTitle,
}

/// A holder of a key: the key's fingerprint, his title, and his id while he lives.
pub type Holder = (Fingerprint, SystemTitle, Option<MeterId>);

/// The lag of a standby behind its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyLag {
    /// WAL that the primary is known to have and that is not replayed here. While the standby
    /// receives nothing, the primary's end is not known: then this counts what was received.
    pub bytes: u64,
    /// 0 while everything received is replayed and more is being received; else the age of the last
    /// replayed commit. `None`: nothing was replayed since the standby started.
    pub ms: Option<u64>,
    /// Whether it receives from its primary now.
    pub receiving: bool,
}

/// Where blocks stand, as the database says: nothing of it is authentic. A row that can't be read takes
/// no other one with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Not in order.
    pub at: Vec<(BlockNo, Position)>,
    /// Rows that no version of this program wrote.
    pub damaged: Vec<DamagedRow>,
    /// Whether these are all the rows there are; else some that just changed.
    pub complete: bool,
}

/// A row of a block that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRow {
    /// The block; `None`: its number can't be read.
    pub block: Option<BlockNo>,
    /// The fault of the row.
    pub what: String,
}

impl Positions {
    /// All rows, each read or found damaged.
    fn of_rows(
        rows: impl Iterator<Item = (Result<BlockNo, StoreError>, Result<Position, StoreError>)>,
    ) -> Self {
        let mut all = Self { complete: true, ..Self::default() };
        for row in rows {
            match row {
                (Ok(block), Ok(position)) => all.at.push((block, position)),
                (block, position) => {
                    let what = block.as_ref().err().or(position.as_ref().err());
                    let what = what.map(ToString::to_string).unwrap_or_default();
                    all.damaged.push(DamagedRow { block: block.ok(), what });
                }
            }
        }
        all
    }
}

/// Follows what other processes write to a store. Made by [`ReadStore::follow`].
#[async_trait]
pub trait FollowBlocks: Send + 'static {
    /// Where blocks stand: those that just changed, or all of them, at the latest 500 ms after the
    /// last answer. An error says that nothing was heard; ask again.
    async fn next(&mut self) -> Result<Positions, StoreError>;
}

/// Events that continue one chain: at least one.
#[derive(Clone, Copy, Debug)]
pub struct ChainLink<'a> {
    /// The end of the chain as it stands.
    pub behind: ChainTip,
    /// The events that come behind it, in order.
    pub events: &'a [StoredEvent],
}

/// Reading.
#[async_trait]
pub trait ReadStore: Send + Sync + 'static {
    /// "sqlite" or "postgresql".
    fn kind(&self) -> &'static str;

    /// The key domain; `None` before `init`.
    async fn domain(&self) -> Result<Option<DomainRecord>, StoreError>;

    /// The heads of all blocks that exist, in order.
    async fn heads(&self) -> Result<Vec<Head>, StoreError>;

    /// One block; `None` if nothing was ever written to it.
    async fn block(&self, block: BlockNo) -> Result<Option<StoredBlock>, StoreError>;

    /// Where the living meter with this id is.
    async fn find_meter(&self, meter_id: &MeterId) -> Result<Option<IndexedMeter>, StoreError>;

    /// The index's entry for this title. As the others, a hint.
    async fn find_title(&self, title: &SystemTitle) -> Result<Option<IndexedMeter>, StoreError>;

    /// Living meters in order of id, after `after`, at most `limit`.
    async fn list_meters(
        &self,
        after: Option<&MeterId>,
        limit: u32,
    ) -> Result<Vec<IndexedMeter>, StoreError>;

    /// The number of living meters.
    async fn count_meters(&self) -> Result<u64, StoreError>;

    /// Meters that have, or had before they were deleted, a key with one of these fingerprints; at most
    /// `limit` a fingerprint, the living first.
    async fn holders_of(
        &self,
        fingerprints: &[Fingerprint],
        limit: u32,
    ) -> Result<Vec<Holder>, StoreError>;

    /// Follows other writers; `None`: there can't be any, this process has the store to itself.
    fn follow(&self) -> Option<Box<dyn FollowBlocks>> {
        None
    }

    /// Where a block stands; `None` if nothing was ever written to it. Cheaper than the block.
    async fn position(&self, block: BlockNo) -> Result<Option<Position>, StoreError> {
        Ok(self.block(block).await?.map(|block| block.head.position))
    }

    /// Where all blocks stand.
    async fn positions(&self) -> Result<Positions, StoreError> {
        let at = self.heads().await?.into_iter().map(|head| (head.block, head.position)).collect();
        Ok(Positions { at, damaged: Vec::new(), complete: true })
    }

    /// The lag of this store behind the one that it follows; `None`: it follows none, it takes
    /// changes itself.
    async fn standby_lag(&self) -> Result<Option<StandbyLag>, StoreError> {
        Ok(None)
    }

    /// [`StoreError::ReadOnlyPrimary`] where changes would be refused and it is no standby.
    async fn takes_changes(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// This site's role, as the database says. Cheap: asked at each poll.
    async fn role(&self) -> Result<RoleRow, StoreError>;

    /// All role records of the domain, in the order of their epochs, a promotion before the demotion from it.
    /// Not verified.
    async fn role_records(&self) -> Result<Vec<SignedRoleRecord>, StoreError>;

    /// The other sites that were enrolled, in order of their names. Not verified.
    async fn peers(&self) -> Result<Vec<SignedPeer>, StoreError>;

    /// The block's head, and its records that changed after this position; `None` if there is no such block.
    /// Both of one moment.
    async fn changes_after(
        &self,
        block: BlockNo,
        after: Position,
    ) -> Result<Option<BlockChanges>, StoreError>;

    /// Records that were set aside, by block, key and position, after this one; at most `limit`.
    async fn divergence(
        &self,
        after: Option<(BlockNo, RecordKey, Position)>,
        limit: u32,
    ) -> Result<Vec<Divergent>, StoreError>;

    /// Takes the lock of the server that follows the peer; `None`: another server of this site has it.
    async fn follower_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError>;

    /// Ends all connections. Everything acknowledged is on disk already.
    async fn close(&self) {}
}

/// The audit log. Its events are written by [`WriteStore::commit`].
#[async_trait]
pub trait AuditStore: Send + Sync + 'static {
    /// The audit chains there are, in order of their nodes, and where each ends.
    async fn audit_chains(&self) -> Result<Vec<ChainTip>, StoreError>;

    /// Events of a node's chain behind number `after`, in order, at most `limit`.
    async fn audit_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError>;

    /// Signed heads of a node's chain behind number `after`, in order, at most `limit`.
    async fn audit_checkpoints(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreError>;

    /// The last signed head of a node's chain.
    async fn last_audit_checkpoint(&self, node: &NodeId) -> Result<Option<Checkpoint>, StoreError>;

    /// A signed head comes to be. Idempotent: a node has one for each number.
    async fn add_audit_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError>;

    /// The site's head table; `None` before there is one.
    async fn head_table(&self) -> Result<Option<SignedHeadTable>, StoreError>;

    /// Replaces the head table of number `expected` (`None`: there is none). False: another one is
    /// there by now, and stays.
    async fn put_head_table(
        &self,
        expected: Option<u64>,
        table: &SignedHeadTable,
    ) -> Result<bool, StoreError>;
}

/// Writing: one method a fact that can become true.
#[async_trait]
pub trait WriteStore: ReadStore + AuditStore {
    /// The domain comes to be, with all that it has from then on, or nothing does.
    /// [`StoreError::Taken`] if there is one.
    async fn create_domain(&self, founding: &Founding) -> Result<(), StoreError>;

    /// A domain that an older version made gets what it has not: its record's signature, the blocks that
    /// are missing, a head table. All or nothing; [`StoreError::Taken`] if it is signed already.
    async fn complete_domain(&self, founding: &Founding) -> Result<(), StoreError>;

    /// Blocks change: all of them or none, on disk when this returns. A block may stand in `changes`
    /// only once. [`StoreError::Conflict`] if a head is not the expected one.
    /// [`StoreError::ReadOnly`] at a standby.
    ///
    /// The audit log's events about the changes go into the same transaction: `audit` is written
    /// with them or nothing is. [`StoreError::AuditMoved`] if the chain ends elsewhere,
    /// [`StoreError::AuditNotWritten`] if the log is at fault, or without an event. The service commits
    /// through [`AuditedStore`]; what a domain begins with is no commit, but [`Self::create_domain`].
    async fn commit(&self, changes: &[BlockChange], audit: ChainLink<'_>)
    -> Result<(), StoreError>;

    /// Blocks become what a peer has: all of them or none, on disk when this returns, and with them what was
    /// set aside and the audit log's events. Refused as [`StoreError::NotWriter`] while this site writes.
    /// Indexes follow as far as they can: two records that claim one meter id are no error here.
    async fn adopt(
        &self,
        adoptions: &[BlockAdoption],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError>;

    /// The site's role changes: no commit is under way meanwhile, and none that began before is accepted
    /// after it in another role or epoch.
    async fn change_role(&self, step: &RoleStep, audit: ChainLink<'_>) -> Result<(), StoreError>;

    /// A peer is enrolled, or enrolled anew: its keys replace the former ones.
    async fn put_peer(&self, peer: &SignedPeer, audit: ChainLink<'_>) -> Result<(), StoreError>;

    /// Divergent records become known, or are decided about. The same twice changes nothing.
    async fn put_divergence(
        &self,
        divergent: &[Divergent],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError>;

    /// Ends when the disk below this process has failed, and says how: the process is to stop then,
    /// since what it acknowledged may be lost. Never ends where the disk is another process's, which
    /// stops itself.
    async fn until_failed(&self) -> String {
        std::future::pending().await
    }
}

/// The only way to change blocks that the service has: with something to say of it. `audit` puts the
/// entries into this node's chain.
#[async_trait]
pub trait AuditedStore: Send + Sync + 'static {
    /// As [`WriteStore::commit`]. Runs to its end even if the future is dropped.
    async fn commit(
        &self,
        changes: Vec<BlockChange>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError>;

    /// As [`WriteStore::adopt`]. Runs to its end even if the future is dropped.
    async fn adopt(
        &self,
        adoptions: Vec<BlockAdoption>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError>;

    /// As [`WriteStore::change_role`]. Runs to its end even if the future is dropped.
    async fn change_role(&self, step: RoleStep, entries: Vec<AuditEntry>)
    -> Result<(), StoreError>;

    /// As [`WriteStore::put_peer`]. Runs to its end even if the future is dropped.
    async fn put_peer(&self, peer: SignedPeer, entries: Vec<AuditEntry>) -> Result<(), StoreError>;

    /// As [`WriteStore::put_divergence`]. Runs to its end even if the future is dropped.
    async fn put_divergence(
        &self,
        divergent: Vec<Divergent>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError>;
}
