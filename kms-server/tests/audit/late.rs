//! Commits of which nobody hears what became of them, and which come to their end later, or never.

use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use kms_core::{
    BlockNo, DomainRecord, Epoch, Fingerprint, Head, MeterId, Position, SystemTitle,
    audit::{
        ChainTip, Checkpoint, NodeId, StoredEvent,
        copying::{Copied, Piece},
    },
    counters::{allocator::Witnessed, mark::StoredMark},
    floors::{FloorPlace, FloorRow},
    freshness::SignedHeadTable,
    site::{
        keks::{KekId, Looked, SignedSiteKeks},
        peer::SignedPeer,
        role::SignedRoleRecord,
    },
};
use kms_server::{
    audit::{Audit, AuditError},
    store::{
        ApprovalStore, AuditStore, BlockChange, ChainLink, Founding, Holder, IndexedMeter,
        ReadStore, SealedSecret, StoreError, StoredBlock, WriteStore,
        approvals::{ApprovalStep, StoredApproval},
        counters::CounterStore,
        floors::{FloorRun, FloorStore},
        keks::{KekRows, KekStep, KekStore, Pair, Twins},
        papers::{Paper, PaperStore, Strange},
        peer_audit::PeerAuditStore,
        seals::{Retirement, SealStore},
        sites::{
            BlockAdoption, BlockChanges, DivergenceAsked, Divergent, FollowerLock, PeerStep,
            RoleRow, RoleStep,
        },
        sqlite::SqliteStore,
        whole::RestoreState,
    },
};

use super::support::{NODE, Place, entry, events, open_store};

type Kept = (Vec<BlockChange>, ChainTip, Vec<StoredEvent>);

/// A database behind a network that loses answers: what is to be lost is kept, and lands when the test
/// says so. All else is the real one's.
struct Lossy {
    inner: Arc<SqliteStore>,
    lose: Mutex<usize>,
    kept: Mutex<Vec<Kept>>,
    meanwhile: Meanwhile,
}

/// Writes and signs, once, between two reads of the log.
#[derive(Default)]
struct Meanwhile(OnceLock<Arc<Audit>>, Mutex<bool>);

impl Meanwhile {
    async fn write(&self) {
        let due = std::mem::take(&mut *self.1.lock().unwrap());
        if let Some(audit) = self.0.get().filter(|_| due) {
            audit.record(entry(200)).await.unwrap();
            Box::pin(audit.verify(NODE)).await.unwrap();
        }
    }
}

impl Lossy {
    /// The `n`-th of the lost commits comes to its end.
    async fn land(&self, n: usize) -> Result<(), StoreError> {
        let (changes, behind, events) = self.kept.lock().unwrap()[n].clone();
        self.inner.commit(&changes, ChainLink { behind, events: &events }).await
    }
}

#[async_trait]
impl ReadStore for Lossy {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
    async fn domain(&self) -> Result<Option<DomainRecord>, StoreError> {
        self.inner.domain().await
    }
    async fn heads(&self) -> Result<Vec<Head>, StoreError> {
        self.inner.heads().await
    }
    async fn block(&self, block: BlockNo) -> Result<Option<StoredBlock>, StoreError> {
        self.inner.block(block).await
    }
    async fn find_meter(&self, id: &MeterId) -> Result<Option<IndexedMeter>, StoreError> {
        self.inner.find_meter(id).await
    }
    async fn find_title(&self, title: &SystemTitle) -> Result<Option<IndexedMeter>, StoreError> {
        self.inner.find_title(title).await
    }
    async fn list_meters(
        &self,
        after: Option<&MeterId>,
        limit: u32,
    ) -> Result<Vec<IndexedMeter>, StoreError> {
        self.inner.list_meters(after, limit).await
    }
    async fn count_meters(&self) -> Result<u64, StoreError> {
        self.inner.count_meters().await
    }
    async fn holders_of(
        &self,
        fingerprints: &[Fingerprint],
        limit: u32,
    ) -> Result<Vec<Holder>, StoreError> {
        self.inner.holders_of(fingerprints, limit).await
    }
    async fn role(&self) -> Result<RoleRow, StoreError> {
        self.inner.role().await
    }
    async fn restore_state(&self) -> Result<RestoreState, StoreError> {
        self.inner.restore_state().await
    }
    async fn role_records(&self) -> Result<Vec<SignedRoleRecord>, StoreError> {
        self.inner.role_records().await
    }
    async fn peers(&self) -> Result<Vec<SignedPeer>, StoreError> {
        self.inner.peers().await
    }
    async fn changes_after(
        &self,
        block: BlockNo,
        after: Position,
    ) -> Result<Option<BlockChanges>, StoreError> {
        self.inner.changes_after(block, after).await
    }
    async fn divergence(&self, asked: DivergenceAsked) -> Result<Vec<Divergent>, StoreError> {
        self.inner.divergence(asked).await
    }

