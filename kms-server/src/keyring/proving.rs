//! Proofs that blocks open here: each is read anew from the database and opened anew in the token.

use std::sync::Arc;

use super::{error::KeyringError, opening::Opener, unknown};
use crate::{hsm::TokenError, store::StoreError};
use kms_core::{
    BlockNo, Head, RecordKey,
    audit::{PublicKey, Signature, SiteKeys, is_signed},
    block::{
        proof::{Challenge, Proof, ProofKey},
        verified::Verified,
    },
    site::tokens::{SignedSiteTokens, TokenId},
};

/// The most times that a block is read again because it was changed while it was read.
const OVERTAKEN_MAX: usize = 4;

/// What a proof of the peer's says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// It has the block as it is here, and its token opens it.
    Yes,
    /// It has another state of the block: nothing is shown yet.
    OtherState,
    /// It has the same state, and the proof is wrong.
    Wrong,
}

/// Proves blocks, and checks proofs. It can write nothing.
pub struct Prover {
    opener: Arc<Opener>,
}

impl Prover {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>) -> Self {
        Self { opener }
    }

    /// Whether the token passes now: each of its KEKs by its canary, those of protection `HSM` among them.
    pub async fn check_token(&self) -> Result<(), TokenError> {
        self.opener.hsm.check().await
    }

    /// What this site signs with.
    pub async fn signing_key(&self) -> Result<PublicKey, TokenError> {
        self.opener.hsm.public_key().await
    }

    /// The name of this server's token.
    pub async fn token(&self) -> Result<TokenId, TokenError> {
        Ok(TokenId::of(&self.signing_key().await?))
    }

    /// Whose signatures count for this site.
    pub async fn site_keys(&self) -> Result<SiteKeys, TokenError> {
        self.opener.hsm.site_keys().await
    }

    /// The lists of this site's tokens, for other sites.
    pub fn token_lists(&self) -> Vec<SignedSiteTokens> {
        self.opener.hsm.token_lists()
    }

    /// Signs a report of proofs.
    pub async fn sign(&self, message: Vec<u8>) -> Result<Signature, TokenError> {
        let signature = self.opener.hsm.sign(message.clone()).await?;
        if !is_signed(&self.signing_key().await?, &message, &signature) {
            let source = "the token signs with another key than the one it shows".into();
            return Err(TokenError::Refused { operation: "sign a report of readiness", source });
        }
        Ok(signature)
    }

    /// Records that this release can't read: the first ones.
    pub async fn unknown_records(&self) -> Result<Vec<(BlockNo, RecordKey)>, StoreError> {
        unknown::unknown_records(&self.opener).await
    }

    /// Proves a block as it is stored; `Err(sentence)`: some of its records are damaged.
    pub async fn prove(
        &self,
        block: BlockNo,
        challenge: &Challenge<'_>,
    ) -> Result<Result<(Head, Proof), String>, KeyringError> {
        let (key, verified) = self.reopened(block).await?;
        let proof = key.prove(challenge, &verified);
        Ok(proof.map(|proof| (verified.head().clone(), proof)).map_err(|why| why.to_string()))
    }

    /// Holds a peer's proof against the block as it is stored here.
    pub async fn confirms(
        &self,
        challenge: &Challenge<'_>,
        theirs: &Head,
        proof: &Proof,
    ) -> Result<Confirmed, KeyringError> {
        let (key, verified) = self.reopened(theirs.block).await?;
        if verified.head() != theirs {
            return Ok(Confirmed::OtherState);
        }
        let is_right = key.confirms(challenge, verified.head(), proof);
        Ok(if is_right { Confirmed::Yes } else { Confirmed::Wrong })
    }

    async fn reopened(&self, block: BlockNo) -> Result<(ProofKey, Verified), KeyringError> {
        let mut outcome = self.opener.reopened(block).await;
        for _ in 0..OVERTAKEN_MAX {
            match outcome {
                Err(KeyringError::Stale { .. }) => outcome = self.opener.reopened(block).await,
                _ => break,
            }
        }
        outcome
    }
}
