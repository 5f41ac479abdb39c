//! Any store, with its calls measured.

mod keks;

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;

use super::{
    ApprovalStore, AuditStore, BlockChange, ChainLink, FollowBlocks, Founding, Holder,
    IndexedMeter, Positions, ReadStore, StandbyLag, StoreError, StoredBlock, Timeline, WriteStore,
    approvals::{ApprovalStep, StoredApproval},
    counters::CounterStore,
    floors::{FloorRun, FloorStore},
    papers::{Paper, PaperStore, Strange},
    peer_audit::PeerAuditStore,
    seals::{Retirement, SealStore},
    sites::{
        BlockAdoption, BlockChanges, DivergenceAsked, Divergent, FollowerLock, PeerStep, RoleRow,
        RoleStep,
    },
    whole::RestoreState,
};
use crate::telemetry::{
    catalogue::STORE,
    metrics::{Histogram, Page, Source},
};
use kms_core::{
    BlockNo, DomainRecord, Epoch, Fingerprint, Head, MeterId, Position, RecordKey, SystemTitle,
    audit::{
        ChainTip, Checkpoint, NodeId, StoredEvent,
        copying::{Copied, Piece},
    },
    counters::{allocator::Witnessed, mark::StoredMark},
    floors::{FloorPlace, FloorRow},
    freshness::SignedHeadTable,
    site::{peer::SignedPeer, role::SignedRoleRecord},
};

/// A store that counts how long its calls take, by operation and outcome. A call whose caller goes
/// away is not counted, and neither is waiting for other writers' changes.
pub struct Measured<S: ?Sized> {
    inner: Arc<S>,
    figures: [[Histogram; OUTCOMES.len()]; OPERATIONS.len()],
}

/// Calls to a store; the numbers are places in [`OPERATIONS`].
#[derive(Clone, Copy)]
enum Operation {
    Domain,
    Heads,
    Block,
    FindMeter,
    ListMeters,
    CountMeters,
    HoldersOf,
    Position,
    Positions,
    StandbyLag,
    CreateDomain,
    Commit,
    AuditRead,
    AuditHead,
    Role,
    RoleRecords,
    Peers,
    ChangesAfter,
    Divergence,
    FollowerLock,
    Adopt,
    ChangeRole,
    PutPeer,
    PutDivergence,
    CounterMarks,
    PutCounterMark,
    WitnessMarks,
    ReadFloors,
    PutFloors,
    StrangeRecords,
    Papers,
    PutPaper,
    PeerAuditRead,
    PeerAuditAppend,
    Approvals,
    PutApproval,
    FormerSeals,
    RetireSeals,
    SiteKeks,
    KekPairs,
    AddTwin,
    PutSiteKeks,
}

const OPERATIONS: [&str; 42] = [
    "domain",
    "heads",
    "block",
    "find_meter",
    "list_meters",
    "count_meters",
    "holders_of",
    "position",
    "positions",
    "standby_lag",
    "create_domain",
    "commit",
    "audit_read",
    "audit_head",
    "role",
    "role_records",
    "peers",
    "changes_after",
    "divergence",
    "follower_lock",
    "adopt",
    "change_role",
    "put_peer",
    "put_divergence",
    "counter_marks",
    "put_counter_mark",
    "witness_marks",
    "read_floors",
    "put_floors",
    "strange_records",
    "papers",
    "put_paper",
    "peer_audit_read",
    "peer_audit_append",
    "approvals",
    "put_approval",
    "former_seals",
    "retire_seals",
    "site_keks",
    "kek_pairs",
    "add_kek_twin",
    "put_site_keks",
];

const OUTCOMES: [&str; 11] = [
    "ok",
    "conflict",
    "taken",
    "rule",
    "damaged",
    "unreachable",
    "read_only",
    "audit_moved",
    "audit_not_written",
    "not_writer",
    "unknown",
];

/// The outcome's place in [`OUTCOMES`].
fn outcome_of<T>(answer: &Result<T, StoreError>) -> usize {
    match answer {
        Ok(_) => 0,
        Err(StoreError::Conflict(_)) => 1,
        Err(StoreError::Taken { .. }) => 2,
        Err(StoreError::Rule { .. } | StoreError::NotLoaded(_)) => 3,
        Err(StoreError::Damaged(_)) => 4,
        Err(StoreError::Unreachable { .. }) => 5,
        Err(StoreError::ReadOnly | StoreError::ReadOnlyPrimary) => 6,
        Err(StoreError::AuditMoved(_)) => 7,
        Err(StoreError::AuditNotWritten { .. }) => 8,
        Err(StoreError::NotWriter(_)) => 9,
        Err(StoreError::Unknown { .. }) => 10,
    }
}

