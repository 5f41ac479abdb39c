//! Blocks that were changed in the database become what is resident.

use std::sync::Arc;

use super::{
    known_states::State,
    opening::{Opener, Room, Unsealed},
    resident::BlockTable,
    turns::Turn,
};
use kms_core::block::{BlockMark, known::Known, verified::Verified};

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
        if verified.is_whole() {
            opener.faults.damage.set_changed(block, &verified.damaged_titles());
        }
        let since = unsealed.base.as_ref().map_or_else(|| opener.now(), |base| base.since);
        let table = match opener.build(&verified, unsealed, Room::AsItIs) {
            Ok(table) => Some(Arc::new(table)),
            Err(error) => {
                tracing::warn!(block = block.0, %error, "a changed block is closed");
                None
            }
        };
        // A meter that is not served for a reason of its own is looked at with each change.
        let is_well = |table: &BlockTable| {
            !opener.faults.damage.is_in(block) && !table.iter().any(|meter| meter.is_damaged())
        };
        match Known::of(&verified).filter(|_| table.as_deref().is_some_and(is_well)) {
            Some(known) => opener.states.put(block, State { known: Arc::new(known), since }),
            None => opener.states.forget(block),
        }
        tables.push((block, table));
        turns.push(turn);
    }
    opener.resident.publish(tables);
    // Only now may the next writer, or an opening, look at these blocks.
    drop(turns);
    marks
}
