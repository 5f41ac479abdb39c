//! The store on SQLite: one file, one writer, a few readers.
//!
//! Durable, then said: a commit returns after its pages and its commit frame are synced (WAL, FULL).
//! After a failed sync nothing more is written: the operating system has dropped the pages that it could not write, so
//! that a later success would prove nothing. `app` hears of it through [`WriteStore::until_failed`] and ends the process.

mod approvals;
mod audit;
mod columns;
mod counters;
mod failure;
mod floors;
mod index;
mod keks;
mod open;
mod papers;
mod peer_audit;
mod pieces;
mod read;
mod role;
mod rows;
mod seals;
mod sites;
mod tokens;
mod waiting;
mod whole;
mod write;
mod writer;

use std::{path::PathBuf, time::Instant};

use async_trait::async_trait;
use sqlx::{
    Connection as _, Sqlite, SqlitePool,
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tokio::sync::{Mutex, MutexGuard, mpsc, watch};

pub use open::{Config, OpenError};

use self::{
    columns::{classify, is_disk_failure},
    failure::WriteError,
    writer::Writer,
};
use super::{
    AuditStore, BlockChange, ChainLink, Founding, Holder, IndexedMeter, Positions, ReadStore,
    StoreError, StoredBlock, WriteStore,
    counters::CounterStore,
    floors::{FloorRun, FloorStore},
    papers::{Paper, PaperStore, Strange},
    rules,
    sites::{
        AloneLock, BlockAdoption, BlockChanges, DivergenceAsked, Divergent, FollowerLock, PeerStep,
        RoleRow, RoleStep,
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

/// Reading connections, a thread each: enough for two cores to read while others wait for the disk.
const READERS: u32 = 4;

/// The store in one SQLite file.
pub struct SqliteStore {
    readers: SqlitePool,
    /// `None` while a write runs, and after one that did not end as it should: its connection may be
    /// within a transaction, so it is dropped (which rolls back) and the next write opens its own.
    writer: Mutex<Option<Writer>>,
    writer_options: SqliteConnectOptions,
    failure: watch::Sender<Option<String>>,
}

/// A write that has begun. Dropped before its end, it rolls back.
struct Begun<'a> {
    slot: MutexGuard<'a, Option<Writer>>,
    writer: Writer,
}

impl SqliteStore {
    /// Opens the file, makes it if `config` allows it, brings its schema to this program's.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        Self::open_with(config, true).await
    }

    /// The same, to be read beside a server: a file with another schema than this program's is refused.
    pub async fn open_as_it_is(config: Config) -> Result<Self, OpenError> {
        Self::open_with(config, false).await
    }

    async fn open_with(config: Config, migrates: bool) -> Result<Self, OpenError> {
        open::prepare_file(&config)?;
        let writer_options = open::writer_options(&config.path);
        let mut connection = open::connect(&writer_options).await?;
        open::migrate(&mut connection, &config.path, migrates).await?;
        // The log that a killed process has left: a restart each minute would add to it otherwise.
        let cut = writer::cut_log(&mut connection).await;
        cut.map_err(|source| OpenError::Failed { path: config.path.clone(), source })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false) // A thread of this process; it has nowhere to go.
            .after_connect(|connection, _| {
                Box::pin(async move {
                    match open::broken_pragma(connection).await? {
                        None => Ok(()),
                        Some(broken) => Err(sqlx::Error::Configuration(broken.into())),
                    }
                })
            })
            .connect_with(open::reader_options(&config.path))
            .await
            .map_err(|source| OpenError::Failed { path: config.path.clone(), source })?;
        let writer = Writer::new(connection);
        Ok(Self {
            readers,
            writer: Mutex::new(Some(writer)),
            writer_options,
            failure: watch::Sender::new(None),
        })
    }

    /// Why nothing more is written, if the disk has failed.
    pub fn failed(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    async fn reader(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        self.readers.acquire().await.map_err(classify)
    }

    async fn begin(&self) -> Result<Begun<'_>, StoreError> {
        let mut slot = self.writer.lock().await;
        if let Some(reason) = self.failed() {
            return Err(StoreError::Unreachable { reason });
        }
        let mut writer = match slot.take() {
            Some(writer) => writer,
            None => self.new_writer().await?,
        };
        // Immediate: a transaction that began by reading could not become a writing one later, if
        // another process wrote in between.
        let begun = sqlx::query("BEGIN IMMEDIATE").execute(&mut writer.connection).await;
        begun.inspect_err(|error| self.notice(error)).map_err(classify)?;
        Ok(Begun { slot, writer })
    }

    /// Does `work` with its events, or nothing.
    async fn write(&self, work: Work<'_>, audit: ChainLink<'_>) -> Result<(), StoreError> {
        work.check(&audit)?;
        let mut begun = self.begin().await?;
        let connection = &mut begun.writer.connection;
        let mut outcome = write::work(connection, work, &audit).await;
        if outcome.is_ok() {
            outcome = audit::append(connection, &audit.behind, audit.events).await;
        }
        self.end(begun, outcome).await
    }

    async fn new_writer(&self) -> Result<Writer, StoreError> {
        let connection = open::connect(&self.writer_options).await;
        let connection =
            connection.map_err(|error| StoreError::Unreachable { reason: error.to_string() })?;
        Ok(Writer::new(connection))
    }

    /// Commits if all went well, rolls back if not.
    async fn end(
        &self,
        mut begun: Begun<'_>,
        outcome: Result<(), WriteError>,
    ) -> Result<(), StoreError> {
        let last = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = sqlx::query(last).execute(&mut begun.writer.connection).await;
        if let Err(WriteError::Failed(error) | WriteError::Audit(error)) = &outcome {
            self.notice(error);
        }
        if let Err(error) = ended {
            self.notice(&error);
            outcome?;
            return Err(classify(error));
        }
        if outcome.is_ok() {
            // The commit is safe in the log, whatever becomes of its copy; but the disk is watched.
            let tidied = begun.writer.tidy_up(&self.log(), Instant::now()).await;
            let _ = tidied.inspect_err(|error| self.notice(error));
        }
        *begun.slot = Some(begun.writer);
        Ok(outcome?)
    }

    /// The log beside the file.
    fn log(&self) -> PathBuf {
        let mut log = self.writer_options.get_filename().as_os_str().to_owned();
        log.push("-wal");
        log.into()
    }

    fn notice(&self, error: &sqlx::Error) {
        if is_disk_failure(error) {
            let reason =
                format!("the disk under the database failed, nothing more is written: {error}");
            tracing::error!(%error, "the disk under the database failed");
            self.failure.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert(reason);
                is_first
            });
        }
    }
}

