//! Opening the file: its place, its permissions, its pragmas, its schema.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::Access;
use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

/// The file, and whether it may be new.
#[derive(Clone, Debug)]
pub struct Config {
    /// The database file. `-wal` and `-shm` files stand beside it.
    pub path: PathBuf,
    /// Make the file if there is none. Only `init` says so: a server that finds no database must not
    /// start with an empty one.
    pub create: bool,
}

/// Why the database was not opened. Each sentence says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such file.
    #[error("there is no database at {path}: run `kms-server init`, or correct [store] path")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// SQLite needs to create files beside the database.
    #[error(
        "cannot write to {path}: give it to the account that this service runs under \
         (chown ami_admin {path}), or correct [store] path"
    )]
    NotWritable {
        /// The directory or file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Somebody else can read or write the file.
    #[error(
        "the database {path} is open to other accounts (mode {mode:03o}): run `chmod 600 {path}`"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// SQLite did not take a setting that durability rests on.
    #[error(
        "the database does not hold `{name}`: wanted {wanted}, found {found}; \
         put it on a local file system, and let no other program have it open"
    )]
    Pragma {
        /// The pragma.
        name: &'static str,
        /// The value that was set.
        wanted: &'static str,
        /// The value that was read back.
        found: String,
    },
    /// Written by a newer program.
    #[error(
        "the database has schema {found}, and this program knows schemas up to {known}: \
         start the version that wrote it, or a later one"
    )]
    NewerSchema {
        /// The file's.
        found: i64,
        /// Ours.
        known: usize,
    },
    /// Written by an older program, and not to be changed now.
    #[error(
        "the database has schema {found}, and this program's is {known}: start this version's server first, or run the \
         version that wrote it"
    )]
    OlderSchema {
        /// The file's.
        found: i64,
        /// Ours.
        known: usize,
    },
    /// A database, but not one of ours.
    #[error("{path} is not a database of this service: correct [store] path")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// SQLite could not open or read it.
    #[error("cannot open the database {path}")]
    Failed {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        #[source]
        source: sqlx::Error,
    },
}

impl OpenError {
    fn of(path: &Path, source: sqlx::Error) -> Self {
        const SQLITE_NOTADB: &str = "26";
        let code = source.as_database_error().and_then(|error| error.code());
        if code.is_some_and(|code| code == SQLITE_NOTADB) {
            return Self::Foreign { path: path.to_owned() };
        }
        Self::Failed { path: path.to_owned(), source }
    }

    /// Whether it may open later as it is: another process has it locked, or the disk did not answer.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Failed { source, .. } => super::columns::is_passing(source),
            _ => false,
        }
    }
}

/// Settings that hold for each connection, as SQLite reads them back. WAL + FULL lost none of 35,543
/// acknowledged commits in power cuts; SQLite's usual settings lost some or thousands.
const PRAGMAS: [(&str, &str, &str); 4] = [
    ("journal_mode", "PRAGMA journal_mode", "wal"),
    ("synchronous", "PRAGMA synchronous", "2"),
    ("foreign_keys", "PRAGMA foreign_keys", "1"),
    ("busy_timeout", "PRAGMA busy_timeout", "5000"),
];

/// The longest wait of a connection for another process's lock. Within this process there is one writer.
const BUSY_TIMEOUT: Duration = Duration::from_millis(5_000);

/// The same, for a connection that was told not to wait.
pub(super) const WAIT: &str = "PRAGMA busy_timeout = 5000";

/// Rows that a connection's thread may run ahead of their reader: a block's, about.
const ROWS_AHEAD: usize = 256;

/// Prepared statements kept by a connection: seven sizes of each batched statement, and the rest.
const STATEMENTS_KEPT: usize = 128;

/// The schema, step by step; entry `n` leads from version `n` to `n + 1` and sets `user_version`.
const MIGRATIONS: [&str; 5] = [
    include_str!("../../../migrations/sqlite/0001_blocks.sql"),
    include_str!("../../../migrations/sqlite/0002_audit.sql"),
    include_str!("../../../migrations/sqlite/0003_heads.sql"),
    include_str!("../../../migrations/sqlite/0004_sites.sql"),
    include_str!("../../../migrations/sqlite/0005_transmitting.sql"),
];

/// The version that they lead to.
pub(super) const SCHEMA: u32 = MIGRATIONS.len() as u32;

/// "AMIK"; set by the first migration.
const APPLICATION_ID: i64 = 0x414D_494B;

/// The options of both kinds of connection.
fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false) // `prepare_file` has made it, with the right mode.
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(STATEMENTS_KEPT)
        .row_buffer_size(ROWS_AHEAD)
        .disable_statement_logging()
}

/// The one connection that writes. It checkpoints by itself (see `writer::cut_log`): SQLite's own
/// checkpoint hides a failed fsync.
pub(super) fn writer_options(path: &Path) -> SqliteConnectOptions {
    options(path).pragma("wal_autocheckpoint", "0").pragma("temp_store", "MEMORY")
}

/// Connections that can only read.
pub(super) fn reader_options(path: &Path) -> SqliteConnectOptions {
    options(path).pragma("query_only", "ON")
}

