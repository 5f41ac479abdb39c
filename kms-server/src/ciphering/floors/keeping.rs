//! Stores what rose, at an interval, and takes in what other nodes saw.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{judging::Floors, shards::Risen};
use crate::store::{StoreError, floors::FloorRun};
use kms_core::{
    BlockNo,
    floors::{FloorPlace, FloorRow},
    site::restored::RestoreMark,
};

/// What a call that is sent again may take: so long messages are remembered as they were, at least.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Rows in one transaction.
const ROWS_MAX: usize = 1_024;

/// Rows of other nodes that are read at once.
pub(super) const PAGE: u32 = 4_096;

/// The most that the clocks of two nodes are apart: what others wrote so long before is looked at again.
const CLOCKS_APART_MS: u64 = 60_000;

impl Floors {
    /// Begins a run: from now on what is not stored at the end is missed. Tells what the last run forgot, and what a
    /// database forgot that was `rolled_back`, since this server knows no last run then.
    pub async fn begin(&self, rolled_back: Option<&RestoreMark>) {
        if let Some(RestoreMark { from, .. }) = rolled_back {
            self.state.went_back(format!(
                "the database was rolled back ({from}): receive floors are those of then, and of the other site; what \
                 meters sent since may be taken once more"
            ));
        }
        match self.store.floor_run(&self.node).await {
            Ok(Some(FloorRun { ended: false, .. })) => self.state.forgot(format!(
                "this server ended without storing its receive floors: what meters sent in the last {} s before that \
                 may be taken once more",
                self.config.flush_interval.as_secs()
            )),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "whether receive floors were stored is not known"),
        }
        let begun = self.store.put_floors(&[], &self.run(false)).await;
        self.state.stored(begun.map_err(|error| error.to_string()));
    }

    /// Runs until the process ends.
    pub async fn keep(self: Arc<Self>) {
        let mut heard_ms = 0;
        let mut since_pass = Duration::ZERO;
        loop {
            tokio::time::sleep(self.config.flush_interval).await;
            self.flush(false).await;
            match self.hear(heard_ms).await {
                Ok(newest) => heard_ms = newest,
                Err(reason) => {
                    tracing::warn!(reason, "other servers' receive floors are not heard")
                }
            }
            since_pass += self.config.flush_interval;
            if since_pass >= REMEMBERED {
                self.shards.pass();
                since_pass = Duration::ZERO;
            }
        }
    }

    /// Stores the rest, and that this was all.
    pub async fn close(&self) {
        self.flush(true).await;
    }

    /// Stores what rose since this was done last.
    pub async fn flush(&self, ended: bool) {
        let _one = self.storing.lock().await;
        let mut by_block: BTreeMap<BlockNo, Vec<Risen>> = BTreeMap::new();
        for risen in self.shards.take_risen() {
            by_block.entry(risen.block).or_default().push(risen);
        }
        let (mut rows, mut risen, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
        for (block, of_block) in by_block {
            match self.signed(block, &of_block).await {
                Ok(signed) => {
                    rows.extend(signed);
                    risen.extend(of_block);
                }
                Err(reason) => {
                    self.shards.put_back(&of_block);
                    outcome = Err(reason);
                }
            }
        }
        for (rows, risen) in rows.chunks(ROWS_MAX).zip(risen.chunks(ROWS_MAX)) {
            if let Err(error) = self.store.put_floors(rows, &self.run(false)).await {
                self.shards.put_back(risen);
                outcome = Err(error.to_string());
            }
        }
        if ended && outcome.is_ok() {
            let last = self.store.put_floors(&[], &self.run(true)).await;
            outcome = last.map_err(|error| error.to_string());
        }
        self.state.stored(outcome);
    }

    async fn signed(&self, block: BlockNo, risen: &[Risen]) -> Result<Vec<FloorRow>, String> {
        let key = self.keys.of(block, self.keys.site()).await.map_err(|error| error.to_string())?;
        let key = key.ok_or_else(|| format!("block {} has no keys", block.0))?;
        let at_ms = self.clock.unix_ms();
        let row = |risen: &Risen| {
            let Risen { block, line, floor } = *risen;
            let (node, body) = (self.node, floor.to_bytes());
            FloorRow { block, line, node, at_ms, body, mac: [0; 16] }.signed(&key)
        };
        Ok(risen.iter().map(row).collect())
    }

    /// Takes in what other nodes wrote since. Of blocks that nobody here has asked for nothing is taken: they are
    /// read when the first message comes.
    async fn hear(&self, since_ms: u64) -> Result<u64, String> {
        let failed = |error: StoreError| error.to_string();
        let mut place = FloorPlace::since(since_ms.saturating_sub(CLOCKS_APART_MS));
        let mut newest = since_ms;
        loop {
            let rows = self.store.floors_after(&place, &self.node, PAGE).await.map_err(failed)?;
            let Some(last) = rows.last() else { return Ok(newest) };
            place = last.place();
            newest = newest.max(place.at_ms);
            for (block, rows) in by_block(rows) {
                if self.is_loaded(block) {
                    self.take_in(block, &rows).await?;
                }
            }
        }
    }

    fn run(&self, ended: bool) -> FloorRun {
        FloorRun { node: self.node, at_ms: self.clock.unix_ms(), ended }
    }
}

/// Rows by their block.
pub(super) fn by_block(rows: Vec<FloorRow>) -> BTreeMap<BlockNo, Vec<FloorRow>> {
    let mut by_block: BTreeMap<BlockNo, Vec<FloorRow>> = BTreeMap::new();
    for row in rows {
        by_block.entry(row.block).or_default().push(row);
    }
    by_block
}
