//! Refusals to seal, one sentence each.

use super::fingerprint::ImportKeyFingerprint;
use crate::meter::KeyKind;

/// The reason why nothing was sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Not the key that was compared.
    #[error(
        "the import key has the fingerprint {found}, not the pinned {pinned}: do not seal; find out \
         which of the two is the site's"
    )]
    Fingerprint {
        /// As given.
        pinned: ImportKeyFingerprint,
        /// Of the key.
        found: ImportKeyFingerprint,
    },
    /// Not an RSA-3072 public key with exponent 65,537.
    #[error("the import key is no RSA key of 3072 bits with the exponent 65537")]
    ImportKey,
    /// Not a private key of ours.
    #[error("the signing key is no P-256 private key in PEM (PKCS #8, not encrypted)")]
    SigningKey,
    /// A value that can't be sealed.
    #[error("line {line}: a {kind} is of free length and can't be sealed; leave it out")]
    Secret {
        /// From 1, among the lines that are sealed.
        line: u64,
        /// The kind of the key.
        kind: KeyKind,
    },
    /// A value of a length that no key has.
    #[error("line {line}: a key has 16 or 32 bytes, not {len}")]
    Length {
        /// From 1, among the lines that are sealed.
        line: u64,
        /// In bytes.
        len: usize,
    },
    /// More or fewer lines than were counted before.
    #[error("the file changed while it was sealed: {counted} lines were counted")]
    Count {
        /// Before.
        counted: u64,
    },
    /// One meter that fills more than a chunk.
    #[error("line {line}: it is too long to be sealed")]
    TooLong {
        /// From 1, among the lines that are sealed.
        line: u64,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system's random generator failed")]
    Randomness,
    /// A clock before 1970.
    #[error("this computer's clock stands before 1970: set it, the file bears its time")]
    Clock,
    /// RSA, or AES key wrap.
    #[error("wrapping failed")]
    Wrapping,
}

impl SealError {
    /// The same about another line: for callers who number their lines otherwise.
    #[must_use]
    pub fn at_line(mut self, number: u64) -> Self {
        if let Self::Secret { line, .. } | Self::Length { line, .. } | Self::TooLong { line } =
            &mut self
        {
            *line = number;
        }
        self
    }
}
