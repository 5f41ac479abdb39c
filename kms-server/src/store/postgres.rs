//! The store on PostgreSQL: several servers of a site over one database, a standby beside it.
//!
//! Durable, then said: a commit returns after its WAL is flushed, here and, if the database has
//! synchronous standbys, there. After a failed flush PostgreSQL stops by itself; what was acknowledged
//! is what its recovery finds.
//!
//! Nothing about the database's role is remembered: each commit hears from the database itself whether
//! it takes changes. So a standby that was promoted takes them from then on, on the connections that
//! are open.

mod approvals;
mod audit;
mod columns;
mod config;
mod counters;
mod failure;
mod floors;
mod follow;
mod follower;
mod index;
mod keks;
mod open;
mod papers;
mod patience;
mod peer_audit;
mod pooling;
mod read;
mod role;
mod rows;
mod seals;
mod sites;
mod tokens;
mod waiting;
mod whole;
mod write;

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection as _, PgPool, Postgres, pool::PoolConnection};
use tokio::{sync::mpsc, time::timeout};

pub use config::{BadTls, Config, Password, Tls};
pub use open::OpenError;

use self::{
    columns::classify,
    failure::WriteError,
    follow::Follower,
    patience::{let_go, no_answer, within},
};
use super::{
    AuditStore, BlockChange, ChainLink, FollowBlocks, Founding, Holder, IndexedMeter, Positions,
    ReadStore, StandbyLag, StoreError, StoredBlock, Timeline, WriteStore,
    counters::CounterStore,
    floors::{FloorRun, FloorStore},
    papers::{Paper, PaperStore, Strange},
    rules,
    sites::{
        BlockAdoption, BlockChanges, DivergenceAsked, Divergent, FollowerLock, PeerStep, RoleRow,
        RoleStep,
    },
    whole::{Pieces, RestoreState, RollBack, WholeStore},
    work::Work,
};
use kms_core::{
    BlockNo, DomainRecord, Fingerprint, Head, MeterId, Position, RecordKey, SystemTitle,
    audit::{ChainTip, Checkpoint, NodeId, StoredEvent},
    backup::part::{Part, Rows, Table},
    counters::{allocator::Witnessed, mark::StoredMark},
    floors::{FloorPlace, FloorRow},
    freshness::SignedHeadTable,
    site::{peer::SignedPeer, role::SignedRoleRecord},
};

/// The longest time for a query. None of them is long; what takes this long hangs.
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// The longest time for a commit: it waits for the disk and for synchronous standbys. One that is given
/// up may become true later.
const COMMIT_PATIENCE: Duration = Duration::from_secs(15);

/// The longest time for a commit that was handed over, of that: shorter than callers wait for an answer, so that it is the
/// service that says what is not known.
const STANDBY_PATIENCE: Duration = Duration::from_secs(8);

/// The longest time for the last connections to end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// The store in one PostgreSQL database.
pub struct PostgresStore {
    pool: PgPool,
}

impl PostgresStore {
    /// Connects, refuses a database that does not hold what durability rests on, brings its schema to
    /// this program's.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        Ok(Self { pool: open::open(&config, true).await? })
    }

    /// The same, to be read beside a server: a database with another schema than this program's is refused.
    pub async fn open_as_it_is(config: Config) -> Result<Self, OpenError> {
        Ok(Self { pool: open::open(&config, false).await? })
    }
}

impl PostgresStore {
    /// A domain's record and all that it has; or what an old one has not.
    async fn found(&self, founding: &Founding, is_new: bool) -> Result<(), StoreError> {
        let Founding { domain, blocks, .. } = founding;
        let first = blocks.iter().map(|change| change.head.block).min();
        rules::check(blocks)?;
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let work = async {
            let mut whole = connection.begin_with(role::BEGIN).await?;
            if is_new {
                write::create_domain(&mut whole, founding).await?;
            } else {
                write::sign_domain(&mut whole, domain).await?;
            }
            write::found(&mut whole, founding).await?;
            Ok(whole.commit().await?)
        };
        let work = async { work.await.map_err(|error: WriteError| error.of_commit(first)) };
        let outcome = within(COMMIT_PATIENCE, work).await;
        written(&mut connection, outcome).await
    }

