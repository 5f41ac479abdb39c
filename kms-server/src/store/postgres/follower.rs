//! The right to follow the peer, and the word that the peer follows: locks of a session, each on a connection of its own.
//! They go with the connection, so a server that is gone holds nobody up for long.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::time::sleep;

use super::{columns::classify, patience::within};
use crate::store::{StoreError, sites::FollowerLock};

/// "AMIF"; another number than the role's lock, which is held within transactions.
pub(super) const FOLLOWER_LOCK: i64 = 0x414D_4946;

/// "AMIW": held by a server that the peer follows.
pub(super) const FOLLOWED_LOCK: i64 = 0x414D_4957;

/// The longest time for taking it, a new connection included.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The interval at which the connection is tried.
const INTERVAL: Duration = Duration::from_secs(1);

/// The longest wait for its answer.
const PATIENCE: Duration = Duration::from_secs(2);

struct SessionLock(PgConnection);

/// Takes the lock; `None`: somebody else has it.
pub(super) async fn lock(
    pool: &PgPool,
    number: i64,
) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
    within(LOCK_PATIENCE, async {
        let mut connection = pool.acquire().await.map_err(classify)?.detach();
        let ask = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(number);
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

/// Whether somebody holds [`FOLLOWED_LOCK`]: looked at, never tried, so that who looks is not taken for one who holds it.
/// A standby has no locks of its primary's servers.
pub(super) async fn is_followed(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let ask = "SELECT pg_is_in_recovery() OR EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted \
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
               AND classid = 0 AND objid::bigint = $1 AND objsubid = 1)";
    let ask = sqlx::query_scalar(ask).bind(FOLLOWED_LOCK);
    ask.fetch_one(connection).await.map_err(classify)
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
