//! The kinds of key values that were looked up, of all calls.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kms_core::{Fingerprint, KeyKind};

/// Kinds that are remembered: a fleet may share one GAK, and what holds once holds for ever.
const KEPT_MAX: usize = 4096;

/// Remembers of which kind a value is.
#[derive(Default)]
pub(in crate::lifecycle) struct KnownKinds(Mutex<HashMap<Fingerprint, KeyKind>>);

impl KnownKinds {
    fn kinds(&self) -> MutexGuard<'_, HashMap<Fingerprint, KeyKind>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, fingerprint: &Fingerprint) -> Option<KeyKind> {
        self.kinds().get(fingerprint).copied()
    }

    pub(super) fn put(&self, fingerprint: Fingerprint, kind: KeyKind) {
        let mut kinds = self.kinds();
        if kinds.len() >= KEPT_MAX {
            kinds.clear();
        }
        kinds.insert(fingerprint, kind);
    }
}
