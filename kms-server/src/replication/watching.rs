//! The look whether the other site follows this one, again and again.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{grounds::Grounds, status::Status};
use crate::store::{ReadStore, StoreError};

/// The interval between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Looks whether somebody follows.
pub struct Watching {
    store: Arc<dyn ReadStore>,
    status: Arc<Status>,
    /// Says to the site's other servers that the peer follows this one, while it does.
    saying: JoinSet<()>,
}

impl Watching {
    /// Over the same grounds as all of replication.
    pub fn new(grounds: &Grounds) -> Self {
        let Grounds { store, status, .. } = grounds;
        Self { store: Arc::clone(store), status: Arc::clone(status), saying: JoinSet::new() }
    }

    /// Runs until the process ends.
    pub async fn run(mut self) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.look().await {
                // Whose database is away knows nothing of the site's other servers.
                tracing::debug!(%error, "whether this site is followed is not known");
            }
        }
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        if !self.store.role().await?.writes {
            self.saying.abort_all();
            self.status.needs_no_follower();
            return Ok(());
        }
        let is_here = self.status.is_followed_here();
        // One that has ended has lost its lock, or another server has it.
        while self.saying.join_next().now_or_never().flatten().is_some() {}
        if !is_here {
            self.saying.abort_all();
        } else if self.saying.is_empty() {
            self.saying.spawn(say(Arc::clone(&self.store)));
        }
        let is_followed = is_here || self.store.is_followed().await?;
        self.status.looked_for_followers(is_followed);
        Ok(())
    }
}

/// Holds the lock that says so, until it is lost.
async fn say(store: Arc<dyn ReadStore>) {
    match store.followed_lock().await {
        Ok(Some(mut lock)) => drop(lock.until_lost().await),
        Ok(None) => sleep(LOOK).await,
        Err(error) => {
            tracing::debug!(%error, "other servers are not told that this one is followed")
        }
    }
}
