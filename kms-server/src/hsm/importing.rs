//! Keys that come in wrapped: what a token does with a sealed import file. No key of it is ever seen
//! by this process.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};

use super::{OaepHash, TokenError};
use kms_core::{Fingerprint, Kcv, SealedKek};

/// Keys that one call takes at most, so that others come in between: on a busy machine SoftHSM took a
/// third of a second for as many, block keys included.
pub const KEYS_PER_CALL_MAX: usize = 256;

/// The public half of `transport-import`.
#[derive(Clone, PartialEq, Eq)]
pub struct ImportKey {
    /// Big-endian, without leading zeros.
    pub modulus: Vec<u8>,
    /// Big-endian, without leading zeros.
    pub exponent: Vec<u8>,
    /// What the token opens.
    pub oaep_hash: OaepHash,
}

impl ImportKey {
    /// SHA-256 over the modulus, as `init` reports it.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.modulus).into()
    }

    /// SubjectPublicKeyInfo, DER (RFC 5280, 4.1; RFC 8017, A.1.1).
    pub fn to_der(&self) -> Vec<u8> {
        /// rsaEncryption, 1.2.840.113549.1.1.1, with its NULL.
        const ALGORITHM: [u8; 13] =
            [0x06, 0x09, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01, 0x05, 0x00];
        let numbers = [integer(&self.modulus), integer(&self.exponent)].concat();
        let key = [&[0][..], &der(0x30, &numbers)].concat();
        der(0x30, &[der(0x30, &ALGORITHM), der(0x03, &key)].concat())
    }
}

impl fmt::Debug for ImportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImportKey({})", hex::encode(self.fingerprint()))
    }
}

/// An INTEGER that is not negative.
fn integer(number: &[u8]) -> Vec<u8> {
    match number.first() {
        Some(first) if *first < 0x80 => der(0x02, number),
        _ => der(0x02, &[&[0][..], number].concat()),
    }
}

/// Tag, length, content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let bytes = len.to_be_bytes();
    let significant = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1);
    let significant = bytes.get(significant..).unwrap_or_default();
    let mut out = vec![tag];
    if len >= 0x80 {
        out.push(0x80 | significant.len() as u8);
    }
    out.extend_from_slice(significant);
    out.extend_from_slice(content);
    out
}

/// A block's `wrap` key where it lies: in the caller's locked memory.
pub type LockedKey = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// What a taken key is wrapped under for storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreUnder {
    /// Protection `HSM`.
    Kek(SealedKek),
    /// Protection `MEMORY`: the `wrap` key with this place in [`TakeKeys::wrap_keys`].
    Block(usize),
}

/// One key of a sealed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedValue {
    /// Under the file's key, RFC 3394.
    pub wrapped: Vec<u8>,
    /// Where it goes.
    pub under: StoreUnder,
}

/// Some keys of one file.
pub struct TakeKeys {
    /// The file's ephemeral key, by RSA-OAEP under `transport-import`.
    pub wrapped_file_key: Vec<u8>,
    /// What a key's fingerprint is the CMAC of.
    pub fingerprint_label: Vec<u8>,
    /// AES-256, of the blocks that the keys go to.
    pub wrap_keys: Vec<LockedKey>,
    /// At most [`KEYS_PER_CALL_MAX`].
    pub keys: Vec<SealedValue>,
}

/// A key that was taken: still unseen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenKey {
    /// CMAC under the key over the label.
    pub fingerprint: Fingerprint,
    /// CMAC under the key over sixteen zero bytes, the first five of it.
    pub kcv: Kcv,
    /// For storage, RFC 3394.
    pub wrapped: Vec<u8>,
}

/// A blob that the file's key does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAKey;

/// What became of each key, in order.
pub type Taken = Vec<Result<TakenKey, NotAKey>>;

/// Takes keys over from a sealed file, inside the token.
///
/// The provided methods are those of a token that takes none: for doubles.
pub trait ImportsKeys: Send + Sync + 'static {
    /// The public half of `transport-import`.
    fn import_key(&self) -> Result<ImportKey, TokenError> {
        Err(takes_none())
    }

    /// Unwraps the file's key, and under it each key: for its fingerprint and check value, and to wrap
    /// it for storage. Everything made in the token is destroyed before this returns.
    ///
    /// The outer error is `Refused` where the file's key does not open; a bad blob is an error of its
    /// own and leaves the others alone.
    fn take_keys(&self, _job: &TakeKeys) -> Result<Taken, TokenError> {
        Err(takes_none())
    }
}

fn takes_none() -> TokenError {
    TokenError::Refused { operation: "take keys", source: "this token takes none".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_der_with_lengths_of_every_form() {
        let key = |len| ImportKey {
            modulus: vec![0xC3; len],
            exponent: vec![1, 0, 1],
            oaep_hash: OaepHash::Sha1,
        };
        // openssl rsa -pubin -inform DER reads the same shape: 422 bytes for 3,072 bits.
        let whole = key(384).to_der();
        assert_eq!(whole.len(), 422);
        assert_eq!(whole[..4], [0x30, 0x82, 0x01, 0xA2]);
        assert_eq!(whole[whole.len() - 5..], [0x02, 0x03, 1, 0, 1]);
        // Modulus 23, exponent 5, their sequence 30, the bit string 33, the algorithm 15.
        assert_eq!(key(20).to_der()[..2], [0x30, 33 + 15]);
    }

    #[test]
    fn debug_of_the_key_is_its_fingerprint() {
        let key = ImportKey { modulus: vec![1], exponent: vec![3], oaep_hash: OaepHash::Sha1 };
        assert!(format!("{key:?}").starts_with("ImportKey(4bf5122f"));
    }
}