    /// Does `work` with its events, or nothing.
    async fn write(&self, work: Work<'_>, audit: ChainLink<'_>) -> Result<(), StoreError> {
        work.check(&audit)?;
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let (mut has_begun, mut is_handed_over) = (false, false);
        let attempt = async {
            let mut whole = connection.begin_with(role::begin(work)).await?;
            has_begun = true;
            write::work(&mut whole, work, &audit).await?;
            audit::append(&mut whole, &audit.behind, audit.events).await?;
            // Lost from here on, nobody knows whether it is there.
            is_handed_over = true;
            let commit = timeout(STANDBY_PATIENCE, whole.commit()).await;
            Ok(commit.map_err(|_| no_answer(STANDBY_PATIENCE))??)
        };
        let first = work.first_block();
        let attempt = async { attempt.await.map_err(|error: WriteError| error.of_commit(first)) };
        let outcome = within(COMMIT_PATIENCE, attempt).await;
        if !has_begun {
            // It did not get the role's lock: its transaction is aborted, and nobody else knows that.
            connection.close_on_drop();
        }
        match written(&mut connection, outcome).await {
            Err(StoreError::Unreachable { reason }) if is_handed_over => {
                Err(StoreError::Unknown { reason })
            }
            outcome => outcome,
        }
    }
}

/// The outcome of a change. PostgreSQL refuses with one code at a standby and at a primary that is
/// read-only; only the first is as it should be.
async fn written(
    connection: &mut PoolConnection<Postgres>,
    outcome: Result<(), StoreError>,
) -> Result<(), StoreError> {
    let outcome = match outcome {
        Err(StoreError::ReadOnly) => {
            let asked = within(READ_PATIENCE, read::is_read_only_primary(connection)).await;
            if matches!(asked, Ok(true)) {
                Err(StoreError::ReadOnlyPrimary)
            } else {
                Err(StoreError::ReadOnly)
            }
        }
        outcome => outcome,
    };
    let_go(connection, &outcome);
    outcome
}

/// Runs one of `read`'s or `audit`'s functions on a connection of the pool.
macro_rules! reading {
    ($self:ident, $query:ident $(, $argument:expr)*) => {
        reading!($self, read::$query $(, $argument)*)
    };
    ($self:ident, $module:ident :: $query:ident $(, $argument:expr)*) => {{
        let mut connection = $self.pool.acquire().await.map_err(classify)?;
        let outcome = within(READ_PATIENCE, $module::$query(&mut connection $(, $argument)*)).await;
        let_go(&mut connection, &outcome);
        outcome
    }};
}

#[async_trait]
impl ReadStore for PostgresStore {
    fn kind(&self) -> &'static str {
        "postgresql"
    }

    async fn domain(&self) -> Result<Option<DomainRecord>, StoreError> {
        reading!(self, domain)
    }

    async fn heads(&self) -> Result<Vec<Head>, StoreError> {
        reading!(self, heads)
    }

    async fn heads_of(&self, blocks: &[BlockNo]) -> Result<Vec<Head>, StoreError> {
        reading!(self, heads_of, blocks)
    }

    async fn block(&self, block: BlockNo) -> Result<Option<StoredBlock>, StoreError> {
        reading!(self, block, block)
    }

    async fn block_in_part(
        &self,
        block: BlockNo,
        keys: &[RecordKey],
    ) -> Result<Option<StoredBlock>, StoreError> {
        reading!(self, block_in_part, block, keys)
    }

    async fn find_meter(&self, meter_id: &MeterId) -> Result<Option<IndexedMeter>, StoreError> {
        reading!(self, find_meter, meter_id)
    }

    async fn find_meters(&self, meter_ids: &[MeterId]) -> Result<Vec<IndexedMeter>, StoreError> {
        reading!(self, find_meters, meter_ids)
    }

    async fn find_title(&self, title: &SystemTitle) -> Result<Option<IndexedMeter>, StoreError> {
        reading!(self, find_title, title)
    }

    async fn list_meters(
        &self,
        after: Option<&MeterId>,
        limit: u32,
    ) -> Result<Vec<IndexedMeter>, StoreError> {
        reading!(self, list_meters, after, limit)
    }

    async fn count_meters(&self) -> Result<u64, StoreError> {
        reading!(self, count_meters)
    }

    async fn holders_of(
        &self,
        fingerprints: &[Fingerprint],
        limit: u32,
    ) -> Result<Vec<Holder>, StoreError> {
        reading!(self, holders_of, fingerprints, limit)
    }

    fn follow(&self) -> Option<Box<dyn FollowBlocks>> {
        Some(Box::new(Follower::new(self.pool.clone())))
    }

    async fn position(&self, block: BlockNo) -> Result<Option<Position>, StoreError> {
        reading!(self, position_of, block)
    }

    async fn positions(&self) -> Result<Positions, StoreError> {
        reading!(self, positions)
    }

    async fn standby_lag(&self) -> Result<Option<StandbyLag>, StoreError> {
        reading!(self, standby_lag)
    }

    async fn timeline(&self) -> Result<Option<Timeline>, StoreError> {
        reading!(self, timeline)
    }

    async fn takes_changes(&self) -> Result<(), StoreError> {
        reading!(self, takes_changes)
    }

    async fn role(&self) -> Result<RoleRow, StoreError> {
        reading!(self, role::role)
    }

    async fn restore_state(&self) -> Result<RestoreState, StoreError> {
        reading!(self, whole::restore_state)
    }

    async fn role_records(&self) -> Result<Vec<SignedRoleRecord>, StoreError> {
        reading!(self, role::records)
    }

    async fn peers(&self) -> Result<Vec<SignedPeer>, StoreError> {
        reading!(self, sites::peers)
    }

    async fn changes_after(
        &self,
        block: BlockNo,
        after: Position,
    ) -> Result<Option<BlockChanges>, StoreError> {
        reading!(self, sites::changes_after, block, after)
    }

    async fn divergence(&self, asked: DivergenceAsked) -> Result<Vec<Divergent>, StoreError> {
        reading!(self, sites::divergence, asked)
    }

    async fn count_undecided(&self) -> Result<u64, StoreError> {
        reading!(self, sites::count_undecided)
    }

    async fn count_undecided_of(&self, site: &str) -> Result<u64, StoreError> {
        reading!(self, sites::count_undecided_of, site)
    }

    async fn strange_records(&self, known: &[[u8; 2]], limit: u32) -> Result<Strange, StoreError> {
        reading!(self, papers::strange_records, known, limit)
    }

    async fn follower_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
        follower::lock(&self.pool, follower::FOLLOWER_LOCK).await
    }

    async fn followed_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
        follower::lock(&self.pool, follower::FOLLOWED_LOCK).await
    }

    async fn is_followed(&self) -> Result<bool, StoreError> {
        reading!(self, follower::is_followed)
    }

    async fn close(&self) {
        // A connection that hangs longer is ended by the process.
        let _ = timeout(CLOSE_PATIENCE, self.pool.close()).await;
    }
}

