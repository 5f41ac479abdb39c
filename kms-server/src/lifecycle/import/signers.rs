//! Those whose sealed files are taken.

use std::{collections::BTreeMap, fmt, sync::Arc};

use p256::{ecdsa::VerifyingKey, pkcs8::DecodePublicKey as _};

/// Those whose sealed files are taken.
#[derive(Clone, Default)]
pub struct Signers(Arc<BTreeMap<String, VerifyingKey>>);

/// Not a P-256 public key in PEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 public key in PEM (BEGIN PUBLIC KEY)")]
pub struct BadSigner;

impl Signers {
    /// Names and public keys (SubjectPublicKeyInfo, PEM).
    pub fn new(signers: impl IntoIterator<Item = (String, String)>) -> Result<Self, BadSigner> {
        let read = |(name, pem): (String, String)| {
            VerifyingKey::from_public_key_pem(&pem).map(|key| (name, key)).map_err(|_| BadSigner)
        };
        signers.into_iter().map(read).collect::<Result<_, _>>().map(|map| Self(Arc::new(map)))
    }

    /// The public key of the signer with this name.
    pub(super) fn get(&self, name: &str) -> Option<&VerifyingKey> {
        self.0.get(name)
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
