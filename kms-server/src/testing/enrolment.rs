//! A site is enrolled, or is not, and why.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockNo, DomainRecord, Epoch, Head, MeterId, Position, SystemTitle,
    audit::{AuditOutcome, Subject},
    enrolment::{
        Fingerprint, Oaep,
        bundle::{EnrolledBlock, Enrolment, SignedEnrolment},
        request::{JoinRequest, SignedRequest},
    },
    site::{
        keks::SignedSiteKeks,
        peer::{PeerKind, SignedPeer},
        role::{RoleChange, RoleRecord, SignedRoleRecord},
    },
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

use super::{
    home::{Home, at_home},
    site_common::{Site, call},
};
use crate::{
    app::SystemClock,
    enrolment::{EnrolError, Enroller, Enrolling, Kept},
    hsm::{CeremonyKey, Enrols as _, Hsm, OaepHash, RsaKey, memory::MemoryToken},
    keyring::{KeyringError, founding::take_over_blocks},
    store::{
        Holder, IndexedMeter, ReadStore, StoreError, StoredBlock,
        keks::KekRows,
        papers::Strange,
        sites::{BlockChanges, DivergenceAsked, Divergent, FollowerLock, RoleRow},
        whole::RestoreState,
    },
};

pub(super) struct Joining {
    pub(super) signing: EcdsaKeyPair,
    pub(super) request: JoinRequest,
}

impl Joining {
    /// A site of the other parity, whose token is one in memory.
    pub(super) fn new() -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let signing = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let ceremony = RsaKey { modulus: vec![0xC3; 384], exponent: vec![1, 0, 1] };
        let transport_block = MemoryToken::new().unwrap().transport_block_key().unwrap();
        let request = JoinRequest {
            site: "south".to_owned(),
            kind: PeerKind::Odd,
            signing: signing.public_key().as_ref().try_into().unwrap(),
            transport_block: transport_block.to_der(),
            ceremony: ceremony.to_der(),
            nonce: [7; 32],
            oaep: Oaep::Sha256,
            release: "0.1.0".to_owned(),
            at_ms: 1,
            same_site: false,
        };
        Self { signing, request }
    }

    pub(super) fn asks(&self, request: JoinRequest) -> Enrolling {
        let signature = self.signing.sign(&SystemRandom::new(), &request.message()).unwrap();
        let signature = signature.as_ref().try_into().unwrap();
        let request = SignedRequest { request, signature }.encode();
        Enrolling { fingerprint: Fingerprint::of(&request), request, replace: false }
    }

    pub(super) fn asked(&self) -> Enrolling {
        self.asks(self.request.clone())
    }
}

/// The officer was there.
pub(super) fn trust(home: &Home, asked: &Enrolling) {
    let request = SignedRequest::decode(&asked.request).unwrap().request;
    let key = RsaKey::from_der(&request.ceremony).unwrap();
    home.token.trust(CeremonyKey::of(&asked.fingerprint, key, OaepHash::Sha256));
}

pub(super) async fn enroller(site: &Site) -> Enroller {
    let domain: DomainRecord = site.store.domain().await.unwrap().unwrap();
    assert_eq!(domain.kind, PeerKind::Even, "the joining site of these tests is the odd one");
    Enroller {
        domain,
        hsm: site.hsm.clone(),
        store: site.measured.clone(),
        audited: site.audit.clone(),
        clock: Arc::new(SystemClock::new()),
        roles: Arc::clone(&site.keyring.roles),
        kept: Kept::default(),
    }
}

pub(super) async fn enrol(
    enroller: &Enroller,
    asked: &Enrolling,
) -> Result<SignedEnrolment, EnrolError> {
    enroller.enrol(&call("Site/EnrolPeer"), asked).await
}

/// The database as somebody left it who can write to it.
struct Tampered {
    inner: Arc<dyn ReadStore>,
    role_records: Vec<SignedRoleRecord>,
    peers: Vec<SignedPeer>,
    writes: bool,
}

#[async_trait::async_trait]
impl KekRows for Tampered {
    async fn site_keks(&self) -> Result<Vec<SignedSiteKeks>, StoreError> {
        self.inner.site_keks().await
    }
}

