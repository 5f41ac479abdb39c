//! The token itself: its keys, and whether it is there.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::keys::{Kek, Keys, fill, random};
use crate::hsm::{CeremonyKey, Device, OaepHash, TokenError, TokenStatus};
use kms_core::site::keks::KekId;

/// A token whose keys lie in the memory of this process: for tests only.
pub struct MemoryToken {
    pub(super) keys: Arc<Keys>,
    pub(super) oaep_hash: OaepHash,
    /// Site KEKs by their names: they seal block secrets.
    site_keks: Arc<Mutex<Vec<(KekId, Kek)>>>,
    /// Those in use, by name: seals are made under the first one.
    in_use: Mutex<Vec<KekId>>,
    calls: AtomicU64,
    /// Ceremony keys that its security officer trusts.
    trusted: Mutex<Vec<CeremonyKey>>,
    /// The reason why it does not answer.
    away: Mutex<Option<String>>,
}

impl MemoryToken {
    /// A token with new keys, as after `init`.
    pub fn new() -> Result<Self, TokenError> {
        let mut site_kek_id = [0; 16];
        fill(&mut site_kek_id)?;
        Ok(Self {
            keys: Arc::new(Keys::make()?),
            oaep_hash: OaepHash::Sha256,
            site_keks: Arc::new(Mutex::new(vec![(site_kek_id, random()?)])),
            in_use: Mutex::new(vec![site_kek_id]),
            calls: AtomicU64::new(0),
            trusted: Mutex::default(),
            away: Mutex::new(None),
        })
    }

    /// The same token, as another server connects to it: with the site KEK that it was made with, until it is told of another
    /// one.
    #[must_use]
    pub fn again(&self, founded_with: KekId) -> Self {
        Self {
            keys: Arc::clone(&self.keys),
            oaep_hash: self.oaep_hash,
            site_keks: Arc::clone(&self.site_keks),
            in_use: Mutex::new(vec![founded_with]),
            calls: AtomicU64::new(0),
            trusted: Mutex::new(self.trusted().clone()),
            away: Mutex::default(),
        }
    }

    /// As the security officer does: from now on the sealed KEKs are wrapped to this key.
    pub fn trust(&self, key: CeremonyKey) {
        self.trusted().push(key);
    }

    pub(super) fn trusted(&self) -> MutexGuard<'_, Vec<CeremonyKey>> {
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on every call fails: the token is not reachable, for this reason.
    pub fn go_away(&self, reason: &str) {
        *self.away() = Some(reason.to_owned());
    }

    /// From now on calls are answered again.
    pub fn come_back(&self) {
        *self.away() = None;
    }

    pub(super) fn site_keks(&self) -> MutexGuard<'_, Vec<(KekId, Kek)>> {
        self.site_keks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn in_use(&self) -> MutexGuard<'_, Vec<KekId>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The site KEK of this name, if it is in use and the token is there.
    pub(super) fn used(&self, id: &KekId) -> Result<Kek, TokenError> {
        self.call()?;
        if !self.in_use().contains(id) {
            return Err(TokenError::unknown_kek(id));
        }
        let keks = self.site_keks();
        let found = keks.iter().find(|(known, _)| known == id);
        found.map(|(_, kek)| kek.clone()).ok_or_else(|| TokenError::unknown_kek(id))
    }

    fn away(&self) -> MutexGuard<'_, Option<String>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys for one call, if the token is there.
    pub(super) fn call(&self) -> Result<&Keys, TokenError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match &*self.away() {
            Some(reason) => Err(TokenError::Unreachable { reason: reason.clone() }),
            None => Ok(&self.keys),
        }
    }
}

impl Device for MemoryToken {
    fn random(&self, out: &mut [u8]) -> Result<(), TokenError> {
        self.call().and_then(|_| fill(out))
    }

    fn check(&self) -> Result<(), TokenError> {
        self.call().map(drop)
    }

    fn status(&self) -> TokenStatus {
        TokenStatus {
            label: "memory".to_owned(),
            model: "memory of a process".to_owned(),
            site_kek_id: self.in_use().first().copied().unwrap_or_default(),
            connection_epoch: 1,
            calls: self.calls.load(Ordering::Relaxed),
            fault: self.away().clone(),
        }
    }

    fn sessions_open(&self) -> Option<usize> {
        None
    }
}

/// The refusal of an input that is at fault.
pub(super) fn refused(operation: &'static str, why: impl ToString) -> TokenError {
    TokenError::Refused { operation, source: why.to_string().into() }
}
