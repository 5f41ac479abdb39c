//! The database: blocks, their records, and the indexes that find a meter. `sqlx` is said only here.
//!
//! The store keeps what it is given and checks no MAC: whoever reads (the keyring) verifies. What it
//! does guarantee: a commit is all or nothing and on disk when it returns, a block's sequence has no
//! gap, and no two writers extend the same head.

pub mod approvals;
pub mod counters;
pub mod floors;
mod indexing;
pub mod keks;
pub mod measured;
mod nouns;
pub mod papers;
pub mod peer_audit;
pub mod postgres;
pub mod rules;
pub mod seals;
pub mod sites;
pub mod sqlite;
pub mod tokens;
pub mod whole;
mod work;

use async_trait::async_trait;

use kms_core::{
    BlockNo, DomainRecord, Fingerprint, Head, MeterId, Position, RecordKey, SystemTitle,
    audit::{AuditEntry, ChainTip, Checkpoint, NodeId, StoredEvent},
    freshness::SignedHeadTable,
    site::{peer::SignedPeer, role::SignedRoleRecord},
};

use approvals::{ApprovalStep, StoredApproval};
use counters::CounterStore;
use floors::FloorStore;
use keks::{KekRows, KekStep, KekStore};
pub use nouns::{
    BlockChange, ChainLink, DamagedRow, Founding, Holder, IndexEntry, IndexedMeter, Positions,
    RecordChange, RestoreState, SealedSecret, StandbyLag, StoreError, StoredBlock, Timeline,
};
use papers::{PaperStore, Strange};
use peer_audit::PeerAuditStore;
use seals::SealStore;
use sites::{
    BlockAdoption, BlockChanges, DivergenceAsked, Divergent, FollowerLock, PeerStep, RoleRow,
    RoleStep,
};

/// Follows what other processes write to a store. Made by [`ReadStore::follow`].
#[async_trait]
pub trait FollowBlocks: Send + 'static {
    /// Where blocks stand: those that just changed, or all of them, at the latest 500 ms after the
    /// last answer. An error says that nothing was heard; ask again.
    async fn next(&mut self) -> Result<Positions, StoreError>;
}

/// Reading.
#[async_trait]
pub trait ReadStore: KekRows {
    /// "sqlite" or "postgresql".
    fn kind(&self) -> &'static str;

    /// The key domain; `None` before `init`.
    async fn domain(&self) -> Result<Option<DomainRecord>, StoreError>;

    /// The heads of all blocks that exist, in order.
    async fn heads(&self) -> Result<Vec<Head>, StoreError>;

    /// The heads of those of these blocks that exist, in order.
    async fn heads_of(&self, blocks: &[BlockNo]) -> Result<Vec<Head>, StoreError> {
        let mut heads = self.heads().await?;
        heads.retain(|head| blocks.contains(&head.block));
        Ok(heads)
    }

    /// One block; `None` if nothing was ever written to it.
    async fn block(&self, block: BlockNo) -> Result<Option<StoredBlock>, StoreError>;

    /// The same, of its records those alone that have one of these keys. All of one moment.
    async fn block_in_part(
        &self,
        block: BlockNo,
        keys: &[RecordKey],
    ) -> Result<Option<StoredBlock>, StoreError> {
        let mut stored = self.block(block).await?;
        stored.iter_mut().for_each(|it| it.records.retain(|record| keys.contains(&record.key)));
        Ok(stored)
    }

    /// Where the living meter with this id is.
    async fn find_meter(&self, meter_id: &MeterId) -> Result<Option<IndexedMeter>, StoreError>;

    /// The same of many ids at once, those that there are, in any order.
    async fn find_meters(&self, meter_ids: &[MeterId]) -> Result<Vec<IndexedMeter>, StoreError> {
        let mut found = Vec::new();
        for meter_id in meter_ids {
            found.extend(self.find_meter(meter_id).await?);
        }
        Ok(found)
    }

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
        Ok(self.heads_of(&[block]).await?.first().map(|head| head.position))
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

    /// The timeline that it writes on; `None`: it has none, or follows another one's.
    async fn timeline(&self) -> Result<Option<Timeline>, StoreError> {
        Ok(None)
    }

    /// [`StoreError::ReadOnlyPrimary`] where changes would be refused and it is no standby.
    async fn takes_changes(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// This site's role, as the database says. Cheap: asked at each poll.
    async fn role(&self) -> Result<RoleRow, StoreError>;

    /// Whether the database was rolled back, as it says itself. Not verified.
    async fn restore_state(&self) -> Result<RestoreState, StoreError>;

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

    /// Records that were set aside, in order of their names.
    async fn divergence(&self, asked: DivergenceAsked) -> Result<Vec<Divergent>, StoreError>;

    /// The number of records that were set aside and about which nothing was decided.
    async fn count_undecided(&self) -> Result<u64, StoreError>;

    /// How many of them this site has written, or reported.
    async fn count_undecided_of(&self, site: &str) -> Result<u64, StoreError>;

    /// Records that begin with none of these bytes; at most `limit` by name.
    async fn strange_records(&self, known: &[[u8; 2]], limit: u32) -> Result<Strange, StoreError>;

    /// Takes the lock of the server that follows the peer; `None`: another server of this site has it.
    async fn follower_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError>;

    /// Takes the lock by which a server says to the others of this site that the peer follows it; `None`: another one
    /// says so already.
    async fn followed_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError>;

    /// Whether a server of this site holds [`Self::followed_lock`]. On a standby, where nobody can say: yes.
    async fn is_followed(&self) -> Result<bool, StoreError>;

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

/// Keeps calls that wait.
#[async_trait]
pub trait ApprovalStore: Send + Sync + 'static {
    /// All of them, those that live longest first, at most [`approvals::READ_MAX`]. Not verified.
    async fn approvals(&self) -> Result<Vec<StoredApproval>, StoreError>;

    /// A call begins to wait, is approved, is used or goes: that and the audit log's events, or nothing.
    /// [`StoreError::Taken`] if somebody else was first: what is there by now stays, and nothing is said.
    async fn put_approval(
        &self,
        step: &ApprovalStep,
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError>;
}

/// Writing: one method a fact that can become true.
#[async_trait]
pub trait WriteStore:
    ReadStore
    + AuditStore
    + ApprovalStore
    + CounterStore
    + FloorStore
    + KekStore
    + PaperStore
    + PeerAuditStore
    + SealStore
{
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

    /// A peer is enrolled, or enrolled anew: its keys replace the former ones. [`StoreError::Taken`] where its row is not
    /// the one that the step was made from: nothing was written, read it again and decide anew.
    async fn put_peer(&self, step: &PeerStep, audit: ChainLink<'_>) -> Result<(), StoreError>;

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
    async fn put_peer(&self, step: PeerStep, entries: Vec<AuditEntry>) -> Result<(), StoreError>;

    /// As [`WriteStore::put_divergence`]. Runs to its end even if the future is dropped.
    async fn put_divergence(
        &self,
        divergent: Vec<Divergent>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError>;

    /// As [`KekStore::put_site_keks`]. Runs to its end even if the future is dropped.
    async fn put_site_keks(
        &self,
        step: KekStep,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError>;
}
