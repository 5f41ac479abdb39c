//! The public half of `transport-import`, as clients get it.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::{config::OaepHash, rsa_key::RsaKey};

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
        RsaKey { modulus: self.modulus.clone(), exponent: self.exponent.clone() }.to_der()
    }
}

impl fmt::Debug for ImportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImportKey({})", hex::encode(self.fingerprint()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_the_key_is_its_fingerprint() {
        let key = ImportKey { modulus: vec![1], exponent: vec![3], oaep_hash: OaepHash::Sha1 };
        assert!(format!("{key:?}").starts_with("ImportKey(4bf5122f"));
    }
}
