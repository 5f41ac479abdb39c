//! The share of triage that each caller has, over all and of one meter. An answer says a little of what was deciphered
//! and not authenticated, so nobody may ask at will; and its cost is many decryptions'.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::rpc::access::policy::CallerName;
use kms_core::SystemTitle;

/// Calls of one caller about one meter in each [`WINDOW`].
pub(crate) const OF_METER: usize = 6;
/// Calls of one caller in each [`WINDOW`].
pub(crate) const OF_CALLER: usize = 30;
const WINDOW: Duration = Duration::from_secs(60);
/// Callers, and callers' meters, that are kept in mind. Others have to wait until one of them is forgotten.
const KEPT_MAX: usize = 8_192;

/// There is none left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent {
    /// Calls that there are in a minute.
    pub(crate) limit: usize,
    /// When there are some again.
    pub(crate) after: Duration,
}

type Taken = (Instant, usize);

/// The last calls.
#[derive(Debug, Default)]
pub(crate) struct Triages(Mutex<HashMap<(CallerName, Option<SystemTitle>), Taken>>);

impl Triages {
    /// Takes one call of the caller's, before anything is looked up.
    pub(crate) fn take(&self, caller: &CallerName, now: Instant) -> Result<(), Spent> {
        self.take_of((caller.clone(), None), OF_CALLER, now)
    }

    /// Takes one call about this meter.
    pub(crate) fn take_of_meter(
        &self,
        caller: &CallerName,
        meter: SystemTitle,
        now: Instant,
    ) -> Result<(), Spent> {
        self.take_of((caller.clone(), Some(meter)), OF_METER, now)
    }

    fn take_of(
        &self,
        whose: (CallerName, Option<SystemTitle>),
        limit: usize,
        now: Instant,
    ) -> Result<(), Spent> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = |begun: &Instant| now.saturating_duration_since(*begun);
        if kept.len() >= KEPT_MAX && !kept.contains_key(&whose) {
            kept.retain(|_, (begun, _)| age(begun) < WINDOW);
            if kept.len() >= KEPT_MAX {
                return Err(Spent { limit, after: WINDOW });
            }
        }
        let (begun, taken) = kept.entry(whose).or_insert((now, 0));
        if age(begun) >= WINDOW {
            (*begun, *taken) = (now, 0);
        }
        if *taken >= limit {
            return Err(Spent { limit, after: WINDOW.saturating_sub(age(begun)) });
        }
        *taken += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> CallerName {
        CallerName::new(&format!("caller-{n}")).unwrap()
    }

    fn meter(n: usize) -> SystemTitle {
        SystemTitle::new((n as u64).to_be_bytes())
    }

    #[test]
    fn a_caller_has_his_own_share_of_each_meter_and_of_all() {
        let (triages, start) = (Triages::default(), Instant::now());
        let of_meter = |caller, of, now| triages.take_of_meter(&name(caller), meter(of), now);
        let taken = (0..100).filter(|_| of_meter(1, 1, start).is_ok()).count();
        assert_eq!(taken, OF_METER);
        let half = start + WINDOW / 2;
        assert_eq!(of_meter(1, 1, half), Err(Spent { limit: OF_METER, after: WINDOW / 2 }));
        assert_eq!(of_meter(1, 2, half), Ok(()));
        assert_eq!(of_meter(2, 1, half), Ok(()));
        assert_eq!(of_meter(1, 1, start + WINDOW), Ok(()));
        let taken = (0..100).filter(|_| triages.take(&name(1), start).is_ok()).count();
        assert_eq!(taken, OF_CALLER);
        assert_eq!(triages.take(&name(2), start), Ok(()));
    }

    #[test]
    fn no_number_of_callers_and_meters_makes_it_grow() {
        let (triages, start) = (Triages::default(), Instant::now());
        let take = |n, now| triages.take_of_meter(&name(1), meter(n), now);
        let taken = (0..2 * KEPT_MAX).filter(|n| take(*n, start).is_ok()).count();
        assert_eq!(taken, KEPT_MAX);
        assert!(take(2 * KEPT_MAX, start).is_err());
        assert!(take(2 * KEPT_MAX, start + WINDOW).is_ok());
        assert_eq!(triages.0.lock().unwrap().len(), 1);
    }
}
