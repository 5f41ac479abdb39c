//! The second pass: open the blocks that were missing, each once, then try again.
//!
//! Where a meter id is not known in memory, the database's index says where to look. That is a hint: the
//! meter that is found there opens nothing unless its own record has the id that was asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::{StreamExt, stream};

use super::{
    arrival::Arrival,
    attempt::{self, Attempt},
    batch::{self, Miss, Pass, Whose},
    item::Outcome,
};
use crate::keyring::{BlockTable, Found, KeyringError, Reader, SharedError, scrub_stack};
use kms_core::{BlockNo, MeterId, Position, SystemTitle, Verdict};

/// Blocks that one batch opens, and ids that it looks up, at the same time. The door to the HSM bounds
/// all batches together.
const AT_ONCE: usize = 8;

/// Where an id was found, or what became of its items.
pub(super) type Located = Result<SystemTitle, Outcome>;

/// Items of an id of which the record that the index points to does not say the same.
struct Unsure<'i> {
    title: SystemTitle,
    block: BlockNo,
    /// Where the block stood.
    seen: Position,
    items: Vec<Miss<'i>>,
}

/// Opens what was missing, and tries its items again.
pub(super) async fn open(keyring: &Reader, pass: &mut Pass<'_>) {
    let misses = std::mem::take(&mut pass.misses);
    let ids = locate_ids(keyring, &misses).await;
    let mut by_block: BTreeMap<BlockNo, Vec<(Miss<'_>, SystemTitle)>> = BTreeMap::new();
    for miss in misses {
        let located = match miss.whose {
            Whose::Title(title) => Ok(title),
            Whose::Id(id) => ids.get(id).cloned().unwrap_or_else(|| Err(Outcome::lost())),
        };
        match located {
            Ok(title) => {
                let block = keyring.block_of(&title);
                by_block.entry(block).or_default().push((miss, title));
            }
            Err(outcome) => pass.settle(miss.index, outcome, Vec::new()),
        }
    }
    let blocks: Vec<BlockNo> = by_block.keys().copied().collect();
    let opened = stream::iter(blocks).map(|block| open_block(keyring, block));
    let mut opened = std::pin::pin!(opened.buffer_unordered(AT_ONCE));
    // Ids of which the record does not say what the index says, each with its items.
    let mut unsure: BTreeMap<&str, Unsure<'_>> = BTreeMap::new();
    while let Some((block, table)) = opened.next().await {
        for (miss, title) in by_block.remove(&block).unwrap_or_default() {
            match &table {
                Ok(table) => match miss.whose {
                    Whose::Id(id) if !may_be(keyring, table, &title, id) => {
                        let seen = table.position();
                        let items = Vec::new();
                        let unsure =
                            unsure.entry(id).or_insert(Unsure { title, block, seen, items });
                        unsure.items.push(miss);
                    }
                    _ => open_miss(pass, &miss, table, title),
                },
                Err(error) => pass.settle(miss.index, unavailable(error), Vec::new()),
            }
        }
        scrub_stack();
    }
    for (id, unsure) in unsure {
        settle_unsure(keyring, pass, id, unsure).await;
    }
}

async fn open_block(
    keyring: &Reader,
    block: BlockNo,
) -> (BlockNo, Result<Arc<BlockTable>, SharedError>) {
    (block, keyring.open(block).await)
}

/// Looks each id up once, however many items name it.
async fn locate_ids(keyring: &Reader, misses: &[Miss<'_>]) -> BTreeMap<String, Located> {
    let ids: BTreeSet<String> = misses
        .iter()
        .filter_map(|miss| match miss.whose {
            Whose::Id(id) => Some(id.to_owned()),
            Whose::Title(_) => None,
        })
        .collect();
    stream::iter(ids).map(|id| locate_id(keyring, id)).buffer_unordered(AT_ONCE).collect().await
}

async fn locate_id(keyring: &Reader, id: String) -> (String, Located) {
    let located = locate(keyring, &id).await;
    (id, located)
}

pub(super) async fn locate(keyring: &Reader, id: &str) -> Located {
    let id = MeterId::new(id)
        .map_err(|error| Outcome::of(Verdict::UnknownMeter).because(error.to_string()))?;
    let title = keyring.look_up(&id).await.map_err(|error| unavailable(&error))?;
    match title.map_or_else(|| keyring.nowhere(id.as_str()), Found::At) {
        Found::At(title) => Ok(title),
        found => Err(not_found(id.as_str(), &found)),
    }
}

/// Whether the meter with this title has this id, or is damaged and can't say.
fn may_be(keyring: &Reader, table: &BlockTable, title: &SystemTitle, id: &str) -> bool {
    table.find(title).is_some_and(|meter| meter.is_damaged() || keyring.has_id(&meter, id))
}

/// The index has this id at this title, and the open block does not.
async fn settle_unsure(keyring: &Reader, pass: &mut Pass<'_>, id: &str, unsure: Unsure<'_>) {
    let Unsure { title, block, seen, items } = unsure;
    let confirmed = match MeterId::new(id) {
        Ok(id) => keyring.confirm(&id, title).await,
        Err(_) => Ok(keyring.nowhere(id)),
    };
    let outcome = match confirmed {
        // The stored block is newer than the open one: another server's.
        Ok(Found::At(title)) if keyring.block_of(&title) == block => {
            if let Some(table) = keyring.doubt(block, seen).await
                && may_be(keyring, &table, &title, id)
            {
                return items.iter().for_each(|miss| open_miss(pass, miss, &table, title));
            }
            just_changed(id)
        }
        Ok(Found::At(_)) => just_changed(id),
        Ok(found) => not_found(id, &found),
        Err(error) => unavailable(&error),
    };
    for miss in items {
        pass.settle(miss.index, outcome.clone(), Vec::new());
    }
}

fn just_changed(id: &str) -> Outcome {
    Outcome::of(Verdict::Unavailable)
        .because(format!("meter {id} has just been changed: try again"))
}

fn open_miss(pass: &mut Pass<'_>, miss: &Miss<'_>, table: &BlockTable, title: SystemTitle) {
    let Some(meter) = table.find(&title) else {
        return pass.settle(miss.index, batch::missing(table, title), Vec::new());
    };
    let mut plaintext = Vec::new();
    match attempt::attempt(&miss.apdu, &meter, &pass.items[miss.index], &mut plaintext) {
        Attempt::Done(outcome) => {
            pass.note_arrival(miss.index, Arrival::of(&miss.apdu, &meter, &outcome));
            pass.settle(miss.index, outcome, plaintext);
        }
        Attempt::Token(tries) => pass.ask_later(miss.index, tries),
    }
}

/// No meter has this id, or nobody can say so.
fn not_found(id: &str, found: &Found) -> Outcome {
    match found {
        Found::Unsure(reason) => Outcome::of(Verdict::Unavailable).because(reason.as_str()),
        Found::Nowhere { but: Some(doubt) } => {
            Outcome::of(Verdict::Unavailable).because(format!("no meter {id} is known, {doubt}"))
        }
        Found::Nowhere { but: None } | Found::At(_) => {
            Outcome::of(Verdict::UnknownMeter).because(format!("there is no meter {id}"))
        }
    }
}

pub(super) fn unavailable(error: &KeyringError) -> Outcome {
    Outcome::of(Verdict::Unavailable).because(error.to_string())
}