/// Writes in a transaction.
macro_rules! writing {
    ($self:ident, $module:ident :: $query:ident $(, $argument:expr)*) => {{
        let mut begun = $self.begin().await?;
        let outcome = $module::$query(&mut begun.writer.connection $(, $argument)*).await;
        $self.end(begun, outcome).await
    }};
}

/// The same, of what tells whether it was done.
macro_rules! putting {
    ($self:ident, $module:ident :: $query:ident $(, $argument:expr)*) => {{
        let mut begun = $self.begin().await?;
        let put = $module::$query(&mut begun.writer.connection $(, $argument)*).await;
        let (done, outcome) = put.map_or_else(|error| (false, Err(error)), |done| (done, Ok(())));
        $self.end(begun, outcome).await?;
        Ok(done)
    }};
}

/// Runs one of `read`'s or `audit`'s functions on a reading connection. A read that the disk failed is
/// done once more: the next often works, and nothing was changed.
macro_rules! reading {
    ($self:ident, $query:ident $(, $argument:expr)*) => {
        reading!($self, read::$query $(, $argument)*)
    };
    ($self:ident, $module:ident :: $query:ident $(, $argument:expr)*) => {{
        let mut connection = $self.reader().await?;
        match $module::$query(&mut connection $(, $argument)*).await {
            Err(StoreError::Unreachable { reason }) => {
                tracing::warn!(reason, "reading the database failed; once more");
                let outcome = $module::$query(&mut connection $(, $argument)*).await;
                if outcome.is_err() {
                    connection.close_on_drop();
                }
                outcome
            }
            outcome => outcome,
        }
    }};
}

