//! RSA-OAEP (PKCS #1 v2.2, 7.1): the mechanism for each hash, with an empty label.

use cryptoki::mechanism::{
    Mechanism, MechanismType,
    rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
};

use crate::hsm::OaepHash;

/// CKM_RSA_PKCS_OAEP.
pub(crate) fn mechanism(hash: OaepHash) -> Mechanism<'static> {
    let (hash, mask) = match hash {
        OaepHash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        OaepHash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()))
}

/// The mechanism's name, for people.
pub(crate) const fn name(hash: OaepHash) -> &'static str {
    match hash {
        OaepHash::Sha1 => "RSA-OAEP with SHA-1 and MGF1-SHA-1",
        OaepHash::Sha256 => "RSA-OAEP with SHA-256 and MGF1-SHA-256",
    }
}
