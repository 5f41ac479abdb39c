//! The value of a key on its way in: seen, sealed, or taken by the token unseen.

use std::sync::Arc;

use crate::keyring::WrappedValue;
use kms_core::{ClearKey, Fingerprint};

/// RFC 3394: by so many bytes a wrapped key is longer than the key.
const WRAP_OVERHEAD: usize = 8;

/// A key's value as it comes in. To clone it copies no clear key.
#[derive(Clone, Debug)]
pub enum KeyValue {
    /// In clear: only where the configuration allows it.
    Clear(Arc<ClearKey>),
    /// Under the key of its sealed file, RFC 3394.
    Sealed(Box<[u8]>),
    /// A sealed one, wrapped anew by the token.
    Taken(Box<TakenValue>),
}

/// A sealed key's value, wrapped anew by the token.
#[derive(Clone, Debug)]
pub struct TakenValue(WrappedValue);

impl TakenValue {
    pub(super) fn new(value: WrappedValue) -> Self {
        Self(value)
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    pub(super) fn into_wrapped(self) -> WrappedValue {
        self.0
    }
}

impl Default for KeyValue {
    fn default() -> Self {
        Self::Sealed(Box::default())
    }
}

impl From<ClearKey> for KeyValue {
    fn from(clear: ClearKey) -> Self {
        Self::Clear(Arc::new(clear))
    }
}

impl KeyValue {
    /// Of the key itself, in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Clear(clear) => clear.len(),
            Self::Sealed(wrapped) => wrapped.len().saturating_sub(WRAP_OVERHEAD),
            Self::Taken(taken) => taken.0.wrapped.len().saturating_sub(WRAP_OVERHEAD),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
