//! What is due of meters' keys, in what is resident. It changes nothing.

use std::sync::Arc;

use super::opening::Opener;
use kms_core::{BlockNo, SystemTitle};

/// Knows when something is due first.
pub struct Dates {
    opener: Arc<Opener>,
}

impl Dates {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>) -> Self {
        Self { opener }
    }

    /// Meters of which something is due now, by their blocks. What is not resident is looked at when it is.
    pub fn due(&self, now_ms: u64) -> Vec<(BlockNo, Vec<SystemTitle>)> {
        let resident = &self.opener.resident;
        let snapshot = resident.snapshot();
        let of_block = |block: BlockNo| {
            let table = snapshot.table(block)?;
            table.due_ms().filter(|due| *due <= now_ms)?;
            let over = table.iter().filter(|meter| meter.due_ms().is_some_and(|due| due <= now_ms));
            Some((block, over.map(|meter| meter.title()).collect()))
        };
        (0..resident.blocks().get()).map(BlockNo).filter_map(of_block).collect()
    }
}
