//! Following the other servers of one database: what they changed is opened anew here.
//!
//! A block that is resident and older than what is stored is read again, verified as at its first
//! opening, and replaces what was resident; the token is not asked while the block's secret stays. Only
//! resident blocks: the others are read when they are asked for. A store without other writers is not
//! followed at all.
//!
//! What can't be read anew in time is closed: whoever asks for it opens it then, and a deleted key
//! opens nothing. What can't be read because the database is away stays, and the status says since
//! when.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{OnceCell, Semaphore, mpsc},
    time::{sleep, timeout},
};

use super::{BlockTable, Keyring, KeyringError};
use crate::store::{FollowBlocks, Positions, StoreError};
use kms_core::{BlockNo, Position};

/// Blocks read anew at the same time: enough to keep one core verifying while others wait for the
/// database.
const AT_ONCE: usize = 8;

/// How long after it was heard of a change may wait before its block is closed. With the poll that
/// hears of it at the latest after 500 ms this keeps within the second that is promised.
const WAIT_MAX_MS: u64 = 350;

/// How long reading one block anew may take: the rest of that second. It waits for a change of this
/// process's own to the same block, and that for the token.
const RENEW_PATIENCE: Duration = Duration::from_millis(500);

/// How often blocks that wait are looked at while nothing is heard.
const LATE_INTERVAL: Duration = Duration::from_millis(50);

/// Messages heard and not yet acted upon; acting upon one never waits.
const HEARD_AHEAD: usize = 16;

/// Pause after a failure to hear anything.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// A block that failed for a reason that stays is not read anew more often.
const RETRY_FAILED_MS: u64 = 2_000;

/// A block is looked at once in this time because of doubt, however many APDUs raise it.
const DOUBT_INTERVAL_MS: u64 = 100;

/// Blocks looked at because of doubt at the same time, of all batches together: forged frames for all
/// blocks at once don't become a flood of queries either.
const DOUBTS_AT_ONCE: usize = 4;

/// How long such a look may take.
const DOUBT_PATIENCE: Duration = Duration::from_millis(250);

/// What this process knows of the others.
pub(super) struct Following {
    state: Mutex<State>,
    /// Places for [`DOUBTS_AT_ONCE`].
    doubts: Semaphore,
}

impl Default for Following {
    fn default() -> Self {
        Self { state: Mutex::default(), doubts: Semaphore::new(DOUBTS_AT_ONCE) }
    }
}

#[derive(Default)]
struct State {
    /// Since when nothing is heard, by the clock's monotonic time, and why.
    silent: Option<(u64, String)>,
    /// Blocks that could not be read anew, when that was last tried, and why.
    failed: HashMap<BlockNo, (u64, String)>,
    /// The last look at each block because of doubt. Bounded by the number of blocks.
    doubts: HashMap<BlockNo, (u64, Doubt)>,
}

/// Says that the look is over, and holds no table: that would keep its keys beyond their time.
type Doubt = Arc<OnceCell<()>>;

/// How it stands between this process and the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFollowing {
    /// For how long nothing was heard; 0: it is heard, but blocks can't be read anew.
    pub since_ms: u64,
    /// Why, as a sentence.
    pub reason: String,
}

impl Keyring {
    /// Runs until the process ends: keeps resident blocks at what other servers write. Ends at once
    /// where there can't be any.
    pub async fn follow(self: Arc<Self>) {
        let Some(others) = self.store.follow() else { return };
        let (told, mut hearing) = mpsc::channel(HEARD_AHEAD);
        tokio::spawn(hear(others, told));
        let (mut behind, mut renewing) = (Behind::default(), FuturesUnordered::new());
        loop {
            tokio::select! {
                heard = hearing.recv() => match heard {
                    Some(Ok(positions)) => {
                        self.note_rows(&positions);
                        self.note_behind(&mut behind, positions.at);
                    }
                    Some(Err(error)) => self.heard_nothing(&error),
                    None => return,
                },
                Some((block, outcome)) = renewing.next() => match outcome {
                Ok(outcome) => self.note_outcome(block, outcome),
                Err(_too_long) => self.close_unless_silent(vec![block]),
                },
                () = sleep(LATE_INTERVAL), if !behind.order.is_empty() => {}
            }
            self.close_late(&mut behind);
            while renewing.len() < AT_ONCE
                && let Some((block, stored)) = behind.next()
            {
                let keyring = Arc::clone(&self);
                renewing.push(async move {
                    let renewed = keyring.renew(block, Some(stored));
                    (block, timeout(RENEW_PATIENCE, renewed).await)
                });
            }
        }
    }