#[async_trait]
impl ReadStore for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
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
        read::find_title(&mut *self.reader().await?, title).await
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

    async fn positions(&self) -> Result<Positions, StoreError> {
        reading!(self, positions)
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
        reading!(self, changes_after, block, after)
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
        Ok(Some(Box::new(AloneLock)))
    }

    async fn followed_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
        Ok(Some(Box::new(AloneLock)))
    }

    async fn is_followed(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// The last connection copies the log into the file.
    async fn close(&self) {
        self.readers.close().await;
        if let Some(writer) = self.writer.lock().await.take() {
            // Everything acknowledged is on disk already; what fails here is tidying up.
            let _ = writer.connection.close().await;
        }
    }
}

#[async_trait]
impl AuditStore for SqliteStore {
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
        writing!(self, audit::add_checkpoint, checkpoint)
    }

    async fn head_table(&self) -> Result<Option<SignedHeadTable>, StoreError> {
        audit::head_table(&mut *self.reader().await?).await
    }

    async fn put_head_table(
        &self,
        expected: Option<u64>,
        table: &SignedHeadTable,
    ) -> Result<bool, StoreError> {
        putting!(self, audit::put_head_table, expected, table)
    }
}

#[async_trait]
impl CounterStore for SqliteStore {
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
        putting!(self, counters::put_mark, expected, mark)
    }

    async fn witnessed_marks(&self, site: &str) -> Result<Vec<(BlockNo, Witnessed)>, StoreError> {
        reading!(self, counters::witnessed, site)
    }

    async fn witness_marks(
        &self,
        site: &str,
        marks: &[(BlockNo, Witnessed)],
    ) -> Result<(), StoreError> {
        writing!(self, counters::witness, site, marks)
    }
}

#[async_trait]
impl FloorStore for SqliteStore {
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
        writing!(self, floors::put, rows, run)
    }
}

#[async_trait]
impl PaperStore for SqliteStore {
    async fn papers(&self) -> Result<Vec<Paper>, StoreError> {
        reading!(self, papers::papers)
    }

    async fn put_paper(&self, paper: &Paper) -> Result<bool, StoreError> {
        putting!(self, papers::put_paper, paper)
    }
}

#[async_trait]
impl WriteStore for SqliteStore {
    async fn create_domain(&self, founding: &Founding) -> Result<(), StoreError> {
        rules::check(&founding.blocks)?;
        let mut begun = self.begin().await?;
        let connection = &mut begun.writer.connection;
        let mut outcome = write::create_domain(connection, founding).await;
        if outcome.is_ok() {
            outcome = write::found(connection, founding).await;
        }
        self.end(begun, outcome).await
    }

    async fn complete_domain(&self, founding: &Founding) -> Result<(), StoreError> {
        rules::check(&founding.blocks)?;
        let mut begun = self.begin().await?;
        let connection = &mut begun.writer.connection;
        let mut outcome = write::sign_domain(connection, &founding.domain).await;
        if outcome.is_ok() {
            outcome = write::found(connection, founding).await;
        }
        self.end(begun, outcome).await
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

    async fn until_failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        loop {
            if let Some(reason) = failure.borrow_and_update().clone() {
                return reason;
            }
            let _ = failure.changed().await; // Cannot end: `self` keeps the sender.
        }
    }
}

#[async_trait]
impl WholeStore for SqliteStore {
    fn schema(&self) -> u32 {
        open::SCHEMA
    }

    async fn copy_out(&self, to: mpsc::Sender<Part>) -> Result<(), StoreError> {
        whole::copy_out(&mut *self.reader().await?, Pieces::new(to)).await
    }

    async fn begin_copy_in(&self, what: &str) -> Result<(), StoreError> {
        writing!(self, whole::begin_copy_in, what)
    }

    async fn copy_in(&self, table: &Table, rows: &[Rows]) -> Result<(), StoreError> {
        writing!(self, whole::copy_in, table, rows)
    }

    async fn end_copy_in(
        &self,
        last: &[(Table, Rows)],
        rolled_back: &RollBack,
    ) -> Result<(), StoreError> {
        writing!(self, whole::end_copy_in, last, rolled_back)
    }

    async fn mark_rolled_back(&self, rolled_back: &RollBack) -> Result<(), StoreError> {
        self.end_copy_in(&[], rolled_back).await
    }
}
