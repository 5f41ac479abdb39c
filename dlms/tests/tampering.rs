//! Invariant: *no plaintext before its tag*. Whatever is changed, nothing opens.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{
    SPEC, Vector, authenticated_vectors, join_with_length, open, split_at_length, vectors,
};
use dlms::hls::HlsError;
use dlms::{
    CipheredApdu, Envelope, FreshCounter, GeneralCipheringHeader, KeySet, Keys, OpenError,
    ParseError, Protection, SecurityControl, ServiceTag, Suite, SystemTitle, Unsupported, hls,
    protect,
};

/// An APDU that opens, and what it opens with.
struct Sample {
    name: String,
    apdu: Vec<u8>,
    encryption: Vec<u8>,
    authentication: Vec<u8>,
    title: SystemTitle,
}

impl Sample {
    fn published(vector: &Vector) -> Self {
        Self {
            name: vector.id.clone(),
            apdu: vector.apdu(),
            encryption: vector.encryption_key(),
            authentication: vector.authentication_key().unwrap(),
            title: vector.title(),
        }
    }

    fn made(envelope: Envelope<'_>, control: SecurityControl) -> Self {
        let len = control.suite.key_len();
        let (encryption, authentication) = (vec![0x5A; len], vec![0xC3; len]);
        let keys = Keys { encryption: &encryption, authentication: &authentication };
        let title = TITLE;
        let protection = Protection {
            envelope,
            security_control: control,
            originator: title,
            keys,
            gc_aad: SPEC,
        };
        let counter = FreshCounter::promise_never_used_under_this_key_and_title(0x0102_0304);
        let mut apdu = Vec::new();
        protect(&protection, counter, b"a plain APDU, longer than a block", &mut apdu).unwrap();
        let name = format!("{envelope:?} {control:?}");
        Self { name, apdu, encryption, authentication, title }
    }

    fn keys(&self) -> Keys<'_> {
        Keys { encryption: &self.encryption, authentication: &self.authentication }
    }

    /// Opens `apdu` in place of its own, as a receiver does that trusts the title on the wire.
    fn open(&self, apdu: &[u8]) -> Result<Vec<u8>, Refusal> {
        let apdu = CipheredApdu::parse(apdu).map_err(Refusal::Parse)?;
        let originator = apdu.system_title().unwrap_or(self.title);
        open(&apdu, &self.keys(), &originator).map_err(Refusal::Open)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Parse(ParseError),
    Open(OpenError),
}

const TITLE: SystemTitle = SystemTitle::new(*b"ABC\x00\x01\x02\x03\x04");

/// The published ones, and one of each form and protection that nobody published.
fn samples() -> Vec<Sample> {
    let published: Vec<_> = authenticated_vectors().iter().map(Sample::published).collect();
    let header = GeneralCipheringHeader {
        transaction_id: &[1, 2, 3, 4, 5, 6, 7, 8],
        originator: Some(TITLE),
        recipient: Some(SystemTitle::new([9; 8])),
        date_time: &[0xFF; 12],
        other_information: b"other",
        identified_key: KeySet::Unicast,
    };
    let envelopes = [
        Envelope::Service(ServiceTag::try_from(0xC8).unwrap()),
        Envelope::Service(ServiceTag::try_from(0xD4).unwrap()),
        Envelope::GeneralGlo(Some(TITLE)),
        Envelope::GeneralDed(Some(TITLE)),
        Envelope::GeneralCiphering(header),
    ];
    let made = envelopes.into_iter().flat_map(|envelope| {
        [Suite::Suite0, Suite::Suite1, Suite::Suite2].into_iter().flat_map(move |suite| {
            [
                SecurityControl::authenticated_encryption(suite),
                SecurityControl::authentication_only(suite),
            ]
            .map(|control| Sample::made(envelope, control))
        })
    });
    published.into_iter().chain(made).collect()
}

fn with_bit_flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut forged = bytes.to_vec();
    *forged.get_mut(bit / 8).unwrap() ^= 1 << (bit % 8);
    forged
}

#[test]
fn the_samples_open_as_they_are() {
    let samples = samples();
    assert_eq!(samples.len(), 26 + 30);
    for sample in samples {
        assert!(sample.open(&sample.apdu).is_ok(), "{}", sample.name);
    }
}

/// Every bit from the second byte on: title, header, lengths, security header, content, tag. The first
/// byte names the service, and no tag of this scheme covers it.
#[test]
fn an_apdu_with_any_one_bit_flipped_does_not_open() {
    for sample in samples() {
        let key_id = bit_of_key_id(&sample.apdu);
        for bit in (8..sample.apdu.len() * 8).filter(|bit| Some(*bit) != key_id) {
            let forged = with_bit_flipped(&sample.apdu, bit);
            let outcome = sample.open(&forged);
            assert!(outcome.is_err(), "{} bit {bit}", sample.name);
        }
    }
}