#[async_trait::async_trait]
impl ReadStore for Tampered {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
    async fn domain(&self) -> Result<Option<DomainRecord>, StoreError> {
        self.inner.domain().await
    }
    async fn heads(&self) -> Result<Vec<Head>, StoreError> {
        self.inner.heads().await
    }
    async fn block(&self, block: BlockNo) -> Result<Option<StoredBlock>, StoreError> {
        self.inner.block(block).await
    }
    async fn find_meter(&self, id: &MeterId) -> Result<Option<IndexedMeter>, StoreError> {
        self.inner.find_meter(id).await
    }
    async fn find_title(&self, title: &SystemTitle) -> Result<Option<IndexedMeter>, StoreError> {
        self.inner.find_title(title).await
    }
    async fn list_meters(
        &self,
        after: Option<&MeterId>,
        limit: u32,
    ) -> Result<Vec<IndexedMeter>, StoreError> {
        self.inner.list_meters(after, limit).await
    }
    async fn count_meters(&self) -> Result<u64, StoreError> {
        self.inner.count_meters().await
    }
    async fn holders_of(
        &self,
        fingerprints: &[kms_core::Fingerprint],
        limit: u32,
    ) -> Result<Vec<Holder>, StoreError> {
        self.inner.holders_of(fingerprints, limit).await
    }
    async fn role(&self) -> Result<RoleRow, StoreError> {
        Ok(RoleRow { writes: self.writes, ..self.inner.role().await? })
    }
    async fn restore_state(&self) -> Result<RestoreState, StoreError> {
        self.inner.restore_state().await
    }
    async fn role_records(&self) -> Result<Vec<SignedRoleRecord>, StoreError> {
        Ok(self.role_records.clone())
    }
    async fn peers(&self) -> Result<Vec<SignedPeer>, StoreError> {
        Ok(self.peers.clone())
    }
    async fn changes_after(
        &self,
        block: BlockNo,
        after: Position,
    ) -> Result<Option<BlockChanges>, StoreError> {
        self.inner.changes_after(block, after).await
    }
    async fn divergence(&self, asked: DivergenceAsked) -> Result<Vec<Divergent>, StoreError> {
        self.inner.divergence(asked).await
    }

    async fn count_undecided(&self) -> Result<u64, StoreError> {
        self.inner.count_undecided().await
    }

    async fn count_undecided_of(&self, site: &str) -> Result<u64, StoreError> {
        self.inner.count_undecided_of(site).await
    }
    async fn strange_records(&self, known: &[[u8; 2]], limit: u32) -> Result<Strange, StoreError> {
        self.inner.strange_records(known, limit).await
    }
    async fn follower_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
        self.inner.follower_lock().await
    }

    async fn followed_lock(&self) -> Result<Option<Box<dyn FollowerLock>>, StoreError> {
        self.inner.followed_lock().await
    }

    async fn is_followed(&self) -> Result<bool, StoreError> {
        self.inner.is_followed().await
    }
}

#[test]
fn a_request_that_asks_for_what_cannot_be_is_refused_by_name() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (enroller, joining) = (enroller(&site).await, Joining::new());
        let good = joining.asked();
        let untrusted = enrol(&enroller, &good).await;
        assert!(matches!(untrusted, Err(EnrolError::NotTrusted(_))), "{untrusted:?}");
        trust(home, &good);
        let wrong = Enrolling { fingerprint: Fingerprint([1; 32]), ..good.clone() };
        let refused = enrol(&enroller, &wrong).await;
        assert!(matches!(refused, Err(EnrolError::Fingerprint { .. })), "{refused:?}");
        let mut altered = good.clone();
        altered.request[60] ^= 1;
        altered.fingerprint = Fingerprint::of(&altered.request);
        let refused = enrol(&enroller, &altered).await;
        assert!(matches!(refused, Err(EnrolError::Paper(_))), "{refused:?}");
        let request = || joining.request.clone();
        for (bad, why) in [
            (JoinRequest { site: enroller.domain.site.clone(), ..request() }, "this very site"),
            (JoinRequest { kind: PeerKind::Even, ..request() }, "this site's parity"),
            (JoinRequest { ceremony: request().transport_block, ..request() }, "transport key"),
            (JoinRequest { ceremony: vec![1; 422], ..request() }, "SubjectPublicKeyInfo"),
        ] {
            let asked = joining.asks(bad);
            trust_any(home, &asked);
            let refused = enrol(&enroller, &asked).await.unwrap_err().to_string();
            assert!(refused.contains(why), "{why}: {refused}");
        }
        assert!(site.store.peers().await.unwrap().is_empty(), "nobody was enrolled");
        enrol(&enroller, &good).await.unwrap();
        assert_eq!(site.store.peers().await.unwrap().len(), 1);
    });
}

