//! RSA-3072 public keys of tokens, and wrapping to one in software: the public half only.

use std::fmt;

use getrandom::{SysRng, rand_core::UnwrapErr};
use kms_core::BlockSecret;
use rsa::{BoxedUint, Oaep, RsaPublicKey};
use sha2::{Digest as _, Sha256};

use super::{config::OaepHash, lengths::RSA_LEN};

/// rsaEncryption, 1.2.840.113549.1.1.1, with its NULL.
const ALGORITHM: [u8; 13] =
    [0x06, 0x09, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01, 0x05, 0x00];
/// 65,537.
const EXPONENT: [u8; 3] = [1, 0, 1];
/// Bytes behind the modulus: an INTEGER of three bytes.
const BEHIND_MODULUS: usize = 5;

/// The public half of an RSA key.
#[derive(Clone, PartialEq, Eq)]
pub struct RsaKey {
    /// Big-endian, without leading zeros.
    pub modulus: Vec<u8>,
    /// Big-endian, without leading zeros.
    pub exponent: Vec<u8>,
}

/// Bytes that are no such key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the SubjectPublicKeyInfo of an RSA key of 3072 bits with the exponent 65537")]
pub struct NotAnRsaKey;

/// A secret that could not be wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the public key can't be wrapped to")]
pub struct NotWrapped;

impl RsaKey {
    /// SHA-256 over the modulus, as `init` reports it.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.modulus).into()
    }

    /// SubjectPublicKeyInfo, DER (RFC 5280, 4.1; RFC 8017, A.1.1).
    pub fn to_der(&self) -> Vec<u8> {
        let numbers = [integer(&self.modulus), integer(&self.exponent)].concat();
        let key = [&[0][..], &der(0x30, &numbers)].concat();
        der(0x30, &[der(0x30, &ALGORITHM), der(0x03, &key)].concat())
    }

    /// The key in these bytes, if it is of RSA-3072 with the exponent that all of our keys have, and these are the
    /// bytes that [`RsaKey::to_der`] gives.
    pub fn from_der(bytes: &[u8]) -> Result<Self, NotAnRsaKey> {
        let end = bytes.len().checked_sub(BEHIND_MODULUS).ok_or(NotAnRsaKey)?;
        let begin = end.checked_sub(RSA_LEN).ok_or(NotAnRsaKey)?;
        let modulus = bytes.get(begin..end).ok_or(NotAnRsaKey)?.to_vec();
        let key = Self { modulus, exponent: EXPONENT.to_vec() };
        let is_odd = key.modulus.last().is_some_and(|last| last % 2 == 1);
        let has_all_bits = key.modulus.first().is_some_and(|first| *first >= 0x80);
        if is_odd && has_all_bits && key.to_der() == bytes { Ok(key) } else { Err(NotAnRsaKey) }
    }

    /// RSA-OAEP with an empty label: what only the holder of the private half opens.
    pub fn wrap_secret(&self, hash: OaepHash, secret: &BlockSecret) -> Result<Vec<u8>, NotWrapped> {
        self.wrap(hash, secret.expose_block_secret_bytes())
    }

    /// The same for any 32 bytes: the token in memory wraps its KEKs so.
    pub(super) fn wrap(
        &self,
        hash: OaepHash,
        secret: &[u8; BlockSecret::LEN],
    ) -> Result<Vec<u8>, NotWrapped> {
        let number = BoxedUint::from_be_slice_vartime;
        let key = RsaPublicKey::new(number(&self.modulus), number(&self.exponent));
        let key = key.map_err(|_| NotWrapped)?;
        let mut random = UnwrapErr(SysRng);
        let wrapped = match hash {
            OaepHash::Sha1 => key.encrypt(&mut random, Oaep::<sha1::Sha1>::new(), secret),
            OaepHash::Sha256 => key.encrypt(&mut random, Oaep::<Sha256>::new(), secret),
        };
        wrapped.map_err(|_| NotWrapped)
    }
}

impl fmt::Debug for RsaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RsaKey({})", hex::encode(self.fingerprint()))
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

    fn key(len: usize) -> RsaKey {
        RsaKey { modulus: vec![0xC3; len], exponent: vec![1, 0, 1] }
    }

    #[test]
    fn a_public_key_is_der_with_lengths_of_every_form() {
        // openssl rsa -pubin -inform DER reads the same shape: 422 bytes for 3,072 bits.
        let whole = key(384).to_der();
        assert_eq!(whole.len(), 422);
        assert_eq!(whole[..4], [0x30, 0x82, 0x01, 0xA2]);
        assert_eq!(whole[whole.len() - 5..], [0x02, 0x03, 1, 0, 1]);
        // Modulus 23, exponent 5, their sequence 30, the bit string 33, the algorithm 15.
        assert_eq!(key(20).to_der()[..2], [0x30, 33 + 15]);
    }

    #[test]
    fn a_key_comes_back_from_its_der_and_from_no_other_bytes() {
        let whole = key(384).to_der();
        assert_eq!(RsaKey::from_der(&whole), Ok(key(384)));
        for len in 0..whole.len() {
            assert_eq!(RsaKey::from_der(&whole[..len]), Err(NotAnRsaKey));
        }
        // What is not the modulus itself has one form.
        for at in (0..whole.len()).filter(|at| !(33..417).contains(at)) {
            let mut other = whole.clone();
            other[at] ^= 1;
            assert_eq!(RsaKey::from_der(&other), Err(NotAnRsaKey), "{at}");
        }
        for bits in [256, 383, 512] {
            assert_eq!(RsaKey::from_der(&key(bits).to_der()), Err(NotAnRsaKey));
        }
        let three = RsaKey { exponent: vec![3], ..key(384) };
        assert_eq!(RsaKey::from_der(&three.to_der()), Err(NotAnRsaKey));
        let even = RsaKey { modulus: vec![0xC2; 384], ..key(384) };
        assert_eq!(RsaKey::from_der(&even.to_der()), Err(NotAnRsaKey));
    }
}
