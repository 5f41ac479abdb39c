//! Errors of the audit log.

use crate::{hsm::TokenError, store::StoreError};

/// Why the log was not written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// An event can't be written; the call that it is about is to be refused.
    #[error("the audit log can't be written: {0}")]
    NotWritable(String),
    /// An event was handed to the database, which does not say whether it is there: it waits for its standby.
    #[error("the audit log's database does not say whether an event is there: {0}")]
    Unknown(String),
    /// The database is a standby. Nothing is wrong with the log: it waits for the primary's.
    #[error("the audit log is not written here: the database is a standby")]
    ReadOnly,
    /// The database is a primary and takes no changes. Nothing is wrong with the log.
    #[error("the audit log is not written: the database is a primary that takes no changes")]
    ReadOnlyPrimary,
    /// Events can't be read.
    #[error("the audit log can't be read: {0}")]
    NotReadable(String),
    /// The token does not sign.
    #[error("the audit log's end can't be signed: {0}")]
    NotSigned(String),
    /// The witness outside the database does not answer.
    #[error("the audit log's witness: {0}")]
    Witness(String),
}

impl AuditError {
    /// Why an event was not written.
    pub(super) fn of_write(error: &StoreError) -> Self {
        match error {
            StoreError::ReadOnly => Self::ReadOnly,
            StoreError::ReadOnlyPrimary => Self::ReadOnlyPrimary,
            StoreError::Unknown { .. } => Self::Unknown(error.to_string()),
            error => Self::NotWritable(error.to_string()),
        }
    }
}

impl From<TokenError> for AuditError {
    fn from(error: TokenError) -> Self {
        Self::NotSigned(error.to_string())
    }
}

impl AuditError {
    /// Why events were not read.
    pub(super) fn of_read(error: StoreError) -> Self {
        Self::NotReadable(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_takes_no_changes_is_no_fault_of_the_log() {
        let of = |error| AuditError::of_write(&error);
        assert_eq!(of(StoreError::ReadOnly), AuditError::ReadOnly);
        assert_eq!(of(StoreError::ReadOnlyPrimary), AuditError::ReadOnlyPrimary);
        let waits = of(StoreError::Unknown { reason: "late".to_owned() });
        assert!(matches!(waits, AuditError::Unknown(why) if why.contains("late")));
        let away = of(StoreError::Unreachable { reason: "gone".to_owned() });
        assert!(matches!(away, AuditError::NotWritable(why) if why.contains("gone")));
    }
}
