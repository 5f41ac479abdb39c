//! Why a call about meters failed as a whole.

use super::refusal::Refusal;
use crate::{hsm::TokenError, keyring::KeyringError, store::StoreError};
use kms_core::{BlockNo, SystemTitle};

/// Why a call about meters failed as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LifecycleError {
    /// No such meter.
    #[error("there is no meter {0}")]
    NotFound(String),
    /// The meter is there already.
    #[error("meter {0} exists already; use `import` to add to it")]
    AlreadyExists(String),
    /// There is nothing to bury.
    #[error(
        "the record of the meter with system title {title} in block {block} is not damaged: if a fault names \
         another block, bury it there (`ami-tool meter bury --system-title {title} --block …`)"
    )]
    NotDamaged {
        /// The title that was given.
        title: SystemTitle,
        /// Where it was looked for.
        block: BlockNo,
    },
    /// The input is at fault.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Other writers were faster too many times.
    #[error("the block is busy; try again")]
    Busy,
    /// The database is a standby.
    #[error(
        "this server's database is a standby and takes no changes: call a server at its primary"
    )]
    ReadOnly,
    /// The database is a primary and takes no changes all the same.
    #[error(
        "this server's database is a primary that takes no changes: its operator must set \
         `default_transaction_read_only = off` for the server, the database and the role"
    )]
    ReadOnlyPrimary,
    /// The database is not the newest that is known, so that no block is used.
    #[error("{reason}")]
    NotNewest {
        /// The reason: what is missing, and what to do.
        reason: String,
    },
    /// No room for the meter's block.
    #[error("{reason}")]
    ArenaFull {
        /// The reason, with the setting to raise.
        reason: String,
    },
    /// A meter is not known, and not all blocks are open yet.
    #[error("{reason}")]
    NotAllOpen {
        /// The reason, with the meter.
        reason: String,
    },
    /// Another site of the domain writes, or none does. Nothing was written.
    #[error("{reason}")]
    NotPrimary {
        /// The reason, with the epoch, and where changes go.
        reason: String,
    },
    /// Token or database can't be reached.
    #[error("{reason}")]
    Unavailable {
        /// The reason, with the part that is not reachable.
        reason: String,
    },
    /// The change was handed to the database, and whether it is there is not known.
    #[error("{reason}")]
    OutcomeUnknown {
        /// The reason: what the database did not say.
        reason: String,
    },
    /// The audit log can't be written: then nothing is done.
    #[error("the audit log can't be written: {reason}")]
    AuditNotWritable {
        /// Why not.
        reason: String,
    },
    /// Stored data failed its authentication.
    #[error("{reason}")]
    Damaged {
        /// The reason: the damage, and where it is.
        reason: String,
    },
    /// The block's secret is not sealed for this site's token.
    #[error("{reason}")]
    NotSealedForUs {
        /// The reason, with the block.
        reason: String,
    },
    /// The database went back behind what this site had written: it changes nothing more in its epoch.
    #[error("{reason}")]
    RolledBack {
        /// The reason, and the way out.
        reason: String,
    },
    /// Our own code broke a rule. Nothing was written.
    #[error("a fault in the server: {reason}")]
    OurFault {
        /// The reason, with the rule.
        reason: String,
    },
}

impl From<KeyringError> for LifecycleError {
    fn from(error: KeyringError) -> Self {
        Self::of_keyring(&error, error.to_string())
    }
}

impl LifecycleError {
    /// The error of a block, told as `reason`.
    pub(crate) fn of_keyring(error: &KeyringError, reason: String) -> Self {
        match error {
            KeyringError::Store(error) => Self::of_store(error, reason),
            KeyringError::Token { said: TokenError::Refused { .. }, .. }
            | KeyringError::Damaged { .. }
            | KeyringError::RecordDamaged { .. }
            | KeyringError::RecordMissing { .. }
            | KeyringError::Stale { .. } => Self::Damaged { reason },
            KeyringError::Token { .. } => Self::Unavailable { reason },
            KeyringError::RolledBack(_) => Self::NotNewest { reason },
            KeyringError::BehindPeer(_) => Self::RolledBack { reason },
            KeyringError::PutBack(_) => Self::NotPrimary { reason },
            KeyringError::ArenaFull { .. } => Self::ArenaFull { reason },
            KeyringError::NotSealedForUs(_) => Self::NotSealedForUs { reason },
            // The bounds of an import keep every record short enough and every key of a length that is wrapped.
            KeyringError::TooLong(_) | KeyringError::NotWrapped { .. } => Self::OurFault { reason },
        }
    }

    /// The error of the database, told as `reason`.
    pub(crate) fn of_store(error: &StoreError, reason: String) -> Self {
        match error {
            StoreError::Conflict(_) | StoreError::Taken { .. } => Self::Busy,
            StoreError::ReadOnly => Self::ReadOnly,
            StoreError::ReadOnlyPrimary => Self::ReadOnlyPrimary,
            StoreError::NotWriter(_) => {
                Self::NotPrimary { reason: format!("{reason}: changes go to the primary site") }
            }
            StoreError::AuditNotWritten { .. } | StoreError::AuditMoved(_) => {
                Self::AuditNotWritable { reason }
            }
            StoreError::Unreachable { .. } => Self::Unavailable { reason },
            StoreError::Unknown { .. } => Self::OutcomeUnknown { reason },
            StoreError::Damaged(_) => Self::Damaged { reason },
            StoreError::Rule { .. } | StoreError::NotLoaded(_) => Self::OurFault { reason },
        }
    }
}

impl From<StoreError> for LifecycleError {
    fn from(error: StoreError) -> Self {
        KeyringError::Store(error).into()
    }
}
