//! The right to follow the peer: a lock of a session, on a connection of its own. It goes with the
//! connection, so a server that is gone holds nobody up for long.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::sleep;

use super::{columns::classify, patience::within};
use crate::store::{StoreError, sites::FollowerLock};

/// "AMIF"; another number than the role's lock, which is held within transactions.
const FOLLOWER_LOCK: i64 = 0x414D_4946;

/// The longest time for taking it, a new connection included.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The interval at which the connection is tried.
const INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait for its answer.
const PATIENCE: Duration = Duration::from_secs(2);

struct SessionLock(PgConnection);

/// Takes the lock; `None`: somebody else has it.
pub(super) async fn lock(pool: &PgPool) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
    within(LOCK_PATIENCE, async {
        let mut connection = pool.acquire().await.map_err(classify)?.detach();
        let ask = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(FOLLOWER_LOCK);
        let is_ours: bool = ask.fetch_one(&mut connection).await.map_err(classify)?;
        if is_ours {
            let lock: Box<dyn FollowerLock> = Box::new(SessionLock(connection));
            return Ok(Some(lock));
        }
        // Of no more use: what fails here is tidying up.
        let _ = connection.close().await;
        Ok(None)
    })
    .await
}

#[async_trait]
impl FollowerLock for SessionLock {
    async fn until_lost(&mut self) -> StoreError {
        loop {
            sleep(INTERVAL).await;
            let answer = within(PATIENCE, async {
                sqlx::query("SELECT 1").execute(&mut self.0).await.map_err(classify)
            });
            if let Err(error) = answer.await {
                return error;
            }
        }
    }
}