/// Makes the file if it may, and checks place and permissions before SQLite sees it: its own message
/// for all of this is "unable to open database file".
pub(super) fn prepare_file(config: &Config) -> Result<(), OpenError> {
    let path = &config.path;
    let directory = directory_of(path);
    if config.create {
        make_directory(directory)?;
    }
    match fs::metadata(path) {
        Ok(found) if found.mode() & 0o077 != 0 => {
            return Err(OpenError::Exposed { path: path.clone(), mode: found.mode() & 0o777 });
        }
        Ok(_) => may_write(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && config.create => {
            may_write(directory)?;
            create_file(path, directory)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing { path: path.clone() });
        }
        Err(source) => return Err(OpenError::NotWritable { path: path.clone(), source }),
    }
    may_write(directory)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn make_directory(directory: &Path) -> Result<(), OpenError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(directory)
        .map_err(|source| OpenError::NotWritable { path: directory.to_owned(), source })
}

fn create_file(path: &Path, directory: &Path) -> Result<(), OpenError> {
    let not_writable = |source| OpenError::NotWritable { path: directory.to_owned(), source };
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|file| file.sync_all()).map_err(not_writable)?;
    // The file's name is on disk before anything in it is acknowledged.
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(not_writable)
}

fn may_write(path: &Path) -> Result<(), OpenError> {
    rustix::fs::access(path, Access::WRITE_OK)
        .map_err(|source| OpenError::NotWritable { path: path.to_owned(), source: source.into() })
}

/// Connects, and reads the pragmas back.
pub(super) async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, OpenError> {
    let path = options.get_filename();
    let failed = |source| OpenError::of(path, source);
    let mut connection = SqliteConnection::connect_with(options).await.map_err(failed)?;
    match broken_pragma(&mut connection).await.map_err(failed)? {
        None => Ok(connection),
        Some(broken) => Err(broken),
    }
}

/// The first pragma that does not hold on `connection`.
pub(super) async fn broken_pragma(
    connection: &mut SqliteConnection,
) -> Result<Option<OpenError>, sqlx::Error> {
    for (name, query, wanted) in PRAGMAS {
        // SQLite answers some pragmas with a number and some with a word.
        let found = match sqlx::query_scalar::<_, i64>(query).fetch_one(&mut *connection).await {
            Ok(number) => number.to_string(),
            Err(sqlx::Error::ColumnDecode { .. }) => {
                sqlx::query_scalar::<_, String>(query).fetch_one(&mut *connection).await?
            }
            Err(error) => return Err(error),
        };
        if found != wanted {
            return Ok(Some(OpenError::Pragma { name, wanted, found }));
        }
    }
    Ok(None)
}

/// Brings the schema to ours; refuses a newer one and other people's databases.
pub(super) async fn migrate(
    connection: &mut SqliteConnection,
    path: &Path,
    may_change: bool,
) -> Result<(), OpenError> {
    let failed = |source| OpenError::of(path, source);
    // Immediate: of two processes that start at once, one migrates and the other then sees it done.
    let mut change = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let found = schema_version(&mut change, path).await?;
    let done = usize::try_from(found).unwrap_or(usize::MAX);
    let Some(missing) = MIGRATIONS.get(done..) else {
        return Err(OpenError::NewerSchema { found, known: MIGRATIONS.len() });
    };
    if !may_change && !missing.is_empty() {
        return Err(OpenError::OlderSchema { found, known: MIGRATIONS.len() });
    }
    for migration in missing {
        sqlx::raw_sql(*migration).execute(&mut *change).await.map_err(failed)?;
    }
    change.commit().await.map_err(failed)
}

async fn schema_version(connection: &mut SqliteConnection, path: &Path) -> Result<i64, OpenError> {
    let mut ask = async |query: &'static str| {
        sqlx::query_scalar::<_, i64>(query)
            .fetch_one(&mut *connection)
            .await
            .map_err(|source| OpenError::of(path, source))
    };
    let version = ask("PRAGMA user_version").await?;
    let application = ask("PRAGMA application_id").await?;
    let is_empty = ask("SELECT COUNT(*) FROM sqlite_schema").await? == 0;
    let is_ours = application == APPLICATION_ID && version > 0;
    let is_new = application == 0 && version == 0 && is_empty;
    if is_ours || is_new { Ok(version) } else { Err(OpenError::Foreign { path: path.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn verdict(options: SqliteConnectOptions) -> String {
        connect(&options).await.map(|_| ()).unwrap_err().to_string()
    }

    #[tokio::test]
    async fn each_pragma_that_does_not_hold_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        // A file each: a connection closes some time after it is dropped, and until then its file
        // can't leave WAL.
        let options = |name| options(&directory.path().join(name)).create_if_missing(true);
        connect(&options("good.db")).await.expect("as it should be");

        let relaxed = options("relaxed.db").synchronous(SqliteSynchronous::Normal);
        assert!(verdict(relaxed).await.contains("`synchronous`: wanted 2, found 1"));
        let loose = options("loose.db").foreign_keys(false);
        assert!(verdict(loose).await.contains("`foreign_keys`: wanted 1, found 0"));
        let hasty = options("hasty.db").busy_timeout(Duration::from_millis(1));
        assert!(verdict(hasty).await.contains("`busy_timeout`: wanted 5000, found 1"));
        let rollback = options("rollback.db").journal_mode(SqliteJournalMode::Delete);
        assert!(verdict(rollback).await.contains("`journal_mode`: wanted wal, found delete"));
    }

    #[tokio::test]
    async fn a_database_that_cannot_have_a_wal_is_refused() {
        let in_memory = options(Path::new(":memory:")).in_memory(true);
        assert!(verdict(in_memory).await.contains("`journal_mode`: wanted wal, found memory"));
    }
}
