//! The last changes that this process has committed, block by block, for those who follow it: what was just written need
//! not be read back for them. Bounded, and there while somebody follows; all else is read from the database.

use std::collections::{HashMap, VecDeque};

use crate::store::{BlockChange, sites::BlockChanges};
use kms_core::{BlockNo, Head, Position, StoredRecord};

/// Bytes of all that is kept, at most.
const BYTES_MAX: usize = 4 << 20;
/// Of one block: one that a follower is far behind in is read from the database.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Of a record beside its body, and of a head.
const BESIDE: usize = 128;

/// Changes as they were committed.
#[derive(Default)]
pub(super) struct Recent {
    /// How many follow.
    followers: usize,
    blocks: HashMap<BlockNo, Kept>,
    /// The blocks that are kept, each once: the one that has been kept for longest goes first.
    order: VecDeque<BlockNo>,
    bytes: usize,
}

/// What changed of a block after a position.
struct Kept {
    after: Position,
    changes: BlockChanges,
    bytes: usize,
}

impl Kept {
    fn of(after: Position, head: Head, records: Vec<StoredRecord>) -> Self {
        let bytes = BESIDE + records.iter().map(|it| it.body.len() + BESIDE).sum::<usize>();
        Self { after, changes: BlockChanges { head, records }, bytes }
    }

    /// Of a change that is of records alone: what builds on their positions.
    fn of_change(change: &BlockChange) -> Option<Self> {
        let after = change.expected.filter(|_| change.seals.is_empty())?;
        let records: Vec<_> = change.records.iter().map(|it| it.record.clone()).collect();
        (!records.is_empty()).then(|| Self::of(after, change.head.clone(), records))
    }

    /// This and what was kept before it, if that leads to where this begins.
    fn behind(self, before: Self) -> Self {
        if before.changes.head.position != self.after || before.bytes + self.bytes > BLOCK_BYTES_MAX
        {
            return self;
        }
        let BlockChanges { head, records: newer } = self.changes;
        let mut records = before.changes.records;
        records.retain(|old| newer.iter().all(|new| new.key != old.key));
        records.extend(newer);
        Self::of(before.after, head, records)
    }
}

/// Changes that are about to be committed.
pub(super) struct ToKeep(Vec<(BlockNo, Option<Kept>)>);

impl ToKeep {
    pub(super) fn of(changes: &[BlockChange]) -> Self {
        let kept = |change: &BlockChange| (change.head.block, Kept::of_change(change));
        Self(changes.iter().map(kept).collect())
    }
}

impl Recent {
    pub(super) const fn is_wanted(&self) -> bool {
        self.followers > 0
    }

    pub(super) const fn one_more(&mut self) {
        self.followers += 1;
    }

    pub(super) fn one_less(&mut self) {
        self.followers = self.followers.saturating_sub(1);
        if self.followers == 0 {
            self.forget();
        }
    }

