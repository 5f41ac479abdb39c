//! Sealed import files: keys that only the site's HSM can open, signed by whoever sealed them.
//!
//! A file is sealed offline. It takes the site's import key ([`ImportKey`], fetched once), the
//! fingerprint that was compared out of band ([`ImportKey::pinned`]), and the operator's own signing
//! key. One AES-256 key is made for the file and wrapped to the site by RSA-OAEP; each meter key is
//! wrapped under it (RFC 3394); what is signed binds every wrapped key to its meter, kind and position.
//! The header says when the file was sealed, and proves that its signer knows the file's key: nobody
//! can sign for keys that somebody else has wrapped.

mod contents;
mod error;
mod file;
mod fingerprint;
mod flow;
mod key;
mod sealer;

pub use contents::Contents;
pub use error::SealError;
pub use file::{SealedPart, SealedParts, is_sealed_file};
pub use fingerprint::{BadFingerprint, ImportKeyFingerprint};
pub(crate) use flow::start_import;
pub use key::{ImportKey, OaepHash, PinnedImportKey};
pub use sealer::{CHUNK_LINES_MAX, ManifestSigner, Sealer, may_be_sealed};