#[test]
fn a_second_token_of_this_site_is_let_in_once_and_a_third_one_by_no_means() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (enroller, joining) = (enroller(&site).await, Joining::new());
        let (name, kind) = (enroller.domain.site.clone(), enroller.domain.kind);
        let wish = JoinRequest { site: name, kind, same_site: true, ..joining.request.clone() };
        for bad in [
            JoinRequest { site: "south".to_owned(), ..wish.clone() },
            JoinRequest { kind: PeerKind::Odd, ..wish.clone() },
        ] {
            let refused = enrol(&enroller, &joining.asks(bad)).await.unwrap_err().to_string();
            assert!(refused.contains("a second token of another site"), "{refused}");
        }
        let asked = joining.asks(wish.clone());
        trust(home, &asked);
        let bundle = enrol(&enroller, &asked).await.unwrap().enrolment;
        let (own, domain) = (site.hsm.public_key().await.unwrap(), &enroller.domain);
        let list = bundle.same_site.unwrap();
        assert_eq!(list.tokens.signing, [own, wish.signing]);
        assert!(list.believed_by(&own, &domain.domain, &domain.site).is_some());
        assert_eq!(bundle.blocks.len(), domain.blocks.get() as usize);
        assert!(site.store.peers().await.unwrap().is_empty(), "it is no site");
        let keys = list.believed_by(&own, &domain.domain, &domain.site).unwrap();
        site.hsm.believe(&keys, vec![list]);
        let refused = enrol(&enroller, &asked).await.unwrap_err().to_string();
        assert!(refused.contains("two tokens already"), "{refused}");
    });
}

/// As [`trust`], where the key is one.
fn trust_any(home: &Home, asked: &Enrolling) {
    let request = SignedRequest::decode(&asked.request).unwrap().request;
    if RsaKey::from_der(&request.ceremony).is_ok() {
        trust(home, asked);
    }
}

#[test]
fn replicas_are_enrolled_beside_the_other_site_and_their_number_has_a_bound() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let enroller = enroller(&site).await;
        let ask = async |joining: &Joining, request: JoinRequest| {
            let asked = joining.asks(request);
            trust(home, &asked);
            enrol(&enroller, &asked).await
        };
        let south = Joining::new();
        let bundle = ask(&south, south.request.clone()).await.unwrap().enrolment;
        assert_eq!((bundle.kind, bundle.others.len()), (PeerKind::Odd, 0));
        for n in 0..Enrolment::REPLICAS_MAX {
            let joining = Joining::new();
            let (site, kind) = (format!("east-{n}"), PeerKind::Replica);
            let request = JoinRequest { site, kind, ..joining.request.clone() };
            let bundle = ask(&joining, request).await.unwrap().enrolment;
            assert_eq!(bundle.kind, PeerKind::Replica);
            // All that it has to know: both that may write. The further replicas it is told of, too.
            assert_eq!(bundle.sender.kind, PeerKind::Even);
            let odd = bundle.others.iter().find(|peer| peer.kind == PeerKind::Odd).unwrap();
            assert_eq!((odd.site.as_str(), odd.signing), ("south", south.request.signing));
            assert_eq!(bundle.others.len(), n + 1);
        }
        let more = Joining::new();
        let kind = PeerKind::Replica;
        let request = JoinRequest { site: "west".to_owned(), kind, ..more.request.clone() };
        let refused = ask(&more, request).await.unwrap_err().to_string();
        assert!(refused.contains("8 replicas already"), "{refused}");
        // A replica has no epochs: what it signs is no promotion.
        let forger = Joining::new();
        let known = site.store.peers().await.unwrap();
        let mut replica = known.iter().find(|it| it.peer.kind == kind).unwrap().peer.clone();
        replica.signing = forger.request.signing;
        let signature = site.hsm.sign(replica.message()).await.unwrap();
        let mut peers: Vec<_> =
            known.into_iter().filter(|it| it.peer.kind != PeerKind::Replica).collect();
        peers.push(SignedPeer { peer: replica, signature });
        let record = promotion_of_south(&enroller);
        let signature = forger.signing.sign(&SystemRandom::new(), &record.message()).unwrap();
        let signature: [u8; 64] = signature.as_ref().try_into().unwrap();
        let role_records = vec![SignedRoleRecord { record, signature }];
        let inner = site.measured.clone();
        let tampered = Tampered { inner, role_records, peers, writes: true };
        let enroller = Enroller { store: Arc::new(tampered), kept: Kept::default(), ..enroller };
        let refused = enrol(&enroller, &south.asked()).await;
        let Err(EnrolError::Damaged(what)) = refused else { panic!("{refused:?}") };
        assert!(what.contains("the role record of epoch 3"), "{what}");
    });
}

