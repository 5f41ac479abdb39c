//! One caller's share of what there is for all: no caller takes more than his share, so that what one
//! does wrong is felt by himself. The share is of connections, open calls, items and bytes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::rpc::{access::policy::CallerName, config::Limits};

/// Something that is counted: how much there is for all, and for one.
#[derive(Debug)]
pub(crate) struct Pool {
    all: Arc<Semaphore>,
    most: usize,
    /// The most for one caller.
    each: usize,
}

impl Pool {
    /// `least` of it may always be had by one caller: more than a share, if need be.
    fn new(most: usize, percent: usize, least: usize) -> Self {
        let each = (most * percent / 100).max(least).clamp(1, most.max(1));
        Self { all: Arc::new(Semaphore::new(most)), most, each }
    }

    /// The part that is taken now, and the whole.
    pub(crate) fn taken(&self) -> (usize, usize) {
        (self.most.saturating_sub(self.all.available_permits()), self.most)
    }
}

/// A caller's part of a pool; given back on drop.
#[derive(Debug)]
pub(crate) struct Taken {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// The limit for which something can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Short {
    /// The caller has his share.
    Own(usize),
    /// All of it is taken.
    All(usize),
}

impl Short {
    /// The limit itself.
    pub(crate) fn limit(self) -> usize {
        match self {
            Self::Own(limit) | Self::All(limit) => limit,
        }
    }
}

/// The longest wait for something that can't be had at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// While it is the caller's own work that has it.
    pub(crate) own: Duration,
    /// While it is that of others.
    pub(crate) of_others: Duration,
}

/// One caller's share of a pool.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    own: Arc<Semaphore>,
    pool: Arc<Pool>,
}

impl Share {
    fn of(pool: &Arc<Pool>) -> Self {
        Self { own: Arc::new(Semaphore::new(pool.each)), pool: Arc::clone(pool) }
    }

    /// Takes `count` now, or nothing. What is more than the share counts as the share.
    pub(crate) fn try_take(&self, count: usize) -> Result<Taken, Short> {
        let count = self.most(count);
        let own = Arc::clone(&self.own).try_acquire_many_owned(count);
        let own = own.map_err(|_| Short::Own(self.pool.each))?;
        let all = Arc::clone(&self.pool.all).try_acquire_many_owned(count);
        let all = all.map_err(|_| Short::All(self.pool.most))?;
        Ok(Taken { _own: own, _all: all })
    }

    /// Takes `count` as soon as it can be had.
    pub(crate) async fn take(self, count: usize, patience: Patience) -> Result<Taken, Short> {
        let count = self.most(count);
        // Everyone takes his own first, so that no two wait for each other.
        let taken = timeout(patience.own, Arc::clone(&self.own).acquire_many_owned(count)).await;
        let Ok(Ok(own)) = taken else { return Err(Short::Own(self.pool.each)) };
        let taken =
            timeout(patience.of_others, Arc::clone(&self.pool.all).acquire_many_owned(count)).await;
        let Ok(Ok(all)) = taken else { return Err(Short::All(self.pool.most)) };
        Ok(Taken { _own: own, _all: all })
    }

    fn most(&self, count: usize) -> u32 {
        u32::try_from(count.min(self.pool.each)).unwrap_or(u32::MAX >> 3)
    }
}

/// Bytes are counted by the kibibyte, for a semaphore counts no further than 2^29.
pub(crate) const UNIT: usize = 1 << 10;

/// The pools that all callers share.
#[derive(Debug)]
pub(crate) struct Shares {
    pub(crate) connections: Arc<Pool>,
    pub(crate) calls: Arc<Pool>,
    pub(crate) items: Arc<Pool>,
    /// In units of [`UNIT`] bytes.
    pub(crate) memory: Arc<Pool>,
    accounts: Mutex<HashMap<Option<CallerName>, Arc<Account>>>,
}

/// One caller's shares. The account is kept for as long as he is connected or anything is taken of it: who breaks
/// his connections and comes again does not begin anew.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) connections: Share,
    pub(crate) calls: Share,
    pub(crate) items: Share,
    /// In units of [`UNIT`] bytes.
    pub(crate) memory: Share,
}

