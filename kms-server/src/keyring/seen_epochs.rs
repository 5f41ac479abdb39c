//! The highest epoch that this server has seen, kept outside the database before it goes by it: so a database that loses its
//! tail after a promotion is not taken for one that was promoted after it had lost it.

use async_trait::async_trait;

use kms_core::Epoch;

/// Keeps the highest epoch that was seen.
#[async_trait]
pub trait EpochMemory: Send + Sync + 'static {
    /// Keeps it, if the database is the one in which it was seen. False: that can't be told now.
    async fn see(&self, epoch: Epoch) -> bool;
}
