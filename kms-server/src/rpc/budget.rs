//! How much may be worked on at once, over all connections.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    config::Limits,
    figures::{Executing, Figures},
    status::Refused,
    verb::Verb,
};

/// How long a batch of a stream waits for others to be done before its stream is ended. A stream has
/// taken its place already, and its client is told by flow control to slow down.
const STREAM_PATIENCE: Duration = Duration::from_secs(1);

/// Bytes are counted by the kibibyte, for a semaphore counts no further than 2^29.
const UNIT: usize = 1 << 10;

/// The items and bytes that may be in flight, and the items in one batch.
#[derive(Clone)]
pub(super) struct Budget {
    items: Arc<Semaphore>,
    items_max: usize,
    bytes: Room,
    batch_max: usize,
    patience: Duration,
    figures: Arc<Figures>,
}

/// Work in flight; given back on drop, and its time is counted.
pub(super) struct Charge {
    _executing: Executing,
    _items: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

/// Room for bytes.
#[derive(Clone)]
pub(super) struct Room {
    units: Arc<Semaphore>,
    bytes_max: usize,
}

impl Budget {
    pub(super) fn new(limits: &Limits, figures: Arc<Figures>) -> Self {
        Self {
            figures,
            items: Arc::new(Semaphore::new(limits.in_flight_items_max)),
            items_max: limits.in_flight_items_max,
            bytes: Room {
                units: Arc::new(Semaphore::new(limits.in_flight_bytes_max.div_ceil(UNIT))),
                bytes_max: limits.in_flight_bytes_max,
            },
            batch_max: limits.batch_items_max,
            patience: STREAM_PATIENCE,
        }
    }

    /// For messages that are still arriving.
    pub(super) fn room(&self) -> Room {
        self.bytes.clone()
    }

    /// Items and bytes in flight now, the most items between the two.
    pub(super) fn in_flight(&self) -> (usize, usize, usize) {
        let items = self.items_max.saturating_sub(self.items.available_permits());
        let Room { units, bytes_max } = &self.bytes;
        let units = bytes_max.div_ceil(UNIT).saturating_sub(units.available_permits());
        (items, self.items_max, units * UNIT)
    }

    /// Takes a batch on at once, or not at all.
    pub(super) fn charge(&self, verb: Verb, items: usize, bytes: usize) -> Result<Charge, Refused> {
        let (items, bytes) = (self.count(items)?, units(bytes));
        let items = Arc::clone(&self.items)
            .try_acquire_many_owned(items)
            .map_err(|_| Refused::Busy(self.items_max))?;
        let bytes = self.bytes.take(bytes)?;
        self.figures.queued(verb, Duration::ZERO);
        Ok(Charge { _executing: self.figures.execute(verb), _items: items, _bytes: bytes })
    }