    /// These were committed, in the order in which they are told of each block.
    pub(super) fn committed(&mut self, ToKeep(changes): ToKeep) {
        if !self.is_wanted() {
            return;
        }
        for (block, kept) in changes {
            // Seldom: a new secret, of which a follower has to hear by other ways than records.
            let Some(mut kept) = kept else {
                self.forget();
                continue;
            };
            match self.blocks.remove(&block) {
                Some(before) => {
                    self.bytes -= before.bytes;
                    kept = kept.behind(before);
                }
                None => self.order.push_back(block),
            }
            self.bytes += kept.bytes;
            self.blocks.insert(block, kept);
        }
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.blocks.remove(&oldest).map_or(0, |kept| kept.bytes);
        }
    }

    /// Something else than our own changes has become what is stored.
    pub(super) fn forget(&mut self) {
        self.blocks = HashMap::new();
        self.order = VecDeque::new();
        self.bytes = 0;
    }

    /// What a follower lacks whose block stands at `cursor`, if that is kept and leads to `newest`.
    pub(super) fn changes_after(
        &self,
        block: BlockNo,
        cursor: Position,
        newest: Position,
    ) -> Option<BlockChanges> {
        let Kept { after, changes, .. } = self.blocks.get(&block)?;
        let leads = *after <= cursor && cursor < newest && changes.head.position == newest;
        leads.then(|| {
            let lacking = changes.records.iter().filter(|record| record.position > cursor);
            BlockChanges { head: changes.head.clone(), records: lacking.cloned().collect() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{IndexEntry, RecordChange, SealedSecret};
    use kms_core::{Epoch, RecordKey, Sequence, SystemTitle};

    const fn at(sequence: u64) -> Position {
        Position { epoch: Epoch(2), sequence: Sequence(sequence) }
    }

    fn head(block: u32, sequence: u64) -> Head {
        let (digest, mac) = ([sequence as u8; 32], [1; 16]);
        let position = at(sequence);
        Head { block: BlockNo(block), secret_version: 1, position, count: 9, digest, mac }
    }

    /// One change of the meter `n`, with a body of so many bytes.
    fn record(n: u8, sequence: u64, bytes: usize) -> StoredRecord {
        let key = RecordKey::meter(&SystemTitle::new([n; 8]));
        let body = vec![sequence as u8; bytes];
        StoredRecord { key, position: at(sequence), secret_version: 1, body, mac: [2; 16] }
    }

    fn change(block: u32, after: u64, records: &[StoredRecord]) -> BlockChange {
        let change = |record: &StoredRecord| RecordChange {
            record: record.clone(),
            index: IndexEntry::Tombstone { former: Vec::new() },
        };
        BlockChange {
            expected: Some(at(after)),
            head: head(block, after + records.len() as u64),
            seals: Vec::new(),
            records: records.iter().map(change).collect(),
        }
    }

    fn followed() -> Recent {
        let mut recent = Recent::default();
        recent.one_more();
        recent
    }

    fn commit(recent: &mut Recent, change: BlockChange) {
        recent.committed(ToKeep::of(&[change]));
    }

    #[test]
    fn a_follower_lacks_what_is_behind_its_cursor_and_of_each_record_the_newest() {
        let mut recent = followed();
        commit(&mut recent, change(1, 4, &[record(1, 5, 9), record(2, 6, 9)]));
        commit(&mut recent, change(1, 6, &[record(1, 7, 9)]));
        let after = |cursor, newest| {
            let found = recent.changes_after(BlockNo(1), at(cursor), at(newest))?;
            Some((found.head, found.records))
        };
        assert_eq!(after(4, 7), Some((head(1, 7), vec![record(2, 6, 9), record(1, 7, 9)])));
        assert_eq!(after(6, 7), Some((head(1, 7), vec![record(1, 7, 9)])));
        assert_eq!(after(3, 7), None, "something before it is lacking, too");
        assert_eq!(after(7, 7), None, "whether it is the same state is not known");
        assert_eq!(after(8, 7), None, "it is beyond ours");
        assert_eq!(after(6, 8), None, "somebody else has changed it");
        assert_eq!(recent.changes_after(BlockNo(2), at(4), at(7)), None);
    }

    #[test]
    fn what_does_not_build_on_what_is_kept_takes_its_place() {
        let mut recent = followed();
        commit(&mut recent, change(1, 4, &[record(1, 5, 9)]));
        // Another server wrote the sixth change.
        commit(&mut recent, change(1, 6, &[record(1, 7, 9)]));
        assert_eq!(recent.changes_after(BlockNo(1), at(4), at(7)), None);
        assert!(recent.changes_after(BlockNo(1), at(6), at(7)).is_some());
        let mut sealed_anew = change(1, 7, &[record(1, 8, 9)]);
        sealed_anew.seals =
            vec![SealedSecret { secret_version: 2, kek_id: [1; 16], sealed: vec![] }];
        commit(&mut recent, sealed_anew);
        assert_eq!(recent.changes_after(BlockNo(1), at(7), at(8)), None);
        assert_eq!(recent.changes_after(BlockNo(1), at(6), at(7)), None);
    }

    #[test]
    fn nothing_is_kept_for_nobody_and_never_more_than_the_bounds() {
        let mut recent = Recent::default();
        commit(&mut recent, change(1, 4, &[record(1, 5, 9)]));
        assert_eq!((recent.blocks.len(), recent.bytes), (0, 0), "nobody follows");
        recent.one_more();
        // One block that changes again and again.
        for n in 0..200_u8 {
            let sequence = u64::from(n);
            commit(&mut recent, change(1, sequence, &[record(n, sequence + 1, 1 << 10)]));
            assert!(recent.bytes <= BLOCK_BYTES_MAX);
        }
        // Then many, of which each comes alone.
        for block in 2..9_000 {
            commit(&mut recent, change(block, 4, &[record(1, 5, 1 << 10)]));
            assert!(recent.bytes <= BYTES_MAX);
            assert!(recent.changes_after(BlockNo(block), at(4), at(5)).is_some());
        }
        assert_eq!(recent.order.len(), recent.blocks.len());
        let sum: usize = recent.blocks.values().map(|kept| kept.bytes).sum();
        assert_eq!(recent.bytes, sum);
        recent.one_more();
        recent.one_less();
        assert!(recent.bytes > 0, "one is left");
        recent.one_less();
        assert_eq!((recent.blocks.len(), recent.order.len(), recent.bytes), (0, 0, 0));
    }
}
