//! Closer looks at MICs that failed, each of which costs about what the failure did. A caller gets a few a
//! second, so that a flood of forged frames costs what it cost without them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::rpc::access::policy::CallerName;

/// Looks for each caller in each [`WINDOW`].
const LOOKS: u32 = 5;
const WINDOW: Duration = Duration::from_secs(1);
/// Callers that are kept in mind. Others have to wait until one of them is forgotten.
const CALLERS_MAX: usize = 1_024;

/// The last looks of callers.
#[derive(Debug, Default)]
pub(crate) struct Looks(Mutex<HashMap<CallerName, (Instant, u32)>>);

impl Looks {
    /// Whether the caller may have one more.
    pub(crate) fn may(&self, caller: &CallerName, now: Instant) -> bool {
        let mut callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |begun: &Instant| now.saturating_duration_since(*begun) < WINDOW;
        if callers.len() >= CALLERS_MAX && !callers.contains_key(caller) {
            callers.retain(|_, (begun, _)| is_new(begun));
            if callers.len() >= CALLERS_MAX {
                return false;
            }
        }
        let (begun, taken) = callers.entry(caller.clone()).or_insert((now, 0));
        if !is_new(begun) {
            (*begun, *taken) = (now, 0);
        }
        let may = *taken < LOOKS;
        *taken += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> CallerName {
        CallerName::new(&format!("caller-{n}")).unwrap()
    }

    #[test]
    fn a_caller_has_a_few_looks_a_second_and_others_have_their_own() {
        let (looks, start) = (Looks::default(), Instant::now());
        let taken = (0..1_000).filter(|_| looks.may(&name(1), start)).count();
        assert_eq!(taken, LOOKS as usize);
        assert!(looks.may(&name(2), start));
        assert!(!looks.may(&name(1), start + WINDOW / 2));
        assert!(looks.may(&name(1), start + WINDOW));
    }

    #[test]
    fn no_number_of_callers_makes_it_grow() {
        let (looks, start) = (Looks::default(), Instant::now());
        let taken = (0..2 * CALLERS_MAX).filter(|n| looks.may(&name(*n), start)).count();
        assert_eq!(taken, CALLERS_MAX);
        assert!(looks.may(&name(2 * CALLERS_MAX), start + WINDOW));
        assert_eq!(looks.0.lock().unwrap().len(), 1);
    }
}
