//! Blocks of which what the peer sent was not taken over: it is told where they stand here, so that it goes on with
//! others. Nothing says so but the head that is stored: to be told of a refused state would be taken for having it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::time::sleep;

use crate::store::{ReadStore, StoreError};
use kms_core::{BlockNo, Head, block::BlockMark};

/// Heads that are read at once.
const AT_ONCE: usize = 64;
/// The wait before a database that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where some blocks stand, and those of which that is not known yet.
type Read = (Vec<BlockMark>, Vec<BlockNo>);

/// Those that are to be told of. One read at a time.
pub(super) struct LettingGo {
    store: Arc<dyn ReadStore>,
    waiting: BTreeSet<BlockNo>,
    reading: Option<BoxFuture<'static, Read>>,
}

impl LettingGo {
    pub(super) fn new(store: Arc<dyn ReadStore>) -> Self {
        Self { store, waiting: BTreeSet::new(), reading: None }
    }

    pub(super) fn add(&mut self, block: BlockNo) {
        self.waiting.insert(block);
    }

    /// Where the next ones stand; never ends where there are none. Who stops waiting loses nothing.
    pub(super) async fn next(&mut self) -> Vec<BlockMark> {
        if self.reading.is_none() {
            let some: Vec<BlockNo> = self.waiting.iter().take(AT_ONCE).copied().collect();
            if some.is_empty() {
                return std::future::pending().await;
            }
            self.waiting.retain(|block| !some.contains(block));
            self.reading = Some(read(Arc::clone(&self.store), some).boxed());
        }
        let Some(reading) = &mut self.reading else { return Vec::new() };
        let (marks, unread) = reading.await;
        self.reading = None;
        self.waiting.extend(unread);
        marks
    }
}

async fn read(store: Arc<dyn ReadStore>, blocks: Vec<BlockNo>) -> Read {
    match store.heads_of(&blocks).await {
        Ok(heads) => (heads.iter().map(mark).collect(), Vec::new()),
        // One of them can't be read: the others are told of, and that one is found when it is asked for.
        Err(StoreError::Damaged(_)) if blocks.len() > 1 => {
            let mut marks = Vec::new();
            for block in blocks {
                let one = store.heads_of(&[block]).await.unwrap_or_default();
                marks.extend(one.iter().map(mark));
            }
            (marks, Vec::new())
        }
        Err(StoreError::Damaged(_)) => (Vec::new(), Vec::new()),
        Err(error) => {
            tracing::debug!(%error, "where refused blocks stand is not known");
            sleep(AGAIN).await;
            (Vec::new(), blocks)
        }
    }
}

fn mark(head: &Head) -> BlockMark {
    BlockMark { block: head.block, position: head.position, digest: head.digest }
}
