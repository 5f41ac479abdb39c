//! How much may be worked on at once, over all connections.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{config::Limits, status::Refused};

/// How long a batch of a stream waits for others to be done before its stream is ended. A stream has
/// taken its place already, and its client is told by flow control to slow down.
const STREAM_PATIENCE: Duration = Duration::from_secs(1);

/// The items that may be in flight, and in one batch.
#[derive(Clone)]
pub(super) struct Budget {
    in_flight: Arc<Semaphore>,
    in_flight_max: usize,
    batch_max: usize,
    patience: Duration,
}

/// Items in flight; given back on drop.
pub(super) struct Charge(#[expect(dead_code, reason = "held, never read")] OwnedSemaphorePermit);

impl Budget {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            in_flight: Arc::new(Semaphore::new(limits.in_flight_items_max)),
            in_flight_max: limits.in_flight_items_max,
            batch_max: limits.batch_items_max,
            patience: STREAM_PATIENCE,
        }
    }

    /// Takes `items` on at once, or not at all.
    pub(super) fn charge(&self, items: usize) -> Result<Charge, Refused> {
        let count = self.count(items)?;
        Arc::clone(&self.in_flight)
            .try_acquire_many_owned(count)
            .map(Charge)
            .map_err(|_| Refused::Busy(self.in_flight_max))
    }

    /// Takes `items` on as soon as there is room, if that is soon.
    pub(super) async fn charge_soon(&self, items: usize) -> Result<Charge, Refused> {
        let count = self.count(items)?;
        let room = Arc::clone(&self.in_flight).acquire_many_owned(count);
        match timeout(self.patience, room).await {
            Ok(Ok(permit)) => Ok(Charge(permit)),
            Ok(Err(_)) | Err(_) => Err(Refused::Busy(self.in_flight_max)),
        }
    }

    /// What `items` cost: an empty batch is work too.
    fn count(&self, items: usize) -> Result<u32, Refused> {
        let limit = self.batch_max;
        if items > limit {
            return Err(Refused::BatchTooLarge { items, limit });
        }
        u32::try_from(items.max(1)).map_err(|_| Refused::BatchTooLarge { items, limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget::new(&Limits { batch_items_max: 3, in_flight_items_max: 5, ..Limits::default() })
    }

    #[test]
    fn work_beyond_the_limit_is_refused_until_some_is_done() {
        let budget = budget();
        let first = budget.charge(3).ok();
        assert!(first.is_some());
        assert_eq!(budget.charge(3).err(), Some(Refused::Busy(5)));
        let second = budget.charge(2).ok();
        assert!(second.is_some());
        assert_eq!(budget.charge(0).err(), Some(Refused::Busy(5)));
        drop(first);
        assert!(budget.charge(3).is_ok());
    }

    #[test]
    fn a_batch_over_its_limit_is_refused_whatever_is_free() {
        assert_eq!(budget().charge(4).err(), Some(Refused::BatchTooLarge { items: 4, limit: 3 }));
    }

    #[tokio::test]
    async fn a_stream_waits_for_room() {
        let budget = budget();
        let held = budget.charge(3).ok();
        let (answer, ()) = tokio::join!(budget.charge_soon(3), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        assert!(answer.is_ok());
    }

    #[tokio::test]
    async fn a_stream_does_not_wait_for_ever() {
        let budget = Budget { patience: Duration::from_millis(10), ..budget() };
        let _held = budget.charge(3).ok();
        assert_eq!(budget.charge_soon(3).await.err(), Some(Refused::Busy(5)));
        // What it waited with is free again.
        assert!(budget.charge(2).is_ok());
    }
}