/// A promotion of the other site, which nobody has signed yet.
fn promotion_of_south(enroller: &Enroller) -> RoleRecord {
    RoleRecord {
        domain: enroller.domain.domain,
        site: "south".to_owned(),
        change: RoleChange::Promotion,
        epoch: Epoch(3),
        after: Epoch(2),
        at_ms: 1,
        heads: Vec::new(),
    }
}

#[test]
fn who_asks_once_more_waits_for_what_is_under_way_and_gets_that_bundle() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (enroller, joining) = (enroller(&site).await, Joining::new());
        let asked = joining.asked();
        trust(home, &asked);
        let (first, second) = tokio::join!(enrol(&enroller, &asked), enrol(&enroller, &asked));
        let (first, second) = (first.unwrap(), second.unwrap());
        // Nonces and wrapped secrets are made anew each time: equal bytes are one bundle.
        assert_eq!(first.encode(), second.encode());
        assert_eq!(enrol(&enroller, &asked).await.unwrap().encode(), first.encode());
        // In another epoch it would say something else.
        site.keyring
            .roles
            .demote(Epoch(2), call("x/y").entry(1, Subject::NONE, AuditOutcome::Done), 1)
            .await
            .unwrap();
        let refused = enrol(&enroller, &asked).await.unwrap_err();
        assert!(matches!(refused, EnrolError::NotPrimary), "{refused}");
    });
}

#[test]
fn invariant_3_a_site_that_was_enrolled_before_is_told_so_and_one_that_asks_once_more_is_not() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (enroller, joining) = (enroller(&site).await, Joining::new());
        let asked = joining.asked();
        trust(home, &asked);
        for _ in 0..2 {
            assert!(!enrol(&enroller, &asked).await.unwrap().enrolment.is_of_rebuilt());
        }
        // The same token, and another ceremony: its database is gone.
        let again = joining.asks(JoinRequest { nonce: [8; 32], ..joining.request.clone() });
        trust(home, &again);
        let bundle = enrol(&enroller, &again).await.unwrap().enrolment;
        assert!(bundle.rebuilt && bundle.is_of_rebuilt());
        assert!(enrol(&enroller, &again).await.unwrap().enrolment.rebuilt);
        // Another token.
        let fresh = Joining::new();
        let asked = Enrolling { replace: true, ..fresh.asked() };
        trust(home, &asked);
        assert!(enrol(&enroller, &asked).await.unwrap().enrolment.rebuilt);
        // Another server of this site does not know what this one gave out: it says more than less.
        let other = Enroller { kept: Kept::default(), ..enroller };
        assert!(enrol(&other, &asked).await.unwrap().enrolment.rebuilt);
    });
}

