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
    timeout(patience, work).await.unwrap_or_else(|_| {
        let reason = format!("it did not answer within {} s", patience.as_secs());
        Err(StoreError::Unreachable { reason })
    })
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
