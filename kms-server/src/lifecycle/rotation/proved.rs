//! Keys that the other site has lately proved that it has: a transfer that is sent again asks it nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use kms_core::{KeyId, moment::Moment};

/// So long a proof is not asked for again: a site that was set up anew meanwhile has to prove again.
const LASTS_MS: u64 = 600_000;
/// More than are in transfer at once; beyond them it is asked again.
const KNOWN_MAX: usize = 65_536;

/// Keys, and when each was proved.
#[derive(Debug, Default)]
pub(in crate::lifecycle) struct ProvedKeys(Mutex<BTreeMap<KeyId, Moment>>);

impl ProvedKeys {
    pub(super) fn knows(&self, key: &KeyId, now: Moment) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).is_some_and(|at| now.ms_since(*at) < LASTS_MS)
    }

    pub(super) fn forget(&self, key: &KeyId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(super) fn note(&self, key: KeyId, now: Moment) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(key, now);
    }
}
