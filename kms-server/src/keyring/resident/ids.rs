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
    shards: Vec<RwLock<HashMap<u64, SystemTitle>>>,
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
        shard.get(&hash).copied()
    }

    pub(super) fn put(&self, hash: u64, title: SystemTitle) {
        self.shard(hash).write().unwrap_or_else(PoisonError::into_inner).insert(hash, title);
    }

    /// Forgets `hash`, if it still stands for `title`.
    pub(super) fn forget(&self, hash: u64, title: SystemTitle) {
        let mut shard = self.shard(hash).write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&hash) == Some(&title) {
            shard.remove(&hash);
        }
    }

    fn shard(&self, hash: u64) -> &RwLock<HashMap<u64, SystemTitle>> {
        &self.shards[(hash >> 58) as usize % SHARDS]
    }
}
