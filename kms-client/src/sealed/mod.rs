//! Sealed import files: keys that only the site's HSM can open, signed by whoever sealed them.
//!
//! A file is sealed offline. It takes the site's import key ([`ImportKey`], fetched once), the
//! fingerprint that was compared out of band ([`ImportKey::pinned`]), and the operator's own signing
//! key. One AES-256 key is made for the file and wrapped to the site by RSA-OAEP; each meter key is
//! wrapped under it (RFC 3394); what is signed binds every wrapped key to its meter, kind and position.
//! The header says when the file was sealed, and proves that its signer knows the file's key: nobody
//! can sign for keys that somebody else has wrapped.

mod file;
mod flow;
mod key;
mod sealer;

pub use file::{SealedPart, SealedParts, is_sealed_file};
pub(crate) use flow::start_import;
pub use key::{BadFingerprint, ImportKey, ImportKeyFingerprint, OaepHash, PinnedImportKey};
pub use sealer::{ManifestSigner, Sealer};

use crate::secret::KeyBytes;

/// Lines in one chunk: what the service accepts at most.
pub const CHUNK_LINES_MAX: usize = 500;
/// Bytes in one chunk: in hexadecimal it is one line of a file.
pub(crate) const CHUNK_BYTES_MAX: usize = 96 << 10;
/// Signed before a header's body.
pub(crate) const HEADER_LABEL: &[u8] = b"ami.kms/sealed-import/2/header";
/// Signed before a chunk.
pub(crate) const CHUNK_LABEL: &[u8] = b"ami.kms/sealed-import/2/chunk";
/// Hashed before what a file's proof says.
pub(crate) const PROOF_LABEL: &[u8] = b"ami.kms/sealed-import/2/proof";

/// Why nothing was sealed.
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
        /// Which.
        kind: crate::meter::KeyKind,
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

/// Wraps one key under the file's.
pub(crate) fn wrap(file_key: &[u8; 32], value: &KeyBytes) -> Result<Vec<u8>, SealError> {
    wrap_bytes(file_key, value.expose_key_bytes())
}

pub(crate) fn wrap_bytes(file_key: &[u8; 32], key: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut wrapped = vec![0; key.len() + dlms::key_wrap::OVERHEAD_LEN];
    dlms::key_wrap::wrap(file_key, key, &mut wrapped).map_err(|_| SealError::Wrapping)?;
    Ok(wrapped)
}
