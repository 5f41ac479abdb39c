//! Following what other servers write: notifications, and a look at all positions twice a second, for
//! notifications that got lost and for standbys, which have none.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{PgPool, postgres::PgListener};
use tokio::time::{Instant, sleep_until};

use super::{
    columns::classify,
    patience::{let_go, within},
    read,
    rows::{self, CHANNEL},
};
use crate::store::{FollowBlocks, Positions, StoreError};

/// The interval at which all positions are read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The longest time for reading them.
const POLL_PATIENCE: Duration = Duration::from_secs(1);

/// The interval at which listening is tried again where it fails: a standby refuses it, and logs that.
const LISTEN_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Follower {
    pool: PgPool,
    listener: Option<PgListener>,
    next_listen: Instant,
    next_poll: Instant,
}

impl Follower {
    pub(super) fn new(pool: PgPool) -> Self {
        let now = Instant::now();
        Self { pool, listener: None, next_listen: now, next_poll: now }
    }

    async fn poll(&mut self) -> Result<Positions, StoreError> {
        self.next_poll = Instant::now() + POLL_INTERVAL;
        self.listen().await;
        let pool = self.pool.clone();
        within(POLL_PATIENCE, async move {
            let mut connection = pool.acquire().await.map_err(classify)?;
            // Given up, the connection is not to go back to the pool.
            let positions = within(POLL_PATIENCE, read::positions(&mut connection)).await;
            let_go(&mut connection, &positions);
            positions
        })
        .await
    }

    /// Listens, if it does not yet. Before the positions are read: nothing gets lost in between.
    async fn listen(&mut self) {
        if self.listener.is_some() || Instant::now() < self.next_listen {
            return;
        }
        self.next_listen = Instant::now() + LISTEN_INTERVAL;
        let listening = within(POLL_PATIENCE, async {
            let mut listener = PgListener::connect_with(&self.pool).await.map_err(classify)?;
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await.map_err(classify)?;
            Ok(listener)
        });
        match listening.await {
            Ok(listener) => self.listener = Some(listener),
            Err(StoreError::ReadOnly) => {}
            Err(error) => tracing::warn!(%error, "other servers' changes are polled for only"),
        }
    }
}

#[async_trait]
impl FollowBlocks for Follower {
    async fn next(&mut self) -> Result<Positions, StoreError> {
        if Instant::now() >= self.next_poll {
            return self.poll().await;
        }
        let Some(listener) = &mut self.listener else {
            sleep_until(self.next_poll).await;
            return self.poll().await;
        };
        tokio::select! {
            heard = listener.try_recv() => match heard {
                Ok(Some(told)) => {
                    let mut at = rows::told(told.payload());
                    while let Some(told) = listener.next_buffered() {
                        at.extend(rows::told(told.payload()));
                    }
                    return Ok(Positions { at, ..Positions::default() });
                }
                // The connection is lost, and perhaps notifications with it.
                Ok(None) | Err(_) => {
                    self.listener = None;
                    self.next_listen = Instant::now();
                }
            },
            () = sleep_until(self.next_poll) => {}
        }
        self.poll().await
    }
}
