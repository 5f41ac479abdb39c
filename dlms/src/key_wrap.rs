//! AES key wrap, RFC 3394 (NIST SP 800-38F, KW): how a key travels under a key encryption key.
//!
//! Key encryption keys and keys of 16 or 32 bytes, in any pairing; a wrapped key is 8 bytes longer.

use core::fmt;

use aes::{Aes128, Aes256};
use aes_kw::{AesKw, KeyInit};
use zeroize::Zeroize;

/// By how much a wrapped key is longer than the key, in bytes: the integrity check value.
pub const OVERHEAD_LEN: usize = 8;

/// Wraps `key` (16 or 32 bytes) under `kek` (16 or 32 bytes) into `out` (24 or 40 bytes).
//= RFC 3394, 2.2.1, with the initial value of 2.2.3.1
pub fn wrap(kek: &[u8], key: &[u8], out: &mut [u8]) -> Result<(), KeyWrapError> {
    check_lengths(key.len(), out.len())?;
    match Kek::new(kek)? {
        Kek::Aes128(kek) => kek.wrap_key(key, out).map(|_| ()),
        Kek::Aes256(kek) => kek.wrap_key(key, out).map(|_| ()),
    }
    .map_err(|_| KeyWrapError::BufferLength {
        expected: key.len() + OVERHEAD_LEN,
        actual: out.len(),
    })
}

/// Unwraps `wrapped` (24 or 40 bytes) under `kek` (16 or 32 bytes) into `out` (16 or 32 bytes).
///
/// When the integrity check fails, `out` is all zero and not a key. A refused length leaves it alone.
//= RFC 3394, 2.2.2
pub fn unwrap(kek: &[u8], wrapped: &[u8], out: &mut [u8]) -> Result<(), KeyWrapError> {
    let wrong = KeyWrapError::WrappedLength { actual: wrapped.len() };
    let key_len = wrapped.len().checked_sub(OVERHEAD_LEN).ok_or(wrong)?;
    check_key_length(key_len).map_err(|_| wrong)?;
    if out.len() != key_len {
        return Err(KeyWrapError::BufferLength { expected: key_len, actual: out.len() });
    }
    let unwrapped = match Kek::new(kek)? {
        Kek::Aes128(kek) => kek.unwrap_key(wrapped, out).map(|_| ()),
        Kek::Aes256(kek) => kek.unwrap_key(wrapped, out).map(|_| ()),
    };
    unwrapped.map_err(|_| {
        out.zeroize();
        KeyWrapError::NotAuthentic
    })
}

enum Kek {
    Aes128(AesKw<Aes128>),
    Aes256(AesKw<Aes256>),
}

impl Kek {
    fn new(kek: &[u8]) -> Result<Self, KeyWrapError> {
        if let Ok(kek) = <&[u8; 16]>::try_from(kek) {
            Ok(Self::Aes128(AesKw::new(kek.into())))
        } else if let Ok(kek) = <&[u8; 32]>::try_from(kek) {
            Ok(Self::Aes256(AesKw::new(kek.into())))
        } else {
            Err(KeyWrapError::KekLength { actual: kek.len() })
        }
    }
}

fn check_lengths(key: usize, out: usize) -> Result<(), KeyWrapError> {
    check_key_length(key)?;
    if out == key + OVERHEAD_LEN {
        Ok(())
    } else {
        Err(KeyWrapError::BufferLength { expected: key + OVERHEAD_LEN, actual: out })
    }
}

const fn check_key_length(actual: usize) -> Result<(), KeyWrapError> {
    match actual {
        16 | 32 => Ok(()),
        _ => Err(KeyWrapError::KeyLength { actual }),
    }
}

/// The reason why a key was not wrapped or unwrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyWrapError {
    /// The key encryption key is not 16 or 32 bytes.
    KekLength {
        /// Its length.
        actual: usize,
    },
    /// The key to wrap is not 16 or 32 bytes.
    KeyLength {
        /// Its length.
        actual: usize,
    },
    /// The wrapped key is not 24 or 40 bytes.
    WrappedLength {
        /// Its length.
        actual: usize,
    },
    /// The output buffer has not exactly the length of the result.
    BufferLength {
        /// The length of the result, in bytes.
        expected: usize,
        /// The length of the buffer, in bytes.
        actual: usize,
    },
    /// The integrity check failed: damaged, or wrapped under another key.
    NotAuthentic,
}

impl fmt::Display for KeyWrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KekLength { actual } => {
                write!(f, "a key encryption key of 16 or 32 bytes, not {actual}")
            }
            Self::KeyLength { actual } => write!(f, "a key of 16 or 32 bytes, not {actual}"),
            Self::WrappedLength { actual } => {
                write!(f, "a wrapped key of 24 or 40 bytes, not {actual}")
            }
            Self::BufferLength { expected, actual } => {
                write!(f, "a buffer of {expected} bytes, not {actual}")
            }
            Self::NotAuthentic => f.write_str("the wrapped key's integrity check fails"),
        }
    }
}

impl core::error::Error for KeyWrapError {}
