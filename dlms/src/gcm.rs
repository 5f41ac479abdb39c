//! AES-GCM as DLMS uses it: keys of 128 or 256 bits, nonces of 96 bits, tags of 96 bits, nothing else.
//!
//! NIST SP 800-38D; Green Book, "The Galois/Counter Mode". Lengths come in as slices and every other
//! length is refused: a shorter tag would be easier to forge, and a nonce of another length goes
//! through GHASH and may collide.

use core::fmt;

use aes::{Aes128Enc, Aes256Enc};
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, AesGcm, KeyInit, Tag};

use crate::{NONCE_LEN, TAG_LEN};

/// One key, expanded. Wiped when dropped: key schedule and GHASH key.
///
/// Only AES encryption is expanded, for GCM never deciphers a block.
pub struct Gcm(Cipher);

enum Cipher {
    Aes128(AesGcm<Aes128Enc, U12, U12>),
    Aes256(AesGcm<Aes256Enc, U12, U12>),
}

impl Gcm {
    /// Expands a key of 16 or 32 bytes.
    pub fn new(key: &[u8]) -> Result<Self, GcmError> {
        if let Ok(key) = <&[u8; 16]>::try_from(key) {
            Ok(Self(Cipher::Aes128(AesGcm::new(key.into()))))
        } else if let Ok(key) = <&[u8; 32]>::try_from(key) {
            Ok(Self(Cipher::Aes256(AesGcm::new(key.into()))))
        } else {
            Err(GcmError::KeyLength { actual: key.len() })
        }
    }

    /// Authenticated decryption, SP 800-38D 7.2, of `ciphertext` into `out`, which must be as long.
    ///
    /// `nonce` and `tag` are 12 bytes, or are refused. Nothing is written before the tag has verified,
    /// in constant time.
    pub fn open(
        &self,
        nonce: &[u8],
        additional_data: &[u8],
        ciphertext: &[u8],
        tag: &[u8],
        out: &mut [u8],
    ) -> Result<(), GcmError> {
        let nonce = fixed_nonce(nonce)?;
        let tag: &[u8; TAG_LEN] =
            tag.try_into().map_err(|_| GcmError::TagLength { actual: tag.len() })?;
        let buffer = InOutBuf::new(ciphertext, out).map_err(|_| GcmError::BufferLength)?;
        let (nonce, tag): (_, &Tag<U12>) = (nonce.into(), tag.into());
        match &self.0 {
            Cipher::Aes128(gcm) => gcm.decrypt_inout_detached(nonce, additional_data, buffer, tag),
            Cipher::Aes256(gcm) => gcm.decrypt_inout_detached(nonce, additional_data, buffer, tag),
        }
        .map_err(|_| GcmError::NotAuthentic)
    }

    /// Counter mode alone (GCTR, SP 800-38D 6.5) of `input` into `out`, which must be as long. Nothing
    /// is authenticated: whoever sends may choose which bits of the result to turn.
    pub fn decrypt_without_authentication(
        &self,
        nonce: &[u8],
        input: &[u8],
        out: &mut [u8],
    ) -> Result<(), GcmError> {
        // Counter mode is its own inverse, so enciphering once more deciphers. The tag means nothing.
        self.seal(fixed_nonce(nonce)?, &[], input, out).map(|_tag| ())
    }

    /// Authenticated encryption, SP 800-38D 7.1, of `plaintext` into `out`, which must be as long.
    /// Answers with the tag. With nothing to encipher this is GMAC.
    ///
    /// Not public: only a [`crate::FreshCounter`] leads here from outside.
    pub(crate) fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        additional_data: &[u8],
        plaintext: &[u8],
        out: &mut [u8],
    ) -> Result<[u8; TAG_LEN], GcmError> {
        let buffer = InOutBuf::new(plaintext, out).map_err(|_| GcmError::BufferLength)?;
        let nonce = nonce.into();
        match &self.0 {
            Cipher::Aes128(gcm) => gcm.encrypt_inout_detached(nonce, additional_data, buffer),
            Cipher::Aes256(gcm) => gcm.encrypt_inout_detached(nonce, additional_data, buffer),
        }
        .map(Into::into)
        .map_err(|_| GcmError::BufferLength)
    }
}

fn fixed_nonce(nonce: &[u8]) -> Result<&[u8; NONCE_LEN], GcmError> {
    nonce.try_into().map_err(|_| GcmError::NonceLength { actual: nonce.len() })
}

impl fmt::Debug for Gcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.debug_struct("Gcm").finish_non_exhaustive()
    }
}

/// The reason why GCM refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcmError {
    /// The key is not 16 or 32 bytes.
    KeyLength {
        /// Its length.
        actual: usize,
    },
    /// The nonce is not 12 bytes.
    NonceLength {
        /// Its length.
        actual: usize,
    },
    /// The tag is not 12 bytes.
    TagLength {
        /// Its length.
        actual: usize,
    },
    /// Input and output differ in length, or are above the 2^36 - 32 bytes that GCM can take.
    BufferLength,
    /// The tag does not belong to the rest.
    NotAuthentic,
}

impl fmt::Display for GcmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyLength { actual } => write!(f, "a key of 16 or 32 bytes, not {actual}"),
            Self::NonceLength { actual } => write!(f, "a nonce of {NONCE_LEN} bytes, not {actual}"),
            Self::TagLength { actual } => write!(f, "a tag of {TAG_LEN} bytes, not {actual}"),
            Self::BufferLength => f.write_str("input and output of one length that GCM can take"),
            Self::NotAuthentic => f.write_str("the authentication tag does not verify"),
        }
    }
}

impl core::error::Error for GcmError {}
