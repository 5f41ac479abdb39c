//! Values of a delivery, as they came: opened one by one, when they are asked for.

use zeroize::Zeroizing;

use super::encryption::{Clear, DoesNotOpen, ValueMethod};
use crate::{digits, secret::KeyBytes};

/// A key's value.
pub(super) enum Value {
    /// Under a wrap key of the file.
    Wrapped { method: ValueMethod, wrap_key: usize, encrypted: Vec<u8> },
    /// In a text that is in clear now: hex digits.
    Digits(Zeroizing<String>),
}

/// A wrap key of the file, opened.
pub(super) struct WrapKey {
    pub(super) key: Clear,
    /// By RSA 1.5: a token would not have opened it.
    pub(super) is_weak: bool,
}

impl Value {
    /// Its bytes.
    pub(super) fn open(&self, keys: &[WrapKey]) -> Result<KeyBytes, DoesNotOpen> {
        let bytes = match self {
            Self::Wrapped { method, wrap_key, encrypted } => {
                let key = keys.get(*wrap_key).ok_or(DoesNotOpen)?;
                method.open(&key.key, encrypted)?
            }
            Self::Digits(text) => {
                let read = digits::read(text, KeyBytes::LEN_MAX).map_err(|_| DoesNotOpen)?;
                matches!(read.bytes.len(), 16 | 32).then_some(read.bytes).ok_or(DoesNotOpen)?
            }
        };
        Ok(KeyBytes::of_wiped(bytes))
    }

    /// Whether nothing would have shown that it was changed, or no token could have opened it.
    pub(super) fn is_weak(&self, keys: &[WrapKey]) -> bool {
        let Self::Wrapped { method, wrap_key, .. } = self else { return true };
        !method.is_authenticated() || keys.get(*wrap_key).is_none_or(|key| key.is_weak)
    }
}
