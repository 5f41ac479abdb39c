//! Errors of backups.

use std::io;

use kms_core::{
    audit::Broken,
    backup::chunk::{BadChunk, TooLarge},
};

use crate::{hsm::TokenError, store::StoreError};

/// Why a backup was not written, read, or found good.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file.
    #[error("the backup's file")]
    File(#[from] io::Error),
    /// Not a file of ours, or of a version that this program does not know.
    #[error("this is no backup of this service, or one of a later version")]
    Foreign,
    /// Its header can't be read.
    #[error("the header of the backup was changed")]
    Header,
    /// This token does not open it.
    #[error(
        "this token does not open the backup: it is another site's, another token's, or its header was changed"
    )]
    NotOurs(#[source] TokenError),
    /// A chunk.
    #[error(transparent)]
    Chunk(#[from] BadChunk),
    /// A chunk opens, and what is in it is nothing that is written.
    #[error("chunk {0} of the backup holds what this version does not know")]
    Content(u64),
    /// The summary is not of what was read, or not signed by the token.
    #[error("the summary at the end of the backup {0}")]
    Summary(&'static str),
    /// A row is too large.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The backup is of another schema.
    #[error(
        "the backup is of schema {found} (release {release}), and this program's is {known}: restore it with that \
         release, and upgrade then"
    )]
    Schema {
        /// The backup's.
        found: u32,
        /// The release that made it.
        release: String,
        /// Ours.
        known: u32,
    },
    /// The backup has no key domain.
    #[error("the backup has no key domain in it")]
    NoDomain,
    /// A drill found something wrong.
    #[error("{0}")]
    Found(String),
    /// A drill found an audit chain that is broken.
    #[error(transparent)]
    Audit(#[from] Broken),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}
