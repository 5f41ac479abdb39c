//! The bound of the items that are worked on at once, over all connections and for each caller.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::accounts::{Patience, Shares, Taken, UNIT};
use crate::{
    rpc::{
        access::policy::Permit,
        config::Limits,
        figures::{Executing, Figures},
        messages::status::Refused,
    },
    telemetry::{
        catalogue::{IN_FLIGHT_BYTES, IN_FLIGHT_ITEMS, IN_FLIGHT_ITEMS_MAX},
        metrics::{Page, Source},
    },
};

/// The longest wait of a stream's batch before its stream is ended. A stream has taken its place already, and
/// its client is told by flow control to slow down. The caller's own batches are slow because he sends many.
const PATIENCE: Patience =
    Patience { own: Duration::from_secs(10), of_others: Duration::from_secs(1) };

/// The items that may be in flight, and the items in one batch. What messages cost in memory is taken
/// when they begin to arrive (`upload`).
#[derive(Clone)]
pub(crate) struct Budget {
    shares: Arc<Shares>,
    batch_max: usize,
    patience: Patience,
    figures: Arc<Figures>,
}

/// Work in flight; given back on drop, and its time is counted.
pub(crate) struct Charge {
    _executing: Executing,
    _items: Taken,
}

impl Budget {
    pub(crate) fn new(limits: &Limits, shares: Arc<Shares>, figures: Arc<Figures>) -> Self {
        Self { figures, shares, batch_max: limits.batch_items_max, patience: PATIENCE }
    }

    /// Takes a batch on at once, or not at all.
    pub(crate) fn charge(&self, permit: &Permit, items: usize) -> Result<Charge, Refused> {
        let items = self.count(items)?;
        let account = self.shares.account(Some(permit.caller()));
        let items = account.items.try_take(items).map_err(|short| Refused::Busy(short.limit()))?;
        self.figures.queued(permit.verb(), Duration::ZERO);
        Ok(Charge { _executing: self.figures.execute(permit.verb()), _items: items })
    }

    /// Takes a batch on as soon as there is room, if that is soon.
    pub(crate) async fn charge_soon(
        &self,
        permit: &Permit,
        items: usize,
    ) -> Result<Charge, Refused> {
        let asked = Instant::now();
        let items = self.count(items)?;
        let account = self.shares.account(Some(permit.caller()));
        let items = account.items.clone().take(items, self.patience).await;
        self.figures.queued(permit.verb(), asked.elapsed());
        let items = items.map_err(|short| Refused::Busy(short.limit()))?;
        Ok(Charge { _executing: self.figures.execute(permit.verb()), _items: items })
    }

    /// The cost of `items`: an empty batch is work too.
    fn count(&self, items: usize) -> Result<usize, Refused> {
        let limit = self.batch_max;
        if items > limit {
            return Err(Refused::BatchTooLarge { items, limit });
        }
        Ok(items.max(1))
    }
}

impl Source for Budget {
    fn tell(&self, page: &mut Page) {
        let (items, items_max) = self.shares.items.taken();
        let (units, _) = self.shares.memory.taken();
        page.sample(&IN_FLIGHT_ITEMS, &[], items as u64);
        page.sample(&IN_FLIGHT_ITEMS_MAX, &[], items_max as u64);
        page.sample(&IN_FLIGHT_BYTES, &[], (units * UNIT) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::access::{
        policy::{CallerName, Policy, Role},
        verb::Verb,
    };

    fn permit(caller: &str) -> Permit {
        let name = CallerName::new(caller).unwrap();
        let policy = Policy::new([(name.clone(), Role::ALL.to_vec())]);
        policy.permit(&name, Verb::DecryptStream).unwrap()
    }

    fn budget() -> Budget {
        let limits = Limits {
            batch_items_max: 3,
            in_flight_items_max: 5,
            caller_share_percent: 100,
            ..Limits::default()
        };
        Budget::new(&limits, Arc::new(Shares::new(&limits)), Figures::new())
    }

    #[test]
    fn work_beyond_the_limit_is_refused_until_some_is_done() {
        let (budget, permit) = (budget(), permit("hes"));
        let first = budget.charge(&permit, 3).ok();
        assert!(first.is_some());
        assert_eq!(budget.charge(&permit, 3).err(), Some(Refused::Busy(5)));
        let second = budget.charge(&permit, 2).ok();
        assert!(second.is_some());
        assert_eq!(budget.charge(&permit, 0).err(), Some(Refused::Busy(5)));
        drop(first);
        assert!(budget.charge(&permit, 3).is_ok());
    }

    #[test]
    fn a_batch_over_its_limit_is_refused_whatever_is_free() {
        assert_eq!(
            budget().charge(&permit("hes"), 4).err(),
            Some(Refused::BatchTooLarge { items: 4, limit: 3 })
        );
    }

    #[tokio::test]
    async fn a_stream_waits_for_room() {
        let (budget, permit) = (budget(), permit("hes"));
        let held = budget.charge(&permit, 3).ok();
        let (answer, ()) = tokio::join!(budget.charge_soon(&permit, 3), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        assert!(answer.is_ok());
    }

    #[tokio::test]
    async fn a_stream_does_not_wait_for_ever() {
        let soon = Duration::from_millis(10);
        let (budget, permit) = (
            Budget { patience: Patience { own: soon, of_others: soon }, ..budget() },
            permit("hes"),
        );
        let _held = budget.charge(&permit, 3).ok();
        assert_eq!(budget.charge_soon(&permit, 3).await.err(), Some(Refused::Busy(5)));
        // The permits that it waited with are free again.
        assert!(budget.charge(&permit, 2).is_ok());
    }

    #[test]
    fn one_caller_leaves_room_for_the_others() {
        let limits = Limits {
            batch_items_max: 3,
            in_flight_items_max: 6,
            caller_share_percent: 50,
            ..Limits::default()
        };
        let budget = Budget::new(&limits, Arc::new(Shares::new(&limits)), Figures::new());
        let _held = budget.charge(&permit("greedy"), 3).ok().unwrap();
        assert_eq!(budget.charge(&permit("greedy"), 1).err(), Some(Refused::Busy(3)));
        assert!(budget.charge(&permit("honest"), 3).is_ok());
    }
}
