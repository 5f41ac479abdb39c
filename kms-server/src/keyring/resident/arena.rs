//! The one place where keys of protection `MEMORY` are in clear: a single mapping, locked against
//! swap, left out of core dumps, wiped piece by piece as it is given back.
//!
//! The only module of this crate with `unsafe`: it hands out disjoint pieces of one mapping, which
//! the borrow checker can't follow, and asks the processor to prefetch.
#![allow(
    unsafe_code,
    reason = "disjoint pieces of one mapping, and prefetch; reasons stand at each"
)]

use std::{
    collections::BTreeMap,
    ptr::NonNull,
    slice,
    sync::{Arc, Mutex, PoisonError},
};

use memmap2::{Advice, MmapMut};
use rustix::process::{Resource, getrlimit};
use zeroize::Zeroize;

/// Pieces start on cache lines: an entry of a block's table is exactly one.
pub const ALIGN: usize = 64;

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The limit on locked memory is too small.
    #[error(
        "the limit on locked memory is {limit} bytes but keyring.arena_mib needs {needed}: raise it \
         (systemd: LimitMEMLOCK=infinity; shell: ulimit -l), make the arena smaller, or, for \
         development only, set keyring.allow_unlocked"
    )]
    LimitTooSmall {
        /// The soft limit, in bytes.
        limit: u64,
        /// The limit that locking the arena takes, in bytes.
        needed: u64,
    },
    /// The system gave no memory.
    #[error("mapping {bytes} bytes for keys")]
    NoMemory {
        /// The number of bytes.
        bytes: usize,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// The mapping and what of it is free.
pub struct Arena {
    base: NonNull<u8>,
    len: usize,
    locked: bool,
    free: Mutex<Free>,
    /// Keeps the mapping alive; reached through `base` only.
    _mapping: MmapMut,
}

// SAFETY: `base` points into `_mapping`, which lives as long as the arena. Its bytes are reached only
// through `Segment`s, each of which is the only owner of its range (`Free` hands a range out once).
unsafe impl Send for Arena {}
// SAFETY: as above; `free` has its own lock.
unsafe impl Sync for Arena {}

/// Free ranges by offset. Neighbours are merged.
struct Free {
    ranges: BTreeMap<usize, usize>,
    used: usize,
}

/// A piece of the arena. Its owner is the only one who reaches it; wiped when dropped.
pub struct Segment {
    arena: Arc<Arena>,
    offset: usize,
    len: usize,
}

impl Arena {
    /// Maps and locks `bytes`, rounded up to whole pages. With `allow_unlocked` a refusal to lock is
    /// accepted and shows in [`Arena::is_locked`].
    pub fn new(bytes: usize, allow_unlocked: bool) -> Result<Arc<Self>, ArenaError> {
        const PAGE: usize = 4096;
        let len = bytes.max(PAGE).next_multiple_of(PAGE);
        let no_memory = |source| ArenaError::NoMemory { bytes: len, source };
        let mut mapping = MmapMut::map_anon(len).map_err(no_memory)?;
        mapping.advise(Advice::DontDump).map_err(no_memory)?;
        // Huge pages halve the cost of a look-up at a million meters; a kernel without them says no
        // and nothing else changes.
        let _ = mapping.advise(Advice::HugePage);
        let locked = match mapping.lock() {
            Ok(()) => true,
            Err(_) if allow_unlocked => false,
            Err(_) => {
                let limit = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
                return Err(ArenaError::LimitTooSmall { limit, needed: len as u64 });
            }
        };
        let Some(base) = NonNull::new(mapping.as_mut_ptr()) else {
            return Err(no_memory(std::io::ErrorKind::OutOfMemory.into()));
        };
        let free = Free { ranges: BTreeMap::from([(0, len)]), used: 0 };
        Ok(Arc::new(Self { base, len, locked, free: Mutex::new(free), _mapping: mapping }))
    }

    /// A zeroed piece of `len` bytes; `None`: there is no room left.
    pub fn allocate(self: &Arc<Self>, len: usize) -> Option<Segment> {
        let len = len.max(1).next_multiple_of(ALIGN);
        let offset = self.free().take(len)?;
        Some(Segment { arena: Arc::clone(self), offset, len })
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.free().used
    }

    /// Bytes mapped.
    pub const fn mapped(&self) -> usize {
        self.len
    }

    /// Whether the pages are locked.
    pub const fn is_locked(&self) -> bool {
        self.locked
    }

    /// A panic while the lock was held can't leave the ranges half changed: nothing in `Free` panics
    /// between two changes.
    fn free(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    fn take(&mut self, len: usize) -> Option<usize> {
        let (&offset, &room) = self.ranges.iter().find(|(_, room)| **room >= len)?;
        self.ranges.remove(&offset);
        if room > len {
            self.ranges.insert(offset + len, room - len);
        }
        self.used += len;
        Some(offset)
    }

    fn give_back(&mut self, mut offset: usize, mut len: usize) {
        self.used -= len;
        if let Some((&before, &room)) = self.ranges.range(..offset).next_back()
            && before + room == offset
        {
            self.ranges.remove(&before);
            offset = before;
            len += room;
        }
        if let Some(room) = self.ranges.remove(&(offset + len)) {
            len += room;
        }
        self.ranges.insert(offset, len);
    }
}

impl Segment {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `offset..offset + len` lies in the mapping and belongs to this segment alone;
        // shared borrows of it come from `&self` only.
        unsafe { slice::from_raw_parts(self.start().as_ptr(), self.len) }
    }

    /// The bytes, to fill them in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this borrow the only one.
        unsafe { slice::from_raw_parts_mut(self.start().as_ptr(), self.len) }
    }

    /// Asks the processor to fetch the cache line at `at`; a hint, never wrong.
    #[inline]
    pub fn prefetch(&self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        if at < self.len {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: the address lies in the mapping; a prefetch reads nothing.
            unsafe { _mm_prefetch(self.start().as_ptr().add(at).cast::<i8>(), _MM_HINT_T0) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    #[inline]
    fn start(&self) -> NonNull<u8> {
        // SAFETY: `Free` hands out only ranges within the mapping.
        unsafe { self.arena.base.add(self.offset) }
    }
}

/// Asks the processor to fetch the first cache line of `value`; a hint, never wrong.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the address is that of a live value; a prefetch reads nothing.
        unsafe { _mm_prefetch(std::ptr::from_ref(value).cast::<i8>(), _MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        self.arena.free().give_back(self.offset, self.len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn invariant_1_a_piece_given_back_is_wiped() {
        let arena = Arena::new(4096, true).unwrap();
        let mut piece = arena.allocate(100).unwrap();
        piece.bytes_mut().fill(0xAB);
        drop(piece);
        assert_eq!(arena.used(), 0);
        assert!(arena.allocate(4096).unwrap().bytes().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_full_arena_gives_nothing() {
        let arena = Arena::new(4096, true).unwrap();
        let all = arena.allocate(4096).unwrap();
        assert!(arena.allocate(1).is_none());
        drop(all);
        assert!(arena.allocate(1).is_some());
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_and_all_room_comes_back(
            steps in prop::collection::vec((any::<bool>(), 1usize..700), 1..200)
        ) {
            let arena = Arena::new(16 * 1024, true).unwrap();
            let mut held: Vec<(u8, Segment)> = Vec::new();
            for (number, (give_back, len)) in steps.into_iter().enumerate() {
                if give_back && !held.is_empty() {
                    held.swap_remove(len % held.len());
                } else if let Some(mut piece) = arena.allocate(len) {
                    prop_assert!(piece.bytes().iter().all(|byte| *byte == 0));
                    let mark = number as u8 | 1;
                    piece.bytes_mut().fill(mark);
                    held.push((mark, piece));
                }
                for (mark, piece) in &held {
                    prop_assert!(piece.bytes().iter().all(|byte| byte == mark));
                }
            }
            held.clear();
            prop_assert_eq!(arena.used(), 0);
            prop_assert!(arena.allocate(16 * 1024).is_some());
        }
    }
}
