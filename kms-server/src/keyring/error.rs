//! Why a block, or a record of it, can't be used.

use std::sync::Arc;

use crate::{hsm::TokenError, store::StoreError};
use kms_core::{
    BlockNo, Position, SystemTitle,
    block::{
        extending::TooLong,
        verified::{Refused, Unreadable},
    },
};

/// Why a block can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// The token can't open the block.
    #[error("block {block} can't be opened: {said}")]
    Token {
        /// The block.
        block: BlockNo,
        /// The token's error.
        said: TokenError,
    },
    /// The database can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No room for the block's keys.
    #[error("the arena is full: raise keyring.arena_mib (block {block} needs {needed} bytes)")]
    ArenaFull {
        /// The block.
        block: BlockNo,
        /// Its size in the arena.
        needed: usize,
    },
    /// No seal of the block's secret is for this token.
    #[error(
        "block {0} is damaged: the seal of its secret for this site's token is missing; restore it \
         from a backup"
    )]
    NotSealedForUs(BlockNo),
    /// Stored data is not what was written.
    #[error("block {block} is damaged: {what}")]
    Damaged {
        /// The block.
        block: BlockNo,
        /// The fault found.
        what: String,
    },
    /// It is not known which states of blocks are the newest.
    #[error("{0}")]
    RolledBack(Arc<str>),
    /// The peer has states of our epoch that our database has not: it was put back.
    #[error("{0}")]
    BehindPeer(Arc<str>),
    /// The database bears the mark of a restore, so that this site does not write.
    #[error("{0}")]
    PutBack(Arc<str>),
    /// One record is not what was written. The rest of its block is.
    #[error(
        "the record of meter {system_title} in block {block} was changed outside this service: restore \
         the database, or bury the meter"
    )]
    RecordDamaged {
        /// The block.
        block: BlockNo,
        /// The title of its meter.
        system_title: SystemTitle,
    },
    /// There is no record of a meter in a block that has damaged ones: whose those are is not sure.
    #[error(
        "block {block} has no record of meter {system_title}, and {damaged} of its records were changed \
         outside this service: it may be one of them; restore the database, or bury what is damaged"
    )]
    RecordMissing {
        /// The block.
        block: BlockNo,
        /// The meter's title.
        system_title: SystemTitle,
        /// Damaged records of the block.
        damaged: usize,
    },
    /// A key can't be wrapped: no import lets one through that can't. Nothing was written.
    #[error("block {block}: {what}; nothing was changed")]
    NotWrapped {
        /// The block of its meter.
        block: BlockNo,
        /// The kind and length of the key.
        what: String,
    },
    /// A meter's record has no encoding. Nothing was written.
    #[error("{0}; nothing was changed")]
    TooLong(TooLong),
    /// The stored block is older than one that this process has seen.
    #[error("block {block} went back from {seen} to {found}: a rolled-back database")]
    Stale {
        /// The block.
        block: BlockNo,
        /// The highest position seen.
        seen: Position,
        /// The position stored now.
        found: Position,
    },
}

impl From<TooLong> for KeyringError {
    fn from(record: TooLong) -> Self {
        Self::TooLong(record)
    }
}

impl KeyringError {
    /// Nothing of a block is believed.
    pub(super) fn refused(block: BlockNo, refused: Refused) -> Self {
        match refused {
            Refused::Older { newest, found } => Self::Stale { block, seen: newest, found },
            Refused::Head
            | Refused::Count
            | Refused::Order
            | Refused::Digest
            | Refused::Forked(_) => Self::Damaged { block, what: refused.to_string() },
        }
    }

    /// A block does not say what it has of a meter.
    pub(super) fn unreadable(block: BlockNo, system_title: SystemTitle, why: Unreadable) -> Self {
        match why {
            Unreadable::Damaged => Self::RecordDamaged { block, system_title },
            Unreadable::OneOfDamaged(damaged) => {
                Self::RecordMissing { block, system_title, damaged }
            }
            // Nobody was lied to: it is to be taken anew, and asked for.
            Unreadable::NotRead => StoreError::Conflict(block).into(),
        }
    }

    /// All blocks are made by `init`, and none is ever removed.
    pub(super) fn missing(block: BlockNo) -> Self {
        let what = "it is missing: deleted outside this service; restore it from a backup";
        Self::Damaged { block, what: what.to_owned() }
    }

    /// Whether it may go away by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Token { said, .. } => !matches!(said, TokenError::Refused { .. }),
            Self::Store(store) => match store {
                StoreError::Unreachable { .. }
                | StoreError::Unknown { .. }
                | StoreError::Conflict(_)
                | StoreError::ReadOnly
                | StoreError::ReadOnlyPrimary
                | StoreError::NotWriter(_)
                | StoreError::AuditNotWritten { .. } => true,
                StoreError::Taken { .. }
                | StoreError::Rule { .. }
                | StoreError::AuditMoved(_)
                | StoreError::NotLoaded(_)
                | StoreError::Damaged(_) => false,
            },
            Self::ArenaFull { .. } => true,
            Self::RolledBack(_) | Self::PutBack(_) => true,
            Self::NotSealedForUs(_)
            | Self::Damaged { .. }
            | Self::RecordDamaged { .. }
            | Self::RecordMissing { .. }
            | Self::NotWrapped { .. }
            | Self::TooLong(_)
            | Self::BehindPeer(_)
            | Self::Stale { .. } => false,
        }
    }
}

/// A failure shared by all who waited for the same opening.
pub type SharedError = Arc<KeyringError>;
