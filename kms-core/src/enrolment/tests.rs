use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

use super::{
    BadPaper, Fingerprint, Oaep,
    bundle::{EnrolledBlock, Enrolment, SignedEnrolment, WrappedKek, WrappedKeks, WrappedSecret},
    request::{JoinRequest, SignedRequest},
};
use crate::{
    DomainId, Epoch, Position, Sequence,
    site::{
        peer::{FormerSigner, Peer, PeerKind},
        role::{RoleChange, RoleRecord, SignedRoleRecord},
        tokens::{SignedSiteTokens, SiteTokens},
    },
};

struct Signer(EcdsaKeyPair, SystemRandom);

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap(), random)
    }

    fn public(&self) -> [u8; 65] {
        self.0.public_key().as_ref().try_into().unwrap()
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(&self.1, message).unwrap().as_ref().try_into().unwrap()
    }
}

fn request() -> SignedRequest {
    request_of(false)
}

/// Of a further site, or of a second token of one.
fn request_of(same_site: bool) -> SignedRequest {
    let signer = Signer::new();
    let request = JoinRequest {
        site: "south".to_owned(),
        kind: PeerKind::Odd,
        signing: signer.public(),
        transport_block: vec![7; 422],
        ceremony: vec![8; 422],
        nonce: [9; 32],
        oaep: Oaep::Sha1,
        release: "0.1.0".to_owned(),
        at_ms: 12,
        same_site,
    };
    SignedRequest { signature: signer.sign(&request.message()), request }
}

fn bundle() -> SignedEnrolment {
    bundle_of(false, false)
}

fn bundle_of(same_site: bool, rebuilt: bool) -> SignedEnrolment {
    let signer = Signer::new();
    let secret =
        |version| WrappedSecret { secret_version: version, wrapped: vec![version as u8; 40] };
    let position = Position { epoch: Epoch(2), sequence: Sequence(4) };
    let record = RoleRecord {
        domain: DomainId([7; 16]),
        site: "north".to_owned(),
        change: RoleChange::Demotion,
        epoch: Epoch(2),
        after: Epoch(2),
        at_ms: 3,
        heads: vec![(position, [1; 32]); 2],
    };
    let enrolment = Enrolment {
        sender: Peer {
            domain: DomainId([7; 16]),
            site: "north".to_owned(),
            kind: PeerKind::Even,
            signing: signer.public(),
            transport_block: vec![3; 422],
            enrolled_ms: 1,
            former: vec![FormerSigner { key: [8; 65], until: Epoch(2) }],
            enrolled_in: None,
            tokens: None,
        },
        recipient: "south".to_owned(),
        kind: PeerKind::Odd,
        founded: Epoch(2),
        nonce: [9; 32],
        request: Fingerprint([5; 32]),
        oaep: Oaep::Sha1,
        keks: WrappedKeks {
            meter_kek: WrappedKek { id: [1; 16], wrapped: vec![1; 40] },
            use_kek: WrappedKek { id: [2; 16], wrapped: vec![2; 40] },
            canaries: vec![6; 100],
        },
        blocks: vec![
            EnrolledBlock { secrets: vec![secret(1), secret(3)], first_head: [1; 16] },
            EnrolledBlock { secrets: vec![secret(1)], first_head: [2; 16] },
        ],
        role_records: vec![SignedRoleRecord { signature: signer.sign(b"any"), record }],
        others: vec![other()],
        same_site: same_site.then(|| {
            let tokens = SiteTokens {
                domain: DomainId([7; 16]),
                site: "north".to_owned(),
                number: SiteTokens::OF_TWO,
                signing: vec![signer.public(), [6; 65]],
                canaries: vec![5; 9],
            };
            SignedSiteTokens { signature: signer.sign(&tokens.message()), tokens }
        }),
        rebuilt,
        release: "0.1.0".to_owned(),
        at_ms: 12,
    };
    SignedEnrolment { signature: signer.sign(&enrolment.message()), enrolment }
}

fn other() -> Peer {
    Peer {
        domain: DomainId([7; 16]),
        site: "east".to_owned(),
        kind: PeerKind::Replica,
        signing: [4; 65],
        transport_block: vec![5; 422],
        enrolled_ms: 2,
        former: Vec::new(),
        enrolled_in: None,
        tokens: None,
    }
}

/// `text` with one bit of each character flipped: each time another one.
fn scratched(text: &str) -> impl Iterator<Item = String> + '_ {
    (0..text.len()).filter_map(|at| {
        let mut other = text.as_bytes().to_vec();
        other[at] ^= 1 << (at % 7);
        String::from_utf8(other).ok()
    })
}

/// Every bit of `bytes`, flipped alone.
fn flipped(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..bytes.len() * 8).map(|bit| {
        let mut other = bytes.to_vec();
        other[bit / 8] ^= 1 << (bit % 8);
        other
    })
}

