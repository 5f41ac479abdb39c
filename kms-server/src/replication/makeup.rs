//! What this site is made of, for its cards. Parts of it become known one by one, and some change while it runs.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kms_core::site::{makeup::Makeup, tokens::TokenId};

/// Who is let in, as digests: of the policy, of the authorities, of their revocation lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Callers, roles, grants, calls that need two people.
    pub policy: [u8; 32],
    /// Authorities.
    pub authorities: [u8; 32],
    /// Revocation lists.
    pub revocation_lists: [u8; 32],
}

/// Tells who is let in now.
pub type TrustSource = Box<dyn Fn() -> Trust + Send + Sync>;

/// What this site is made of.
#[derive(Default)]
pub struct OwnMakeup {
    known: Mutex<Makeup>,
    trust: OnceLock<TrustSource>,
    token: OnceLock<TokenId>,
}

impl OwnMakeup {
    /// What is known from the start on.
    pub fn new(known: Makeup) -> Self {
        Self { known: Mutex::new(known), trust: OnceLock::new(), token: OnceLock::new() }
    }

    /// From now on this is asked who is let in. Once.
    pub fn trust_by(&self, source: TrustSource) {
        // A second one would be of the same server.
        let _ = self.trust.set(source);
    }

    /// This server has this token, for as long as it runs.
    pub(super) fn has_token(&self, token: TokenId) {
        let _ = self.token.set(token);
    }

    /// The token of this server; `None`: it was not asked for its name yet.
    pub fn token(&self) -> Option<TokenId> {
        self.token.get().copied()
    }

    /// The device profiles have this digest from now on.
    pub fn profiles(&self, digest: [u8; 32]) {
        self.known().profiles = digest;
    }

    /// So many records can't be read by this release.
    pub(super) fn unknown_records(&self, count: u32) {
        self.known().unknown_records = count;
    }

    /// As of now.
    pub fn now(&self) -> Makeup {
        let known = self.known().clone();
        match self.trust.get().map(|trust| trust()) {
            None => known,
            Some(Trust { policy, authorities, revocation_lists }) => {
                Makeup { policy, authorities, revocation_lists, ..known }
            }
        }
    }

    /// Held for a clone, never across an `.await`.
    fn known(&self) -> MutexGuard<'_, Makeup> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
