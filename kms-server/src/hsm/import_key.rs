//! The public half of `transport-import`, as clients get it.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::config::OaepHash;

/// The public half of `transport-import`.
#[derive(Clone, PartialEq, Eq)]
pub struct ImportKey {
    /// Big-endian, without leading zeros.
    pub modulus: Vec<u8>,
    /// Big-endian, without leading zeros.
    pub exponent: Vec<u8>,
    /// The hash that the token opens.
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
