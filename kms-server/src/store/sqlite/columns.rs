//! From rows to our types, and from the library's errors to ours.

use sqlx::{Row as _, sqlite::SqliteRow};

use crate::store::StoreError;
use kms_core::{BlockNo, Epoch, Head, Position, RecordKey, Sequence, StoredRecord};

/// Primary result codes of SQLite (the low byte of an extended one).
const SQLITE_IOERR: i32 = 10;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_NOTADB: i32 = 26;

/// The store's error for one of the library: by what the caller can do about it.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnIndexOutOfBounds { .. } => {
            StoreError::Damaged(error.to_string())
        }
        // "Malformed" (SQLITE_CORRUPT) among them: SQLite says that of one read that failed with EIO, too,
        // and the next may work. What is damaged fails its MAC.
        _ => StoreError::Unreachable { reason: error.to_string() },
    }
}

/// Whether the disk failed, or what is on it: after that a later success proves nothing, since the
/// operating system forgets the pages that it could not write.
pub(super) fn is_disk_failure(error: &sqlx::Error) -> bool {
    matches!(primary_code(error), Some(SQLITE_IOERR | SQLITE_CORRUPT | SQLITE_NOTADB))
}

/// Whether another connection was in the way.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    const SQLITE_BUSY: i32 = 5;
    const SQLITE_LOCKED: i32 = 6;
    matches!(primary_code(error), Some(SQLITE_BUSY | SQLITE_LOCKED))
}

/// Whether a second try may do: another process holds the file, or memory, disk or room failed just now.
/// Damage stays.
pub(super) fn is_passing(error: &sqlx::Error) -> bool {
    const SQLITE_NOMEM: i32 = 7;
    const SQLITE_FULL: i32 = 13;
    const SQLITE_CANTOPEN: i32 = 14;
    const SQLITE_PROTOCOL: i32 = 15;
    match primary_code(error) {
        Some(_) if is_busy(error) => true,
        Some(code) => [SQLITE_NOMEM, SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN, SQLITE_PROTOCOL]
            .contains(&code),
        None => matches!(
            error,
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed
        ),
    }
}

fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<i32>().ok().map(|extended| extended & 0xFF)
}

/// Column `at` as a number of the type that we keep it in.
pub(super) fn number<T: TryFrom<i64>>(row: &SqliteRow, at: usize) -> Result<T, StoreError> {
    let value: i64 = row.try_get(at).map_err(classify)?;
    T::try_from(value).map_err(|_| StoreError::Damaged(format!("{value} is out of range")))
}

/// Column `at` as bytes.
pub(super) fn bytes(row: &SqliteRow, at: usize) -> Result<&[u8], StoreError> {
    row.try_get(at).map_err(classify)
}

/// Column `at` as exactly `N` bytes.
pub(super) fn array<const N: usize>(row: &SqliteRow, at: usize) -> Result<[u8; N], StoreError> {
    let found = bytes(row, at)?;
    found
        .try_into()
        .map_err(|_| StoreError::Damaged(format!("{} bytes where {N} should be", found.len())))
}

/// Column `at` as a record's key.
pub(super) fn record_key(row: &SqliteRow, at: usize) -> Result<RecordKey, StoreError> {
    let found = bytes(row, at)?;
    RecordKey::from_bytes(found)
        .ok_or_else(|| StoreError::Damaged(format!("a record's key of {} bytes", found.len())))
}

/// Column `at` as exactly `N` bytes, or nothing.
pub(super) fn optional_array<const N: usize>(
    row: &SqliteRow,
    at: usize,
) -> Result<Option<[u8; N]>, StoreError> {
    let is_there = row.try_get::<Option<&[u8]>, _>(at).map_err(classify)?.is_some();
    is_there.then(|| array(row, at)).transpose()
}

/// Column `at` as text.
pub(super) fn text(row: &SqliteRow, at: usize) -> Result<&str, StoreError> {
    row.try_get(at).map_err(classify)
}

/// Columns `at` and `at + 1`.
pub(super) fn position(row: &SqliteRow, at: usize) -> Result<Position, StoreError> {
    Ok(Position { epoch: Epoch(number(row, at)?), sequence: Sequence(number(row, at + 1)?) })
}

/// The columns of [`head`], in its order.
macro_rules! head_columns {
    () => {
        "block, epoch, sequence, secret_version, count, digest, mac"
    };
}
pub(super) use head_columns;

/// A head from [`head_columns`].
pub(super) fn head(row: &SqliteRow) -> Result<Head, StoreError> {
    Ok(Head {
        block: BlockNo(number(row, 0)?),
        position: position(row, 1)?,
        secret_version: number(row, 3)?,
        count: number(row, 4)?,
        digest: array(row, 5)?,
        mac: array(row, 6)?,
    })
}

/// A record from `key, epoch, sequence, secret_version, mac, body`.
pub(super) fn record(row: &SqliteRow) -> Result<StoredRecord, StoreError> {
    Ok(StoredRecord {
        key: record_key(row, 0)?,
        position: position(row, 1)?,
        secret_version: number(row, 3)?,
        mac: array(row, 4)?,
        body: bytes(row, 5)?.to_vec(),
    })
}

/// A number as the database keeps it; `store::rules` has checked that it fits.
pub(super) fn signed(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Damaged(format!("{number} does not fit")))
}

/// A number to compare with: no row is beyond the highest that the database keeps.
pub(super) fn bounded(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
