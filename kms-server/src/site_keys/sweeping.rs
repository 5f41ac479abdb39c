//! Former block secrets go: at each site by itself, once its block says that they may. Until then rows that are MACed
//! under one and are in no record (counter marks, receive floors) are read under it, too.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    keyring::{KeyringError, SecretRotator},
    store::WriteStore,
};
use kms_core::{BlockNo, moment::Moment, ports::Clock};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a former secret stays after its block has said that it may go: another server of the site may still write a
/// row under it that it began before.
const GRACE: Duration = Duration::from_secs(30);

/// Has former secrets go.
pub struct Sweeping {
    rotator: Arc<SecretRotator>,
    store: Arc<dyn WriteStore>,
    clock: Arc<dyn Clock>,
    grace: Duration,
}

impl Sweeping {
    /// Out of `store`, as `rotator` says.
    pub fn new(
        rotator: Arc<SecretRotator>,
        store: Arc<dyn WriteStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { rotator, store, clock, grace: GRACE }
    }

    /// The same without the wait.
    #[must_use]
    pub fn at_once(self) -> Self {
        Self { grace: Duration::ZERO, ..self }
    }

    /// Runs until the process ends.
    pub async fn run(self) {
        let mut known = BTreeMap::new();
        loop {
            sleep(INTERVAL).await;
            if let Err(error) = self.once(&mut known).await {
                tracing::debug!(%error, "former block secrets stay for now");
            }
        }
    }

    /// Looks once. `known`: the blocks whose former secret may go, and since when this server knows it.
    pub async fn once(&self, known: &mut BTreeMap<BlockNo, Moment>) -> Result<(), KeyringError> {
        let blocks = self.store.former_seals().await?;
        known.retain(|block, _| blocks.contains(block));
        // What was set aside may be under a former secret, and is to be decided about first.
        if blocks.is_empty() || self.store.count_undecided().await? > 0 {
            return Ok(());
        }
        for block in blocks {
            if let Err(error) = self.retire(block, known).await {
                tracing::debug!(block = block.0, %error, "a former block secret stays for now");
            }
        }
        Ok(())
    }

    async fn retire(
        &self,
        block: BlockNo,
        known: &mut BTreeMap<BlockNo, Moment>,
    ) -> Result<(), KeyringError> {
        let mark = self.store.counter_mark(block).await?;
        let floors = self.store.floors(block).await?;
        let Some(retirement) = self.rotator.retirement(block, mark, floors).await? else {
            known.remove(&block);
            return Ok(());
        };
        let now = self.clock.now();
        let since = *known.entry(block).or_insert(now);
        if now >= since + self.grace && self.store.retire_seals(&retirement).await? {
            known.remove(&block);
            tracing::info!(
                block = block.0,
                below = retirement.below,
                "a former block secret is gone"
            );
        }
        Ok(())
    }
}
