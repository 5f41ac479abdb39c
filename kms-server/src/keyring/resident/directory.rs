//! The tables of all blocks of one moment.

use std::sync::Arc;

use super::{arena::prefetch, table::BlockTable};
use kms_core::BlockNo;

/// The block that a title belongs to, and the table that may have it.
pub struct Directory {
    pub(in crate::keyring) blocks: Box<[Option<Arc<BlockTable>>]>,
    /// The number of open ones.
    pub(in crate::keyring) open: usize,
}

impl Directory {
    /// Whether every block is open.
    pub(in crate::keyring) fn is_complete(&self) -> bool {
        self.open == self.blocks.len()
    }

    /// The table of an open block.
    #[inline]
    pub fn table(&self, block: BlockNo) -> Option<&BlockTable> {
        self.blocks.get(block.0 as usize)?.as_deref()
    }

    /// The same, and asks the processor to fetch what [`BlockTable::prefetch`] and
    /// [`BlockTable::find`] begin with. At thousands of blocks that is not in the nearest cache.
    #[inline]
    pub fn table_soon(&self, block: BlockNo) -> Option<&BlockTable> {
        let table = self.table(block)?;
        prefetch(table);
        Some(table)
    }
}
