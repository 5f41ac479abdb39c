//! The reasons why a site is not enrolled.

use crate::{
    hsm::{NotAnRsaKey, NotTrusted, NotWrapped, TokenError},
    store::StoreError,
};
use kms_core::{
    enrolment::{BadPaper, Fingerprint},
    site::peer::PeerKind,
};

/// The reason why a site is not enrolled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// Not the request that people compared.
    #[error(
        "the request has the fingerprint {found}, and {confirmed} was confirmed: it was changed, or is another \
         one; do not enrol it, find out which is the joining site's"
    )]
    Fingerprint {
        /// As a person said.
        confirmed: Fingerprint,
        /// Of the request.
        found: Fingerprint,
    },
    /// Not a request, or not one that its own key signed.
    #[error("the join request: {0}")]
    Paper(BadPaper),
    /// A key that can't be wrapped to.
    #[error("the join request: a public key of it is {0}")]
    PublicKey(NotAnRsaKey),
    /// It asks for what can't be.
    #[error("the join request: {0}")]
    Request(String),
    /// This site does not write.
    #[error("this site does not write: enrol the other one at the primary")]
    NotPrimary,
    /// The security officer was not there.
    #[error(transparent)]
    NotTrusted(#[from] NotTrusted),
    /// Another site has its place.
    #[error(
        "the site {site:?} ({kind}) is enrolled with other keys: if it is that site, rebuilt after its token was \
         lost, enrol it with `--replace`; if not, find out who asks"
    )]
    Known {
        /// The site that is known.
        site: String,
        /// What it is.
        kind: PeerKind,
    },
    /// Somebody else enrolled the site with other keys while this call was under way.
    #[error(
        "the site {0:?} was enrolled with other keys by somebody else meanwhile: find out which request is the one of \
         that site, and enrol it once more if it is this one"
    )]
    Meanwhile(String),
    /// Stored data is not what was written.
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    /// The token refused, or is away.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The database can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// RSA failed.
    #[error(transparent)]
    NotWrapped(NotWrapped),
    /// The bundle that was made can't be read.
    #[error("the bundle that was made: {0}")]
    Unreadable(BadPaper),
}

impl From<BadPaper> for EnrolError {
    fn from(paper: BadPaper) -> Self {
        Self::Paper(paper)
    }
}
