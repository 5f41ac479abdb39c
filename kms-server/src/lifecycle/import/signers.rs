//! Those whose sealed files are taken.

use std::{collections::BTreeMap, fmt, sync::Arc};

use p256::{ecdsa::VerifyingKey, pkcs8::DecodePublicKey as _};

use super::ranges::Ranges;
use kms_core::site::makeup::digest_of;

/// Those whose sealed files are taken.
#[derive(Clone, Default)]
pub struct Signers(Arc<BTreeMap<String, Signer>>);

/// One of them.
#[derive(Clone, Debug)]
pub struct Signer {
    pub(super) key: VerifyingKey,
    pub(super) ranges: Ranges,
}

impl Signer {
    /// Of a public key (SubjectPublicKeyInfo, PEM), for what it owns.
    pub fn from_pem(pem: &str, ranges: Ranges) -> Result<Self, BadSigner> {
        let key = VerifyingKey::from_public_key_pem(pem).map_err(|_| BadSigner)?;
        Ok(Self { key, ranges })
    }
}

/// Not a P-256 public key in PEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 public key in PEM (BEGIN PUBLIC KEY)")]
pub struct BadSigner;

impl Signers {
    /// Names and public keys (SubjectPublicKeyInfo, PEM) of signers without ranges.
    pub fn new(signers: impl IntoIterator<Item = (String, String)>) -> Result<Self, BadSigner> {
        let read = |(name, pem): (String, String)| {
            Signer::from_pem(&pem, Ranges::default()).map(|signer| (name, signer))
        };
        signers.into_iter().map(read).collect::<Result<_, _>>().map(Self::of)
    }

    /// By their names.
    pub fn of(signers: BTreeMap<String, Signer>) -> Self {
        Self(Arc::new(signers))
    }

    /// The signer with this name.
    pub(super) fn get(&self, name: &str) -> Option<&Signer> {
        self.0.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Signer)> {
        self.0.iter()
    }

    /// All but the one with this name.
    pub(super) fn others<'a>(
        &'a self,
        name: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a Signer)> {
        self.0.iter().filter(move |(other, _)| *other != name)
    }

    /// Whether the settings let one signer's files change another one's meters.
    pub(super) fn may_change(&self, name: &str, owner: &str) -> bool {
        self.get(name).is_some_and(|it| it.ranges.may_change.iter().any(|known| known == owner))
    }

    /// What two sites compare, to say whether they take the same files: over names, keys and ranges. Without ranges it
    /// is the one of releases that had none.
    pub fn digest(&self) -> [u8; 32] {
        let key = |key: &VerifyingKey| key.to_sec1_point(false).as_bytes().to_vec();
        let parts = self.0.iter().flat_map(|(name, it)| {
            [vec![name.as_bytes().to_vec(), key(&it.key)], it.ranges.parts()].concat()
        });
        digest_of("ami.kms/signers/1", parts)
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Signers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use p256::{
        ecdsa::SigningKey,
        pkcs8::{EncodePublicKey as _, LineEnding},
    };

    use super::*;

    #[test]
    fn two_sites_have_one_digest_of_the_same_signers_and_no_other_one_has_it() {
        let pem = |byte: u8| {
            let key = SigningKey::from_slice(&[byte; 32]).unwrap();
            VerifyingKey::from(&key).to_public_key_pem(LineEnding::LF).unwrap()
        };
        let digest = |signers: &[(&str, u8)]| {
            let named = signers.iter().map(|(name, key)| ((*name).to_owned(), pem(*key)));
            Signers::new(named).unwrap().digest()
        };
        let both = digest(&[("maker", 1), ("other", 2)]);
        assert_eq!(both, digest(&[("other", 2), ("maker", 1)]));
        for other in [
            &[][..],
            &[("maker", 1)],
            &[("maker", 2), ("other", 1)],
            &[("maker", 1), ("another", 2)],
        ] {
            assert_ne!(both, digest(other), "{other:?}");
        }
    }
}
