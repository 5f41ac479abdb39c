//! The store on SQLite: one file, one writer, a few readers.
//!
//! Durable, then said: a commit returns after its pages and its commit frame are synced (WAL, FULL).
//! After a failed sync nothing more is written: the operating system has dropped the pages that it
//! could not write, so that a later success would prove nothing. `app` hears of it through
//! [`WriteStore::until_failed`] and ends the process.

mod audit;
mod columns;
mod index;
mod open;
mod read;
mod write;

use async_trait::async_trait;
use sqlx::{
    Connection as _, Sqlite, SqliteConnection, SqlitePool,
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tokio::sync::{Mutex, MutexGuard, watch};

pub use open::{Config, OpenError};

use self::{
    columns::{classify, is_disk_failure},
    write::WriteError,
};
use super::{
    AuditStore, BlockChange, ChainLink, Founding, Holder, MeterPlace, Positions, ReadStore,
    StoreError, StoredBlock, WriteStore, rules,
};
use crate::domain::{
    BlockNo, DomainRecord, Fingerprint, Head, MeterId,
    audit::{ChainTip, Checkpoint, NodeId, StoredEvent},
};

/// Reading connections, a thread each: enough for two cores to read while others wait for the disk.
const READERS: u32 = 4;

/// Changed blocks and records after which the log is copied into the file: about 10 MiB of log, which
/// a start after a crash reads through in well under a second.
const CHANGES_A_CHECKPOINT: usize = 2_000;

/// The store in one SQLite file.
pub struct SqliteStore {
    readers: SqlitePool,
    /// `None` while a write runs, and after one that did not end as it should: its connection may be
    /// within a transaction, so it is dropped (which rolls back) and the next write opens its own.
    writer: Mutex<Option<Writer>>,
    writer_options: SqliteConnectOptions,
    failure: watch::Sender<Option<String>>,
}

struct Writer {
    connection: SqliteConnection,
    changes_since_checkpoint: usize,
}

/// A write that has begun. Dropped before its end, it rolls back.
struct Begun<'a> {
    slot: MutexGuard<'a, Option<Writer>>,
    writer: Writer,
}

impl SqliteStore {
    /// Opens the file, makes it if `config` allows it, brings its schema to this program's.
    pub async fn open(config: Config) -> Result<Self, OpenError> {
        open::prepare_file(&config)?;
        let writer_options = open::writer_options(&config.path);
        let mut connection = open::connect(&writer_options).await?;
        open::migrate(&mut connection, &config.path).await?;
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
        let writer = Writer { connection, changes_since_checkpoint: 0 };
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

    async fn new_writer(&self) -> Result<Writer, StoreError> {
        let connection = open::connect(&self.writer_options).await;
        let connection =
            connection.map_err(|error| StoreError::Unreachable { reason: error.to_string() })?;
        Ok(Writer { connection, changes_since_checkpoint: 0 })
    }

    /// Commits if all went well, rolls back if not. `changes`: how much was written.
    async fn end(
        &self,
        mut begun: Begun<'_>,
        outcome: Result<(), WriteError>,
        changes: usize,
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
            self.checkpoint_if_due(&mut begun.writer, changes).await;
        }
        *begun.slot = Some(begun.writer);
        Ok(outcome?)
    }

    /// What was committed is safe in the log, whatever becomes of its copy; but the disk is watched.
    async fn checkpoint_if_due(&self, writer: &mut Writer, changes: usize) {
        writer.changes_since_checkpoint += changes;
        if writer.changes_since_checkpoint < CHANGES_A_CHECKPOINT {
            return;
        }
        match write::checkpoint(&mut writer.connection).await {
            Ok(()) => writer.changes_since_checkpoint = 0,
            Err(error) => self.notice(&error),
        }
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

#[async_trait]
impl ReadStore for SqliteStore {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    async fn domain(&self) -> Result<Option<DomainRecord>, StoreError> {
        read::domain(&mut *self.reader().await?).await
    }

    async fn heads(&self) -> Result<Vec<Head>, StoreError> {
        read::heads(&mut *self.reader().await?).await
    }

    async fn block(&self, block: BlockNo) -> Result<Option<StoredBlock>, StoreError> {
        // Dropped at the end: it only reads, and rolling back is ending.
        let mut moment = self.readers.begin().await.map_err(classify)?;
        read::block(&mut moment, block).await
    }

    async fn find_meter(&self, meter_id: &MeterId) -> Result<Option<MeterPlace>, StoreError> {
        read::find_meter(&mut *self.reader().await?, meter_id).await
    }

    async fn list_meters(
        &self,
        after: Option<&MeterId>,
        limit: u32,
    ) -> Result<Vec<MeterPlace>, StoreError> {
        read::list_meters(&mut *self.reader().await?, after, limit).await
    }

    async fn count_meters(&self) -> Result<u64, StoreError> {
        read::count_meters(&mut *self.reader().await?).await
    }

    async fn holders_of(
        &self,
        fingerprints: &[Fingerprint],
        limit: u32,
    ) -> Result<Vec<Holder>, StoreError> {
        read::holders_of(&mut *self.reader().await?, fingerprints, limit).await
    }

    async fn positions(&self) -> Result<Positions, StoreError> {
        read::positions(&mut *self.reader().await?).await
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
        audit::chains(&mut *self.reader().await?).await
    }

    async fn audit_events(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        audit::events(&mut *self.reader().await?, node, after, limit).await
    }

    async fn audit_checkpoints(
        &self,
        node: &NodeId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<Checkpoint>, StoreError> {
        audit::checkpoints(&mut *self.reader().await?, node, after, limit).await
    }

    async fn last_audit_checkpoint(&self, node: &NodeId) -> Result<Option<Checkpoint>, StoreError> {
        audit::last_checkpoint(&mut *self.reader().await?, node).await
    }

    async fn add_audit_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let mut begun = self.begin().await?;
        let outcome = audit::add_checkpoint(&mut begun.writer.connection, checkpoint).await;
        self.end(begun, outcome, 1).await
    }
}

#[async_trait]
impl WriteStore for SqliteStore {
    async fn create_domain(&self, founding: &Founding) -> Result<(), StoreError> {
        let Founding { domain, blocks } = founding;
        rules::check(blocks)?;
        let mut begun = self.begin().await?;
        let connection = &mut begun.writer.connection;
        let mut outcome = write::create_domain(connection, domain).await;
        if outcome.is_ok() {
            outcome = write::commit(connection, blocks).await;
        }
        self.end(begun, outcome, 1 + blocks.len()).await
    }

    async fn commit(
        &self,
        changes: &[BlockChange],
        audit: Option<ChainLink<'_>>,
    ) -> Result<(), StoreError> {
        rules::check(changes)?;
        let mut written = changes.iter().map(|change| 1 + change.records.len()).sum();
        if let Some(link) = &audit {
            rules::check_audit(link)?;
            written += link.events.len();
        }
        let mut begun = self.begin().await?;
        let connection = &mut begun.writer.connection;
        let mut outcome = write::commit(connection, changes).await;
        if let (Ok(()), Some(link)) = (&outcome, audit) {
            outcome = audit::append(connection, &link.behind, link.events).await;
        }
        self.end(begun, outcome, written).await
    }

    async fn until_failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        loop {
            if let Some(reason) = failure.borrow_and_update().clone() {
                return reason;
            }
            // Cannot end: `self` keeps the sender.
            let _ = failure.changed().await;
        }
    }
}
