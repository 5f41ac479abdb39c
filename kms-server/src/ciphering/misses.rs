//! The second pass: open the blocks that were missing, each once, then try again.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt, stream};

use super::{
    Ciphering, Outcome,
    attempt::{self, Attempt},
    batch::{self, Miss, Pass, Whose},
};
use crate::{
    domain::{BlockNo, MeterId, SystemTitle, Verdict},
    keyring::{BlockTable, KeyringError, SharedError, scrub_stack},
};

/// Blocks that one batch opens at the same time. The door to the HSM bounds all batches together.
const AT_ONCE: usize = 8;

impl Ciphering {
    pub(super) async fn open_misses(&self, pass: &mut Pass<'_>) {
        let mut by_block: BTreeMap<BlockNo, Vec<(Miss<'_>, SystemTitle)>> = BTreeMap::new();
        for miss in std::mem::take(&mut pass.misses) {
            match self.locate_miss(&miss).await {
                Ok((block, title)) => by_block.entry(block).or_default().push((miss, title)),
                Err(outcome) => pass.settle(miss.index, outcome, Vec::new()),
            }
        }
        let blocks: Vec<BlockNo> = by_block.keys().copied().collect();
        let opened = stream::iter(blocks).map(|block| self.open_block(block));
        let mut opened = std::pin::pin!(opened.buffer_unordered(AT_ONCE));
        while let Some((block, table)) = opened.next().await {
            for (miss, title) in by_block.remove(&block).unwrap_or_default() {
                match &table {
                    Ok(table) => open_miss(pass, &miss, table, title),
                    Err(error) => pass.settle(miss.index, unavailable(error), Vec::new()),
                }
            }
            scrub_stack();
        }
    }

    async fn open_block(&self, block: BlockNo) -> (BlockNo, Result<Arc<BlockTable>, SharedError>) {
        (block, self.keyring.open(block).await)
    }

    async fn locate_miss(&self, miss: &Miss<'_>) -> Result<(BlockNo, SystemTitle), Outcome> {
        let id = match miss.whose {
            Whose::Title(block, title) => return Ok((block, title)),
            Whose::Id(id) => id,
        };
        let none = || Outcome::of(Verdict::UnknownMeter).because(format!("there is no meter {id}"));
        let id = MeterId::new(id)
            .map_err(|error| Outcome::of(Verdict::UnknownMeter).because(error.to_string()))?;
        let title = self.keyring.look_up(&id).await.map_err(|error| unavailable(&error))?;
        let title = title.ok_or_else(none)?;
        Ok((self.keyring.block_of(&title), title))
    }
}

fn open_miss(pass: &mut Pass<'_>, miss: &Miss<'_>, table: &BlockTable, title: SystemTitle) {
    let Some(meter) = table.find(&title) else {
        return pass.settle(miss.index, batch::unknown(title), Vec::new());
    };
    let mut plaintext = Vec::new();
    match attempt::attempt(&miss.apdu, &meter, &pass.items[miss.index], &mut plaintext) {
        Attempt::Done(outcome) => pass.settle(miss.index, outcome, plaintext),
        Attempt::Token(tries) => pass.ask_later(miss.index, tries),
    }
}

fn unavailable(error: &KeyringError) -> Outcome {
    Outcome::of(Verdict::Unavailable).because(error.to_string())
}
