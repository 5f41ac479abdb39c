//! Opening all blocks in the background after start, and mending what failed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Mutex, task::JoinSet};

use crate::store::StoreError;
use kms_core::{BlockNo, block::keys::SUBKEYS_LEN};

use super::{Keyring, KeyringError};

/// Blocks opened before the directory is changed: each change copies as many pointers as there are
/// blocks.
const PUBLISH_EVERY: usize = 32;

/// Blocks that were closed and are opened again in one round of care.
const AGAIN_MAX: usize = 256;

/// How often blocks that failed or ended unknown are tried again.
const CARE_INTERVAL: Duration = Duration::from_secs(1);

/// Rounds of care after which the blocks' rows are looked at, and blocks at fault once more.
const PATROL_EVERY: u64 = 5;

/// How far the warm-up is.
#[derive(Default)]
pub(super) struct Progress {
    started_ms: AtomicU64,
    ended_ms: AtomicU64,
    done: AtomicBool,
}

/// [`Progress`] at one moment.
pub(super) struct ProgressNow {
    pub(super) elapsed_ms: u64,
    pub(super) done: bool,
}

impl Progress {
    /// Whether every block has been looked at.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    pub(super) fn read(&self, now_ms: u64) -> ProgressNow {
        let done = self.is_done();
        let end = if done { self.ended_ms.load(Ordering::Relaxed) } else { now_ms };
        let started = self.started_ms.load(Ordering::Relaxed);
        let elapsed_ms = if started == 0 { 0 } else { end.saturating_sub(started) };
        ProgressNow { elapsed_ms, done }
    }
}

/// No block is opened until the database is the newest that is known.
struct NotNewest;

/// The blocks that still wait, shared by the workers.
type Queue = Arc<Mutex<std::vec::IntoIter<BlockNo>>>;

impl Keyring {
    /// Opens every block. Blocks that clients ask for meanwhile are opened for them, so
    /// the hottest come first by themselves. When the arena is full, the others are
    /// verified only. Waits for as long as the database is refused as not the newest.
    pub async fn warm_up(self: &Arc<Self>) {
        self.progress.started_ms.store(self.clock.monotonic_ms().max(1), Ordering::Relaxed);
        let blocks: Vec<BlockNo> = (0..self.domain.blocks.get()).map(BlockNo).collect();
        let queue: Queue = Arc::new(Mutex::new(blocks.into_iter()));
        let mut workers = JoinSet::new();
        for _ in 0..self.config.warm_up_parallelism {
            workers.spawn(Arc::clone(self).open_from(Arc::clone(&queue)));
        }
        while workers.join_next().await.is_some() {}
        self.progress.ended_ms.store(self.clock.monotonic_ms(), Ordering::Relaxed);
        self.progress.done.store(true, Ordering::Release);
    }

    async fn open_from(self: Arc<Self>, queue: Queue) {
        loop {
            let some: Vec<BlockNo> = queue.lock().await.by_ref().take(PUBLISH_EVERY).collect();
            if some.is_empty() {
                return;
            }
            while let Err(NotNewest) = self.open_or_look_at(&some).await {
                tokio::time::sleep(CARE_INTERVAL).await;
            }
        }
    }

    async fn open_or_look_at(&self, blocks: &[BlockNo]) -> Result<(), NotNewest> {
        if self.freshness.refusal().is_some() {
            return Err(NotNewest);
        }
        let has_room = self.memory().too_small.is_none();
        let left = if has_room { self.open_some(blocks).await? } else { blocks.to_vec() };
        for block in left {
            self.look_at(block).await;
        }
        Ok(())
    }

    /// Verifies a block for which there is no room: what is damaged is to be known all the same.
    async fn look_at(&self, block: BlockNo) {
        let _writer = self.writer(block).await;
        if let Err(error) = self.verified(block).await {
            tracing::warn!(block = block.0, %error, "warm-up can't verify a block");
            let now = self.clock.monotonic_ms();
            self.memory().failed.insert(block, (now, Arc::new(error)));
        }
    }