    async fn count_undecided(&self) -> Result<u64, StoreError> {
        self.inner.count_undecided().await
    }
    async fn count_undecided_of(&self, site: &str) -> Result<u64, StoreError> {
        self.inner.count_undecided_of(site).await
    }
    async fn strange_records(&self, known: &[[u8; 2]], limit: u32) -> Result<Strange, StoreError> {
        self.inner.strange_records(known, limit).await
    }
    async fn follower_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
        self.inner.follower_lock().await
    }

    async fn followed_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
        self.inner.followed_lock().await
    }

    async fn is_followed(&self) -> Result<bool, StoreError> {
        self.inner.is_followed().await
    }
}

#[async_trait]
impl AuditStore for Lossy {
    async fn audit_chains(&self) -> Result<Vec<ChainTip>, StoreError> {
        self.inner.audit_chains().await
    }
    async fn audit_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let read = self.inner.audit_events(node, after, limit).await;
        self.meanwhile.write().await;
        read
    }
    async fn audit_checkpoints(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreError> {
        let read = self.inner.audit_checkpoints(node, after, limit).await;
        self.meanwhile.write().await;
        read
    }
    async fn last_audit_checkpoint(&self, node: &NodeId) -> Result<Option<Checkpoint>, StoreError> {
        self.inner.last_audit_checkpoint(node).await
    }
    async fn add_audit_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.inner.add_audit_checkpoint(checkpoint).await
    }
    async fn head_table(&self) -> Result<Option<SignedHeadTable>, StoreError> {
        self.inner.head_table().await
    }
    async fn put_head_table(
        &self,
        expected: Option<u64>,
        table: &SignedHeadTable,
    ) -> Result<bool, StoreError> {
        self.inner.put_head_table(expected, table).await
    }
}

#[async_trait]
impl CounterStore for Lossy {
    async fn counter_mark(&self, block: BlockNo) -> Result<Option<StoredMark>, StoreError> {
        self.inner.counter_mark(block).await
    }
    async fn counter_marks(&self) -> Result<Vec<StoredMark>, StoreError> {
        self.inner.counter_marks().await
    }
    async fn put_counter_mark(
        &self,
        expected: Option<&StoredMark>,
        mark: &StoredMark,
    ) -> Result<bool, StoreError> {
        self.inner.put_counter_mark(expected, mark).await
    }
    async fn witnessed_marks(&self, site: &str) -> Result<Vec<(BlockNo, Witnessed)>, StoreError> {
        self.inner.witnessed_marks(site).await
    }
    async fn witness_marks(
        &self,
        site: &str,
        marks: &[(BlockNo, Witnessed)],
    ) -> Result<(), StoreError> {
        self.inner.witness_marks(site, marks).await
    }
}

#[async_trait]
impl KekRows for Lossy {
    async fn site_keks(&self) -> Result<Vec<SignedSiteKeks>, StoreError> {
        self.inner.site_keks().await
    }
}

#[async_trait]
impl KekStore for Lossy {
    async fn pairs(
        &self,
        twins: Twins,
        after: Option<(BlockNo, u32)>,
        limit: u32,
    ) -> Result<Vec<Pair>, StoreError> {
        self.inner.pairs(twins, after, limit).await
    }
    async fn count_pairs(&self, twins: Twins) -> Result<Looked, StoreError> {
        self.inner.count_pairs(twins).await
    }
    async fn add_twin(
        &self,
        block: BlockNo,
        former: &KekId,
        twin: &SealedSecret,
    ) -> Result<bool, StoreError> {
        self.inner.add_twin(block, former, twin).await
    }
    async fn put_site_keks(&self, step: &KekStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.inner.put_site_keks(step, audit).await
    }
}

#[async_trait]
impl SealStore for Lossy {
    async fn former_seals(&self) -> Result<Vec<BlockNo>, StoreError> {
        self.inner.former_seals().await
    }
    async fn retire_seals(&self, retirement: &Retirement) -> Result<bool, StoreError> {
        self.inner.retire_seals(retirement).await
    }
}

#[async_trait]
impl FloorStore for Lossy {
    async fn floors(&self, block: BlockNo) -> Result<Vec<FloorRow>, StoreError> {
        self.inner.floors(block).await
    }
    async fn floors_after(
        &self,
        place: &FloorPlace,
        but: &NodeId,
        limit: u32,
    ) -> Result<Vec<FloorRow>, StoreError> {
        self.inner.floors_after(place, but, limit).await
    }
    async fn floor_run(&self, node: &NodeId) -> Result<Option<FloorRun>, StoreError> {
        self.inner.floor_run(node).await
    }
    async fn put_floors(&self, rows: &[FloorRow], run: &FloorRun) -> Result<(), StoreError> {
        self.inner.put_floors(rows, run).await
    }
}

