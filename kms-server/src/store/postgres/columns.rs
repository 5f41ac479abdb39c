//! From rows to our types, and from the library's errors to ours.

use std::io::ErrorKind;

use sqlx::{Row as _, postgres::PgRow};

use crate::store::StoreError;
use kms_core::{BlockNo, Epoch, Head, Position, RecordKey, Sequence};

/// Integrity is checked by our own statements first: what the database still finds is no state that
/// this program leaves behind. What it says of its own files (XX) is no such state: a read that failed
/// may work the next time, and what is damaged fails its MAC.
const INTEGRITY: &str = "23";
const READ_ONLY: &str = "25006";

/// The store's error for one of the library: by what the caller can do about it.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    let code = code(&error);
    match (&error, code.as_str()) {
        (_, READ_ONLY) => StoreError::ReadOnly,
        (_, code) if code.starts_with(INTEGRITY) => StoreError::Damaged(error.to_string()),
        (sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnIndexOutOfBounds { .. }, _) => {
            StoreError::Damaged(error.to_string())
        }
        (sqlx::Error::PoolTimedOut, _) => {
            StoreError::Unreachable { reason: "no connection to it became free in time".into() }
        }
        _ => StoreError::Unreachable { reason: error.to_string() },
    }
}

/// Whether the database gave up a transaction for another one's sake: a deadlock, a row that stayed
/// locked, a snapshot that no longer held. Nothing was written.
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    const DEADLOCK: &str = "40P01";
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    const SERIALIZATION_FAILURE: &str = "40001";
    [DEADLOCK, LOCK_NOT_AVAILABLE, SERIALIZATION_FAILURE].contains(&code(error).as_str())
}

/// Whether the database can't be had now and may be later: no way there, or a server that has said so.
pub(super) fn is_away(error: &sqlx::Error) -> bool {
    /// Connection exceptions, insufficient resources, operator intervention (it starts or stops), system
    /// errors.
    const CLASSES: [&str; 4] = ["08", "53", "57", "58"];
    match error {
        sqlx::Error::Io(error) => !matches!(
            error.kind(),
            // TLS's verdict on a certificate comes as the first; the others are of our own making.
            ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::PermissionDenied
        ),
        sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
        error => CLASSES.iter().any(|class| code(error).starts_with(class)),
    }
}

/// SQLSTATE; empty if the error is not the database's.
fn code(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.map(|code| code.into_owned()).unwrap_or_default()
}

/// Column `at` as a number of the type that we keep it in.
pub(super) fn number<T: TryFrom<i64>>(row: &PgRow, at: usize) -> Result<T, StoreError> {
    let value: i64 = row.try_get(at).map_err(classify)?;
    T::try_from(value).map_err(|_| StoreError::Damaged(format!("{value} is out of range")))
}

/// Column `at` as bytes.
pub(super) fn bytes(row: &PgRow, at: usize) -> Result<&[u8], StoreError> {
    row.try_get(at).map_err(classify)
}

/// Column `at` as exactly `N` bytes.
pub(super) fn array<const N: usize>(row: &PgRow, at: usize) -> Result<[u8; N], StoreError> {
    let found = bytes(row, at)?;
    found
        .try_into()
        .map_err(|_| StoreError::Damaged(format!("{} bytes where {N} should be", found.len())))
}

/// Column `at` as a record's key.
pub(super) fn record_key(row: &PgRow, at: usize) -> Result<RecordKey, StoreError> {
    let found = bytes(row, at)?;
    RecordKey::from_bytes(found)
        .ok_or_else(|| StoreError::Damaged(format!("a record's key of {} bytes", found.len())))
}

/// Column `at` as exactly `N` bytes, or nothing.
pub(super) fn optional_array<const N: usize>(
    row: &PgRow,
    at: usize,
) -> Result<Option<[u8; N]>, StoreError> {
    let is_there = row.try_get::<Option<&[u8]>, _>(at).map_err(classify)?.is_some();
    is_there.then(|| array(row, at)).transpose()
}

/// Column `at` as text.
pub(super) fn text(row: &PgRow, at: usize) -> Result<&str, StoreError> {
    row.try_get(at).map_err(classify)
}

/// Columns `at` and `at + 1`.
pub(super) fn position(row: &PgRow, at: usize) -> Result<Position, StoreError> {
    Ok(Position { epoch: Epoch(number(row, at)?), sequence: Sequence(number(row, at + 1)?) })
}

/// A head from `block, epoch, sequence, secret_version, count, digest, mac`.
pub(super) fn head(row: &PgRow) -> Result<Head, StoreError> {
    Ok(Head {
        block: BlockNo(number(row, 0)?),
        position: position(row, 1)?,
        secret_version: number(row, 3)?,
        count: number(row, 4)?,
        digest: array(row, 5)?,
        mac: array(row, 6)?,
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
