//! Why a peer is not answered, and the places for its streams.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fencing::NotFenced;
use crate::store::StoreError;
use kms_core::BlockNo;

/// The reason why a peer is not answered.
#[derive(Debug, thiserror::Error)]
pub enum NotServed {
    /// It is no site of our key domain, or says that it is us.
    #[error("site {site:?} is no other site of this key domain")]
    AnotherDomain {
        /// The name that it gives.
        site: String,
    },
    /// It names an epoch that it does not prove.
    #[error(transparent)]
    EpochNotProved(NotFenced),
    /// A block that the domain has not.
    #[error("there is no block {0}")]
    NoBlock(BlockNo),
    /// A follower does not name each block once.
    #[error("a follower names each block of the domain once")]
    Cursors,
    /// It tells a mark that it can't have reserved, as far as signed records say.
    #[error(
        "the mark of block {0} that it tells is of no epoch in which it writes, by signed records that are known here, or \
         beyond the last sequence: it is told again once they are known"
    )]
    Mark(BlockNo),
    /// So many of its streams are open already.
    #[error("the peer has as many streams open here as it may")]
    TooManyFollowers,
    /// A follower did not say for a minute that it has stored anything.
    #[error("the follower stores nothing: it was sent all that it may be behind by")]
    Stalled,
    /// It is asked what it knows of the past, and was put back itself.
    #[error("this site's database was put back: it can't say what it knew of counters")]
    PutBack,
    /// It is asked what it knows of the past, and its own role or its peers can't be told.
    #[error("this site can't say since when it remembers counters: {0}")]
    Past(String),
    /// More lines were set aside of a block than one answer takes, and a part of them is no answer.
    #[error(
        "more than {most} records of counters were set aside of block {block}: they can't be told, and the other site \
         sends nothing on lines of that block before their counters are declared again"
    )]
    TooMuchAside {
        /// The block.
        block: BlockNo,
        /// So many are told.
        most: usize,
    },
    /// It is asked to remember counters, and is never promoted.
    #[error("this site is a read-only replica: it witnesses nothing")]
    ReadOnlyReplica,
    /// The database can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A place among those who are served at one time.
pub(super) fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, NotServed> {
    Arc::clone(places).try_acquire_owned().map_err(|_| NotServed::TooManyFollowers)
}
