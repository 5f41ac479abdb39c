//! A bound of what one caller asks for anew within a minute. Numbers have nine digits, so that they can be said on the
//! telephone: who may ask for very many calls sees one of them come again, for another call.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use crate::rpc::{access::policy::CallerName, messages::status::Refused};
use kms_core::moment::Moment;

/// Calls that one caller may ask for anew within [`WITHIN_MS`] at one server.
pub(super) const ASKED_MAX: usize = 32;
const WITHIN_MS: u64 = 60_000;

/// When each caller asked. The policy has to know him, so there are no more of them than it names.
#[derive(Default)]
pub(super) struct Asked(Mutex<HashMap<CallerName, VecDeque<Moment>>>);

impl Asked {
    /// Counts a call that is asked for, or says when there is room for it.
    pub(super) fn count(&self, caller: &CallerName, now: Moment) -> Result<(), Refused> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let times = all.entry(caller.clone()).or_default();
        while times.front().is_some_and(|first| now.ms_since(*first) >= WITHIN_MS) {
            times.pop_front();
        }
        match times.front() {
            Some(first) if times.len() >= ASKED_MAX => {
                let after_ms = WITHIN_MS.saturating_sub(now.ms_since(*first));
                Err(Refused::TooManyAsked { limit: ASKED_MAX, after_ms })
            }
            _ => {
                times.push_back(now);
                Ok(())
            }
        }
    }
}