#[test]
fn a_join_request_comes_back_whole_and_with_any_bit_flipped_it_is_refused() {
    for signed in [request_of(false), request_of(true)] {
        let bytes = signed.encode();
        assert_eq!(SignedRequest::decode(&bytes), Ok(signed));
        for end in 0..bytes.len() {
            assert!(SignedRequest::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert!(SignedRequest::decode(&[&bytes[..], &[0]].concat()).is_err());
        for other in flipped(&bytes) {
            assert!(SignedRequest::decode(&other).is_err());
        }
    }
}

#[test]
fn an_enrolment_bundle_comes_back_whole_and_with_any_bit_flipped_it_is_refused() {
    for signed in [bundle_of(false, false), bundle_of(true, false), bundle_of(false, true)] {
        let bytes = signed.encode();
        assert_eq!(SignedEnrolment::decode(&bytes), Ok(signed));
        for end in 0..bytes.len() {
            assert!(SignedEnrolment::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert!(SignedEnrolment::decode(&[&bytes[..], &[0]].concat()).is_err());
        for other in flipped(&bytes) {
            assert!(SignedEnrolment::decode(&other).is_err());
        }
    }
}

#[test]
fn invariant_3_a_bundle_tells_a_site_that_it_was_there_before() {
    let first = bundle().enrolment;
    assert!(!first.is_of_rebuilt() && bundle_of(false, true).enrolment.is_of_rebuilt());
    assert!(!bundle_of(true, false).enrolment.is_of_rebuilt(), "a second token of one site");
    // A release that does not say so hands on what the site did.
    let founder = Enrolment { founded: Epoch(3), ..first.clone() };
    let mut promoted = first;
    promoted.role_records[0].record.epoch = Epoch(3);
    assert!(founder.is_of_rebuilt() && promoted.is_of_rebuilt());
}

#[test]
fn a_file_says_what_it_is_and_a_bit_flipped_anywhere_in_it_is_refused() {
    let (request, bundle) = (request(), bundle());
    let text = request.to_file();
    assert!(text.starts_with("AMI KEY MANAGEMENT: REQUEST TO JOIN A KEY DOMAIN\nsite: south\n"));
    assert!(text.contains(&request.fingerprint().to_string()));
    assert_eq!(SignedRequest::from_file(&text), Ok(request.clone()));
    for other in scratched(&text) {
        assert!(SignedRequest::from_file(&other).is_err());
    }
    let text = bundle.to_file();
    assert_eq!(SignedEnrolment::from_file(&text), Ok(bundle));
    for other in scratched(&text) {
        assert!(SignedEnrolment::from_file(&other).is_err());
    }
    let renamed = text.replacen("to site: south", "to site: north", 1);
    assert_eq!(SignedEnrolment::from_file(&renamed), Err(BadPaper::Header));
    assert!(matches!(SignedEnrolment::from_file(&request.to_file()), Err(BadPaper::File(_))));
}

#[test]
fn a_request_or_bundle_that_another_key_signed_is_refused() {
    let other = Signer::new();
    let mut forged = request();
    forged.signature = other.sign(&forged.request.message());
    assert_eq!(SignedRequest::decode(&forged.encode()), Err(BadPaper::Signature));
    let mut forged = bundle();
    forged.signature = other.sign(&forged.enrolment.message());
    assert_eq!(SignedEnrolment::decode(&forged.encode()), Err(BadPaper::Signature));
}

#[test]
fn counts_that_lie_take_no_memory() {
    // The place of the count of blocks: before the first block's count of versions.
    let bytes = bundle().enrolment.message();
    let count = bytes.windows(8).position(|at| at == [0, 0, 0, 2, 0, 0, 0, 2]).unwrap();
    for lie in [[0, 1, 0, 0], [0xFF; 4], [0, 0, 0, 0]] {
        let mut other = bytes.clone();
        other[count..count + 4].copy_from_slice(&lie);
        assert!(SignedEnrolment::decode(&other).is_err());
        let mut other = bytes.clone();
        other[count + 4..count + 8].copy_from_slice(&lie);
        assert!(SignedEnrolment::decode(&other).is_err());
    }
}

#[test]
fn a_fingerprint_is_compared_in_groups_and_read_however_it_was_copied() {
    let fingerprint = request().fingerprint();
    let text = fingerprint.to_string();
    assert_eq!(text.split(' ').count(), 16);
    for copied in [text.clone(), text.replace(' ', ":"), text.replace(' ', "").to_uppercase()] {
        assert_eq!(copied.parse(), Ok(fingerprint));
    }
    assert!(text[2..].parse::<Fingerprint>().is_err());
}

proptest::proptest! {
    #[test]
    fn no_bytes_and_no_text_bring_a_reader_down(bytes: Vec<u8>, text: String) {
        let labelled = [b"ami.kms/enrolment/1".as_slice(), &bytes].concat();
        proptest::prop_assert!(SignedEnrolment::decode(&labelled).is_err());
        let labelled = [b"ami.kms/join-request/1".as_slice(), &bytes].concat();
        proptest::prop_assert!(SignedRequest::decode(&labelled).is_err());
        proptest::prop_assert!(SignedRequest::from_file(&text).is_err());
        proptest::prop_assert!(SignedEnrolment::from_file(&text).is_err());
    }
}
