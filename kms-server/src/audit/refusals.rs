//! Refusals at the gate, counted: the first one of an interval is an event of its own, further ones are a
//! number. Who asks often can't fill the log.

use std::{collections::HashMap, sync::Mutex};

use super::lock::lock;
use kms_core::audit::{AuditEntry, AuditOutcome, AuditText, AuditedCall, Detail, Subject};

/// Kinds of refusals that are counted in one interval; further ones are recorded one by one. More than
/// known callers have calls.
const KINDS_MAX: usize = 4_096;

/// A kind of refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Refusal {
    pub(super) caller: AuditText,
    pub(super) verb: AuditText,
    /// The reason word.
    pub(super) word: AuditText,
}

impl Refusal {
    /// The event of `count` of them.
    pub(super) fn entry(&self, count: u64, now_ms: u64, interval_ms: u64) -> AuditEntry {
        let (caller, verb) = (self.caller.clone(), self.verb.clone());
        let request_id = AuditText::default();
        let call = AuditedCall { caller, verb, request_id, approval: None };
        let outcome = AuditOutcome::Refused(self.word.clone());
        let entry = call.entry(now_ms, Subject::NONE, outcome).with(Detail::Items, count);
        entry.with(Detail::IntervalMs, interval_ms)
    }
}

/// Refusals of this interval by their kind, beyond the first of each.
#[derive(Default)]
pub(super) struct Refusals(Mutex<HashMap<Refusal, u64>>);

impl Refusals {
    /// Counts a refusal, unless it is the first of its kind or there is no more room: then it is to be
    /// recorded.
    pub(super) fn count(&self, refusal: &Refusal) -> bool {
        let mut counts = lock(&self.0);
        let full = counts.len() >= KINDS_MAX;
        match counts.get_mut(refusal) {
            Some(count) => {
                *count += 1;
                return true;
            }
            None if full => {}
            None => _ = counts.insert(refusal.clone(), 0),
        }
        false
    }

    /// Counts one that could not be recorded: it is in the log once that can be written.
    pub(super) fn count_on(&self, refusal: &Refusal) {
        if let Some(count) = lock(&self.0).get_mut(refusal) {
            *count += 1;
        }
    }

    /// Takes all that was counted; an interval begins.
    pub(super) fn drain(&self) -> Vec<(Refusal, u64)> {
        let counts = std::mem::take(&mut *lock(&self.0));
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Counts on behind what could not be written.
    pub(super) fn put_back(&self, drained: Vec<(Refusal, u64)>) {
        let mut counts = lock(&self.0);
        for (refusal, count) in drained {
            *counts.entry(refusal).or_default() += count;
        }
    }
}
