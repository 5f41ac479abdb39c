//! From the operator's meter ids to system titles, for open blocks.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{PoisonError, RwLock},
};

use kms_core::SystemTitle;

/// Shards, so that a change of one block keeps few readers waiting.
const SHARDS: usize = 64;

/// The tag that stands for a meter id in this process: keyed hashes, 96 bits. The block's table has the one of
/// the id in the meter's record, and that decides: two ids that are alike in all of it are not met in
/// any fleet (one in 10^15 for ten million meters), and without the keys nobody can make them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::keyring) struct IdTag {
    /// Finds the title.
    pub(in crate::keyring) hash: u64,
    /// Confirms it.
    pub(in crate::keyring) check: u32,
}

/// Meter ids by a 64-bit keyed hash: 16 bytes a meter. Only a hint where to look: the entry in the
/// block's table has the tag of the id in its record, so an id that moved to another title, or whose
/// hash another id has, is not found under a wrong one.
pub(super) struct IdIndex {
    keyed: RandomState,
    keyed_again: RandomState,
    shards: Vec<RwLock<Shard>>,
}

#[derive(Default)]
struct Shard {
    titles: HashMap<u64, SystemTitle>,
    /// Further titles whose tables have the id, the last one last: an id that moves is there twice until both blocks have
    /// come. Few, and none for long.
    further: HashMap<u64, Vec<SystemTitle>>,
}

impl IdIndex {
    pub(super) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Self { keyed: RandomState::new(), keyed_again: RandomState::new(), shards }
    }

    /// The tag that stands for `id` in this process.
    pub(super) fn tag(&self, id: &str) -> IdTag {
        IdTag { hash: self.hash(id), check: self.keyed_again.hash_one(id) as u32 }
    }

    /// The hash that stands for `id` in this process.
    pub(super) fn hash(&self, id: &str) -> u64 {
        self.keyed.hash_one(id)
    }

    pub(super) fn get(&self, hash: u64) -> Option<SystemTitle> {
        let shard = self.shard(hash).read().unwrap_or_else(PoisonError::into_inner);
        shard.titles.get(&hash).copied()
    }

    /// From now on `hash` stands for `title`, until that is forgotten.
    pub(super) fn put(&self, hash: u64, title: SystemTitle) {
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        shard.drop_further(hash, title);
        if let Some(before) = shard.titles.insert(hash, title).filter(|before| *before != title) {
            shard.further.entry(hash).or_default().push(before);
        }
    }

    /// `hash` stands for `title` no more: for the one before it, if that has not been forgotten.
    pub(super) fn forget(&self, hash: u64, title: SystemTitle) {
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        if shard.titles.get(&hash) != Some(&title) {
            return shard.drop_further(hash, title);
        }
        match shard.further.get_mut(&hash).and_then(Vec::pop) {
            Some(before) => {
                shard.titles.insert(hash, before);
                shard.drop_further(hash, before);
            }
            None => drop(shard.titles.remove(&hash)),
        }
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        &self.shards[(hash >> 58) as usize % SHARDS]
    }
}

impl Shard {
    fn drop_further(&mut self, hash: u64, title: SystemTitle) {
        let Some(further) = self.further.get_mut(&hash) else { return };
        further.retain(|other| *other != title);
        if further.is_empty() {
            self.further.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_stands_for_the_last_title_that_has_it_and_after_that_for_the_one_before() {
        let (ids, [a, b, c]) = (IdIndex::new(), [1, 2, 3].map(|n| SystemTitle::new([n; 8])));
        let hash = ids.hash("m-1");
        let further = || ids.shard(hash).read().unwrap().further.len();
        ids.put(hash, a);
        ids.put(hash, b);
        assert_eq!((ids.get(hash), further()), (Some(b), 1));
        // Moved back before the first block was looked at again.
        ids.forget(hash, b);
        assert_eq!((ids.get(hash), further()), (Some(a), 0));
        for title in [b, c, a] {
            ids.put(hash, title);
        }
        assert_eq!(ids.get(hash), Some(a));
        ids.forget(hash, b);
        ids.forget(hash, a);
        assert_eq!((ids.get(hash), further()), (Some(c), 0));
        ids.put(hash, c);
        ids.forget(hash, c);
        assert_eq!((ids.get(hash), further()), (None, 0));
    }
}