impl Shares {
    pub(crate) fn new(limits: &Limits) -> Self {
        let percent = limits.caller_share_percent as usize;
        let pool = |most, least| Arc::new(Pool::new(most, percent, least));
        Self {
            connections: pool(limits.connections_max, 1),
            calls: pool(limits.calls_max, 1),
            // A batch within its own limit can always be taken up, and so can a message.
            items: pool(limits.in_flight_items_max, limits.batch_items_max),
            memory: pool(
                limits.in_flight_bytes_max.div_ceil(UNIT),
                limits.message_bytes_max.div_ceil(UNIT),
            ),
            accounts: Mutex::default(),
        }
    }

    /// The account of a caller; those without a name in their certificate have one together.
    pub(crate) fn account(&self, caller: Option<&CallerName>) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = caller.cloned();
        if let Some(account) = accounts.get(&caller) {
            return Arc::clone(account);
        }
        // As many as there are callers with something open: who has gone is forgotten.
        accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.is_whole());
        let account = Arc::new(Account {
            connections: Share::of(&self.connections),
            calls: Share::of(&self.calls),
            items: Share::of(&self.items),
            memory: Share::of(&self.memory),
        });
        accounts.insert(caller, Arc::clone(&account));
        account
    }
}

impl Account {
    /// Whether nothing is taken of it.
    fn is_whole(&self) -> bool {
        let Self { connections, calls, items, memory } = self;
        [connections, calls, items, memory]
            .iter()
            .all(|share| share.own.available_permits() == share.pool.each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Shares {
        Shares::new(&Limits {
            batch_items_max: 3,
            in_flight_items_max: 10,
            caller_share_percent: 50,
            ..Limits::default()
        })
    }

    fn name(name: &str) -> Option<CallerName> {
        Some(CallerName::new(name).unwrap())
    }

    #[test]
    fn one_caller_can_take_his_share_and_no_more() {
        let shares = shares();
        let (greedy, other) =
            (shares.account(name("a").as_ref()), shares.account(name("b").as_ref()));
        let held = greedy.items.try_take(5).unwrap();
        assert_eq!(greedy.items.try_take(1).unwrap_err(), Short::Own(5));
        // Another connection of the same caller is no other caller.
        let again = shares.account(name("a").as_ref());
        assert_eq!(again.items.try_take(1).unwrap_err(), Short::Own(5));
        let _others = other.items.try_take(5).unwrap();
        let third = shares.account(name("c").as_ref());
        assert_eq!(third.items.try_take(1).unwrap_err(), Short::All(10));
        assert_eq!(shares.items.taken(), (10, 10));
        drop(held);
        assert!(third.items.try_take(5).is_ok());
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let shares = shares();
        let held = shares.account(name("a").as_ref()).items.try_take(5).unwrap();
        drop(shares.account(name("b").as_ref()));
        // His connection has gone, his work has not: he does not begin anew.
        let again = shares.account(name("a").as_ref());
        assert_eq!(again.items.try_take(1).unwrap_err(), Short::Own(5));
        drop((held, again));
        for number in 0..100 {
            drop(shares.account(name(&format!("caller-{number}")).as_ref()));
        }
        assert!(shares.accounts.lock().unwrap().len() <= 1);
    }

    #[tokio::test]
    async fn own_work_and_that_of_others_are_waited_for_each_with_its_own_patience() {
        let shares = shares();
        let (a, b) = (shares.account(name("a").as_ref()), shares.account(name("b").as_ref()));
        // Whoever waited with the other patience would wait for hours.
        let (short, hours) = (Duration::from_millis(20), Duration::from_secs(10_000));
        let patience = |own, of_others| Patience { own, of_others };
        let held = a.items.try_take(5).unwrap();
        let own = a.items.clone().take(1, patience(short, hours)).await;
        assert_eq!(own.unwrap_err(), Short::Own(5));
        let _rest = b.items.try_take(5).unwrap();
        let c = shares.account(name("c").as_ref());
        let of_others = c.items.clone().take(1, patience(hours, short)).await;
        assert_eq!(of_others.unwrap_err(), Short::All(10));
        let (taken, ()) = tokio::join!(a.items.clone().take(5, patience(hours, hours)), async {
            tokio::time::sleep(short).await;
            drop(held);
        });
        assert!(taken.is_ok());
    }
}
