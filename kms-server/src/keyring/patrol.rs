//! Looking at the rows of blocks without opening any: one that is gone, one that no version of this program
//! wrote, one that went back. Named while it lasts; the rest goes on. And at blocks at fault, whether they
//! are well again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::store::{DamagedRow, Positions};
use kms_core::{BlockNo, Position};

use super::{
    error::KeyringError,
    faults::Rows,
    opening::{Opener, Room},
};

/// Blocks at fault that are looked at again in one round.
const LOOKS_AT_ONCE: usize = 16;

/// Looks at what nobody else looks at.
pub(super) struct Patrol {
    opener: Arc<Opener>,
    /// Whether other writers are followed: then their positions come with that.
    shared: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Blocks that the last look found behind, and where: a look that began before a commit finds its
    /// block so.
    behind: HashMap<BlockNo, Position>,
    /// Where the next look at blocks at fault begins.
    look_from: BlockNo,
}

impl Patrol {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>, shared: bool) -> Self {
        Self { opener, shared, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a look at all blocks shows; a look at some shows nothing that counts.
    pub(super) fn note_rows(&self, found: &Positions) {
        if !found.complete {
            return;
        }
        let rows = self.faults_of(found);
        let at_fault = rows.keys().flatten().copied();
        let past: Vec<_> = at_fault.filter(|block| self.opener.is_past(*block)).collect();
        if !past.is_empty() {
            // Opened before it was known that there is a newer state: it must not be used on.
            self.opener.resident.close(past);
        }
        self.opener.faults.set_rows(rows);
    }

    fn faults_of(&self, found: &Positions) -> Rows {
        let blocks = self.opener.resident.blocks().get();
        let (mut rows, mut behind) = (Rows::new(), HashMap::new());
        let mut there = vec![false; blocks as usize];
        let mut is_there = |block: BlockNo| match there.get_mut(block.0 as usize) {
            Some(seen) => {
                *seen = true;
                true
            }
            None => false,
        };
        let foreign = |block| format!("a row of block {block}, which this key domain has not");
        for DamagedRow { block, what } in &found.damaged {
            let known = block.filter(|block| is_there(*block));
            let what = match (known, block) {
                (Some(block), _) => format!("block {block} is damaged: {what}"),
                (None, Some(block)) => foreign(*block),
                (None, None) => format!("a block's row is damaged: {what}"),
            };
            rows.insert(known, what);
        }
        let behind_before = std::mem::take(&mut self.state().behind);
        for (block, position) in &found.at {
            if !is_there(*block) {
                rows.insert(None, foreign(*block));
            } else if let Some(seen) = self.newer_than(*block, *position) {
                // Twice: it is no commit that came in between.
                if behind_before.get(block) == Some(position) {
                    let stale = KeyringError::Stale { block: *block, seen, found: *position };
                    rows.insert(Some(*block), stale.to_string());
                }
                behind.insert(*block, *position);
            }
        }
        self.state().behind = behind;
        for (block, _) in (0..).zip(&there).filter(|(_, there)| !**there) {
            let block = BlockNo(block);
            rows.insert(Some(block), KeyringError::missing(block).to_string());
        }
        rows
    }

    /// The newest state that is known of a block, if it is newer than this.
    fn newer_than(&self, block: BlockNo, position: Position) -> Option<Position> {
        self.opener.freshness.newest(block).filter(|newest| position < *newest)
    }

    /// Looks at all rows, where no other writer is followed; and at some blocks at fault.
    pub(super) async fn go_round(&self) {
        if !self.shared {
            match self.opener.store.positions().await {
                Ok(found) => self.note_rows(&found),
                Err(error) => tracing::warn!(%error, "the blocks' rows can't be looked at"),
            }
        }
        for block in self.due() {
            let _turn = self.opener.turns.take(block).await;
            if let Ok(table) = self.opener.open_now(block, Room::MayCloseOthers).await {
                tracing::info!(block = block.0, "a block that was at fault is well again");
                self.opener.faults.forget_failed(block);
                self.opener.resident.put(block, Arc::new(table));
            }
        }
    }

    /// Blocks at fault, some at a time, each in its turn.
    fn due(&self) -> Vec<BlockNo> {
        let mut due = self.opener.faults.lasting();
        let mut state = self.state();
        let first = due.partition_point(|block| *block < state.look_from);
        due.rotate_left(first);
        due.truncate(LOOKS_AT_ONCE);
        state.look_from = due.last().map_or(BlockNo(0), |last| BlockNo(last.0 + 1));
        due
    }
}
