//! Mechanisms 2, 3, 4 and 6 against what other stacks make, and challenges that nobody may be answered.
//!
//! Made with pydlms-client 0.1.0 and gurux-dlms 1.0.203, which agree; for whole blocks in ECB dlms-cosem 25.1.0
//! does, too. CBC with the `cryptography` package: no stack has it.
#![allow(clippy::unwrap_used, reason = "tests")]

use dlms::hls::{
    Exchange, HlsError, SecretMechanism, check_challenge, compute_with_secret, is_reply,
    reads_as_apdu, reply, verify_with_secret,
};
use dlms::{
    CipheredApdu, Envelope, FreshCounter, GeneralCipheringAad, GeneralCipheringHeader, KeySet,
    Keys, Protection, SecurityControl, Side, Suite, SystemTitle, hls, protect,
};
use proptest::prelude::*;

const CLIENT: SystemTitle = SystemTitle::new(*b"MMM\0\0\0\0\x01");
const SERVER: SystemTitle = SystemTitle::new(*b"MMM\0\0\xBC\x61\x4E");
const SECRET: &str = "112233445566778899AABBCCDDEEFF01";
const STOC: &[u8] = b"P6wRJ21F";
const CTOS: &[u8] = b"K56iVagY";
const ALL: [SecretMechanism; 5] = [
    SecretMechanism::Aes128Ecb,
    SecretMechanism::Aes128Cbc,
    SecretMechanism::Md5,
    SecretMechanism::Sha1,
    SecretMechanism::Sha256,
];

fn exchange<'a>(client_challenge: &'a [u8], server_challenge: &'a [u8]) -> Exchange<'a> {
    Exchange { client: CLIENT, server: SERVER, client_challenge, server_challenge }
}

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

#[test]
fn answers_are_those_of_other_stacks() {
    let long: Vec<u8> = (0x30..0x70).collect();
    let (ecb, cbc) = (SecretMechanism::Aes128Ecb, SecretMechanism::Aes128Cbc);
    for (mechanism, secret, stoc, expected) in [
        (ecb, SECRET, STOC, "8771e6c65c7b1614888592c5605e2704"),
        (ecb, SECRET, b"P6wRJ21FP6wRJ21G", "f22a2e0add3732a44996823d70d2c0ec"),
        (ecb, "3132333435363738", b"P6wRJ21FP6wRJ21G", "06481a0355b2ceaf6ab30fc8608ce488"),
        (
            ecb,
            SECRET,
            &long[..20],
            "386c4faf42998145d4a2772f4d95fa5da58d9065244ed12f194615bf22c69fef",
        ),
        (
            ecb,
            SECRET,
            &long,
            "386c4faf42998145d4a2772f4d95fa5d5e97dce13a568c34f5e5ff8849547faf\
             89f280088878eb851dffdacd1539ca01bff04aa4622816176d2029f31aa4a29f",
        ),
        (
            cbc,
            SECRET,
            &long[..20],
            "386c4faf42998145d4a2772f4d95fa5df322da78605f5c5a88897adbed4d3ad1",
        ),
        (
            cbc,
            SECRET,
            &long,
            "386c4faf42998145d4a2772f4d95fa5d498647d2739aaee6af769dfbdc274405\
             2140a5d7d5be2d8328dd936ad946e483eb209c910694c8f44052d76de5b7c16d",
        ),
        (SecretMechanism::Md5, SECRET, STOC, "8e5cf85ff3d3f16e14a2bde2e0d0c529"),
        (SecretMechanism::Sha1, SECRET, STOC, "4f1d8d9fed26d095e74def3e7f70e8d7cc8fac15"),
        (
            SecretMechanism::Sha256,
            SECRET,
            STOC,
            "f5991f71622f64f72bc310a63c2fce33a4e8a9755c4d89f9085d1259744b3272",
        ),
    ] {
        let answer =
            compute_with_secret(mechanism, &bytes(secret), &exchange(CTOS, stoc), Side::Client);
        assert_eq!(hex::encode(answer.unwrap().as_bytes()), expected, "{mechanism:?}");
    }
}

