//! The row of the site that is enrolled: whether there is a place for it, and how it is written. Others may write it
//! meanwhile, and what they wrote is never taken back unseen: a key that was added, or one that was revoked.

use super::{EnrolError, Enroller, beginning};
use crate::store::{StoreError, sites::PeerStep};
use kms_core::{
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, SiteKeys, Subject},
    enrolment::{bundle::Enrolment, request::JoinRequest},
    site::peer::{EnrolledIn, Peer, PeerKind, SignedPeer},
};

/// The most times that a row is written anew because somebody else was first.
const TRIES_MAX: usize = 8;

impl Enroller {
    /// A domain has one site of each parity; a site that is known keeps its keys unless people say otherwise.
    pub(super) async fn check_peers(
        &self,
        request: &JoinRequest,
        own: &SiteKeys,
        replace: bool,
    ) -> Result<Vec<SignedPeer>, EnrolError> {
        let peers = self.store.peers().await?;
        for known in &peers {
            let peer = &known.peer;
            if !known.is_signed_by(own) {
                return Err(EnrolError::Damaged(format!("the row of the peer {:?}", peer.site)));
            }
            if !request.same_site && takes_a_place(request, peer, replace) {
                return Err(EnrolError::Known { site: peer.site.clone(), kind: peer.kind });
            }
        }
        let others = peers.iter().map(|row| &row.peer).filter(|peer| peer.site != request.site);
        let replicas = others.filter(|peer| peer.kind == PeerKind::Replica).count();
        if !request.same_site
            && request.kind == PeerKind::Replica
            && replicas >= Enrolment::REPLICAS_MAX
        {
            return Err(EnrolError::Request(format!("the domain has {replicas} replicas already")));
        }
        Ok(peers)
    }

    /// Writes the site, as this one knows it from now on, in the place of what was known. Its list of tokens that was taken
    /// up meanwhile is kept or revoked with the rest; another enrolment of it is not overwritten.
    pub(super) async fn put_peer(
        &self,
        call: &AuditedCall,
        (request, replace): (&JoinRequest, bool),
        known: &[SignedPeer],
    ) -> Result<(), EnrolError> {
        let row_in = |rows: &[SignedPeer]| row_of(rows, &request.site).cloned();
        let (mut before, mut tried) = (row_in(known), 0);
        loop {
            tried += 1;
            match self.put_row(call, (request, replace), before.as_ref()).await {
                Err(EnrolError::Store(StoreError::Taken { .. })) if tried < TRIES_MAX => {}
                outcome => return outcome,
            }
            let own = self.hsm.site_keys_with(self.hsm.public_key().await?);
            let now = row_in(&self.check_peers(request, &own, replace).await?);
            if now.as_ref().is_some_and(|now| is_another(now, before.as_ref(), request)) {
                return Err(EnrolError::Meanwhile(request.site.clone()));
            }
            before = now;
        }
    }

    async fn put_row(
        &self,
        call: &AuditedCall,
        (request, replace): (&JoinRequest, bool),
        before: Option<&SignedPeer>,
    ) -> Result<(), EnrolError> {
        let (expected, before) = (before.map(|row| row.signature), before.map(|row| &row.peer));
        let at_ms = self.clock.unix_ms();
        let epoch = self.store.role().await?.epoch;
        // Later than the one before, whatever the clock says: an earlier one is an old row.
        let at_ms = before.map_or(at_ms, |peer| at_ms.max(peer.enrolled_ms + 1));
        // One of a release that did not note it was there before anything could be restored.
        let met = |peer: &Peer| match peer.enrolled_in {
            Some(it) if it.is_met() => it.first,
            Some(_) => epoch,
            None => self.domain.epoch,
        };
        let first = before.map_or(epoch, met);
        // The same token once more is no reason to forget the one beside it.
        let stays = |peer: &&Peer| !replace && peer.signing == request.signing;
        let peer = Peer {
            domain: self.domain.domain,
            site: request.site.clone(),
            kind: request.kind,
            signing: request.signing,
            transport_block: request.transport_block.clone(),
            enrolled_ms: at_ms,
            former: Vec::new(),
            enrolled_in: Some(EnrolledIn { first, last: epoch }),
            tokens: before.filter(stays).and_then(|peer| peer.tokens.clone()),
        };
        let present: Vec<_> = peer.keys().iter().copied().collect();
        let former = before.map_or(Vec::new(), |peer| peer.former_with(&present, epoch));
        let peer = Peer { former, ..peer };
        let signature = self.hsm.sign(peer.message()).await?;
        let entry: AuditEntry = call.entry(at_ms, Subject::NONE, AuditOutcome::Done);
        let entry = entry.with(Detail::PeerKey, beginning(&request.signing));
        let step = PeerStep { expected, now: SignedPeer { peer, signature } };
        self.audited.put_peer(step, vec![entry]).await?;
        // This server has seen it from now on.
        let _ = self.roles.look().await;
        Ok(())
    }
}

fn row_of<'a>(rows: &'a [SignedPeer], site: &str) -> Option<&'a SignedPeer> {
    rows.iter().find(|row| row.peer.site == site)
}

/// Whether a row that is there now is neither of the enrolment that was there before nor of the one that is under way.
fn is_another(now: &SignedPeer, before: Option<&SignedPeer>, request: &JoinRequest) -> bool {
    let signing = now.peer.signing;
    signing != request.signing && before.is_none_or(|before| before.peer.signing != signing)
}

/// Whether a request is for the place of a site that is known, and is not that site's: of each parity there is one, of
/// replicas there are several.
fn takes_a_place(request: &JoinRequest, known: &Peer, replace: bool) -> bool {
    let is_same = known.signing == request.signing && known.site == request.site;
    let is_rebuilt = replace && known.site == request.site && known.kind == request.kind;
    let has_one_place = known.kind == request.kind && known.kind != PeerKind::Replica;
    !is_same && !is_rebuilt && (known.site == request.site || has_one_place)
}
