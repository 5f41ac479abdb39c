//! Papers of the ceremony by which a site joins a key domain: the joining site's [`request`], and the
//! [`bundle`] with which the site that writes answers it. Each is signed, has a [`Fingerprint`] that two people
//! compare, and travels as a [`file`] that says in clear what it is.

pub mod bundle;
pub mod file;
pub mod request;

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

crate::numbered! {
    /// Hash and mask generation of RSA-OAEP that the joining site's token can do.
    pub enum Oaep "OAEP hash" {
        /// SHA-1, MGF1 with SHA-1.
        Sha1 = 1 "SHA1",
        /// SHA-256, MGF1 with SHA-256.
        Sha256 = 2 "SHA256",
    }
}

/// SHA-256 over a whole paper, its signature included: what two people compare before anything of it is used.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

/// Not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hex digits; spaces, colons and dashes between them do not count")]
pub struct BadFingerprint;

impl Fingerprint {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// In groups of four digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<String> = self.0.chunks(2).map(hex::encode).collect();
        f.write_str(&groups.join(" "))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-' | ' ')).collect();
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| BadFingerprint)?;
        Ok(Self(bytes))
    }
}

/// The reason why a paper is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPaper {
    /// Not the text of such a file.
    #[error("it is not {0}, or not as this version writes it: take the file as it was made")]
    File(&'static str),
    /// The header says something else than what is below it.
    #[error("the header of the file does not say what is below it: take the file as it was made")]
    Header,
    /// Bytes that no encoder writes.
    #[error("it is no {0} of this version, or it was changed or cut: take the file as it was made")]
    Encoding(&'static str),
    /// The signature is not that of the key that it names.
    #[error("its signature does not verify: it was changed, or another key signed it")]
    Signature,
    /// A name that can't stand in a log.
    #[error("the name of a site has 1 to 64 visible ASCII characters, without spaces")]
    Name,
}

/// The longest name of a site, in bytes.
const NAME_LEN_MAX: usize = 64;
/// The longest name of a release, in bytes.
const RELEASE_LEN_MAX: usize = 64;
/// The longest public key (SubjectPublicKeyInfo), in bytes: RSA-4096 has 550.
const SPKI_LEN_MAX: usize = 1024;

/// Whether a site may be called so: the name stands in files, logs and certificates.
pub fn is_site_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests;