impl<S: ?Sized> Measured<S> {
    /// Measures `inner` from now on.
    pub fn new(inner: Arc<S>) -> Self {
        Self { inner, figures: std::array::from_fn(|_| Default::default()) }
    }

    async fn measure<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let answer = call.await;
        self.figures[operation as usize][outcome_of(&answer)].observe(begun.elapsed());
        answer
    }
}

impl<S: Send + Sync + 'static + ?Sized> Source for Measured<S> {
    fn tell(&self, page: &mut Page) {
        for (operation, outcomes) in OPERATIONS.into_iter().zip(&self.figures) {
            for (outcome, times) in OUTCOMES.into_iter().zip(outcomes) {
                page.histogram(&STORE, &[operation.into(), outcome.into()], times);
            }
        }
    }
}

#[async_trait]
impl<S: ReadStore + ?Sized> ReadStore for Measured<S> {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn domain(&self) -> Result<Option<DomainRecord>, StoreError> {
        self.measure(Operation::Domain, self.inner.domain()).await
    }

    async fn heads(&self) -> Result<Vec<Head>, StoreError> {
        self.measure(Operation::Heads, self.inner.heads()).await
    }

    async fn heads_of(&self, blocks: &[BlockNo]) -> Result<Vec<Head>, StoreError> {
        self.measure(Operation::Heads, self.inner.heads_of(blocks)).await
    }

    async fn block(&self, block: BlockNo) -> Result<Option<StoredBlock>, StoreError> {
        self.measure(Operation::Block, self.inner.block(block)).await
    }

    async fn block_in_part(
        &self,
        block: BlockNo,
        keys: &[RecordKey],
    ) -> Result<Option<StoredBlock>, StoreError> {
        self.measure(Operation::Block, self.inner.block_in_part(block, keys)).await
    }

    async fn find_meter(&self, meter_id: &MeterId) -> Result<Option<IndexedMeter>, StoreError> {
        self.measure(Operation::FindMeter, self.inner.find_meter(meter_id)).await
    }

    async fn find_meters(&self, meter_ids: &[MeterId]) -> Result<Vec<IndexedMeter>, StoreError> {
        self.measure(Operation::FindMeter, self.inner.find_meters(meter_ids)).await
    }

    async fn find_title(&self, title: &SystemTitle) -> Result<Option<IndexedMeter>, StoreError> {
        self.measure(Operation::FindMeter, self.inner.find_title(title)).await
    }

    async fn list_meters(
        &self,
        after: Option<&MeterId>,
        limit: u32,
    ) -> Result<Vec<IndexedMeter>, StoreError> {
        self.measure(Operation::ListMeters, self.inner.list_meters(after, limit)).await
    }

    async fn count_meters(&self) -> Result<u64, StoreError> {
        self.measure(Operation::CountMeters, self.inner.count_meters()).await
    }

    async fn holders_of(
        &self,
        fingerprints: &[Fingerprint],
        limit: u32,
    ) -> Result<Vec<Holder>, StoreError> {
        self.measure(Operation::HoldersOf, self.inner.holders_of(fingerprints, limit)).await
    }

    fn follow(&self) -> Option<Box<dyn FollowBlocks>> {
        self.inner.follow()
    }

    async fn position(&self, block: BlockNo) -> Result<Option<Position>, StoreError> {
        self.measure(Operation::Position, self.inner.position(block)).await
    }

    async fn positions(&self) -> Result<Positions, StoreError> {
        self.measure(Operation::Positions, self.inner.positions()).await
    }

    async fn timeline(&self) -> Result<Option<Timeline>, StoreError> {
        self.inner.timeline().await
    }

    async fn takes_changes(&self) -> Result<(), StoreError> {
        self.inner.takes_changes().await
    }

    async fn standby_lag(&self) -> Result<Option<StandbyLag>, StoreError> {
        self.measure(Operation::StandbyLag, self.inner.standby_lag()).await
    }

    async fn role(&self) -> Result<RoleRow, StoreError> {
        self.measure(Operation::Role, self.inner.role()).await
    }

    async fn restore_state(&self) -> Result<RestoreState, StoreError> {
        self.measure(Operation::Role, self.inner.restore_state()).await
    }

