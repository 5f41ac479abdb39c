//! The lines in memory.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use kms_core::{
    BlockNo,
    counters::LineName,
    floors::{Floor, Judged, Line, Message},
};

/// Parts that are locked one by one: far more than there are cores.
const SHARDS: usize = 64;

/// Lines in one shard: sixteen million in all, of some 100 bytes each. One line is one key of one meter.
const LINES_MAX: usize = 16_000_000 / SHARDS;

/// Messages in one shard that are remembered beyond the last few of each line: 32 MiB in all.
const REMEMBERED_MAX: usize = (32 << 20) / SHARDS / size_of::<Message>();

/// All lines that this process has judged or read.
pub(super) struct Shards {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

#[derive(Default)]
struct Shard {
    lines: HashMap<LineName, Placed>,
    /// Messages remembered beyond [`Line::KEPT`] of each line, since this was counted.
    extra: usize,
}

struct Placed {
    block: BlockNo,
    line: Line,
}

/// There is no room for another line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// A line that has risen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Risen {
    pub(super) block: BlockNo,
    pub(super) line: LineName,
    pub(super) floor: Floor,
}

impl Shards {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Judges a message of a line, whose meter is in this block.
    pub(super) fn judge(
        &self,
        block: BlockNo,
        name: &LineName,
        message: Message,
        window: u8,
    ) -> Result<Judged, NoRoom> {
        let mut shard = self.shard(name);
        let shard = &mut *shard;
        if shard.extra >= REMEMBERED_MAX {
            shard.pass();
            shard.pass();
        }
        let line = shard.line(block, name)?;
        let judged = line.judge(message, window);
        if matches!(judged, Judged::New { .. }) && line.remembered() > Line::KEPT {
            shard.extra += 1;
        }
        Ok(judged)
    }

    /// The judgement that a message of a line would get, and whether its counter is known to have been seen. Nothing
    /// is taken in.
    pub(super) fn look(
        &self,
        name: &LineName,
        message: Message,
        window: u8,
    ) -> (Judged, Option<bool>) {
        let shard = self.shard(name);
        let Some(Placed { line, .. }) = shard.lines.get(name) else {
            return (Judged::New { skipped: 0 }, Some(false));
        };
        let seen = line.floor().map_or(Some(false), |floor| floor.has_seen(message.counter));
        (line.look(message, window), seen)
    }

    /// The highest counter that was seen of a line.
    pub(super) fn highest(&self, name: &LineName) -> Option<u32> {
        self.shard(name).lines.get(name)?.line.highest()
    }

    /// Takes in what was stored of a line.
    pub(super) fn merge(
        &self,
        block: BlockNo,
        name: &LineName,
        floor: Floor,
    ) -> Result<(), NoRoom> {
        self.shard(name).line(block, name)?.merge(floor);
        Ok(())
    }

    /// Takes in what the other site saw of a line, which is to be stored here.
    pub(super) fn adopt(
        &self,
        block: BlockNo,
        name: &LineName,
        floor: Floor,
    ) -> Result<(), NoRoom> {
        self.shard(name).line(block, name)?.adopt(floor);
        Ok(())
    }

    /// The lines that rose since this was asked last.
    pub(super) fn take_risen(&self) -> Vec<Risen> {
        let mut all = Vec::new();
        for shard in &self.shards {
            for (line, placed) in &mut lock(shard).lines {
                let floor = placed.line.risen();
                all.extend(floor.map(|floor| Risen { block: placed.block, line: *line, floor }));
            }
        }
        all
    }

    /// These could not be stored, and are to be taken again.
    pub(super) fn put_back(&self, risen: &[Risen]) {
        for Risen { line, .. } in risen {
            if let Some(placed) = self.shard(line).lines.get_mut(line) {
                placed.line.not_stored();
            }
        }
    }

    /// An interval has passed: what was remembered for a whole one is forgotten.
    pub(super) fn pass(&self) {
        self.shards.iter().for_each(|shard| lock(shard).pass());
    }

    /// The number of lines.
    pub(super) fn lines(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).lines.len()).sum()
    }

    fn shard(&self, name: &LineName) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(name) as usize % self.shards.len();
        lock(&self.shards[at])
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn line(&mut self, block: BlockNo, name: &LineName) -> Result<&mut Line, NoRoom> {
        if self.lines.len() >= LINES_MAX && !self.lines.contains_key(name) {
            return Err(NoRoom);
        }
        let new = || Placed { block, line: Line::default() };
        Ok(&mut self.lines.entry(*name).or_insert_with(new).line)
    }

    fn pass(&mut self) {
        let lines = self.lines.values_mut();
        self.extra = lines
            .map(|placed| {
                placed.line.pass();
                placed.line.remembered().saturating_sub(Line::KEPT)
            })
            .sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::{Fingerprint, SystemTitle};

    fn line(n: u8) -> LineName {
        LineName { fingerprint: Fingerprint([n; 16]), originator: SystemTitle::new([n; 8]) }
    }

    #[test]
    fn what_rose_is_taken_once_and_again_where_it_was_not_stored() {
        let shards = Shards::new();
        let judge = |n, counter| {
            shards.judge(BlockNo(1), &line(n), Message { counter, check: counter }, 0).unwrap()
        };
        assert_eq!(judge(1, 5), Judged::New { skipped: 0 });
        assert_eq!(judge(2, 5), Judged::New { skipped: 0 });
        assert_eq!(judge(1, 4), Judged::Below { floor: 6 });
        let risen = shards.take_risen();
        assert_eq!((risen.len(), shards.take_risen().len(), shards.lines()), (2, 0, 2));
        shards.put_back(&risen[..1]);
        assert_eq!(shards.take_risen()[0].line, risen[0].line);
        // What another node saw is not ours to store.
        shards.merge(BlockNo(1), &line(2), Floor::first(9, 9)).unwrap();
        assert!(shards.take_risen().is_empty());
        assert_eq!(judge(2, 8), Judged::Below { floor: 10 });
    }

    #[test]
    fn what_is_remembered_of_all_lines_together_has_a_bound() {
        let shards = Shards::new();
        let lines = 2 * REMEMBERED_MAX / Line::RECENT_MAX + 1;
        // All of them in one shard, whichever that is.
        let mut names = (0u64..).map(|n| LineName {
            fingerprint: Fingerprint((u128::from(n)).to_be_bytes()),
            originator: SystemTitle::new([1; 8]),
        });
        let at = |name: &LineName| shards.hasher.hash_one(name) as usize % SHARDS;
        for _ in 0..lines {
            let name = names.find(|name| at(name) == 0).unwrap();
            for counter in 0..Line::RECENT_MAX as u32 {
                shards.judge(BlockNo(0), &name, Message { counter, check: 0 }, 0).unwrap();
            }
        }
        let shard = lock(&shards.shards[0]);
        let remembered: usize = shard.lines.values().map(|placed| placed.line.remembered()).sum();
        assert!(remembered <= REMEMBERED_MAX + lines * Line::KEPT, "{remembered}");
    }
}