#[async_trait]
impl AuditStore for PostgresStore {
    async fn audit_chains(&self) -> Result<Vec<ChainTip>, StoreError> {
        reading!(self, audit::chains)
    }

    async fn audit_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        reading!(self, audit::events, node, after, limit)
    }

    async fn audit_checkpoints(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreError> {
        reading!(self, audit::checkpoints, node, after, limit)
    }

    async fn last_audit_checkpoint(&self, node: &NodeId) -> Result<Option<Checkpoint>, StoreError> {
        reading!(self, audit::last_checkpoint, node)
    }

    async fn add_audit_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let outcome =
            within(COMMIT_PATIENCE, audit::add_checkpoint(&mut connection, checkpoint)).await;
        written(&mut connection, outcome).await
    }

    async fn head_table(&self) -> Result<Option<SignedHeadTable>, StoreError> {
        reading!(self, audit::head_table)
    }

    async fn put_head_table(
        &self,
        expected: Option<u64>,
        table: &SignedHeadTable,
    ) -> Result<bool, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let work = audit::put_head_table(&mut connection, expected, table);
        let outcome = within(COMMIT_PATIENCE, work).await;
        let_go(&mut connection, &outcome);
        outcome
    }
}

#[async_trait]
impl CounterStore for PostgresStore {
    async fn counter_mark(&self, block: BlockNo) -> Result<Option<StoredMark>, StoreError> {
        reading!(self, counters::mark, block)
    }

    async fn counter_marks(&self) -> Result<Vec<StoredMark>, StoreError> {
        reading!(self, counters::marks)
    }

    async fn put_counter_mark(
        &self,
        expected: Option<&StoredMark>,
        mark: &StoredMark,
    ) -> Result<bool, StoreError> {
        rules::check_mark(expected, mark)?;
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let (mut has_begun, mut done) = (false, false);
        let attempt = async {
            let mut whole = connection.begin_with(role::BEGIN_IN_ROLE).await?;
            has_begun = true;
            done = counters::put_mark(&mut whole, expected, mark).await?;
            Ok(whole.commit().await?)
        };
        let first = Some(mark.mark.block);
        let attempt = async { attempt.await.map_err(|error: WriteError| error.of_commit(first)) };
        let outcome = within(COMMIT_PATIENCE, attempt).await;
        if !has_begun {
            // It did not get the role's lock: its transaction is aborted, and nobody else knows that.
            connection.close_on_drop();
        }
        written(&mut connection, outcome).await?;
        Ok(done)
    }

    async fn witnessed_marks(&self, site: &str) -> Result<Vec<(BlockNo, Witnessed)>, StoreError> {
        reading!(self, counters::witnessed, site)
    }

    async fn witness_marks(
        &self,
        site: &str,
        marks: &[(BlockNo, Witnessed)],
    ) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let work = counters::witness(&mut connection, site, marks);
        let outcome = within(COMMIT_PATIENCE, work).await;
        written(&mut connection, outcome).await
    }
}