    /// Those for which the arena had no room.
    async fn open_some(&self, blocks: &[BlockNo]) -> Result<Vec<BlockNo>, NotNewest> {
        let mut writers = Vec::with_capacity(blocks.len());
        let mut tables = Vec::with_capacity(blocks.len());
        let mut left = Vec::new();
        let mut outcome = Ok(());
        for &block in blocks {
            if !left.is_empty() {
                left.push(block);
                continue;
            }
            // Held until the tables are published, so that no writer's newer table is overwritten.
            let writer = self.writer(block).await;
            if self.resident(block).is_some() {
                continue;
            }
            match self.open_now(block, false).await {
                Ok(table) => {
                    self.memory().failed.remove(&block);
                    tables.push((block, Some(Arc::new(table))));
                    writers.push(writer);
                }
                Err(error @ KeyringError::RolledBack(_)) => {
                    tracing::warn!(%error, "warm-up waits");
                    outcome = Err(NotNewest);
                    break;
                }
                Err(error @ KeyringError::ArenaFull { .. }) => {
                    tracing::warn!(%error, "warm-up stops: other blocks are opened in turn as asked for");
                    self.memory().too_small = Some(Arc::new(error));
                    left.push(block);
                }
                Err(error) => {
                    tracing::warn!(block = block.0, %error, "warm-up can't open a block");
                    let now = self.clock.monotonic_ms();
                    self.memory().failed.insert(block, (now, Arc::new(error)));
                }
            }
        }
        self.publish(tables);
        drop(writers);
        outcome.map(|()| left)
    }

    /// Runs until the process ends: tries again what failed for a passing reason, and reads again
    /// the blocks whose last commit ended unknown.
    pub async fn take_care(self: Arc<Self>) {
        let mut tick = tokio::time::interval(CARE_INTERVAL);
        for round in 0u64.. {
            tick.tick().await;
            self.mend_once().await;
            self.open_again().await;
            if round % PATROL_EVERY == 0 {
                self.patrol().await;
            }
        }
    }

    /// Opens what was closed after the warm-up, as a block that was not read anew in time or one that made room
    /// for another: only who has all of them open can say that there is no such meter.
    async fn open_again(&self) {
        let snapshot = self.snapshot();
        if !self.progress.is_done() {
            return;
        }
        if snapshot.is_complete() {
            if self.memory().too_small.take().is_some() {
                tracing::info!("there is room for all blocks again");
            }
            return;
        }
        let closed: Vec<BlockNo> = {
            let memory = self.memory();
            if memory.too_small.as_ref().is_some_and(|error| !self.may_fit(error)) {
                return;
            }
            let closed = (0u32..).zip(&snapshot.blocks).filter(|(_, table)| table.is_none());
            let closed = closed.map(|(block, _)| BlockNo(block));
            closed.filter(|block| !memory.failed.contains_key(block)).take(AGAIN_MAX).collect()
        };
        drop(snapshot);
        for block in closed {
            let _writer = self.writer(block).await;
            if self.resident(block).is_some() {
                continue;
            }
            match self.open_now(block, false).await {
                Ok(table) => self.publish(vec![(block, Some(Arc::new(table)))]),
                Err(error) => {
                    let stop =
                        is_everywhere(&error) || matches!(error, KeyringError::RolledBack(_));
                    if !stop {
                        let now = self.clock.monotonic_ms();
                        self.memory().failed.insert(block, (now, Arc::new(error)));
                    } else if let KeyringError::ArenaFull { block, needed } = error {
                        self.note_no_room(block, needed);
                    }
                    if stop {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the arena has by now what was missing, and as much again for its neighbours.
    fn may_fit(&self, error: &KeyringError) -> bool {
        let free = self.arena.mapped().saturating_sub(self.arena.used());
        matches!(error, KeyringError::ArenaFull { needed, .. } if free >= 2 * (needed + SUBKEYS_LEN))
    }

    async fn mend_once(&self) {
        let (suspect, failed) = {
            let memory = self.memory();
            let suspect: Vec<BlockNo> = memory.suspect.iter().copied().collect();
            let failed: Vec<BlockNo> = memory
                .failed
                .iter()
                .filter(|(_, (_, error))| error.is_transient())
                .map(|(block, _)| *block)
                .collect();
            (suspect, failed)
        };
        for block in suspect {
            let _writer = self.writer(block).await;
            match self.open_now(block, true).await {
                Ok(table) => {
                    self.publish(vec![(block, Some(Arc::new(table)))]);
                    let mut memory = self.memory();
                    memory.suspect.remove(&block);
                    memory.failed.remove(&block);
                }
                Err(error) => {
                    tracing::warn!(block = block.0, %error, "block can't be read again yet");
                    if is_everywhere(&error) {
                        return;
                    }
                    let now = self.clock.monotonic_ms();
                    self.memory().failed.insert(block, (now, Arc::new(error)));
                }
            }
        }
        for block in failed {
            if self.open(block).await.is_err_and(|error| is_everywhere(&error)) {
                return;
            }
        }
    }
}

/// Whether the cause is not this block's alone: then the others are left for later. One block that can't
/// be mended is no reason to leave them.
fn is_everywhere(error: &KeyringError) -> bool {
    match error {
        KeyringError::Store(error) => matches!(error, StoreError::Unreachable { .. }),
        KeyringError::Token { .. } | KeyringError::ArenaFull { .. } => error.is_transient(),
        _ => false,
    }
}
