//! The sealed KEKs on their way to the token of another site.

use kms_core::enrolment::Fingerprint;

use super::{config::OaepHash, rsa_key::RsaKey};

/// The ceremony key of a site that wants to join, as the security officer trusts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CeremonyKey {
    /// CKA_ID: the beginning of the request's fingerprint.
    pub id: [u8; 16],
    /// The key.
    pub key: RsaKey,
    /// What is wrapped to it with.
    pub oaep: OaepHash,
}

impl CeremonyKey {
    /// The key of a request with this fingerprint.
    pub fn of(request: &Fingerprint, key: RsaKey, oaep: OaepHash) -> Self {
        let (id, _) = request.0.split_first_chunk().unwrap_or((&[0; 16], &[]));
        Self { id: *id, key, oaep }
    }

    /// CKA_LABEL.
    pub fn label(&self) -> String {
        format!("ami-peer-{}", hex::encode(self.id.get(..8).unwrap_or_default()))
    }
}

/// The reason why the sealed KEKs are not wrapped to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTrusted {
    /// The security officer has not been there.
    #[error(
        "the token has no trusted key for this request: run `kms-server trust-peer` with it first, with the \
         security officer's PIN"
    )]
    Missing,
    /// Something else has its id.
    #[error(
        "the token's key for this request has other numbers, or nobody trusted it: somebody put it there; \
         destroy it, then run `kms-server trust-peer` with the request"
    )]
    Another,
}

/// A sealed KEK, wrapped to a ceremony key by the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedKek {
    /// CKA_ID, which it keeps.
    pub id: [u8; 16],
    /// RSA-OAEP.
    pub wrapped: Vec<u8>,
}

/// Both of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedKeks {
    /// The KEK of meters' KEKs.
    pub meter_kek: HandedKek,
    /// The KEK of GUEKs and GBEKs of protection `HSM`.
    pub use_kek: HandedKek,
    /// What only these two open, from `init`: opened before either is used.
    pub canaries: Vec<u8>,
}
