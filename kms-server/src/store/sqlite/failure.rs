//! Failures of a write: what was decided, and what the library says.

use super::columns::classify;
use crate::store::StoreError;

/// Why a write was given up: a decision of ours, or a fault of the library. Only the second can mean
/// that the disk failed.
#[derive(Debug)]
pub(super) enum WriteError {
    /// Ours.
    Decided(StoreError),
    /// The library's.
    Failed(sqlx::Error),
    /// The library's, of a row of the audit log.
    Audit(sqlx::Error),
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Decided(error)
    }
}

impl From<sqlx::Error> for WriteError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<WriteError> for StoreError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Decided(error) => error,
            WriteError::Failed(error) => classify(error),
            WriteError::Audit(error) => StoreError::AuditNotWritten { reason: error.to_string() },
        }
    }
}
