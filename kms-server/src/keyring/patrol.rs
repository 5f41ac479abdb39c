//! What is wrong with the rows of blocks, seen without opening any: a row that is gone, one that no
//! version of this program wrote, one that went back. Named while it lasts; the rest goes on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::store::{DamagedRow, Positions};
use kms_core::BlockNo;

use super::{Keyring, KeyringError, Memory, SharedError};

/// What is wrong with rows, by block; `None`: with some that are no block's.
type Rows = BTreeMap<Option<BlockNo>, String>;

/// Faults that a status names one by one; the rest is counted.
const FAULTS_MAX: usize = 8;

/// Blocks at fault that are looked at again in one round.
const LOOKS_AT_ONCE: usize = 16;

impl Keyring {
    /// Notes what a look at all blocks shows; a look at some shows nothing that counts.
    pub(super) fn note_rows(&self, found: &Positions) {
        if !found.complete {
            return;
        }
        let mut memory = self.memory();
        let rows = self.faults_of(found, &mut memory);
        let past: Vec<_> = rows.keys().flatten().filter(|block| self.is_past(**block)).collect();
        if !past.is_empty() {
            // Opened before it was known that there is a newer state: it must not be used on.
            self.publish(past.into_iter().map(|block| (*block, None)).collect());
        }
        for (block, what) in &rows {
            if memory.rows.get(block) != Some(what) {
                tracing::error!(
                    block = block.map(|block| block.0),
                    what,
                    "a row is not as it was written"
                );
            }
        }
        memory.rows = rows;
    }

    /// Whether a block's resident table is older than a state of it that is known to be authentic.
    pub(super) fn is_past(&self, block: BlockNo) -> bool {
        self.resident(block).is_some_and(|table| self.freshness.is_past(block, table.position()))
    }

    fn faults_of(&self, found: &Positions, memory: &mut Memory) -> Rows {
        let blocks = self.domain.blocks.get();
        let (mut rows, mut behind) = (Rows::new(), HashMap::new());
        let mut there = vec![false; blocks as usize];
        let mut is_there = |block: BlockNo| match there.get_mut(block.0 as usize) {
            Some(place) => {
                *place = true;
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
        let behind_before = std::mem::take(&mut memory.behind);
        for (block, position) in &found.at {
            if !is_there(*block) {
                rows.insert(None, foreign(*block));
            } else if let Some(seen) = self.freshness.newest(*block).filter(|seen| position < seen)
            {
                // Twice: it is no commit that came in between.
                if behind_before.get(block) == Some(position) {
                    let stale = KeyringError::Stale { block: *block, seen, found: *position };
                    rows.insert(Some(*block), stale.to_string());
                }
                behind.insert(*block, *position);
            }
        }
        memory.behind = behind;
        for (block, _) in (0..).zip(&there).filter(|(_, there)| !**there) {
            let block = BlockNo(block);
            rows.insert(Some(block), KeyringError::missing(block).to_string());
        }
        rows
    }

    /// Looks at what nobody else looks at: at all rows, where no other writer is followed; and at blocks
    /// at fault, whether they are well again.
    pub(super) async fn patrol(&self) {
        if !self.has_other_writers() {
            match self.store.positions().await {
                Ok(found) => self.note_rows(&found),
                Err(error) => tracing::warn!(%error, "the blocks' rows can't be looked at"),
            }
        }
        let due: Vec<BlockNo> = {
            let mut memory = self.memory();
            let mut due: Vec<BlockNo> = memory.lasting.keys().copied().collect();
            let lasting = |(_, error): &(u64, SharedError)| !error.is_transient();
            due.extend(memory.failed.iter().filter(|(_, f)| lasting(f)).map(|(block, _)| *block));
            due.sort_unstable();
            due.dedup();
            let first = due.partition_point(|block| *block < memory.look_from);
            due.rotate_left(first);
            due.truncate(LOOKS_AT_ONCE);
            memory.look_from = due.last().map_or(BlockNo(0), |last| BlockNo(last.0 + 1));
            due
        };
        for block in due {
            let _writer = self.writer(block).await;
            if let Ok(table) = self.open_now(block, true).await {
                tracing::info!(block = block.0, "a block that was at fault is well again");
                self.memory().failed.remove(&block);
                self.publish(vec![(block, Some(Arc::new(table)))]);
            }
        }
    }

    /// Remembers why a block can't be read or changed, if that does not pass by itself.
    pub(super) fn note_lasting<T>(
        &self,
        block: BlockNo,
        outcome: Result<T, KeyringError>,
    ) -> Result<T, KeyringError> {
        match &outcome {
            Ok(_) => _ = self.memory().lasting.remove(&block),
            Err(error) if error.is_transient() => {}
            Err(error) => {
                let before = self.memory().lasting.insert(block, error.to_string());
                if before.is_none_or(|before| before != error.to_string()) {
                    tracing::error!(block = block.0, %error, "a block is at fault");
                }
            }
        }
        outcome
    }
}

impl Memory {
    /// What is wrong, a sentence each.
    pub(super) fn faults(&self) -> Vec<String> {
        let opened =
            self.failed.iter().map(|(block, (_, error))| (Some(*block), error.to_string()));
        let mut all: Rows = opened.collect();
        all.extend(self.lasting.iter().map(|(block, what)| (Some(*block), what.clone())));
        all.extend(self.rows.iter().map(|(block, what)| (*block, what.clone())));
        let mut faults: Vec<String> = all.into_values().take(FAULTS_MAX).collect();
        faults.extend(self.too_small.as_ref().map(ToString::to_string));
        faults
    }

    /// Whether something is wrong that does not pass by itself.
    pub(super) fn has_lasting_fault(&self) -> bool {
        let lasting = |(_, error): &(u64, SharedError)| !error.is_transient();
        !self.rows.is_empty() || !self.lasting.is_empty() || self.failed.values().any(lasting)
    }

    /// Blocks that something is wrong with.
    pub(super) fn blocks_at_fault(&self) -> u32 {
        let all = self.rows.keys().flatten().chain(self.lasting.keys()).chain(self.failed.keys());
        all.collect::<BTreeSet<_>>().len() as u32
    }
}
