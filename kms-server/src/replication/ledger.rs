//! Where the blocks of this site stand: learnt from the commits of this process, and from a look at the database for
//! those of others. For those who follow it has the last of these commits, too.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    lagging::Behind,
    recent::{Recent, ToKeep},
};
use crate::store::{
    AuditedStore, BlockChange, Positions, ReadStore, StoreError,
    keks::KekStep,
    sites::{BlockAdoption, BlockChanges, Divergent, PeerStep, RoleStep},
};
use kms_core::{BlockCount, BlockNo, Position, audit::AuditEntry};

/// The interval at which a database without other writers is looked at: for a commit whose caller went away.
const LOOK: Duration = Duration::from_secs(2);
/// Pause after a failure to hear of others.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// The newest position of each block that is known to be committed here.
pub struct Ledger {
    at: Mutex<Vec<Position>>,
    changed: watch::Sender<u64>,
    recent: Mutex<Recent>,
}

/// For as long as it is there, the ledger keeps what is committed.
pub(super) struct Reader(Arc<Ledger>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.recent().one_less();
    }
}

impl Ledger {
    /// Nothing is known yet.
    pub fn new(blocks: BlockCount) -> Self {
        let none = vec![Position::default(); blocks.get() as usize];
        Self { at: Mutex::new(none), changed: watch::Sender::new(0), recent: Mutex::default() }
    }

    /// Blocks are known to stand there, or beyond.
    pub fn note(&self, at: impl IntoIterator<Item = (BlockNo, Position)>) {
        let mut news = false;
        {
            let mut known = self.known();
            for (block, position) in at {
                if let Some(known) = known.get_mut(block.0 as usize).filter(|it| **it < position) {
                    *known = position;
                    news = true;
                }
            }
        }
        if news {
            self.changed.send_modify(|number| *number = number.wrapping_add(1));
        }
    }

    /// Wakes whoever waits, each time that a block moves.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether all of these are reached.
    pub fn has_reached(&self, wanted: &[(BlockNo, Position)]) -> bool {
        let known = self.known();
        let reached = |(block, position): &(BlockNo, Position)| {
            known.get(block.0 as usize).is_some_and(|known| known >= position)
        };
        wanted.iter().all(reached)
    }

    /// The blocks that stand beyond `seen`, which has a position for each.
    pub fn beyond(&self, seen: &[Position]) -> Vec<BlockNo> {
        let known = self.known();
        let both = (0u32..).zip(known.iter().zip(seen));
        both.filter(|(_, (known, seen))| known > seen).map(|(block, _)| BlockNo(block)).collect()
    }

    /// Somebody follows: what is committed from now on is kept for it.
    pub(super) fn read_by_one(self: &Arc<Self>) -> Reader {
        self.recent().one_more();
        Reader(Arc::clone(self))
    }

    /// What was committed here of a block after this position; `None`: it is not known, and the database has it.
    pub(super) fn changes_after(&self, block: BlockNo, cursor: Position) -> Option<BlockChanges> {
        let newest = self.known().get(block.0 as usize).copied()?;
        self.recent().changes_after(block, cursor, newest)
    }

    /// How far these positions of all blocks, in order, are behind.
    pub(super) fn behind(&self, stored: impl Iterator<Item = Position>) -> Behind {
        let known = self.known();
        let lacking = known.iter().zip(stored).filter(|(known, stored)| stored < *known);
        lacking.fold(Behind::default(), |sum, (known, stored)| Behind {
            blocks: sum.blocks + 1,
            changes: sum.changes + known.sequence.0.saturating_sub(stored.sequence.0),
        })
    }

    /// Runs until the process ends: hears of what other servers of this site commit.
    pub async fn hear(self: Arc<Self>, store: Arc<dyn ReadStore>) {
        match store.follow() {
            Some(mut others) => loop {
                match others.next().await {
                    Ok(positions) => self.note(positions.at),
                    Err(error) => {
                        tracing::debug!(%error, "the positions of blocks are not heard");
                        sleep(AFTER_FAILURE).await;
                    }
                }
            },
            None => {
                let mut ticks = interval(LOOK);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    if let Ok(Positions { at, .. }) = store.positions().await {
                        self.note(at);
                    }
                }
            }
        }
    }

    /// Held for a few comparisons, never across an `.await`.
    fn known(&self) -> MutexGuard<'_, Vec<Position>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while the records of one commit are moved, or those of one block copied.
    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to commit, with the ledger told of it.
pub struct Noted {
    commits: Arc<dyn AuditedStore>,
    ledger: Arc<Ledger>,
}

impl Noted {
    /// Commits through `commits`.
    pub fn new(commits: Arc<dyn AuditedStore>, ledger: Arc<Ledger>) -> Self {
        Self { commits, ledger }
    }
}

fn ends(changes: &[BlockChange]) -> Vec<(BlockNo, Position)> {
    changes.iter().map(|change| (change.head.block, change.head.position)).collect()
}

#[async_trait]
impl AuditedStore for Noted {
    async fn commit(
        &self,
        changes: Vec<BlockChange>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        let ends = ends(&changes);
        let is_wanted = self.ledger.recent().is_wanted();
        let to_keep = is_wanted.then(|| ToKeep::of(&changes));
        self.commits.commit(changes, entries).await?;
        // Before anybody is woken who looks for it.
        if let Some(to_keep) = to_keep {
            self.ledger.recent().committed(to_keep);
        }
        self.ledger.note(ends);
        Ok(())
    }

    async fn adopt(
        &self,
        adoptions: Vec<BlockAdoption>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        let end = |it: &BlockAdoption| (it.head.block, it.head.position);
        let ends: Vec<_> = adoptions.iter().map(end).collect();
        self.commits.adopt(adoptions, entries).await?;
        self.ledger.recent().forget();
        self.ledger.note(ends);
        Ok(())
    }

    async fn change_role(
        &self,
        step: RoleStep,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        let ends = ends(&step.blocks);
        self.commits.change_role(step, entries).await?;
        self.ledger.recent().forget();
        self.ledger.note(ends);
        Ok(())
    }

    async fn put_peer(&self, step: PeerStep, entries: Vec<AuditEntry>) -> Result<(), StoreError> {
        self.commits.put_peer(step, entries).await
    }

    async fn put_divergence(
        &self,
        divergent: Vec<Divergent>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.commits.put_divergence(divergent, entries).await
    }

    async fn put_site_keks(
        &self,
        step: KekStep,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.commits.put_site_keks(step, entries).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::{Epoch, Sequence};

    fn at(epoch: u64, sequence: u64) -> Position {
        Position { epoch: Epoch(epoch), sequence: Sequence(sequence) }
    }

    #[test]
    fn a_block_never_goes_back_and_who_waits_is_woken_by_news_alone() {
        let ledger = Ledger::new(BlockCount::new(3).unwrap());
        let mut watch = ledger.watch();
        ledger.note([(BlockNo(1), at(2, 7)), (BlockNo(9), at(2, 7))]);
        assert!(watch.has_changed().unwrap());
        watch.borrow_and_update();
        ledger.note([(BlockNo(1), at(2, 6)), (BlockNo(1), at(2, 7))]);
        assert!(!watch.has_changed().unwrap());
        assert!(ledger.has_reached(&[(BlockNo(1), at(2, 7)), (BlockNo(0), Position::default())]));
        assert!(!ledger.has_reached(&[(BlockNo(1), at(3, 7))]));
        assert!(!ledger.has_reached(&[(BlockNo(9), Position::default())]), "there is none");
        assert_eq!(ledger.beyond(&[at(2, 6); 3]), [BlockNo(1)]);
    }
}