    async fn role_records(&self) -> Result<Vec<SignedRoleRecord>, StoreError> {
        self.measure(Operation::RoleRecords, self.inner.role_records()).await
    }

    async fn peers(&self) -> Result<Vec<SignedPeer>, StoreError> {
        self.measure(Operation::Peers, self.inner.peers()).await
    }

    async fn changes_after(
        &self,
        block: BlockNo,
        after: Position,
    ) -> Result<Option<BlockChanges>, StoreError> {
        self.measure(Operation::ChangesAfter, self.inner.changes_after(block, after)).await
    }

    async fn divergence(&self, asked: DivergenceAsked) -> Result<Vec<Divergent>, StoreError> {
        self.measure(Operation::Divergence, self.inner.divergence(asked)).await
    }

    async fn count_undecided(&self) -> Result<u64, StoreError> {
        self.measure(Operation::Divergence, self.inner.count_undecided()).await
    }

    async fn count_undecided_of(&self, site: &str) -> Result<u64, StoreError> {
        self.measure(Operation::Divergence, self.inner.count_undecided_of(site)).await
    }

    async fn strange_records(&self, known: &[[u8; 2]], limit: u32) -> Result<Strange, StoreError> {
        self.measure(Operation::StrangeRecords, self.inner.strange_records(known, limit)).await
    }

    async fn follower_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
        self.measure(Operation::FollowerLock, self.inner.follower_lock()).await
    }

    async fn followed_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
        self.measure(Operation::FollowerLock, self.inner.followed_lock()).await
    }

    async fn is_followed(&self) -> Result<bool, StoreError> {
        self.measure(Operation::FollowerLock, self.inner.is_followed()).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[async_trait]
impl<S: AuditStore + ?Sized> AuditStore for Measured<S> {
    async fn audit_chains(&self) -> Result<Vec<ChainTip>, StoreError> {
        self.measure(Operation::AuditRead, self.inner.audit_chains()).await
    }

    async fn audit_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.measure(Operation::AuditRead, self.inner.audit_events(node, after, limit)).await
    }

    async fn audit_checkpoints(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreError> {
        self.measure(Operation::AuditRead, self.inner.audit_checkpoints(node, after, limit)).await
    }

    async fn last_audit_checkpoint(&self, node: &NodeId) -> Result<Option<Checkpoint>, StoreError> {
        self.measure(Operation::AuditRead, self.inner.last_audit_checkpoint(node)).await
    }

    async fn add_audit_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.measure(Operation::AuditHead, self.inner.add_audit_checkpoint(checkpoint)).await
    }

    async fn head_table(&self) -> Result<Option<SignedHeadTable>, StoreError> {
        self.measure(Operation::AuditRead, self.inner.head_table()).await
    }

    async fn put_head_table(
        &self,
        expected: Option<u64>,
        table: &SignedHeadTable,
    ) -> Result<bool, StoreError> {
        self.measure(Operation::AuditHead, self.inner.put_head_table(expected, table)).await
    }
}

#[async_trait]
impl<S: CounterStore + ?Sized> CounterStore for Measured<S> {
    async fn counter_mark(&self, block: BlockNo) -> Result<Option<StoredMark>, StoreError> {
        self.measure(Operation::CounterMarks, self.inner.counter_mark(block)).await
    }

    async fn counter_marks(&self) -> Result<Vec<StoredMark>, StoreError> {
        self.measure(Operation::CounterMarks, self.inner.counter_marks()).await
    }

    async fn put_counter_mark(
        &self,
        expected: Option<&StoredMark>,
        mark: &StoredMark,
    ) -> Result<bool, StoreError> {
        self.measure(Operation::PutCounterMark, self.inner.put_counter_mark(expected, mark)).await
    }

    async fn witnessed_marks(&self, site: &str) -> Result<Vec<(BlockNo, Witnessed)>, StoreError> {
        self.measure(Operation::CounterMarks, self.inner.witnessed_marks(site)).await
    }

    async fn witness_marks(
        &self,
        site: &str,
        marks: &[(BlockNo, Witnessed)],
    ) -> Result<(), StoreError> {
        self.measure(Operation::WitnessMarks, self.inner.witness_marks(site, marks)).await
    }
}

#[async_trait]
impl<S: FloorStore + ?Sized> FloorStore for Measured<S> {
    async fn floors(&self, block: BlockNo) -> Result<Vec<FloorRow>, StoreError> {
        self.measure(Operation::ReadFloors, self.inner.floors(block)).await
    }

