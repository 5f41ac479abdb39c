//! What a batch asks of receive floors.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Mutex;

use super::{
    config::FloorsConfig,
    shards::{NoRoom, Shards},
    state::State,
};
use crate::{
    ciphering::{arrival::Arrival, batch::Pass},
    keyring::LocalKeys,
    store::floors::FloorStore,
    telemetry::{
        catalogue::{FLOOR_BROKEN, FLOOR_JUMPS, FLOOR_LINES, FLOORS_JUDGED},
        metrics::{Page, Source},
    },
};
use kms_core::{
    BlockNo, SystemTitle, Verdict,
    audit::NodeId,
    counters::LineName,
    floors::{Floor, FloorRow, Judged},
    ports::Clock,
    triage::Standing,
};

/// A step over so many counters is told: a line has 2^32 of them, and one message can use up all.
const JUMP: u32 = 1_000_000;

/// The receive floors of all meters that have one.
pub struct Floors {
    pub(super) config: FloorsConfig,
    pub(super) store: Arc<dyn FloorStore>,
    pub(super) keys: Arc<LocalKeys>,
    pub(super) node: NodeId,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) shards: Shards,
    pub(super) state: State,
    /// Blocks whose stored floors are in memory.
    loaded: Box<[AtomicBool]>,
    /// One block is read at a time; held while the database is waited for, never with a shard.
    loading: Mutex<()>,
    /// One who stores at a time: what is said of the end is said last.
    pub(super) storing: Mutex<()>,
}

impl Floors {
    /// Nothing is read yet. `node` names this server's rows.
    pub fn new(
        config: FloorsConfig,
        store: Arc<dyn FloorStore>,
        keys: Arc<LocalKeys>,
        node: NodeId,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let loaded = (0..keys.blocks()).map(|_| AtomicBool::new(false)).collect();
        Self {
            config,
            store,
            keys,
            node,
            clock,
            shards: Shards::new(),
            state: State::default(),
            loaded,
            loading: Mutex::default(),
            storing: Mutex::default(),
        }
    }

    /// What is wrong with floors, as sentences.
    pub fn faults(&self) -> Vec<String> {
        self.state.sentences()
    }

    /// Judges what a batch has opened: what was opened before is marked, and what is replayed does not come back.
    pub(in crate::ciphering) async fn judge(&self, pass: &mut Pass<'_>) {
        for (index, arrival) in pass.take_arrivals() {
            match self.judged(&arrival).await {
                Ok(Judged::New { skipped }) => {
                    self.state.new.add(1);
                    self.note_jump(&arrival, skipped);
                }
                Ok(Judged::Duplicate) => {
                    self.state.duplicates.add(1);
                    pass.mark_duplicate(index);
                }
                Ok(Judged::Below { floor }) => {
                    self.state.replayed.add(1);
                    let counter = arrival.message.counter;
                    let reason = format!(
                        "invocation counter {counter} is below the receive floor, {floor}: the message was seen \
                         before, or another one overtook it"
                    );
                    pass.withhold(index, Verdict::Replayed, reason);
                }
                Ok(Judged::OtherMessage) => {
                    self.state.replayed.add(1);
                    let counter = arrival.message.counter;
                    let reason = format!(
                        "invocation counter {counter} was used for another message under the same key: the meter \
                         repeats its counters"
                    );
                    pass.withhold(index, Verdict::Replayed, reason);
                }
                Err(reason) => {
                    self.state.unavailable.add(1);
                    pass.withhold(index, Verdict::Unavailable, reason);
                }
            }
        }
    }

    /// Judges one message.
    pub(in crate::ciphering) async fn judged(&self, arrival: &Arrival) -> Result<Judged, String> {
        let block = self.loaded(arrival.title).await?;
        let Arrival { line, message, window, .. } = arrival;
        let full = "there is no room for another receive floor: the meter's profile may do without";
        self.shards.judge(block, line, *message, *window).map_err(|NoRoom| full.to_owned())
    }

