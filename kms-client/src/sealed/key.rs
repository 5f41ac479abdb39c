//! The site's import key, which may be sealed to once its fingerprint was compared.

use rsa::{RsaPublicKey, pkcs8::DecodePublicKey as _, traits::PublicKeyParts as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256};

use super::{error::SealError, fingerprint::ImportKeyFingerprint};
use crate::call::ProtocolError;
use kms_proto::v1;

/// NIST SP 800-57: 128 bits of strength.
const RSA_BITS: u32 = 3072;

/// Hash and mask generation of RSA-OAEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OaepHash {
    /// The one that SoftHSM can do.
    Sha1,
    /// The one that others can do.
    Sha256,
}

impl OaepHash {
    pub(super) fn to_wire(self) -> v1::OaepHash {
        match self {
            Self::Sha1 => v1::OaepHash::OaepSha1,
            Self::Sha256 => v1::OaepHash::OaepSha256,
        }
    }
}

/// A site's import key, as it says. Not to be believed before [`ImportKey::pinned`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportKey {
    /// The site's name for itself.
    pub site: String,
    /// The key domain.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub domain_id: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub public_key: Vec<u8>,
    /// The hash to use.
    pub oaep_hash: OaepHash,
}

fn to_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    hex::decode(String::deserialize(deserializer)?).map_err(de::Error::custom)
}

impl ImportKey {
    pub(crate) fn from_wire(wire: v1::GetImportKeyResponse) -> Result<Self, ProtocolError> {
        let v1::GetImportKeyResponse { site, domain_id, public_key, fingerprint: _, oaep_hash } =
            wire;
        let oaep_hash = match v1::OaepHash::try_from(oaep_hash) {
            Ok(v1::OaepHash::OaepSha1) => OaepHash::Sha1,
            Ok(v1::OaepHash::OaepSha256) => OaepHash::Sha256,
            Ok(v1::OaepHash::Unspecified) | Err(_) => {
                return Err(ProtocolError::UnknownNumber { what: "oaep_hash", number: oaep_hash });
            }
        };
        Ok(Self { site, domain_id: domain_id.to_vec(), public_key: public_key.to_vec(), oaep_hash })
    }

    /// The fingerprint of the key itself, whatever its sender says that it is.
    pub fn fingerprint(&self) -> Result<ImportKeyFingerprint, SealError> {
        let key = self.parse()?;
        Ok(ImportKeyFingerprint(Sha256::digest(key.n_bytes()).into()))
    }

    /// The key, if it is the one whose fingerprint was compared.
    pub fn pinned(self, pinned: ImportKeyFingerprint) -> Result<PinnedImportKey, SealError> {
        let found = self.fingerprint()?;
        if found != pinned {
            return Err(SealError::Fingerprint { pinned, found });
        }
        let key = self.parse()?;
        Ok(PinnedImportKey { key, import_key: self, fingerprint: found })
    }

    fn parse(&self) -> Result<RsaPublicKey, SealError> {
        let key = RsaPublicKey::from_public_key_der(&self.public_key)
            .map_err(|_| SealError::ImportKey)?;
        let sound = key.n().bits() == RSA_BITS && *key.e_bytes() == [1, 0, 1];
        if sound { Ok(key) } else { Err(SealError::ImportKey) }
    }
}

/// An import key whose fingerprint is the pinned one: the only thing that can be sealed to.
#[derive(Clone, Debug)]
pub struct PinnedImportKey {
    pub(super) key: RsaPublicKey,
    pub(super) import_key: ImportKey,
    pub(super) fingerprint: ImportKeyFingerprint,
}

impl PinnedImportKey {
    /// Its fingerprint.
    pub fn fingerprint(&self) -> ImportKeyFingerprint {
        self.fingerprint
    }
}
