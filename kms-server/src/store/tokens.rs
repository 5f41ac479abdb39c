//! The tokens of this site: the lists that each of them signed, and the seals that a further one brings.

use async_trait::async_trait;

use super::{SealedSecret, StoreError};
use kms_core::{BlockNo, audit::Signature, site::tokens::SignedSiteTokens};

/// A further token, with all that lets it open this database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FurtherToken {
    /// The signatures of the lists that it was made from; none: the site had one token. Where others are there by now,
    /// somebody else was first, and what he wrote stays: [`StoreError::Taken`].
    pub expected: Vec<Signature>,
    /// The lists of all tokens, each signed by one of them. They take the place of those that are there.
    pub lists: Vec<SignedSiteTokens>,
    /// For each block its seals for the new token.
    pub seals: Vec<(BlockNo, Vec<SealedSecret>)>,
}

/// Said where the lists are others than a further token was made for.
pub const TOKEN_LISTS: &str = "the list of this site's tokens, at place";

/// Keeps what is known of the tokens of this site. It is no change of any block; each list is signed.
#[async_trait]
pub trait TokenStore: Send + Sync + 'static {
    /// The lists, none of which is verified. Empty: the site has the one token that it was founded with.
    async fn site_tokens(&self) -> Result<Vec<SignedSiteTokens>, StoreError>;

    /// A further token may open this database from now on: all of it, or nothing.
    /// [`StoreError::Taken`] where the lists are not those that it was made from, [`StoreError::Rule`] where a seal for its site KEK is there.
    async fn add_token(&self, token: &FurtherToken) -> Result<(), StoreError>;
}
