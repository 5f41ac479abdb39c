//! Floors of two sites: what is stored here is shown to the other one, and what it stored is taken in.
//!
//! Rows cross as they are stored. Each site derives the other one's `local` keys from the same block secrets, so it
//! checks every MAC, and then stores what rose under its own.

use async_trait::async_trait;

use super::{
    judging::Floors,
    keeping::{PAGE, by_block},
    shards::NoRoom,
};
use crate::store::StoreError;
use kms_core::{
    BlockNo,
    audit::NodeId,
    floors::{FloorPlace, FloorRow},
    ports::FloorSink,
};

/// No node has this name: it is drawn at random.
const NOBODY: NodeId = NodeId([0; 16]);

impl Floors {
    /// A page of what this site has stored after a place, in order.
    pub async fn stored_after(&self, place: &FloorPlace) -> Result<Vec<FloorRow>, StoreError> {
        self.store.floors_after(place, &NOBODY, PAGE).await
    }

    async fn take_peers_of(
        &self,
        block: BlockNo,
        site: &str,
        rows: &[FloorRow],
    ) -> Result<(), String> {
        if block.0 >= self.keys.blocks() {
            return Err(format!("the domain has no block {}", block.0));
        }
        if !self.is_loaded(block) {
            self.load(block).await?;
        }
        let floors = self.verified(block, site, rows).await?;
        let mut not_its_own = 0;
        for (row, floor) in rows.iter().zip(floors) {
            match floor {
                Some(floor) => self
                    .shards
                    .adopt(block, &row.line, floor)
                    .map_err(|NoRoom| "there is no room for them".to_owned())?,
                None => not_its_own += 1,
            }
        }
        if not_its_own == 0 {
            return Ok(());
        }
        Err(format!("{not_its_own} of block {} are not what site {site} wrote", block.0))
    }
}

#[async_trait]
impl FloorSink for Floors {
    async fn take_peers(&self, site: &str, rows: Vec<FloorRow>) -> Result<(), String> {
        let mut outcome = Ok(());
        for (block, rows) in by_block(rows) {
            if let Err(reason) = self.take_peers_of(block, site, &rows).await {
                outcome = Err(reason);
            }
        }
        self.state.took_from_peer(outcome.clone());
        outcome
    }
}
