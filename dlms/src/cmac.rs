//! AES-CMAC, NIST SP 800-38B (RFC 4493): keys of 128 or 256 bits, tags of 128 bits.

use core::fmt;

use ::cmac::{Cmac as Generic, KeyInit, Mac};
use aes::{Aes128Enc, Aes256Enc};
use subtle::ConstantTimeEq;

/// Length of the tag, in bytes. Whoever publishes less (a key check value) cuts it from the left.
pub const TAG_LEN: usize = 16;

/// A CMAC being computed. Wiped when dropped.
pub struct Cmac(Cipher);

enum Cipher {
    Aes128(Generic<Aes128Enc>),
    Aes256(Generic<Aes256Enc>),
}

impl Cmac {
    /// Starts with a key of 16 or 32 bytes.
    pub fn new(key: &[u8]) -> Result<Self, CmacError> {
        if let Ok(key) = <&[u8; 16]>::try_from(key) {
            Ok(Self(Cipher::Aes128(Generic::new(key.into()))))
        } else if let Ok(key) = <&[u8; 32]>::try_from(key) {
            Ok(Self(Cipher::Aes256(Generic::new(key.into()))))
        } else {
            Err(CmacError::KeyLength { actual: key.len() })
        }
    }

    /// Takes the next part of the message. Where parts begin and end makes no difference to the tag.
    pub fn update(&mut self, part: &[u8]) {
        match &mut self.0 {
            Cipher::Aes128(mac) => mac.update(part),
            Cipher::Aes256(mac) => mac.update(part),
        }
    }

    /// The tag of all that was taken.
    pub fn finalize(self) -> [u8; TAG_LEN] {
        match self.0 {
            Cipher::Aes128(mac) => mac.finalize().into_bytes().into(),
            Cipher::Aes256(mac) => mac.finalize().into_bytes().into(),
        }
    }

    /// Compares the tag in constant time. `tag` is 16 bytes, or is refused.
    pub fn verify(self, tag: &[u8]) -> Result<(), CmacError> {
        let tag: &[u8; TAG_LEN] =
            tag.try_into().map_err(|_| CmacError::TagLength { actual: tag.len() })?;
        if bool::from(self.finalize().ct_eq(tag)) { Ok(()) } else { Err(CmacError::NotAuthentic) }
    }
}

/// The tag of one message.
pub fn compute(key: &[u8], message: &[u8]) -> Result<[u8; TAG_LEN], CmacError> {
    let mut cmac = Cmac::new(key)?;
    cmac.update(message);
    Ok(cmac.finalize())
}

/// Verifies the tag of one message, in constant time.
pub fn verify(key: &[u8], message: &[u8], tag: &[u8]) -> Result<(), CmacError> {
    let mut cmac = Cmac::new(key)?;
    cmac.update(message);
    cmac.verify(tag)
}

impl fmt::Debug for Cmac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.debug_struct("Cmac").finish_non_exhaustive()
    }
}

/// The reason why CMAC refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmacError {
    /// The key is not 16 or 32 bytes.
    KeyLength {
        /// Its length.
        actual: usize,
    },
    /// The tag is not 16 bytes.
    TagLength {
        /// Its length.
        actual: usize,
    },
    /// The tag does not belong to the message.
    NotAuthentic,
}

impl fmt::Display for CmacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyLength { actual } => write!(f, "a key of 16 or 32 bytes, not {actual}"),
            Self::TagLength { actual } => write!(f, "a tag of {TAG_LEN} bytes, not {actual}"),
            Self::NotAuthentic => f.write_str("the tag does not verify"),
        }
    }
}

impl core::error::Error for CmacError {}
