//! A second look, where other servers write to the same database: an item whose meter is not known, or
//! whose MIC failed under all keys, is tried once more if its block has changed meanwhile.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{
    arrival::Arrival,
    attempt::{self, Attempt},
    batch::Pass,
    item::Named,
};
use crate::keyring::{BlockTable, Reader};
use kms_core::{BlockNo, Position, SystemTitle};

/// The longest wait of a batch for all of its second looks together.
const PATIENCE: Duration = Duration::from_millis(250);

/// Looks at the blocks of doubtful items again. `seen`: where a block stood, at the latest, when its items
/// were tried. What the token has to try is left to it.
pub(super) async fn look_again(
    keyring: &Reader,
    pass: &mut Pass<'_>,
    seen: impl Fn(BlockNo) -> Position,
) {
    let mut by_block: BTreeMap<BlockNo, Vec<(usize, SystemTitle)>> = BTreeMap::new();
    for (index, title) in pass.doubtful() {
        by_block.entry(keyring.block_of(&title)).or_default().push((index, title));
    }
    let deadline = Instant::now() + PATIENCE;
    for (block, items) in by_block {
        let looked = timeout_at(deadline, keyring.doubt(block, seen(block))).await;
        // The second looks so far count; the other items keep their verdicts.
        let Ok(looked) = looked else { break };
        let Some(table) = looked else { continue };
        for (index, title) in items {
            try_again(keyring, pass, index, &table, title);
        }
    }
}

fn try_again(
    keyring: &Reader,
    pass: &mut Pass<'_>,
    index: usize,
    table: &BlockTable,
    title: SystemTitle,
) {
    let item = &pass.items[index];
    let (Ok(apdu), Some(meter)) = (attempt::parse(item.apdu), table.find(&title)) else {
        return;
    };
    // The title may be another meter's by now.
    if let Named::Id(id) = item.named
        && !keyring.has_id(&meter, id)
    {
        return;
    }
    let mut plaintext = Vec::new();
    match attempt::attempt(&apdu, &meter, item, &mut plaintext) {
        Attempt::Done(outcome) => {
            pass.note_arrival(index, Arrival::of(&apdu, &meter, &outcome));
            pass.settle(index, outcome, plaintext);
        }
        Attempt::Token(tries) => pass.ask_later(index, tries),
    }
}
