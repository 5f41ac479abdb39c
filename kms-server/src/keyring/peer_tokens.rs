//! Another site is met, and shows its tokens: since when it is known, and whose signatures count for it from then on.

use sha2::{Digest as _, Sha256};

use super::roles::{NotChanged, Roles};
use kms_core::{
    Epoch,
    audit::{AuditOutcome, AuditedCall, Detail, Subject},
    site::{peer::SignedPeer, tokens::SignedSiteTokens},
};

impl Roles {
    /// This site, which joined with a bundle of `site`, meets it for the first time, in this epoch: since then it knows what
    /// that one does. Nothing where they have met.
    pub async fn meet(&self, site: &str, epoch: Epoch) -> Result<(), NotChanged> {
        let peers = self.peers().await?;
        let known = peers.iter().find(|peer| peer.site == site);
        let Some(peer) = known.and_then(|peer| peer.met_in(epoch)) else { return Ok(()) };
        let signature = self.signature(peer.message()).await?;
        let call = AuditedCall::new("kms-server", "Site/Meet");
        let at_ms = self.opener.clock.unix_ms();
        let entry = call.entry(at_ms, Subject::NONE, AuditOutcome::Done);
        let entry = entry.with(Detail::Epoch, epoch.0);
        self.commits.put_peer(SignedPeer { peer, signature }, vec![entry]).await?;
        self.look().await?;
        Ok(())
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
        let peers = self.peers().await?;
        let Some(peer) = peers.iter().find(|peer| peer.site == site) else { return Ok(false) };
        let Some(peer) = shown.iter().find_map(|list| peer.showing(list)) else {
            return Ok(false);
        };
        let signature = self.signature(peer.message()).await?;
        let call = AuditedCall::new("kms-server", "Site/TakeTokens");
        let at_ms = self.opener.clock.unix_ms();
        let mut entry = call.entry(at_ms, Subject::NONE, AuditOutcome::Done);
        for key in peer.keys().iter() {
            let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = Sha256::digest(key).into();
            entry = entry.with(Detail::PeerKey, u64::from_be_bytes([a, b, c, d, e, f, g, h]));
        }
        tracing::warn!(
            site,
            tokens = peer.keys().iter().count(),
            "another site has shown its tokens"
        );
        self.commits.put_peer(SignedPeer { peer, signature }, vec![entry]).await?;
        self.look().await?;
        Ok(true)
    }
}