    /// Whether other processes write to the store.
    #[inline]
    pub fn has_other_writers(&self) -> bool {
        self.shared
    }

    /// What keeps this process from following the others; `None`: nothing, or there are none.
    pub fn not_following(&self) -> Option<NotFollowing> {
        let state = self.following.lock();
        if let Some((since, reason)) = &state.silent {
            let since_ms = self.clock.monotonic_ms().saturating_sub(*since).max(1);
            return Some(NotFollowing { since_ms, reason: reason.clone() });
        }
        let (_, reason) = state.failed.values().max_by_key(|(at, _)| *at)?;
        let count = state.failed.len();
        let reason = format!("{count} blocks can't be read anew: {reason}");
        Some(NotFollowing { since_ms: 0, reason })
    }

    fn note_behind(&self, behind: &mut Behind, positions: Vec<(BlockNo, Position)>) {
        let now = self.clock.monotonic_ms();
        for (block, stored) in positions {
            if self.is_behind(block, stored) && !self.failed_before(block) {
                behind.add(block, stored, now);
            }
        }
        self.heard();
    }

    fn note_outcome(&self, block: BlockNo, outcome: Result<Option<Arc<BlockTable>>, KeyringError>) {
        match outcome {
            Ok(_) => {}
            // Heard of again at the next poll, if that is answered.
            Err(KeyringError::Store(error @ StoreError::Unreachable { .. })) => {
                self.heard_nothing(&error);
            }
            Err(error) => self.note_failure(block, &error),
        }
    }

    /// Closes blocks that waited too long, unless the database is away: then they stay.
    fn close_late(&self, behind: &mut Behind) {
        self.close_unless_silent(behind.late(self.clock.monotonic_ms()));
    }

    fn close_unless_silent(&self, late: Vec<BlockNo>) {
        if late.is_empty() || self.following.lock().silent.is_some() {
            return;
        }
        tracing::warn!(blocks = late.len(), "changed blocks are closed: not renewed in time");
        self.publish(late.into_iter().map(|block| (block, None)).collect());
    }

    fn is_behind(&self, block: BlockNo, stored: Position) -> bool {
        let behind = self.resident(block).is_some_and(|table| table.position() < stored);
        if !behind {
            self.following.lock().failed.remove(&block);
        }
        behind
    }

    /// Reads a resident block anew and publishes it, unless what is resident is as new as what is
    /// stored (`None`: the store is asked). Its table; or `None` if it is not resident any more.
    async fn renew(
        &self,
        block: BlockNo,
        stored: Option<Position>,
    ) -> Result<Option<Arc<BlockTable>>, KeyringError> {
        // As at an opening: nobody else of this process changes or opens the block meanwhile.
        let _only_one = self.writer(block).await;
        let Some(before) = self.resident(block) else { return Ok(None) };
        let stored = match stored {
            Some(stored) => stored,
            None => {
                let stored = self.store.position(block).await?;
                stored.ok_or_else(|| KeyringError::missing(block))?
            }
        };
        if stored <= before.position() {
            return Ok(Some(before));
        }
        let table = Arc::new(self.open_now(block, true).await?);
        if table.position() < stored {
            // It stood there a moment ago: somebody took it back.
            let found = table.position();
            return Err(KeyringError::Stale { block, seen: stored, found });
        }
        self.memory().failed.remove(&block);
        self.following.lock().failed.remove(&block);
        // It may have been closed to make room; then it stays open now, which does no harm.
        self.publish(vec![(block, Some(Arc::clone(&table)))]);
        Ok(Some(table))
    }