/// The lowest bit of key-id in general-ciphering, the last byte before LEN. It selects the key, and the
/// test that tries every bit holds the key fast; [`a_flipped_key_id_asks_for_the_other_key`].
fn bit_of_key_id(apdu: &[u8]) -> Option<usize> {
    let is_general_ciphering = apdu.first() == Some(&0xDD);
    is_general_ciphering.then(|| (split_at_length(apdu).0.len() - 1) * 8)
}

/// key-info is not covered by the tag: the receiver then takes the other key, and that one does not fit.
#[test]
fn a_flipped_key_id_asks_for_the_other_key() {
    let header = GeneralCipheringHeader {
        transaction_id: &[],
        originator: None,
        recipient: None,
        date_time: &[],
        other_information: &[],
        identified_key: KeySet::Broadcast,
    };
    let control = SecurityControl::authenticated_encryption(Suite::Suite0);
    let sample = Sample::made(Envelope::GeneralCiphering(header), control);
    let mut forged = sample.apdu.clone();
    assert_eq!(forged[..9], [0xDD, 0, 0, 0, 0, 0, 1, 0, 1]);
    forged[8] = 0;
    assert_eq!(CipheredApdu::parse(&sample.apdu).unwrap().key_set(), KeySet::Broadcast);
    assert_eq!(CipheredApdu::parse(&forged).unwrap().key_set(), KeySet::Unicast);
}

#[test]
fn each_flipped_bit_of_the_security_control_byte_has_its_own_refusal() {
    for sample in samples() {
        let (prefix, content) = split_at_length(&sample.apdu);
        let apdu = CipheredApdu::parse(&sample.apdu).unwrap();
        let (control, form) = (apdu.security_control(), apdu.form());
        for bit in 0..8 {
            let forged = join_with_length(&prefix, &with_bit_flipped(&content, bit));
            let refusal = sample.open(&forged).unwrap_err();
            let name = format!("{} SC bit {bit}: {refusal:?}", sample.name);
            let unsupported = |what| Refusal::Parse(ParseError::Unsupported { what });
            let malformed = matches!(refusal, Refusal::Parse(ParseError::Malformed { .. }));
            let general = apdu.service_tag().is_none();
            match bit {
                0 | 1 => match Suite::try_from(control.suite.number() ^ (1 << bit)) {
                    Err(reserved) => {
                        assert_eq!(refusal, unsupported(Unsupported::Suite(reserved.0)), "{name}");
                    }
                    Ok(suite) if suite.key_len() != control.suite.key_len() => {
                        assert!(
                            matches!(refusal, Refusal::Open(OpenError::KeyLength { .. })),
                            "{name}"
                        );
                    }
                    Ok(_) => assert_eq!(refusal, Refusal::Open(OpenError::NotAuthentic), "{name}"),
                },
                2 | 3 => {
                    let reserved = control.suite.number() ^ (1 << bit);
                    assert_eq!(refusal, unsupported(Unsupported::Suite(reserved)), "{name}");
                }
                4 if control.encrypted => {
                    assert_eq!(refusal, Refusal::Open(OpenError::NotAuthenticated), "{name}");
                }
                4 if form == dlms::Form::GeneralCiphering => {
                    assert_eq!(refusal, unsupported(Unsupported::Unprotected), "{name}");
                }
                4 => assert!(malformed, "{name}"),
                5 => assert_eq!(refusal, Refusal::Open(OpenError::NotAuthentic), "{name}"),
                6 if matches!(form, dlms::Form::Glo | dlms::Form::GeneralGlo) => {
                    assert_eq!(refusal, Refusal::Open(OpenError::NotAuthentic), "{name}");
                }
                6 => assert!(malformed, "{name}"),
                _ if general => {
                    assert_eq!(refusal, unsupported(Unsupported::Compression), "{name}");
                }
                _ => assert!(malformed, "{name}"),
            }
        }
    }
}

#[test]
fn an_apdu_of_another_originator_does_not_open() {
    for sample in samples() {
        let apdu = CipheredApdu::parse(&sample.apdu).unwrap();
        for bit in 0..64 {
            let other = with_bit_flipped(sample.title.as_bytes(), bit);
            let other = SystemTitle::try_from(&other[..]).unwrap();
            let reason = match apdu.system_title() {
                Some(_) => OpenError::OtherOriginator,
                None => OpenError::NotAuthentic,
            };
            assert_eq!(open(&apdu, &sample.keys(), &other), Err(reason), "{}", sample.name);
        }
    }
}