#[async_trait]
impl FloorStore for PostgresStore {
    async fn floors(&self, block: BlockNo) -> Result<Vec<FloorRow>, StoreError> {
        reading!(self, floors::of_block, block)
    }

    async fn floors_after(
        &self,
        place: &FloorPlace,
        but: &NodeId,
        limit: u32,
    ) -> Result<Vec<FloorRow>, StoreError> {
        reading!(self, floors::after, place, but, limit)
    }

    async fn floor_run(&self, node: &NodeId) -> Result<Option<FloorRun>, StoreError> {
        reading!(self, floors::run, node)
    }

    async fn put_floors(&self, rows: &[FloorRow], run: &FloorRun) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let work = async {
            let mut whole = connection.begin().await?;
            floors::put(&mut whole, rows, run).await?;
            Ok(whole.commit().await?)
        };
        let work = async { work.await.map_err(|error: WriteError| error.of_commit(None)) };
        let outcome = within(COMMIT_PATIENCE, work).await;
        written(&mut connection, outcome).await
    }
}

#[async_trait]
impl PaperStore for PostgresStore {
    async fn papers(&self) -> Result<Vec<Paper>, StoreError> {
        reading!(self, papers::papers)
    }

    async fn put_paper(&self, paper: &Paper) -> Result<bool, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let outcome = within(COMMIT_PATIENCE, papers::put_paper(&mut connection, paper)).await;
        let_go(&mut connection, &outcome);
        outcome
    }
}

#[async_trait]
impl WriteStore for PostgresStore {
    async fn create_domain(&self, founding: &Founding) -> Result<(), StoreError> {
        self.found(founding, true).await
    }

    async fn complete_domain(&self, founding: &Founding) -> Result<(), StoreError> {
        self.found(founding, false).await
    }

    async fn commit(
        &self,
        changes: &[BlockChange],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.write(Work::Commit(changes), audit).await
    }

    async fn adopt(
        &self,
        adoptions: &[BlockAdoption],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.write(Work::Adopt(adoptions), audit).await
    }

    async fn change_role(&self, step: &RoleStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.write(Work::ChangeRole(step), audit).await
    }

    async fn put_peer(&self, step: &PeerStep, audit: ChainLink<'_>) -> Result<(), StoreError> {
        self.write(Work::PutPeer(step), audit).await
    }

    async fn put_divergence(
        &self,
        divergent: &[Divergent],
        audit: ChainLink<'_>,
    ) -> Result<(), StoreError> {
        self.write(Work::PutDivergence(divergent), audit).await
    }
}

impl PostgresStore {
    /// Copies rows in and sets the mark, if there is one, in one transaction that nothing else is under way beside.
    async fn load(
        &self,
        tables: &[(&Table, &[Rows])],
        rolled_back: Option<&RollBack>,
    ) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let work = async {
            let mut whole = connection.begin_with(role::BEGIN_ALONE).await?;
            for (table, rows) in tables {
                whole::copy_in(&mut whole, table, rows).await?;
            }
            if let Some(rolled_back) = rolled_back {
                whole::mark(&mut whole, rolled_back).await?;
            }
            Ok(whole.commit().await?)
        };
        let outcome = work.await.map_err(|error: WriteError| error.of_commit(None));
        written(&mut connection, outcome).await
    }
}

#[async_trait]
impl WholeStore for PostgresStore {
    fn schema(&self) -> u32 {
        open::SCHEMA
    }

    async fn copy_out(&self, to: mpsc::Sender<Part>) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let outcome = whole::copy_out(&mut connection, Pieces::new(to)).await;
        let_go(&mut connection, &outcome);
        outcome
    }

    async fn begin_copy_in(&self, what: &str) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await.map_err(classify)?;
        let work = async {
            let mut whole = connection.begin_with(role::BEGIN_ALONE).await?;
            whole::begin_copy_in(&mut whole, what).await?;
            Ok(whole.commit().await?)
        };
        let outcome = work.await.map_err(|error: WriteError| error.of_commit(None));
        written(&mut connection, outcome).await
    }

    async fn copy_in(&self, table: &Table, rows: &[Rows]) -> Result<(), StoreError> {
        self.load(&[(table, rows)], None).await
    }

    async fn end_copy_in(
        &self,
        last: &[(Table, Rows)],
        rolled_back: &RollBack,
    ) -> Result<(), StoreError> {
        let last: Vec<(&Table, &[Rows])> =
            last.iter().map(|(table, rows)| (table, std::slice::from_ref(rows))).collect();
        self.load(&last, Some(rolled_back)).await
    }

    async fn mark_rolled_back(&self, rolled_back: &RollBack) -> Result<(), StoreError> {
        self.load(&[], Some(rolled_back)).await
    }
}
