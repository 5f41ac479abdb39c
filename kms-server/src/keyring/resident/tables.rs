//! The open blocks: the directory of their tables, and the ids of their meters in step with it.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::{
    arena::{Arena, ArenaError, Segment},
    directory::Directory,
    ids::{IdIndex, IdTag},
    table::{BlockTable, ResidentMeter},
};
use kms_core::{BlockCount, BlockNo, SystemTitle};

/// The directory as it was at one moment: hold it for a batch, not longer.
pub type Snapshot = Arc<Directory>;

/// The tables of all open blocks.
pub(in crate::keyring) struct Resident {
    blocks: BlockCount,
    arena: Arc<Arena>,
    directory: ArcSwap<Directory>,
    ids: IdIndex,
    /// Serialises changes of the directory; held for pointer copies, never across an `.await`.
    publishing: Mutex<()>,
    /// Where the search for a block to close goes on.
    hand: Mutex<usize>,
}

impl Resident {
    /// No block is open yet.
    pub(in crate::keyring) fn new(
        blocks: BlockCount,
        arena_bytes: usize,
        allow_unlocked: bool,
    ) -> Result<Self, ArenaError> {
        let none = vec![None; blocks.get() as usize].into_boxed_slice();
        Ok(Self {
            blocks,
            arena: Arena::new(arena_bytes, allow_unlocked)?,
            directory: ArcSwap::from_pointee(Directory { blocks: none, open: 0 }),
            ids: IdIndex::new(),
            publishing: Mutex::default(),
            hand: Mutex::default(),
        })
    }

    /// The directory now. One atomic increment.
    #[inline]
    pub(in crate::keyring) fn snapshot(&self) -> Snapshot {
        self.directory.load_full()
    }

    /// The table of one block, if it is open.
    pub(in crate::keyring) fn table(&self, block: BlockNo) -> Option<Arc<BlockTable>> {
        self.directory.load().blocks.get(block.0 as usize)?.clone()
    }

    /// The number of blocks, open or not.
    pub(in crate::keyring) fn blocks(&self) -> BlockCount {
        self.blocks
    }

    /// The memory that the tables are in.
    pub(in crate::keyring) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// A piece of the arena; `None`: there is no room.
    pub(in crate::keyring) fn allocate(&self, bytes: usize) -> Option<Segment> {
        self.arena.allocate(bytes)
    }

    /// The title of the meter with this id, if its block is open in `snapshot`. Its record has said so.
    #[inline]
    pub(in crate::keyring) fn title_of(
        &self,
        snapshot: &Directory,
        id: &str,
    ) -> Option<SystemTitle> {
        let tag = self.ids.tag(id);
        let title = self.ids.get(tag.hash)?;
        let meter = snapshot.table(self.blocks.block_of(&title))?.find(&title)?;
        (!meter.is_damaged() && meter.id() == tag).then_some(title)
    }

    /// Whether this is the meter with this id: its record says so.
    pub(in crate::keyring) fn has_id(&self, meter: &ResidentMeter<'_>, id: &str) -> bool {
        !meter.is_damaged() && meter.id() == self.ids.tag(id)
    }

    /// The tag of a meter id in tables of this process.
    pub(in crate::keyring) fn tag(&self, id: &str) -> IdTag {
        self.ids.tag(id)
    }

    /// Puts a table in the place of what is open of its block.
    pub(in crate::keyring) fn put(&self, block: BlockNo, table: Arc<BlockTable>) {
        self.publish(vec![(block, Some(table))]);
    }

    /// Closes blocks. Their memory comes back when the last batch that uses them ends.
    pub(in crate::keyring) fn close(&self, blocks: impl IntoIterator<Item = BlockNo>) {
        self.publish(blocks.into_iter().map(|block| (block, None)).collect());
    }

    /// Puts tables into the directory and keeps the id index in step. `None` closes a block.
    pub(in crate::keyring) fn publish(&self, tables: Vec<(BlockNo, Option<Arc<BlockTable>>)>) {
        let _one_at_a_time = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.directory.load_full();
        let mut blocks = old.blocks.clone();
        for (block, table) in &tables {
            if let Some(entry) = blocks.get_mut(block.0 as usize) {
                entry.clone_from(table);
            }
        }
        let open = blocks.iter().flatten().count();
        let new = Arc::new(Directory { blocks, open });
        // Ids come before their block and go after it: who misses an id in a directory of which every block
        // is open may say that there is none.
        for (block, new) in tables.iter().filter_map(|(at, table)| Some((*at, table.as_deref()?))) {
            let is_there = |meter: &ResidentMeter<'_>| {
                let before = old.table(block).and_then(|table| table.find(&meter.title()));
                before.is_some_and(|was| !was.is_damaged() && was.id() == meter.id())
            };
            for meter in new.iter().filter(|meter| !meter.is_damaged() && !is_there(meter)) {
                self.ids.put(meter.id().hash, meter.title());
            }
        }
        self.directory.store(new);
        for (block, table) in &tables {
            self.forget_ids(old.table(*block), table.as_deref());
        }
    }

    fn forget_ids(&self, old: Option<&BlockTable>, new: Option<&BlockTable>) {
        let kept = |meter: &ResidentMeter<'_>| {
            new.and_then(|table| table.find(&meter.title()))
                .is_some_and(|now| !now.is_damaged() && now.id() == meter.id())
        };
        for gone in old.into_iter().flat_map(BlockTable::iter).filter(|meter| !kept(meter)) {
            self.ids.forget(gone.id().hash, gone.title());
        }
    }

    /// Closes the next open block round the clock, but not this one; false: none is left.
    pub(in crate::keyring) fn close_one_but(&self, block: BlockNo) -> bool {
        // Held until the block is closed: two who need room close two blocks.
        let mut hand = self.hand.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot();
        let count = snapshot.blocks.len();
        let next = (1..=count)
            .map(|step| (*hand + step) % count)
            .find(|at| *at != block.0 as usize && snapshot.blocks[*at].is_some());
        drop(snapshot);
        let Some(next) = next else { return false };
        *hand = next;
        self.close([BlockNo(next as u32)]);
        true
    }
}