    /// The place of a message among those before, for who only asks: no floor rises, and the message is as new as
    /// before.
    pub(in crate::ciphering) async fn look(&self, arrival: &Arrival) -> Standing {
        let block = self.keys.block_of(&arrival.title);
        if !self.is_loaded(block) && self.load(block).await.is_err() {
            return Standing::Unknown;
        }
        let Arrival { line, message, window, .. } = arrival;
        match self.shards.look(line, *message, *window) {
            (Judged::New { .. }, _) => Standing::New,
            (Judged::Duplicate, _) => Standing::Taken,
            (Judged::OtherMessage, _) => Standing::OtherTaken,
            (Judged::Below { floor }, seen) => Standing::Below { floor, seen },
        }
    }

    /// The highest counter that was seen of a meter's line.
    pub(in crate::ciphering) async fn highest(
        &self,
        title: SystemTitle,
        line: &LineName,
    ) -> Result<Option<u32>, String> {
        self.loaded(title).await?;
        Ok(self.shards.highest(line))
    }

    /// The meter's block, once its floors are in memory.
    async fn loaded(&self, title: SystemTitle) -> Result<BlockNo, String> {
        let block = self.keys.block_of(&title);
        if !self.is_loaded(block) {
            self.load(block).await?;
        }
        Ok(block)
    }

    pub(super) fn is_loaded(&self, block: BlockNo) -> bool {
        let loaded = self.loaded.get(block.0 as usize);
        loaded.is_some_and(|loaded| loaded.load(Ordering::Acquire))
    }

    /// Reads what all nodes stored of a block. A message of a meter that has floors is not answered before.
    pub(super) async fn load(&self, block: BlockNo) -> Result<(), String> {
        let _one = self.loading.lock().await;
        if self.is_loaded(block) {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| {
            format!("the meter's receive floor can't be read, try again: {error}")
        };
        let rows = self.store.floors(block).await.map_err(|error| failed(&error))?;
        self.take_in(block, &rows).await.map_err(|error| failed(&error))?;
        if let Some(loaded) = self.loaded.get(block.0 as usize) {
            loaded.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Merges rows of one block: those that this site wrote.
    pub(super) async fn take_in(&self, block: BlockNo, rows: &[FloorRow]) -> Result<(), String> {
        if rows.is_empty() {
            return Ok(());
        }
        let floors = self.verified(block, self.keys.site(), rows).await?;
        for (row, floor) in rows.iter().zip(floors) {
            // One that is moved to another block does not verify there.
            match floor.filter(|_| row.block == block) {
                Some(floor) => self
                    .shards
                    .merge(block, &row.line, floor)
                    .map_err(|NoRoom| "there is no room for its floors".to_owned())?,
                None => self.state.broke(block, &row.line),
            }
        }
        Ok(())
    }

    /// Which of these rows the site of this name wrote, under the block's secret or another one that is there.
    pub(super) async fn verified(
        &self,
        block: BlockNo,
        site: &str,
        rows: &[FloorRow],
    ) -> Result<Vec<Option<Floor>>, String> {
        let key = self.keys.of(block, site).await.map_err(|error| error.to_string())?;
        let mut floors: Vec<Option<Floor>> =
            rows.iter().map(|row| key.as_ref().and_then(|key| row.verified(key))).collect();
        if floors.iter().any(Option::is_none) {
            let others = self.keys.others(block, site).await.map_err(|error| error.to_string())?;
            for (floor, row) in floors.iter_mut().zip(rows).filter(|(floor, _)| floor.is_none()) {
                *floor = others.iter().find_map(|key| row.verified(key));
            }
        }
        Ok(floors)
    }

    fn note_jump(&self, arrival: &Arrival, skipped: u32) {
        if skipped >= JUMP {
            self.state.jumps.add(1);
            tracing::warn!(
                system_title = %arrival.title,
                skipped,
                counter = arrival.message.counter,
                "a meter's invocation counter jumped"
            );
        }
    }
}

impl Source for Floors {
    fn tell(&self, page: &mut Page) {
        let State { new, duplicates, replayed, unavailable, jumps, broken, .. } = &self.state;
        for (outcome, counter) in [
            ("new", new),
            ("duplicate", duplicates),
            ("replayed", replayed),
            ("unavailable", unavailable),
        ] {
            page.counter(&FLOORS_JUDGED, &[outcome.into()], counter);
        }
        page.sample(&FLOOR_LINES, &[], self.shards.lines() as u64);
        page.sample(&FLOOR_JUMPS, &[], jumps.get());
        page.sample(&FLOOR_BROKEN, &[], broken.get());
    }
}
