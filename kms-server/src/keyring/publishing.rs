//! Blocks that were changed in the database become what is resident.

use std::sync::Arc;

use super::{
    opening::{Opener, Room, Unsealed},
    turns::Turn,
};
use kms_core::block::{BlockMark, verified::Verified};

/// A block as it is stored now.
pub(super) struct Changed {
    pub(super) verified: Verified,
    pub(super) unsealed: Unsealed,
    pub(super) turn: Turn,
}

/// Builds the tables of what was just committed. If one can't be built (the arena is full), its block is closed:
/// the next who asks opens it, or hears why not. The states that the blocks have now.
pub(super) fn publish(opener: &Opener, changed: Vec<Changed>) -> Vec<BlockMark> {
    let mut tables = Vec::with_capacity(changed.len());
    let mut turns = Vec::with_capacity(changed.len());
    let mut marks = Vec::with_capacity(changed.len());
    for Changed { verified, unsealed, turn } in changed {
        // A damaged record that was buried or replaced is one no more.
        let block = verified.block();
        marks.push(verified.mark());
        opener.freshness.know(&verified.mark());
        opener.faults.damage.set_changed(block, &verified.damaged_titles());
        let table = match opener.build(&verified, unsealed, Room::AsItIs) {
            Ok(table) => Some(Arc::new(table)),
            Err(error) => {
                tracing::warn!(block = block.0, %error, "a changed block is closed");
                None
            }
        };
        tables.push((block, table));
        turns.push(turn);
    }
    opener.resident.publish(tables);
    // Only now may the next writer, or an opening, look at these blocks.
    drop(turns);
    marks
}
