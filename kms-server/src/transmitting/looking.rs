//! All marks are looked at again and again: one that is taken away or put back is told, and one that another node raised is
//! remembered here.

use std::{collections::BTreeMap, time::Duration};

use super::counters::{Counters, Parts};
use kms_core::{
    BlockNo, Epoch,
    counters::{allocator::Witnessed, mark::StoredMark},
};

/// The interval at which all marks are looked at.
const LOOK: Duration = Duration::from_secs(2);

impl Counters {
    /// Runs until the process ends.
    pub(super) async fn keep_looking(&self) {
        loop {
            self.look().await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks at all marks once, while this site writes.
    pub(super) async fn look(&self) {
        let Parts { store, counting, .. } = &self.parts;
        let Ok(epoch) = self.epoch() else { return self.remembered.found(Vec::new()) };
        // Before the marks: what rises meanwhile is no fault.
        let known = self.remembered.all();
        let Ok(marks) = store.counter_marks().await else { return };
        let marks: BTreeMap<BlockNo, StoredMark> =
            marks.into_iter().map(|stored| (stored.mark.block, stored)).collect();
        let all = (0..counting.domain().blocks.get()).map(BlockNo);
        let of_epoch = |block: &BlockNo| marks.get(block).is_some_and(|it| it.mark.epoch >= epoch);
        let gone: Vec<BlockNo> = all.filter(|block| !of_epoch(block)).collect();
        let is_back = |(block, known): &(&BlockNo, &Witnessed)| {
            let stored = marks.get(block).map(|stored| Witnessed::from(&stored.mark));
            known.epoch >= epoch && stored < Some(**known) && of_epoch(block)
        };
        let back = known.iter().filter(is_back).map(|(block, _)| *block).collect();
        let was_there = |block| known.get(block).is_some_and(|known| known.epoch >= epoch);
        let is_new = !gone.iter().any(was_there);
        self.remembered.found(sentences(epoch, &gone, back, is_new));
        let news = marks.values().filter(|stored| {
            known.get(&stored.mark.block) < Some(&Witnessed::from(&stored.mark))
                && counting.is_authentic_here(stored)
        });
        let news = news.map(|stored| (stored.mark.block, Witnessed::from(&stored.mark))).collect();
        if let Err(error) = self.remembered.keep(news).await {
            tracing::error!(%error, "marks of counters are not kept outside the database");
        }
    }
}

fn sentences(epoch: Epoch, gone: &[BlockNo], back: Vec<BlockNo>, is_new: bool) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(first) = gone.first() {
        let (count, epoch) = (gone.len(), epoch.0);
        let what = match is_new {
            true => {
                "if an older version made this site, stop all of its servers, run `kms-server migrate` once, and start \
                 again; else they were taken away outside this service: take a higher epoch (`site promote \
                 --above-epoch`)"
            }
            false => {
                "they were taken away or put back outside this service: take a higher epoch (`site promote \
                 --above-epoch`)"
            }
        };
        faults.push(format!(
            "counters: {count} blocks have no mark of epoch {epoch}, the first of them block {first}, and nothing is sent \
             under their counters; {what}"
        ));
    }
    if let Some(first) = back.first() {
        let count = back.len();
        faults.push(format!(
            "counters: the marks of {count} blocks were put back, the first of them that of block {first}: this server \
             knows of higher ones, and nothing is sent under their counters; take a higher epoch (`site promote \
             --above-epoch`)"
        ));
    }
    faults
}
