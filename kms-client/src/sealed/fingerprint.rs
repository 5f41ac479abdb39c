//! The fingerprint by which people know an import key.

use std::fmt;

/// SHA-256 over the import key's modulus, as `kms-server init` prints it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ImportKeyFingerprint(pub [u8; 32]);

/// Not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hex digits; colons and spaces between them do not count")]
pub struct BadFingerprint;

impl std::str::FromStr for ImportKeyFingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let digits: String = text.chars().filter(|c| !matches!(c, ':' | ' ')).collect();
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| BadFingerprint)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ImportKeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ImportKeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImportKeyFingerprint({self})")
    }
}