    /// An APDU did not open that perhaps would have with what another server wrote. The block's table
    /// if it is newer than `seen` by now: read anew at most once in 100 ms, by one of those who ask.
    pub async fn doubt(&self, block: BlockNo, seen: Position) -> Option<Arc<BlockTable>> {
        let newer = |table: &Arc<BlockTable>| table.position() > seen;
        if let Some(table) = self.resident(block).filter(newer) {
            return Some(table);
        }
        let look = {
            let now = self.clock.monotonic_ms();
            let mut state = self.following.lock();
            if state.silent.is_some() {
                return None;
            }
            let (at, look) = state.doubts.entry(block).or_insert_with(|| (now, Doubt::default()));
            if now >= *at + DOUBT_INTERVAL_MS {
                (*at, *look) = (now, Doubt::default());
            }
            Arc::clone(look)
        };
        let looking = look.get_or_init(async || {
            let Ok(_place) = self.following.doubts.try_acquire() else { return };
            if let Ok(Err(error)) = timeout(DOUBT_PATIENCE, self.renew(block, None)).await {
                tracing::warn!(block = block.0, %error, "a block can't be read anew");
            }
        });
        timeout(DOUBT_PATIENCE, looking).await.ok()?;
        self.resident(block).filter(newer)
    }

    fn heard(&self) {
        let silent = self.following.lock().silent.take();
        if let Some((since, _)) = silent {
            let silent_ms = self.clock.monotonic_ms().saturating_sub(since);
            tracing::info!(silent_ms, "following the other servers again");
        }
    }

    fn heard_nothing(&self, error: &StoreError) {
        let now = self.clock.monotonic_ms();
        let mut state = self.following.lock();
        match &mut state.silent {
            Some((_, reason)) => *reason = error.to_string(),
            silent @ None => {
                tracing::warn!(%error, "not following the other servers; what is resident stays");
                *silent = Some((now, error.to_string()));
            }
        }
    }

    /// What is resident stays: that the stored head is another one shows no change while it does not
    /// verify. It is closed where an authentic state is known to be newer, and where there is no room for
    /// the new one.
    fn note_failure(&self, block: BlockNo, error: &KeyringError) {
        if matches!(error, KeyringError::ArenaFull { .. }) || self.is_past(block) {
            self.publish(vec![(block, None)]);
        }
        tracing::error!(block = block.0, %error, "a changed block can't be read anew");
        let now = self.clock.monotonic_ms();
        self.following.lock().failed.insert(block, (now, error.to_string()));
    }

    fn failed_before(&self, block: BlockNo) -> bool {
        let now = self.clock.monotonic_ms();
        let state = self.following.lock();
        state.failed.get(&block).is_some_and(|(at, _)| now < at + RETRY_FAILED_MS)
    }
}

/// Blocks that wait to be read anew, the longest waiting first. Bounded by the number of blocks.
#[derive(Default)]
struct Behind {
    order: VecDeque<BlockNo>,
    /// Where they are stored, and since when that is known.
    known: HashMap<BlockNo, (Position, u64)>,
}

impl Behind {
    fn add(&mut self, block: BlockNo, stored: Position, now_ms: u64) {
        let (position, _) = self.known.entry(block).or_insert_with(|| {
            self.order.push_back(block);
            (stored, now_ms)
        });
        *position = stored.max(*position);
    }

    fn next(&mut self) -> Option<(BlockNo, Position)> {
        let block = self.order.pop_front()?;
        self.known.remove(&block).map(|(stored, _)| (block, stored))
    }

    /// Takes those out that wait for too long.
    fn late(&mut self, now_ms: u64) -> Vec<BlockNo> {
        let mut late = Vec::new();
        while let Some(block) = self.order.front() {
            let since = self.known.get(block).map_or(0, |(_, since)| *since);
            if now_ms.saturating_sub(since) <= WAIT_MAX_MS {
                break;
            }
            late.extend(self.next().map(|(block, _)| block));
        }
        late
    }
}

/// Passes on what is heard, without waiting until it is acted upon.
async fn hear(
    mut others: Box<dyn FollowBlocks>,
    told: mpsc::Sender<Result<Positions, StoreError>>,
) {
    loop {
        let heard = others.next().await;
        let silence = heard.is_err();
        if told.send(heard).await.is_err() {
            return;
        }
        if silence {
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }
}

impl Following {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