#[test]
fn an_apdu_does_not_open_under_an_authentication_key_with_one_bit_flipped() {
    for sample in samples() {
        let apdu = CipheredApdu::parse(&sample.apdu).unwrap();
        for bit in 0..sample.authentication.len() * 8 {
            let authentication = with_bit_flipped(&sample.authentication, bit);
            let keys = Keys { encryption: &sample.encryption, authentication: &authentication };
            let refused = open(&apdu, &keys, &sample.title);
            assert_eq!(refused, Err(OpenError::NotAuthentic), "{} bit {bit}", sample.name);
        }
    }
}

#[test]
fn keys_of_every_other_length_are_refused() {
    for sample in samples() {
        let apdu = CipheredApdu::parse(&sample.apdu).unwrap();
        for len in (0..=64).filter(|len| *len != sample.encryption.len()) {
            let other = vec![0x5A; len];
            let [short_encryption, short_authentication] = [
                Keys { encryption: &other, ..sample.keys() },
                Keys { authentication: &other, ..sample.keys() },
            ]
            .map(|keys| open(&apdu, &keys, &sample.title));
            for refused in [short_encryption, short_authentication] {
                let right =
                    matches!(refused, Err(OpenError::KeyLength { actual, .. }) if actual == len);
                assert!(right, "{} {len}", sample.name);
            }
        }
    }
}

#[test]
fn a_tag_shortened_to_any_length_does_not_open() {
    for sample in samples() {
        let (prefix, content) = split_at_length(&sample.apdu);
        for missing in 1..=12 {
            let short = join_with_length(&prefix, &content[..content.len() - missing]);
            let refusal = sample.open(&short).unwrap_err();
            let right = matches!(
                refusal,
                Refusal::Open(OpenError::NotAuthentic)
                    | Refusal::Parse(ParseError::Malformed { what: "authentication tag", .. })
            );
            assert!(right, "{} less {missing}: {refusal:?}", sample.name);
        }
    }
}

#[test]
fn a_tag_is_twelve_bytes_and_a_nonce_twelve_whoever_asks() {
    use dlms::gcm::{Gcm, GcmError};
    let gcm = Gcm::new(&[7; 16]).unwrap();
    for len in (0..=32).filter(|len| *len != 12) {
        let other = vec![0; len];
        let mut out = [0xEE; 4];
        let refused = gcm.open(&[0; 12], &[], &[0; 4], &other, &mut out);
        assert_eq!(refused, Err(GcmError::TagLength { actual: len }));
        let refused = gcm.open(&other, &[], &[0; 4], &[0; 12], &mut out);
        assert_eq!(refused, Err(GcmError::NonceLength { actual: len }));
        let refused = gcm.decrypt_without_authentication(&other, &[0; 4], &mut out);
        assert_eq!(refused, Err(GcmError::NonceLength { actual: len }));
        assert_eq!(out, [0xEE; 4]);
    }
    let mut short = [0; 3];
    let refused = gcm.open(&[0; 12], &[], &[0; 4], &[0; 12], &mut short);
    assert_eq!(refused, Err(GcmError::BufferLength));
}

#[test]
fn an_hls_answer_with_any_one_bit_flipped_or_missing_is_not_accepted() {
    for vector in vectors("5", "hls-gmac") {
        let (encryption, authentication) =
            (vector.encryption_key(), vector.authentication_key().unwrap());
        let keys = Keys { encryption: &encryption, authentication: &authentication };
        let (title, challenge, answer) = (vector.title(), vector.challenge(), vector.answer());
        let verify = |challenge: &[u8], answer: &[u8]| {
            hls::verify(Suite::Suite0, &title, &keys, challenge, answer)
        };
        for bit in 0..answer.len() * 8 {
            let forged = with_bit_flipped(&answer, bit);
            assert_eq!(verify(&challenge, &forged), Err(HlsError::NotAuthentic), "bit {bit}");
        }
        for bit in 0..challenge.len() * 8 {
            let other = with_bit_flipped(&challenge, bit);
            assert_eq!(verify(&other, &answer), Err(HlsError::NotAuthentic), "bit {bit}");
        }
        for len in 0..answer.len() {
            let refused = verify(&challenge, &answer[..len]);
            assert_eq!(refused, Err(HlsError::AnswerLength { expected: 17, actual: len }));
        }
        for suite in [Suite::Suite1, Suite::Suite2] {
            assert!(hls::verify(suite, &title, &keys, &challenge, &answer).is_err());
        }
    }
}

#[test]
fn an_hls_challenge_is_8_to_64_bytes() {
    let keys = Keys { encryption: &[1; 32], authentication: &[2; 32] };
    for len in 0..=80 {
        let counter = FreshCounter::promise_never_used_under_this_key_and_title(1);
        let answer = hls::compute(Suite::Suite2, &TITLE, counter, &keys, &vec![3; len]);
        match len {
            8..=64 => assert_eq!(answer.unwrap()[0], 0x12),
            _ => assert_eq!(answer, Err(HlsError::ChallengeLength { actual: len })),
        }
    }
}