#[test]
fn the_meters_answers_are_those_of_other_stacks() {
    for (mechanism, answer) in [
        (SecretMechanism::Md5, "171f988351931f96da67b845a57bd365"),
        (SecretMechanism::Sha1, "3a92e368362aa8c746d8ac4e4c9325a57d4e2f48"),
        (
            SecretMechanism::Sha256,
            "9d28a82ff1f98950355a501d4f53fa8cf378b486bbe88f78e512ad34a1091b66",
        ),
    ] {
        let (secret, exchange) = (bytes(SECRET), exchange(CTOS, STOC));
        assert_eq!(verify_with_secret(mechanism, &secret, &exchange, &bytes(answer)), Ok(()));
    }
}

#[test]
fn an_answer_with_any_one_bit_flipped_or_missing_is_not_accepted() {
    let secret = bytes(SECRET);
    for mechanism in ALL {
        let exchange = exchange(CTOS, STOC);
        let answer = compute_with_secret(mechanism, &secret, &exchange, Side::Server).unwrap();
        let answer = answer.as_bytes();
        let verify = |answer: &[u8]| verify_with_secret(mechanism, &secret, &exchange, answer);
        assert_eq!(verify(answer), Ok(()));
        for bit in 0..answer.len() * 8 {
            let mut forged = answer.to_vec();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(&forged), Err(HlsError::NotAuthentic), "{mechanism:?} bit {bit}");
        }
        let refused = |len| Err(HlsError::AnswerLength { expected: answer.len(), actual: len });
        for len in 0..answer.len() {
            assert_eq!(verify(&answer[..len]), refused(len), "{mechanism:?}");
        }
        let longer = [answer, &[0]].concat();
        assert_eq!(verify(&longer), refused(longer.len()), "{mechanism:?}");
    }
}

#[test]
fn lengths_and_equal_challenges_are_refused() {
    for mechanism in ALL {
        let compute = |secret: &[u8], ctos: &[u8], stoc: &[u8]| {
            compute_with_secret(mechanism, secret, &exchange(ctos, stoc), Side::Client)
        };
        let most = mechanism.secret_len_max();
        for len in 0..=80 {
            let made = compute(&vec![7; len], CTOS, STOC).map(drop);
            let refused = Err(HlsError::SecretLength { most, actual: len });
            assert_eq!(made, if (1..=most).contains(&len) { Ok(()) } else { refused });
            let challenge = vec![0x41; len];
            let refused = Err(HlsError::ChallengeLength { actual: len });
            let expected = if (8..=64).contains(&len) { Ok(()) } else { refused };
            assert_eq!(compute(b"secret", CTOS, &challenge).map(drop), expected);
            assert_eq!(compute(b"secret", &challenge, STOC).map(drop), expected);
        }
        assert_eq!(compute(b"secret", STOC, STOC), Err(HlsError::SameChallenge));
        let same = exchange(STOC, STOC);
        let verified = verify_with_secret(mechanism, b"secret", &same, &[0; 16]);
        assert_eq!(verified, Err(HlsError::SameChallenge));
    }
}

/// Commands that fit a challenge.
const APDUS: &[&str] = &[
    "C001C100080000010000FF0200",
    "C0020100000001",
    "C101C100460000600300FF0300110100",
    "C301C100460000600300FF0101110000",
    "C401C1000600BC614E",
    "C701C1000000",
    "C2000001000000000000FF02",
    "0F0000000100020109",
    "0F000000010C07EA0A1005121100",
    "01000000065F1F0400007E1FFFFF",
    "0501020001000000",
    "0601020001010900",
    "0C010012000100",
    "0D0100000000000000",
    "0E010600FFFF",
    "160102000101120001",
    "18000102000112",
    "D801060000000100",
    "D90000000100000100",
];

