//! Opening all blocks in the background after start.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Mutex, task::JoinSet};

use super::{
    error::KeyringError,
    opening::{Opener, Room},
};
use kms_core::{BlockNo, moment::Moment};

/// Blocks opened before the directory is changed: each change copies as many pointers as there are
/// blocks.
const PUBLISH_EVERY: usize = 32;

/// Pause while the database is refused as not the newest.
const NOT_NEWEST_PAUSE: Duration = Duration::from_secs(1);

/// The progress of the warm-up.
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
    fn begin(&self, now: Moment) {
        self.started_ms.store(now.as_ms().max(1), Ordering::Relaxed);
    }

    fn end(&self, now: Moment) {
        self.ended_ms.store(now.as_ms(), Ordering::Relaxed);
        self.done.store(true, Ordering::Release);
    }

    /// Whether every block has been looked at.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    pub(super) fn read(&self, now: Moment) -> ProgressNow {
        let done = self.is_done();
        let end = if done { self.ended_ms.load(Ordering::Relaxed) } else { now.as_ms() };
        let started = self.started_ms.load(Ordering::Relaxed);
        let elapsed_ms = if started == 0 { 0 } else { end.saturating_sub(started) };
        ProgressNow { elapsed_ms, done }
    }
}

/// No block is opened until the database is the newest that is known.
struct NotNewest;

/// The blocks that still wait, shared by the workers.
type Queue = Arc<Mutex<std::vec::IntoIter<BlockNo>>>;

/// Opens every block once.
pub(super) struct WarmUp {
    opener: Arc<Opener>,
    parallelism: usize,
    pub(super) progress: Progress,
}

impl WarmUp {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>, parallelism: usize) -> Self {
        Self { opener, parallelism, progress: Progress::default() }
    }

    /// Opens every block. Blocks that clients ask for meanwhile are opened for them, so
    /// the hottest come first by themselves. When the arena is full, the others are
    /// verified only. Waits for as long as the database is refused as not the newest.
    pub(super) async fn run(self: &Arc<Self>) {
        self.progress.begin(self.opener.now());
        let blocks = 0..self.opener.resident.blocks().get();
        let blocks: Vec<BlockNo> = blocks.map(BlockNo).collect();
        let queue: Queue = Arc::new(Mutex::new(blocks.into_iter()));
        let mut workers = JoinSet::new();
        for _ in 0..self.parallelism {
            workers.spawn(Arc::clone(self).open_from(Arc::clone(&queue)));
        }
        while workers.join_next().await.is_some() {}
        self.progress.end(self.opener.now());
    }

    async fn open_from(self: Arc<Self>, queue: Queue) {
        loop {
            let some: Vec<BlockNo> = queue.lock().await.by_ref().take(PUBLISH_EVERY).collect();
            if some.is_empty() {
                return;
            }
            while let Err(NotNewest) = self.open_or_look_at(&some).await {
                tokio::time::sleep(NOT_NEWEST_PAUSE).await;
            }
        }
    }

    async fn open_or_look_at(&self, blocks: &[BlockNo]) -> Result<(), NotNewest> {
        if self.opener.freshness.refusal().is_some() {
            return Err(NotNewest);
        }
        let has_room = self.opener.faults.no_room_for().is_none();
        let left = if has_room { self.open_some(blocks).await? } else { blocks.to_vec() };
        for block in left {
            self.look_at(block).await;
        }
        Ok(())
    }

    /// Verifies a block for which there is no room: what is damaged is to be known all the same.
    async fn look_at(&self, block: BlockNo) {
        let _turn = self.opener.turns.take(block).await;
        if let Err(error) = self.opener.verified(block).await {
            tracing::warn!(block = block.0, %error, "warm-up can't verify a block");
            self.opener.faults.note_failed(self.opener.now(), block, Arc::new(error));
        }
    }

    /// Those for which the arena had no room.
    async fn open_some(&self, blocks: &[BlockNo]) -> Result<Vec<BlockNo>, NotNewest> {
        let opener = &self.opener;
        let mut turns = Vec::with_capacity(blocks.len());
        let mut tables = Vec::with_capacity(blocks.len());
        let mut left = Vec::new();
        let mut outcome = Ok(());
        for &block in blocks {
            if !left.is_empty() {
                left.push(block);
                continue;
            }
            // Held until the tables are published, so that no writer's newer table is overwritten.
            let turn = opener.turns.take(block).await;
            if opener.resident.table(block).is_some() {
                continue;
            }
            match opener.open_now(block, Room::AsItIs).await {
                Ok(table) => {
                    opener.faults.forget_failed(block);
                    tables.push((block, Some(Arc::new(table))));
                    turns.push(turn);
                }
                Err(error @ KeyringError::RolledBack(_)) => {
                    tracing::warn!(%error, "warm-up waits");
                    outcome = Err(NotNewest);
                    break;
                }
                Err(KeyringError::ArenaFull { block: full, needed }) => {
                    tracing::warn!(
                        block = full.0,
                        needed,
                        "the arena is full: raise keyring.arena_mib; other blocks are opened in turn as asked for"
                    );
                    opener.faults.note_no_room(full, needed);
                    left.push(block);
                }
                Err(error) => {
                    tracing::warn!(block = block.0, %error, "warm-up can't open a block");
                    opener.faults.note_failed(opener.now(), block, Arc::new(error));
                }
            }
        }
        opener.resident.publish(tables);
        drop(turns);
        outcome.map(|()| left)
    }
}
