//! A site is enrolled, or is not, and why.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockNo, DomainRecord, Epoch,
    enrolment::{
        Fingerprint, Oaep,
        bundle::{EnrolledBlock, SignedEnrolment},
        request::{JoinRequest, SignedRequest},
    },
    site::peer::PeerKind,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};

use super::{
    home::{Home, at_home},
    site_common::{Site, call},
};
use crate::{
    app::SystemClock,
    enrolment::{EnrolError, Enroller, Enrolling},
    hsm::{CeremonyKey, Enrols as _, Hsm, OaepHash, RsaKey, memory::MemoryToken},
    keyring::{KeyringError, founding::take_over_blocks},
    store::ReadStore as _,
};

struct Joining {
    signing: EcdsaKeyPair,
    request: JoinRequest,
}

impl Joining {
    /// A site of the other parity, whose token is one in memory.
    fn new() -> Self {
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
        };
        Self { signing, request }
    }

    fn asks(&self, request: JoinRequest) -> Enrolling {
        let signature = self.signing.sign(&SystemRandom::new(), &request.message()).unwrap();
        let signature = signature.as_ref().try_into().unwrap();
        let request = SignedRequest { request, signature }.encode();
        Enrolling { fingerprint: Fingerprint::of(&request), request, replace: false }
    }

    fn asked(&self) -> Enrolling {
        self.asks(self.request.clone())
    }
}

/// The officer was there.
fn trust(home: &Home, asked: &Enrolling) {
    let request = SignedRequest::decode(&asked.request).unwrap().request;
    let key = RsaKey::from_der(&request.ceremony).unwrap();
    home.token.trust(CeremonyKey::of(&asked.fingerprint, key, OaepHash::Sha256));
}

async fn enroller(site: &Site) -> Enroller {
    let domain: DomainRecord = site.store.domain().await.unwrap().unwrap();
    assert!(domain.even, "the joining site of these tests is the odd one");
    Enroller {
        domain,
        hsm: site.hsm.clone(),
        store: site.measured.clone(),
        audited: site.audit.clone(),
        clock: Arc::new(SystemClock::new()),
    }
}

async fn enrol(enroller: &Enroller, asked: &Enrolling) -> Result<SignedEnrolment, EnrolError> {
    enroller.enrol(&call("Site/EnrolPeer"), asked).await
}

async fn sql(site: &Site, statement: &str) {
    let url = format!("sqlite://{}", site.database.display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
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
            (JoinRequest { kind: PeerKind::Replica, ..request() }, "read-only replica"),
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

/// As [`trust`], where the key is one.
fn trust_any(home: &Home, asked: &Enrolling) {
    let request = SignedRequest::decode(&asked.request).unwrap().request;
    if RsaKey::from_der(&request.ceremony).is_ok() {
        trust(home, asked);
    }
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
        let domain =
            DomainRecord { even: false, site: "south".to_owned(), ..enroller.domain.clone() };
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
        // A promotion of the joining site, by whoever writes to the database.
        let forged = kms_core::site::role::RoleRecord {
            domain: enroller.domain.domain,
            site: "south".to_owned(),
            change: kms_core::site::role::RoleChange::Promotion,
            epoch: Epoch(3),
            after: Epoch(2),
            at_ms: 1,
            heads: Vec::new(),
        };
        let body = hex::encode(forged.message());
        let signature = "00".repeat(64);
        sql(&site, &format!("INSERT INTO role_records VALUES (3, 1, x'{body}', x'{signature}')"))
            .await;
        let refused = enrol(&enroller, &asked).await;
        assert!(
            matches!(&refused, Err(EnrolError::Damaged(what)) if what.contains("epoch 3")),
            "{refused:?}"
        );
        sql(&site, "DELETE FROM role_records").await;
        enrol(&enroller, &asked).await.unwrap();
        sql(&site, &format!("UPDATE peers SET signature = x'{signature}'")).await;
        let refused = enrol(&enroller, &asked).await;
        assert!(
            matches!(&refused, Err(EnrolError::Damaged(what)) if what.contains("south")),
            "{refused:?}"
        );
        sql(&site, "UPDATE role SET writes = 0").await;
        let refused = enrol(&enroller, &asked).await;
        assert!(matches!(refused, Err(EnrolError::NotPrimary)), "{refused:?}");
    });
}