    /// Takes a batch on as soon as there is room, if that is soon.
    pub(super) async fn charge_soon(
        &self,
        verb: Verb,
        items: usize,
        bytes: usize,
    ) -> Result<Charge, Refused> {
        let asked = Instant::now();
        let (items, bytes) = (self.count(items)?, units(bytes));
        let room = async {
            // Everyone takes items first, so that no two can wait for each other.
            let items = Arc::clone(&self.items).acquire_many_owned(items).await?;
            let bytes = Arc::clone(&self.bytes.units).acquire_many_owned(bytes).await?;
            Ok::<_, tokio::sync::AcquireError>((items, bytes))
        };
        let room = timeout(self.patience, room).await;
        self.figures.queued(verb, asked.elapsed());
        match room {
            Ok(Ok((items, bytes))) => {
                Ok(Charge { _executing: self.figures.execute(verb), _items: items, _bytes: bytes })
            }
            Ok(Err(_)) | Err(_) => Err(Refused::Busy(self.items_max)),
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

impl Room {
    /// Makes `held` hold room for exactly `bytes`: gives back what is too much, takes what is missing.
    pub(super) fn hold(
        &self,
        held: &mut Option<OwnedSemaphorePermit>,
        bytes: usize,
    ) -> Result<(), Refused> {
        let now = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = units(bytes);
        if wanted == 0 {
            *held = None;
        } else if let Some(more) = (wanted as usize).checked_sub(now).filter(|more| *more > 0) {
            let more = self.take(more as u32)?;
            match held {
                Some(held) => held.merge(more),
                None => *held = Some(more),
            }
        } else if let Some(held) = held {
            drop(held.split(now - wanted as usize));
        }
        Ok(())
    }

    fn take(&self, units: u32) -> Result<OwnedSemaphorePermit, Refused> {
        Arc::clone(&self.units)
            .try_acquire_many_owned(units)
            .map_err(|_| Refused::BytesBusy(self.bytes_max))
    }
}

/// What `bytes` cost. Messages are far below 2^42 bytes: `Limits` says so.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX >> 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERB: Verb = Verb::DecryptStream;

    fn budget() -> Budget {
        Budget::new(
            &Limits { batch_items_max: 3, in_flight_items_max: 5, ..Limits::default() },
            Figures::new(),
        )
    }

    #[test]
    fn work_beyond_the_limit_is_refused_until_some_is_done() {
        let budget = budget();
        let first = budget.charge(VERB, 3, 0).ok();
        assert!(first.is_some());
        assert_eq!(budget.charge(VERB, 3, 0).err(), Some(Refused::Busy(5)));
        let second = budget.charge(VERB, 2, 0).ok();
        assert!(second.is_some());
        assert_eq!(budget.charge(VERB, 0, 0).err(), Some(Refused::Busy(5)));
        drop(first);
        assert!(budget.charge(VERB, 3, 0).is_ok());
    }

    #[test]
    fn a_batch_over_its_limit_is_refused_whatever_is_free() {
        assert_eq!(
            budget().charge(VERB, 4, 0).err(),
            Some(Refused::BatchTooLarge { items: 4, limit: 3 })
        );
    }

    #[tokio::test]
    async fn a_stream_waits_for_room() {
        let budget = budget();
        let held = budget.charge(VERB, 3, 0).ok();
        let (answer, ()) = tokio::join!(budget.charge_soon(VERB, 3, 0), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        assert!(answer.is_ok());
    }

    #[tokio::test]
    async fn a_stream_does_not_wait_for_ever() {
        let budget = Budget { patience: Duration::from_millis(10), ..budget() };
        let _held = budget.charge(VERB, 3, 0).ok();
        assert_eq!(budget.charge_soon(VERB, 3, 0).await.err(), Some(Refused::Busy(5)));
        // What it waited with is free again.
        assert!(budget.charge(VERB, 2, 0).is_ok());
    }

    #[test]
    fn bytes_beyond_the_limit_are_refused_until_some_are_done() {
        let budget = Budget::new(
            &Limits { in_flight_bytes_max: 10 << 10, ..Limits::default() },
            Figures::new(),
        );
        let first = budget.charge(VERB, 1, 6 << 10).ok();
        let busy = Some(Refused::BytesBusy(10 << 10));
        assert_eq!(budget.charge(VERB, 1, 5 << 10).err(), busy);
        let (room, mut arriving) = (budget.room(), None);
        assert_eq!(room.hold(&mut arriving, 3 << 10), Ok(()));
        assert_eq!(room.hold(&mut arriving, 5 << 10).err(), busy);
        assert_eq!(room.hold(&mut arriving, 1), Ok(()));
        drop(first);
        assert!(budget.charge(VERB, 1, 9 << 10).is_ok());
        assert_eq!(budget.charge(VERB, 1, 10 << 10).err(), busy);
        assert_eq!(room.hold(&mut arriving, 0), Ok(()));
        assert!(budget.charge(VERB, 1, 10 << 10).is_ok());
    }
}
