//! The other sites, as our token has signed for them; and another site is met, and shows its tokens: since when it is known,
//! and whose signatures count for it from then on.

use sha2::{Digest as _, Sha256};

use super::roles::{NotChanged, Roles, TRIES_MAX};
use crate::store::{StoreError, sites::PeerStep};
use kms_core::{
    Epoch,
    audit::{AuditOutcome, AuditedCall, Detail, PublicKey, Subject},
    site::{
        peer::{Peer, SignedPeer},
        tokens::{SignedSiteTokens, TokenId},
    },
};

/// A token whose signatures count for its site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownToken {
    /// The site.
    pub site: String,
    /// Its name.
    pub id: TokenId,
    /// SHA-256 over its signing key.
    pub fingerprint: [u8; 32],
    /// It is this server's.
    pub is_own: bool,
}

impl KnownToken {
    fn of(site: &str, key: &PublicKey, is_own: bool) -> Self {
        let (site, fingerprint) = (site.to_owned(), Sha256::digest(key).into());
        Self { site, id: TokenId::of(key), fingerprint, is_own }
    }
}

impl Roles {
    /// The tokens of this site, this server's first, and those of the other ones.
    pub async fn tokens(&self) -> Result<Vec<KnownToken>, NotChanged> {
        let (own, site) = (self.opener.hsm.site_keys().await?, &self.opener.domain.site);
        let ours = own.iter().map(|key| KnownToken::of(site, key, key == own.first()));
        let mut tokens: Vec<_> = ours.collect();
        for peer in self.peers().await? {
            tokens.extend(peer.keys().iter().map(|key| KnownToken::of(&peer.site, key, false)));
        }
        Ok(tokens)
    }

    /// The other sites, as our token has signed for them.
    pub async fn peers(&self) -> Result<Vec<Peer>, NotChanged> {
        let signed = self.signed_peers().await?;
        Ok(signed.into_iter().map(|signed| signed.peer).collect())
    }

    /// The same, each with the signature of its row.
    pub(crate) async fn signed_peers(&self) -> Result<Vec<SignedPeer>, NotChanged> {
        let ours = self.opener.hsm.site_keys().await?;
        let mut peers = self.opener.store.peers().await?;
        // What our token did not sign is nobody.
        peers.retain(|signed| signed.is_signed_by(&ours));
        match peers.iter().find(|signed| !self.seen_peers.admit(&signed.peer)) {
            Some(old) => Err(NotChanged::OldPeer(old.peer.site.clone())),
            None => Ok(peers),
        }
    }

    /// This site, which joined with a bundle of `site`, meets it for the first time, in this epoch: since then it knows what
    /// that one does. Nothing where they have met.
    pub async fn meet(&self, site: &str, epoch: Epoch) -> Result<(), NotChanged> {
        let mut tried = 0;
        loop {
            tried += 1;
            let known = self.signed_peers().await?;
            let Some(row) = known.iter().find(|row| row.peer.site == site) else { return Ok(()) };
            let Some(peer) = row.peer.met_in(epoch) else { return Ok(()) };
            let signature = self.signature(peer.message()).await?;
            let call = AuditedCall::new("kms-server", "Site/Meet");
            let at_ms = self.opener.clock.unix_ms();
            let entry = call.entry(at_ms, Subject::NONE, AuditOutcome::Done);
            let entry = entry.with(Detail::Epoch, epoch.0);
            let now = SignedPeer { peer, signature };
            let step = PeerStep { expected: Some(row.signature), now };
            match self.commits.put_peer(step, vec![entry]).await {
                // Somebody wrote the row meanwhile: it is read anew.
                Err(StoreError::Taken { .. }) if tried < TRIES_MAX => {}
                Err(error) => return Err(error.into()),
                Ok(()) => return self.look().await.map(drop),
            }
        }
    }

    /// Takes up what `site` shows of its tokens, if the one that is known here signed it and it is new. Our token
    /// signs for that as for an enrolment: a writer of the database can bring in none.
    pub async fn take_tokens(
        &self,
        site: &str,
        shown: &[SignedSiteTokens],
    ) -> Result<bool, NotChanged> {
        if shown.is_empty() {
            return Ok(false);
        }
        self.take_tokens_as_known(self.signed_peers().await?, site, shown).await
    }

    /// The same, where these are the peers' rows as far as is known. If somebody enrolled the site anew since, what he wrote
    /// stays, and the list is held against that.
    pub(crate) async fn take_tokens_as_known(
        &self,
        mut known: Vec<SignedPeer>,
        site: &str,
        shown: &[SignedSiteTokens],
    ) -> Result<bool, NotChanged> {
        let mut tried = 0;
        loop {
            tried += 1;
            let Some(row) = known.iter().find(|row| row.peer.site == site) else {
                return Ok(false);
            };
            let Some(peer) = shown.iter().find_map(|list| row.peer.showing(list)) else {
                return Ok(false);
            };
            match self.put_shown(row, peer).await {
                Err(NotChanged::Store(StoreError::Taken { .. })) if tried < TRIES_MAX => {
                    known = self.signed_peers().await?;
                }
                outcome => return outcome.map(|()| true),
            }
        }
    }

    async fn put_shown(&self, row: &SignedPeer, peer: Peer) -> Result<(), NotChanged> {
        let signature = self.signature(peer.message()).await?;
        let call = AuditedCall::new("kms-server", "Site/TakeTokens");
        let at_ms = self.opener.clock.unix_ms();
        let mut entry = call.entry(at_ms, Subject::NONE, AuditOutcome::Done);
        for key in peer.keys().iter() {
            entry = entry.with(Detail::PeerKey, u64::from_be_bytes(TokenId::of(key).0));
        }
        let (site, tokens) = (peer.site.clone(), peer.keys().iter().count());
        let step = PeerStep { expected: Some(row.signature), now: SignedPeer { peer, signature } };
        self.commits.put_peer(step, vec![entry]).await?;
        tracing::warn!(site, tokens, "another site has shown its tokens");
        self.look().await.map(drop)
    }
}