    async fn floors_after(
        &self,
        place: &FloorPlace,
        but: &NodeId,
        limit: u32,
    ) -> Result<Vec<FloorRow>, StoreError> {
        self.measure(Operation::ReadFloors, self.inner.floors_after(place, but, limit)).await
    }

    async fn floor_run(&self, node: &NodeId) -> Result<Option<FloorRun>, StoreError> {
        self.measure(Operation::ReadFloors, self.inner.floor_run(node)).await
    }

    async fn put_floors(&self, rows: &[FloorRow], run: &FloorRun) -> Result<(), StoreError> {
        self.measure(Operation::PutFloors, self.inner.put_floors(rows, run)).await
    }
}

#[async_trait]
impl<S: SealStore + ?Sized> SealStore for Measured<S> {
    async fn former_seals(&self) -> Result<Vec<BlockNo>, StoreError> {
        self.measure(Operation::FormerSeals, self.inner.former_seals()).await
    }

    async fn retire_seals(&self, retirement: &Retirement) -> Result<bool, StoreError> {
        self.measure(Operation::RetireSeals, self.inner.retire_seals(retirement)).await
    }
}

#[async_trait]
impl<S: PaperStore + ?Sized> PaperStore for Measured<S> {
    async fn papers(&self) -> Result<Vec<Paper>, StoreError> {
        self.measure(Operation::Papers, self.inner.papers()).await
    }

    async fn put_paper(&self, paper: &Paper) -> Result<bool, StoreError> {
        self.measure(Operation::PutPaper, self.inner.put_paper(paper)).await
    }
}

#[async_trait]
impl<S: ApprovalStore + ?Sized> ApprovalStore for Measured<S> {
    async fn approvals(&self) -> Result<Vec<StoredApproval>, StoreError> {
        self.measure(Operation::Approvals, self.inner.approvals()).await
    }

    async fn put_approval(
        &self,
        step: &ApprovalStep,
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.measure(Operation::PutApproval, self.inner.put_approval(step, audit)).await
    }
}

#[async_trait]
impl<S: PeerAuditStore + ?Sized> PeerAuditStore for Measured<S> {
    async fn peer_chains(&self, site: &str) -> Result<Vec<Copied>, StoreError> {
        self.measure(Operation::PeerAuditRead, self.inner.peer_chains(site)).await
    }

    async fn peer_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.measure(Operation::PeerAuditRead, self.inner.peer_events(node, after, limit)).await
    }

    async fn peer_checkpoints(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreError> {
        let read = self.inner.peer_checkpoints(node, after, limit);
        self.measure(Operation::PeerAuditRead, read).await
    }

    async fn append_peer_audit(
        &self,
        site: &str,
        step: (&Copied, &Copied),
        piece: &Piece,
    ) -> Result<bool, StoreError> {
        let append = self.inner.append_peer_audit(site, step, piece);
        self.measure(Operation::PeerAuditAppend, append).await
    }

    async fn note_peer_audit_broken(&self, node: &NodeId, epoch: Epoch) -> Result<(), StoreError> {
        let note = self.inner.note_peer_audit_broken(node, epoch);
        self.measure(Operation::PeerAuditAppend, note).await
    }
}

#[async_trait]
impl<S: WriteStore + ?Sized> WriteStore for Measured<S> {
    async fn create_domain(&self, founding: &Founding) -> Result<(), StoreError> {
        self.measure(Operation::CreateDomain, self.inner.create_domain(founding)).await
    }

    async fn complete_domain(&self, founding: &Founding) -> Result<(), StoreError> {
        self.measure(Operation::CreateDomain, self.inner.complete_domain(founding)).await
    }

    async fn commit(
        &self,
        changes: &[BlockChange],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.measure(Operation::Commit, self.inner.commit(changes, audit)).await
    }

    async fn adopt(
        &self,
        adoptions: &[BlockAdoption],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.measure(Operation::Adopt, self.inner.adopt(adoptions, audit)).await
    }

    async fn change_role(&self, step: &RoleStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.measure(Operation::ChangeRole, self.inner.change_role(step, audit)).await
    }

    async fn put_peer(&self, step: &PeerStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.measure(Operation::PutPeer, self.inner.put_peer(step, audit)).await
    }

    async fn put_divergence(
        &self,
        divergent: &[Divergent],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.measure(Operation::PutDivergence, self.inner.put_divergence(divergent, audit)).await
    }

    async fn until_failed(&self) -> String {
        self.inner.until_failed().await
    }
}