#[test]
fn what_could_be_read_as_an_apdu_is_no_challenge_whatever_trails() {
    for apdu in APDUS {
        let apdu = bytes(apdu);
        for trail in 0..=4 {
            let mut challenge = apdu.clone();
            challenge.resize(apdu.len().max(8) + trail, 0xA5);
            assert_eq!(check_challenge(&challenge), Err(HlsError::ChallengeIsApdu), "{apdu:02X?}");
        }
        // Behind the header that general-ciphering authenticates with the APDU.
        for header in ["0000000000", "0100000800000000000000000000", "08474F444C4D53310300000000"] {
            let challenge = [bytes(header), apdu.clone()].concat();
            assert_eq!(check_challenge(&challenge), Err(HlsError::ChallengeIsApdu), "{header}");
        }
    }
    for mechanism in ALL {
        let apdu = bytes(APDUS[0]);
        let exchange = exchange(CTOS, &apdu);
        let answer = compute_with_secret(mechanism, b"secret", &exchange, Side::Client);
        assert_eq!(answer, Err(HlsError::ChallengeIsApdu));
    }
}

/// What would be given away: the answer to a challenge that is a command is that command's tag.
#[test]
fn a_reply_is_told_from_all_else() {
    let good = reply(0xC1, &[7; 17]);
    assert!(is_reply(&good));
    // The invoke-id, e of the association and the answer are anybody's.
    let free = |at: usize| at == 2 || at == 9 || at >= 15;
    for at in 0..good.len() {
        let mut other = good.clone();
        other[at] ^= 0x10;
        assert_eq!(is_reply(&other), free(at), "{at}");
        assert!(!is_reply(&good[..at]), "{at}");
    }
    assert!(!is_reply(&[&good[..], &[0]].concat()) && !is_reply(&reply(0xC1, &[])));
    assert!(is_reply(&reply(0xC1, &[7; 64])));
}

#[test]
fn the_answer_to_a_command_would_be_its_tag() {
    let command = bytes("C301C100460000600300FF010F00");
    let keys = Keys { encryption: &[1; 16], authentication: &[2; 16] };
    let counter = || FreshCounter::promise_never_used_under_this_key_and_title(9);
    let security_control = SecurityControl {
        suite: Suite::Suite0,
        key_set: KeySet::Unicast,
        authenticated: true,
        encrypted: false,
        compressed: false,
    };
    let header = GeneralCipheringHeader {
        transaction_id: &[],
        originator: None,
        recipient: None,
        date_time: &[],
        other_information: &[],
        identified_key: KeySet::Unicast,
    };
    let envelopes = [
        (Envelope::GeneralGlo(Some(CLIENT)), Vec::new()),
        (Envelope::GeneralCiphering(header), vec![0; 5]),
    ];
    for (envelope, before) in envelopes {
        let protection = Protection {
            envelope,
            security_control,
            originator: CLIENT,
            keys,
            gc_aad: GeneralCipheringAad::Spec,
        };
        let mut apdu = Vec::new();
        protect(&protection, counter(), &command, &mut apdu).unwrap();
        let tag = *CipheredApdu::parse(&apdu).unwrap().authentication_tag().unwrap();
        let challenge = [before, command.clone()].concat();
        // `verify` looks at our own challenge, which was checked when it was made.
        let control = security_control.to_byte();
        let answer = [&[control, 0, 0, 0, 9][..], &tag].concat();
        let verified = hls::verify(Suite::Suite0, &CLIENT, &keys, &challenge, &answer);
        assert_eq!(verified, Ok(9), "that is why it is not answered");
        let answer = hls::compute(Suite::Suite0, &CLIENT, counter(), &keys, &challenge);
        assert_eq!(answer, Err(HlsError::ChallengeIsApdu));
    }
}

proptest! {
    #[test]
    fn letters_and_digits_never_read_as_an_apdu(challenge in "[0-9A-Za-z]{8,64}") {
        prop_assert_eq!(check_challenge(challenge.as_bytes()), Ok(()));
    }

    #[test]
    fn what_trails_changes_nothing(start in prop::collection::vec(any::<u8>(), 0..64), rest: Vec<u8>) {
        let longer = [&start[..], &rest].concat();
        prop_assert!(!reads_as_apdu(&start) || reads_as_apdu(&longer));
    }
}
