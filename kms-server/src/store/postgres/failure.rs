//! Failures of a write: what was decided, and what the library says.

use super::columns::{classify, is_conflict};
use crate::store::StoreError;
use kms_core::BlockNo;

/// Why a write was given up: a decision of ours, or a fault of the library.
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

impl WriteError {
    /// As the error of a transaction that changes blocks, `first` among them.
    pub(super) fn of_commit(self, first: Option<BlockNo>) -> StoreError {
        match (self, first) {
            (Self::Decided(error), _) => error,
            (Self::Failed(error), Some(block)) if is_conflict(&error) => {
                StoreError::Conflict(block)
            }
            (Self::Failed(error), _) => classify(error),
            (Self::Audit(error), _) => match classify(error) {
                // The database is there and refused: the transaction is undone.
                StoreError::Damaged(reason) => StoreError::AuditNotWritten { reason },
                error => error,
            },
        }
    }
}