#[async_trait]
impl PaperStore for Lossy {
    async fn papers(&self) -> Result<Vec<Paper>, StoreError> {
        self.inner.papers().await
    }
    async fn put_paper(&self, paper: &Paper) -> Result<bool, StoreError> {
        self.inner.put_paper(paper).await
    }
}

#[async_trait]
impl ApprovalStore for Lossy {
    async fn approvals(&self) -> Result<Vec<StoredApproval>, StoreError> {
        self.inner.approvals().await
    }
    async fn put_approval(
        &self,
        step: &ApprovalStep,
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.inner.put_approval(step, audit).await
    }
}

#[async_trait]
impl PeerAuditStore for Lossy {
    async fn peer_chains(&self, site: &str) -> Result<Vec<Copied>, StoreError> {
        self.inner.peer_chains(site).await
    }
    async fn peer_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.peer_events(node, after, limit).await
    }
    async fn peer_checkpoints(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreError> {
        self.inner.peer_checkpoints(node, after, limit).await
    }
    async fn append_peer_audit(
        &self,
        site: &str,
        step: (&Copied, &Copied),
        piece: &Piece,
    ) -> Result<bool, StoreError> {
        self.inner.append_peer_audit(site, step, piece).await
    }
    async fn note_peer_audit_broken(&self, node: &NodeId, epoch: Epoch) -> Result<(), StoreError> {
        self.inner.note_peer_audit_broken(node, epoch).await
    }
}

#[async_trait]
impl WriteStore for Lossy {
    async fn create_domain(&self, founding: &Founding) -> Result<(), StoreError> {
        self.inner.create_domain(founding).await
    }
    async fn complete_domain(&self, founding: &Founding) -> Result<(), StoreError> {
        self.inner.complete_domain(founding).await
    }
    async fn commit(
        &self,
        changes: &[BlockChange],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        let lost = {
            let mut lose = self.lose.lock().unwrap();
            let lost = *lose > 0;
            *lose = lose.saturating_sub(1);
            lost
        };
        if lost {
            let kept = (changes.to_vec(), audit.behind, audit.events.to_vec());
            self.kept.lock().unwrap().push(kept);
            return Err(StoreError::Unreachable { reason: "the answer was lost".into() });
        }
        self.inner.commit(changes, audit).await
    }
    async fn adopt(
        &self,
        adoptions: &[BlockAdoption],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.inner.adopt(adoptions, audit).await
    }
    async fn change_role(&self, step: &RoleStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.inner.change_role(step, audit).await
    }
    async fn put_peer(&self, step: &PeerStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.inner.put_peer(step, audit).await
    }
    async fn put_divergence(
        &self,
        divergent: &[Divergent],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.inner.put_divergence(divergent, audit).await
    }
}

#[tokio::test]
async fn whichever_of_several_lost_commits_lands_the_chain_goes_on_behind_it() {
    for (lost, lands) in
        [(1, None), (1, Some(0)), (3, None), (3, Some(0)), (3, Some(1)), (3, Some(2))]
    {
        let place = Place::new();
        let inner = open_store(&place.path).await;
        let store = Arc::new(Lossy {
            inner: Arc::clone(&inner),
            lose: Mutex::new(0),
            kept: Mutex::default(),
            meanwhile: Meanwhile::default(),
        });
        let audit = place.audit(store.clone()).await;
        *store.lose.lock().unwrap() = lost;
        for n in 0..lost {
            let said = audit.record(entry(n as u64)).await;
            assert!(matches!(said, Err(AuditError::NotWritable(_))), "{said:?}");
        }
        if let Some(n) = lands {
            store.land(n).await.unwrap();
        }
        audit.record(entry(100)).await.unwrap();
        assert_eq!(audit.status().fault, None, "{lost} lost, {lands:?} landed");
        // The start, what landed, and the last one.
        let due = 2 + usize::from(lands.is_some());
        assert_eq!(events(&inner).await.len(), due, "{lost} lost, {lands:?} landed");
        assert!(audit.verify(NODE).await.unwrap().unwrap().broken.is_none());
        // Too late now for the others.
        for n in 0..lost {
            assert!(matches!(store.land(n).await, Err(StoreError::AuditMoved(_))));
        }
    }
}

#[tokio::test]
async fn what_is_written_and_signed_while_a_chain_is_read_is_no_cut_tail() {
    let place = Place::new();
    let inner = open_store(&place.path).await;
    let (lose, kept, meanwhile) = (Mutex::new(0), Mutex::default(), Meanwhile::default());
    let store = Arc::new(Lossy { inner, lose, kept, meanwhile });
    let audit = place.audit(store.clone()).await;
    audit.record(entry(1)).await.unwrap();
    assert!(store.meanwhile.0.set(Arc::clone(&audit)).is_ok());
    *store.meanwhile.1.lock().unwrap() = true;
    let found = audit.verify(NODE).await.unwrap().unwrap();
    assert_eq!(found.broken, None);
    assert!(!*store.meanwhile.1.lock().unwrap(), "something was written meanwhile");
}
