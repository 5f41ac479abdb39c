//! Calls that may take a while and no longer, and what becomes of their connection.

use std::{future::Future, time::Duration};

use sqlx::{Postgres, pool::PoolConnection};
use tokio::time::timeout;

use crate::store::StoreError;

/// The outcome of `work`, or that the database did not answer in time.
pub(super) async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(patience, work).await.unwrap_or_else(|_| Err(no_answer(patience)))
}

/// The database did not answer for so long.
pub(super) fn no_answer(patience: Duration) -> StoreError {
    StoreError::Unreachable { reason: format!("it did not answer within {} s", patience.as_secs()) }
}

/// Keeps a connection that failed or hangs from going back to the pool.
pub(super) fn let_go<T>(
    connection: &mut PoolConnection<Postgres>,
    outcome: &Result<T, StoreError>,
) {
    if matches!(outcome, Err(StoreError::Unreachable { .. })) {
        connection.close_on_drop();
    }
}
