//! Reading a resident block anew because another server changed it, or because an APDU raises the doubt.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OnceCell, Semaphore},
    time::timeout,
};

use super::{
    error::KeyringError,
    opening::{Opener, Room},
    resident::BlockTable,
};
use kms_core::{
    BlockNo, Position,
    following::{Follower, NotFollowing},
    moment::Moment,
};

/// A block is looked at once in this time because of doubt, however many APDUs raise it.
const DOUBT_INTERVAL: Duration = Duration::from_millis(100);

/// Blocks looked at because of doubt at the same time, of all batches together: forged frames for all
/// blocks at once don't become a flood of queries either.
const DOUBTS_AT_ONCE: usize = 4;

/// The longest time of such a look.
const DOUBT_PATIENCE: Duration = Duration::from_millis(250);

/// Says that the look is over, and holds no table: that would keep its keys beyond their time.
type Look = Arc<OnceCell<()>>;

/// Reads resident blocks anew, and keeps the state of following.
pub(super) struct Renewer {
    opener: Arc<Opener>,
    follower: Mutex<Follower>,
    /// The last look at each block because of doubt. Bounded by the number of blocks.
    looks: Mutex<HashMap<BlockNo, (Moment, Look)>>,
    /// Places for [`DOUBTS_AT_ONCE`].
    looking: Semaphore,
}

impl Renewer {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>) -> Self {
        Self {
            opener,
            follower: Mutex::default(),
            looks: Mutex::default(),
            looking: Semaphore::new(DOUBTS_AT_ONCE),
        }
    }

    /// The state of following: locked for a step, never across an `.await`.
    pub(super) fn follower(&self) -> MutexGuard<'_, Follower> {
        self.follower.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason why this process does not follow the others; `None`: it does, or there are none.
    pub(super) fn not_following(&self) -> Option<NotFollowing> {
        self.follower().not_following(self.opener.now())
    }

    /// Reads a resident block anew and publishes it, unless what is resident is as new as what is
    /// stored (`None`: the store is asked). Its table; or `None` if it is not resident any more.
    pub(super) async fn renew(
        &self,
        block: BlockNo,
        stored: Option<Position>,
    ) -> Result<Option<Arc<BlockTable>>, KeyringError> {
        let opener = &self.opener;
        // As at an opening: nobody else of this process changes or opens the block meanwhile.
        let _only_one = opener.turns.take(block).await;
        let Some(before) = opener.resident.table(block) else { return Ok(None) };
        let stored = match stored {
            Some(stored) => stored,
            None => {
                let stored = opener.store.position(block).await?;
                stored.ok_or_else(|| KeyringError::missing(block))?
            }
        };
        if stored <= before.position() {
            return Ok(Some(before));
        }
        let table = Arc::new(opener.open_now(block, Room::MayCloseOthers).await?);
        if table.position() < stored {
            // It stood there a moment ago: somebody took it back.
            let found = table.position();
            return Err(KeyringError::Stale { block, seen: stored, found });
        }
        opener.faults.forget_failed(block);
        self.follower().is_well(block);
        // It may have been closed to make room; then it stays open now, which does no harm.
        opener.resident.put(block, Arc::clone(&table));
        Ok(Some(table))
    }

    /// An APDU did not open that perhaps would have with what another server wrote. The block's table
    /// if it is newer than `seen` by now: read anew at most once in 100 ms, by one of those who ask.
    pub(super) async fn doubt(&self, block: BlockNo, seen: Position) -> Option<Arc<BlockTable>> {
        let newer = |table: &Arc<BlockTable>| table.position() > seen;
        if let Some(table) = self.opener.resident.table(block).filter(newer) {
            return Some(table);
        }
        if self.follower().is_silent() {
            return None;
        }
        let look = self.look_at(block);
        let looking = look.get_or_init(async || {
            let Ok(_place) = self.looking.try_acquire() else { return };
            if let Ok(Err(error)) = timeout(DOUBT_PATIENCE, self.renew(block, None)).await {
                tracing::warn!(block = block.0, %error, "a block can't be read anew");
            }
        });
        timeout(DOUBT_PATIENCE, looking).await.ok()?;
        self.opener.resident.table(block).filter(newer)
    }

    /// The look that is under way, or a new one if the last began long enough ago.
    fn look_at(&self, block: BlockNo) -> Look {
        let now = self.opener.now();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, look) = looks.entry(block).or_insert_with(|| (now, Look::default()));
        if now >= *at + DOUBT_INTERVAL {
            (*at, *look) = (now, Look::default());
        }
        Arc::clone(look)
    }
}
