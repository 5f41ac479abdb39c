//! The other sites, as our token has signed for them; and another site shows its tokens: whose signatures count for it
//! from then on.

use sha2::{Digest as _, Sha256};

use super::roles::{NotChanged, Roles, TRIES_MAX};
use crate::store::{StoreError, sites::PeerStep};
use kms_core::{
    audit::{AuditOutcome, AuditedCall, Detail, Subject},
    site::{
        peer::{Peer, SignedPeer},
        tokens::SignedSiteTokens,
    },
};

impl Roles {
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
            let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = Sha256::digest(key).into();
            entry = entry.with(Detail::PeerKey, u64::from_be_bytes([a, b, c, d, e, f, g, h]));
        }
        let (site, tokens) = (peer.site.clone(), peer.keys().iter().count());
        let step = PeerStep { expected: Some(row.signature), now: SignedPeer { peer, signature } };
        self.commits.put_peer(step, vec![entry]).await?;
        tracing::warn!(site, tokens, "another site has shown its tokens");
        self.look().await.map(drop)
    }
}