#[test]
fn a_row_that_says_that_this_site_writes_lets_it_enrol_nobody() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (enroller, joining) = (enroller(&site).await, Joining::new());
        let asked = joining.asked();
        trust(home, &asked);
        site.keyring
            .roles
            .demote(Epoch(2), call("x/y").entry(1, Subject::NONE, AuditOutcome::Done), 1)
            .await
            .unwrap();
        // Somebody who can write to the database puts the row back; the signed records he can't.
        let inner = site.measured.clone();
        let (role_records, peers) = (Vec::new(), Vec::new());
        let tampered = Tampered { inner, role_records, peers, writes: true };
        let enroller = Enroller { store: Arc::new(tampered), ..enroller };
        let refused = enrol(&enroller, &asked).await.unwrap_err();
        assert!(matches!(refused, EnrolError::NotPrimary), "{refused}");
        assert!(site.store.peers().await.unwrap().is_empty());
    });
}

#[test]
fn block_secrets_come_over_and_one_of_another_block_is_found_out() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (enroller, joining) = (enroller(&site).await, Joining::new());
        let asked = joining.asked();
        trust(home, &asked);
        let mut bundle = enrol(&enroller, &asked).await.unwrap().enrolment;
        let there = Hsm::new(
            Arc::new(MemoryToken::new().unwrap()),
            4,
            std::time::Duration::from_secs(9),
            std::time::Duration::from_secs(9),
        );
        let domain = DomainRecord {
            kind: PeerKind::Odd,
            site: "south".to_owned(),
            ..enroller.domain.clone()
        };
        let blocks: Vec<(BlockNo, &EnrolledBlock)> = bundle.numbered_blocks().collect();
        let taken = take_over_blocks(&there, &domain, &blocks, |_| {}).await.unwrap();
        let heads: Vec<_> = taken.into_iter().map(|change| change.head).collect();
        assert_eq!(heads, site.store.heads().await.unwrap(), "byte for byte what the founder has");
        bundle.blocks.swap(3, 4);
        let blocks: Vec<(BlockNo, &EnrolledBlock)> = bundle.numbered_blocks().collect();
        let refused = take_over_blocks(&there, &domain, &blocks, |_| {}).await;
        let Err(KeyringError::Damaged { block, what }) = refused else { panic!("{refused:?}") };
        assert_eq!(block, BlockNo(3));
        assert!(what.contains("not the one that the sender has"), "{what}");
    });
}

#[test]
fn what_no_site_signed_is_not_handed_on_and_a_site_that_does_not_write_enrols_nobody() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let (enroller, joining) = (enroller(&site).await, Joining::new());
        let asked = joining.asked();
        trust(home, &asked);
        enrol(&enroller, &asked).await.unwrap();
        let over = |store: Tampered| Enroller {
            domain: enroller.domain.clone(),
            hsm: enroller.hsm.clone(),
            store: Arc::new(store),
            audited: Arc::clone(&enroller.audited),
            clock: Arc::clone(&enroller.clock),
            roles: Arc::clone(&site.keyring.roles),
            kept: Kept::default(),
        };
        let as_it_is = async || Tampered {
            inner: site.measured.clone(),
            role_records: Vec::new(),
            peers: site.store.peers().await.unwrap(),
            writes: true,
        };
        enrol(&over(as_it_is().await), &asked).await.unwrap();
        // A promotion of the joining site that it never signed.
        let record = promotion_of_south(&enroller);
        let signature = joining.signing.sign(&SystemRandom::new(), &record.message()).unwrap();
        let signature: [u8; 64] = signature.as_ref().try_into().unwrap();
        let genuine = SignedRoleRecord { record, signature };
        let mut forged = genuine.clone();
        forged.record.at_ms = 2;
        let with = async |record| Tampered { role_records: vec![record], ..as_it_is().await };
        enrol(&over(with(genuine).await), &asked).await.unwrap();
        let refused = enrol(&over(with(forged).await), &asked).await;
        let Err(EnrolError::Damaged(what)) = refused else { panic!("{refused:?}") };
        assert!(what.contains("the role record of epoch 3"), "{what}");
        // A peer whom this site's token never saw.
        let mut strangers = as_it_is().await;
        strangers.peers[0].peer.signing = [4; 65];
        let refused = enrol(&over(strangers), &asked).await;
        let Err(EnrolError::Damaged(what)) = refused else { panic!("{refused:?}") };
        assert!(what.contains("south"), "{what}");
        let refused = enrol(&over(Tampered { writes: false, ..as_it_is().await }), &asked).await;
        assert!(matches!(refused, Err(EnrolError::NotPrimary)), "{refused:?}");
    });
}
