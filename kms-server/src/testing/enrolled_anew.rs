//! A site is enrolled anew while its row changes: what somebody else wrote meanwhile is not taken back.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use kms_core::{
    audit::{AuditEntry, PublicKey},
    site::{
        peer::Peer,
        tokens::{SignedSiteTokens, SiteTokens},
    },
};
use ring::rand::SystemRandom;

use super::{
    enrolment::{Joining, enrol, enroller, trust},
    home::{Home, at_home},
    site_common::Site,
};
use crate::{
    enrolment::{EnrolError, Enroller, Enrolling},
    store::{
        AuditedStore, BlockChange, StoreError,
        keks::KekStep,
        sites::{BlockAdoption, Divergent, PeerStep, RoleStep},
    },
};

/// The site's own commits, but that somebody else writes before the first row of a peer.
struct SomebodyFirst {
    commits: Arc<dyn AuditedStore>,
    writes: Mutex<Option<BoxFuture<'static, ()>>>,
}

#[async_trait::async_trait]
impl AuditedStore for SomebodyFirst {
    async fn commit(
        &self,
        changes: Vec<BlockChange>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.commits.commit(changes, entries).await
    }

    async fn adopt(
        &self,
        adoptions: Vec<BlockAdoption>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.commits.adopt(adoptions, entries).await
    }

    async fn change_role(
        &self,
        step: RoleStep,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.commits.change_role(step, entries).await
    }

    async fn put_peer(&self, step: PeerStep, entries: Vec<AuditEntry>) -> Result<(), StoreError> {
        let writes = self.writes.lock().unwrap().take();
        if let Some(writes) = writes {
            writes.await;
        }
        self.commits.put_peer(step, entries).await
    }

    async fn put_divergence(
        &self,
        divergent: Vec<Divergent>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.commits.put_divergence(divergent, entries).await
    }

    async fn put_site_keks(
        &self,
        step: KekStep,
        entries: Vec<AuditEntry>,
    ) -> Result<(), StoreError> {
        self.commits.put_site_keks(step, entries).await
    }
}

/// An enroller before whose first row somebody writes.
async fn behind(site: &Site, writes: BoxFuture<'static, ()>) -> Enroller {
    let writes = Mutex::new(Some(writes));
    let audited = Arc::new(SomebodyFirst { commits: site.audit.clone(), writes });
    Enroller { audited, ..enroller(site).await }
}

/// What the site of `joining` asks, once the officer was there.
fn asked(home: &Home, joining: &Joining, replace: bool) -> Enrolling {
    let asked = Enrolling { replace, ..joining.asked() };
    trust(home, &asked);
    asked
}

/// The list of a site with the token of `joining` and a second one, as the first one signs it.
fn list(site: &Site, joining: &Joining, second: PublicKey) -> SignedSiteTokens {
    let tokens = SiteTokens {
        domain: site.domain.domain,
        site: joining.request.site.clone(),
        number: SiteTokens::OF_TWO,
        signing: vec![joining.request.signing, second],
        canaries: Vec::new(),
    };
    let signature = joining.signing.sign(&SystemRandom::new(), &tokens.message()).unwrap();
    SignedSiteTokens { signature: signature.as_ref().try_into().unwrap(), tokens }
}

async fn south(site: &Site) -> Peer {
    let mut peers = site.keyring.roles.peers().await.unwrap();
    assert_eq!(peers.len(), 1);
    peers.remove(0)
}

fn former(peer: &Peer) -> Vec<PublicKey> {
    let mut keys: Vec<_> = peer.former.iter().map(|former| former.key).collect();
    keys.sort();
    keys
}

#[test]
fn a_token_that_was_shown_while_its_site_was_enrolled_anew_is_revoked_with_the_first_one() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (lost, fresh) = (Joining::new(), Joining::new());
        enrol(&enroller(&site).await, &asked(home, &lost, false)).await.unwrap();
        let second = Joining::new().request.signing;
        let (roles, shown) = (Arc::clone(&site.keyring.roles), list(&site, &lost, second));
        let shows = async move {
            assert!(roles.take_tokens("south", &[shown]).await.unwrap());
        };
        let enroller = behind(&site, Box::pin(shows)).await;
        enrol(&enroller, &asked(home, &fresh, true)).await.unwrap();
        let peer = south(&site).await;
        let mut revoked = vec![lost.request.signing, second];
        revoked.sort();
        assert_eq!(former(&peer), revoked);
        assert_eq!((peer.signing, peer.tokens), (fresh.request.signing, None));
    });
}

#[test]
fn a_site_whose_first_token_asks_once_more_keeps_its_second_one() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (joining, second) = (Joining::new(), Joining::new().request.signing);
        let asked = asked(home, &joining, false);
        enrol(&enroller(&site).await, &asked).await.unwrap();
        let shown = list(&site, &joining, second);
        assert!(site.keyring.roles.take_tokens("south", &[shown]).await.unwrap());
        let before = south(&site).await;
        enrol(&enroller(&site).await, &asked).await.unwrap();
        let peer = south(&site).await;
        assert_eq!((&peer.tokens, former(&peer)), (&before.tokens, Vec::new()));
        assert!(peer.tokens.is_some() && peer.enrolled_ms > before.enrolled_ms);
    });
}

#[test]
fn of_two_officers_who_enrol_one_site_with_other_keys_the_later_one_is_refused() {
    at_home(async |home| {
        let site = Arc::new(Site::new(home).await);
        let [known, one, other] = [(); 3].map(|()| Joining::new());
        enrol(&enroller(&site).await, &asked(home, &known, false)).await.unwrap();
        let (first, wish) = (enroller(&site).await, asked(home, &one, true));
        let writes = async move {
            enrol(&first, &wish).await.unwrap();
        };
        let second = behind(&site, Box::pin(writes)).await;
        let refused = enrol(&second, &asked(home, &other, true)).await.unwrap_err();
        assert!(matches!(&refused, EnrolError::Meanwhile(site) if site == "south"), "{refused}");
        let peer = south(&site).await;
        assert_eq!(
            (peer.signing, former(&peer)),
            (one.request.signing, vec![known.request.signing])
        );
        // Decided anew, it is done.
        enrol(&second, &asked(home, &other, true)).await.unwrap();
        assert_eq!(south(&site).await.signing, other.request.signing);
    });
}

#[test]
fn a_list_that_is_taken_up_late_brings_no_key_back_that_was_replaced_meanwhile() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (lost, fresh) = (Joining::new(), Joining::new());
        enrol(&enroller(&site).await, &asked(home, &lost, false)).await.unwrap();
        let roles = &site.keyring.roles;
        let shown = [list(&site, &lost, Joining::new().request.signing)];
        let stale = roles.signed_peers().await.unwrap();
        enrol(&enroller(&site).await, &asked(home, &fresh, true)).await.unwrap();
        let now = south(&site).await;
        let late = roles.take_tokens_as_known(stale, "south", &shown).await;
        assert!(!late.unwrap());
        assert_eq!(south(&site).await, now);
        // Two servers that look at once write one row.
        let shown = [list(&site, &fresh, Joining::new().request.signing)];
        let before = roles.signed_peers().await.unwrap();
        assert!(roles.take_tokens_as_known(before.clone(), "south", &shown).await.unwrap());
        let first = roles.signed_peers().await.unwrap();
        assert!(!roles.take_tokens_as_known(before, "south", &shown).await.unwrap());
        assert_eq!(roles.signed_peers().await.unwrap(), first);
    });
}
