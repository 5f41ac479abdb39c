//! Mending in the background: what failed for a passing reason is tried again, what was closed is opened,
//! what a commit left unknown is read.

use std::{sync::Arc, time::Duration};

use crate::store::StoreError;
use kms_core::{BlockNo, block::keys::SUBKEYS_LEN};

use super::{
    error::KeyringError,
    opening::{Opener, Room},
    patrol::Patrol,
    warm_up::WarmUp,
};

/// The interval at which blocks that failed or ended unknown are tried again.
const INTERVAL: Duration = Duration::from_secs(1);

/// Rounds after which the blocks' rows are looked at, and blocks at fault once more.
const PATROL_EVERY: u64 = 5;

/// Blocks that were closed and are opened again in one round.
const AGAIN_MAX: usize = 256;

/// Tries again.
pub(super) struct Mending {
    opener: Arc<Opener>,
    warm_up: Arc<WarmUp>,
    patrol: Arc<Patrol>,
}

impl Mending {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>, warm_up: Arc<WarmUp>, patrol: Arc<Patrol>) -> Self {
        Self { opener, warm_up, patrol }
    }

    /// Runs until the process ends.
    pub(super) async fn run(&self) {
        let mut tick = tokio::time::interval(INTERVAL);
        for round in 0u64.. {
            tick.tick().await;
            self.try_again().await;
            self.open_again().await;
            if round % PATROL_EVERY == 0 {
                self.patrol.go_round().await;
            }
        }
    }

    /// Opens what was closed after the warm-up, as a block that was not read anew in time or one that made room
    /// for another: only who has all of them open can say that there is no such meter.
    async fn open_again(&self) {
        let opener = &self.opener;
        for block in self.closed() {
            let _turn = opener.turns.take(block).await;
            if opener.resident.table(block).is_some() {
                continue;
            }
            match opener.open_now(block, Room::AsItIs).await {
                Ok(table) => opener.resident.put(block, Arc::new(table)),
                Err(KeyringError::ArenaFull { block, needed }) => {
                    return opener.faults.note_no_room(block, needed);
                }
                Err(KeyringError::RolledBack(_)) => return,
                Err(error) if is_everywhere(&error) => return,
                Err(error) => opener.faults.note_failed(opener.now(), block, Arc::new(error)),
            }
        }
    }

    /// Blocks that are closed and may be opened: none before the warm-up is done, and none for which
    /// there is no room.
    fn closed(&self) -> Vec<BlockNo> {
        let (resident, faults) = (&self.opener.resident, &self.opener.faults);
        let snapshot = resident.snapshot();
        if !self.warm_up.progress.is_done() {
            return Vec::new();
        }
        if snapshot.is_complete() {
            if faults.forget_no_room() {
                tracing::info!("there is room for all blocks again");
            }
            return Vec::new();
        }
        if faults.no_room_for().is_some_and(|needed| !self.may_fit(needed)) {
            return Vec::new();
        }
        let closed = (0u32..).zip(&snapshot.blocks).filter(|(_, table)| table.is_none());
        let closed = closed.map(|(block, _)| BlockNo(block));
        closed.filter(|block| !faults.has_failed(*block)).take(AGAIN_MAX).collect()
    }

    /// Whether the arena has by now what was missing, and as much again for its neighbours.
    fn may_fit(&self, needed: usize) -> bool {
        let arena = self.opener.resident.arena();
        arena.mapped().saturating_sub(arena.used()) >= 2 * (needed + SUBKEYS_LEN)
    }

    async fn try_again(&self) {
        let opener = &self.opener;
        // Before anything of it changes.
        let (suspects, failed) = (opener.faults.suspects(), opener.faults.failed_for_now());
        for block in suspects {
            let _turn = opener.turns.take(block).await;
            match opener.open_now(block, Room::MayCloseOthers).await {
                Ok(table) => {
                    opener.resident.put(block, Arc::new(table));
                    opener.faults.clear_suspect(block);
                }
                Err(error) => {
                    tracing::warn!(block = block.0, %error, "block can't be read again yet");
                    if is_everywhere(&error) {
                        return;
                    }
                    opener.faults.note_failed(opener.now(), block, Arc::new(error));
                }
            }
        }
        for block in failed {
            if opener.open(block).await.is_err_and(|error| is_everywhere(&error)) {
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
