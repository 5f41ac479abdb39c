//! Refusals: bytes that do not parse, and why; and APDUs that `protect` refuses to make.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{decrypt, open};
use dlms::{
    CipheredApdu, Envelope, FreshCounter, GeneralCipheringAad, GeneralCipheringHeader, KeyRole,
    KeySet, Keys, OpenError, ParseError, ProtectError, Protection, SecurityControl, ServiceTag,
    Suite, SystemTitle, Unsupported, axdr, protect,
};

/// Green Book, glo-get-request, authenticated encryption.
const GET: &str = "C81E3001234567411312FF935A47566827C467BC7D825C3BE4A77C3FCC056B6B";
const EK: &str = "000102030405060708090A0B0C0D0E0F";
const AK: &str = "D0D1D2D3D4D5D6D7D8D9DADBDCDDDEDF";

fn parse(text: &str) -> Result<(), ParseError> {
    CipheredApdu::parse(&hex::decode(text).unwrap()).map(|_| ())
}

fn is_malformed(text: &str, what: &'static str, offset: usize) {
    assert_eq!(parse(text), Err(ParseError::Malformed { what, offset }), "{text}");
}

fn is_unsupported(text: &str, what: Unsupported) {
    assert_eq!(parse(text), Err(ParseError::Unsupported { what }), "{text}");
}

#[test]
fn nothing_and_unknown_tags_are_malformed() {
    is_malformed("", "tag", 0);
    let known = |tag: u8| {
        let whole = format!("{tag:02X}053000000000");
        !matches!(parse(&whole), Err(ParseError::Malformed { what: "tag", .. }))
    };
    assert_eq!((0..=255).filter(|tag| known(*tag)).count(), 2 * 16 + 5 + PLAIN.len());
}

/// xDLMS without ciphering, and ACSE.
const PLAIN: [u8; 24] = [
    0x01, 0x05, 0x06, 0x08, 0x0C, 0x0D, 0x0E, 0x0F, 0x16, 0x18, 0x60, 0x61, 0x62, 0x63, 0xC0, 0xC1,
    0xC2, 0xC3, 0xC4, 0xC5, 0xC7, 0xD8, 0xD9, 0xDA,
];

#[test]
fn plain_apdus_are_known_and_not_supported() {
    for tag in PLAIN {
        is_unsupported(&format!("{tag:02X}00"), Unsupported::Plain { tag });
    }
}

#[test]
fn every_cut_of_every_form_is_malformed() {
    let whole = [
        GET.into(),
        format!("DB084D4D4D0000BC614E{}", &GET[2..]),
        format!("DC084D4D4D0000BC614E{}", &GET[2..]),
        format!("DD{}010000{}", "0000000000", &GET[2..]),
        format!("DD{}010000{}", "0100084D4D4D0000BC614E0000", &GET[2..]),
        // Not supported, but read to the end all the same.
        format!("DD000000000001010018{}{}", "00".repeat(24), &GET[2..]),
        format!("DD000000000001010028{}{}", "00".repeat(40), &GET[2..]),
        format!("DD0000000000010201018180{}{}", "00".repeat(128), &GET[2..]),
        format!("DD000000000001020101 81C0{}{}", "00".repeat(192), &GET[2..]).replace(' ', ""),
        format!("DD000000000001020102 00{}", &GET[2..]).replace(' ', ""),
        format!("DD000000000000{}", &GET[2..]),
        format!("DF00000000000300FF0040{}", "00".repeat(64)),
        format!("DF00000000000060{}", "00".repeat(96)),
        "E08100010000020F00".into(),
    ];
    for text in whole {
        assert!(!matches!(parse(&text), Err(ParseError::Malformed { .. })), "{text}");
        for cut in 0..text.len() / 2 {
            let refused = parse(&text[..2 * cut]);
            assert!(matches!(refused, Err(ParseError::Malformed { .. })), "{text} cut to {cut}");
        }
        let refused = parse(&format!("{text}00"));
        assert!(
            matches!(refused, Err(ParseError::Malformed { .. })),
            "{text} with a byte after it"
        );
    }
}

#[test]
fn key_info_that_cannot_be_opened_is_named() {
    let content = &GET[2..];
    let general = |key_info: &str| format!("DD0000000000{key_info}{content}");
    is_unsupported(&general("00"), Unsupported::AbsentKeyInfo);
    is_unsupported(&general(&format!("01010018{}", "AB".repeat(24))), Unsupported::WrappedKey);
    is_unsupported(&general(&format!("0102010181C0{}", "AB".repeat(192))), Unsupported::AgreedKey);
    is_unsupported(&general("0102010200"), Unsupported::AgreedKey);
}

#[test]
fn key_info_that_is_garbage_is_malformed() {
    let general = |key_info: &str| format!("DD0000000000{key_info}{}", &GET[2..]);
    is_malformed(&general("02"), "presence of key-info", 6);
    is_malformed(&general("0103"), "choice of key-info", 7);
    is_malformed(&general("010002"), "key-id", 8);
    is_malformed(&general(&format!("01010118{}", "AB".repeat(24))), "kek-id", 8);
    is_malformed(&general(&format!("01010017{}", "AB".repeat(23))), "wrapped key", 9);
    is_malformed(&general("0102010000"), "key-parameters", 8);
    is_malformed(&general("010202010100"), "key-parameters", 8);
    is_malformed(&general("0102010100"), "key-ciphered-data", 10);
    is_malformed(&general("01020102020000"), "key-ciphered-data", 10);
}

#[test]
fn a_title_is_eight_bytes_or_none() {
    for len in (1..=12).filter(|len| *len != 8) {
        let title = format!("{len:02X}{}", "41".repeat(len));
        is_malformed(&format!("DB{title}{}", &GET[2..]), "system-title", 1);
        is_malformed(&format!("DC{title}{}", &GET[2..]), "system-title", 1);
        is_malformed(
            &format!("DD00{title}000000010000{}", &GET[2..]),
            "originator-system-title",
            2,
        );
        is_malformed(&format!("DD0000{title}0000010000{}", &GET[2..]), "recipient-system-title", 3);
    }
}

#[test]
fn the_security_control_byte_is_held_against_the_form() {
    let body = "00000001".to_owned() + &"00".repeat(12);
    let forms = [("C8", 2), ("D0", 2), ("DB00", 3), ("DC00", 3), ("DD0000000000010000", 10)];
    for (index, (prefix, offset)) in forms.into_iter().enumerate() {
        let [glo, ded, general_glo, _, general_ciphering] =
            [0, 1, 2, 3, 4].map(|form| form == index);
        for control in 0..=0xFF_u8 {
            let text = format!("{prefix}11{control:02X}{body}");
            let refused = |what| Err(ParseError::Malformed { what, offset });
            let expected = if control & 0x40 != 0 && !glo && !general_glo {
                refused("key set bit")
            } else if control & 0x80 != 0 && (glo || ded) {
                refused("compression bit")
            } else if control & 0x30 == 0 && !general_ciphering {
                refused("protection bits")
            } else if control & 0x0F > 2 {
                Err(Unsupported::Suite(control & 0x0F).into())
            } else if control & 0x30 == 0 {
                Err(Unsupported::Unprotected.into())
            } else if control & 0x80 != 0 {
                Err(Unsupported::Compression.into())
            } else {
                Ok(())
            };
            assert_eq!(parse(&text), expected, "{text}");
        }
    }
}

#[test]
fn a_length_that_is_not_that_of_the_rest_is_malformed() {
    let what = "length of the ciphered content";
    for len in (0..=0x7F).filter(|len| *len != 0x1E) {
        is_malformed(&format!("C8{len:02X}{}", &GET[4..]), what, 1);
    }
    is_malformed(&format!("C880{}", &GET[4..]), what, 1);
    is_malformed(&format!("C8850000000000{}", &GET[4..]), what, 1);
    is_malformed(&format!("C884FFFFFFFF{}", &GET[4..]), what, 1);
    is_malformed("C8820100", what, 1);
}

#[test]
fn lengths_that_are_not_minimal_are_accepted_up_to_four_octets() {
    let (ek, ak) = (hex::decode(EK).unwrap(), hex::decode(AK).unwrap());
    let keys = Keys { encryption: &ek, authentication: &ak };
    let title: SystemTitle = "4D4D4D0000BC614E".parse().unwrap();
    for len in ["1E", "811E", "82001E", "8300001E", "840000001E"] {
        for prefix in
            ["C8", "DB084D4D4D0000BC614E", "DB81084D4D4D0000BC614E", "DB8200084D4D4D0000BC614E"]
        {
            let bytes = hex::decode(format!("{prefix}{len}{}", &GET[4..])).unwrap();
            let apdu = CipheredApdu::parse(&bytes).unwrap();
            let plaintext = open(&apdu, &keys, &title).unwrap();
            assert_eq!(hex::encode_upper(plaintext), "C0010000080000010000FF0200");
        }
    }
}

#[test]
fn axdr_lengths_have_their_bounds() {
    use axdr::{LengthError, read_length};
    assert_eq!(read_length(&[]), Err(LengthError::Short));
    assert_eq!(read_length(&[0x7F, 9]), Ok((0x7F, 1)));
    assert_eq!(read_length(&[0x80]), Err(LengthError::Octets));
    assert_eq!(read_length(&[0x81]), Err(LengthError::Short));
    assert_eq!(read_length(&[0x84, 0, 0, 1]), Err(LengthError::Short));
    assert_eq!(read_length(&[0x84, 0xFF, 0xFF, 0xFF, 0xFF]), Ok((0xFFFF_FFFF, 5)));
    for first in 0x85..=0xFF {
        assert_eq!(read_length(&[first, 0, 0, 0, 0, 0, 0, 0, 1]), Err(LengthError::Octets));
    }
}

#[test]
fn encryption_only_is_not_opened_even_if_it_would_decrypt() {
    let bytes = hex::decode("C8122001234567411312FF935A47566827C467BC").unwrap();
    let (ek, ak) = (hex::decode(EK).unwrap(), hex::decode(AK).unwrap());
    let apdu = CipheredApdu::parse(&bytes).unwrap();
    let title: SystemTitle = "4D4D4D0000BC614E".parse().unwrap();
    let keys = Keys { encryption: &ek, authentication: &ak };
    assert_eq!(open(&apdu, &keys, &title), Err(OpenError::NotAuthenticated));
    assert!(decrypt(&apdu, &ek, &title).is_ok());
    let expected = OpenError::KeyLength { role: KeyRole::Encryption, expected: 16, actual: 15 };
    assert_eq!(decrypt(&apdu, &ek[1..], &title), Err(expected));
}

#[test]
fn decryption_without_authentication_holds_to_the_title_on_the_wire() {
    let bytes = hex::decode(format!("DB084D4D4D0000BC614E{}", &GET[2..])).unwrap();
    let apdu = CipheredApdu::parse(&bytes).unwrap();
    let other = SystemTitle::new([0; 8]);
    assert_eq!(decrypt(&apdu, &hex::decode(EK).unwrap(), &other), Err(OpenError::OtherOriginator));
}

#[test]
fn decryption_without_authentication_gives_an_unencrypted_payload_as_it_is() {
    let text = "C81E1001234567C0010000080000010000FF020006725D910F9221D263877516";
    let bytes = hex::decode(text).unwrap();
    let apdu = CipheredApdu::parse(&bytes).unwrap();
    let title = SystemTitle::new([0; 8]);
    let payload = decrypt(&apdu, &hex::decode(EK).unwrap(), &title).unwrap();
    assert_eq!(payload, apdu.payload());
}

const TITLE: SystemTitle = SystemTitle::new(*b"MAN\x40\x41\x42\x43\x44");

fn header() -> GeneralCipheringHeader<'static> {
    GeneralCipheringHeader {
        transaction_id: &[1],
        originator: Some(TITLE),
        recipient: None,
        date_time: &[],
        other_information: &[],
        identified_key: KeySet::Unicast,
    }
}

fn made(
    envelope: Envelope<'_>,
    control: SecurityControl,
    keys: Keys<'_>,
) -> Result<(), ProtectError> {
    let protection = Protection {
        envelope,
        security_control: control,
        originator: TITLE,
        keys,
        gc_aad: GeneralCipheringAad::Spec,
    };
    let mut out = b"before".to_vec();
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(0);
    let made = protect(&protection, counter, b"apdu", &mut out);
    assert_eq!(made.is_err(), out == b"before", "a failure leaves no trace");
    made
}

#[test]
fn what_contradicts_the_standard_is_not_made() {
    let keys = Keys { encryption: &[1; 16], authentication: &[2; 16] };
    let glo = Envelope::Service(ServiceTag::try_from(0xC8).unwrap());
    let ded = Envelope::Service(ServiceTag::try_from(0xD0).unwrap());
    let both = SecurityControl::authenticated_encryption(Suite::Suite0);
    let none = SecurityControl { authenticated: false, encrypted: false, ..both };
    let compressed = SecurityControl { compressed: true, ..both };
    let broadcast = SecurityControl { key_set: KeySet::Broadcast, ..both };
    let all = [
        glo,
        ded,
        Envelope::GeneralGlo(Some(TITLE)),
        Envelope::GeneralGlo(None),
        Envelope::GeneralDed(Some(TITLE)),
        Envelope::GeneralCiphering(header()),
    ];
    for envelope in all {
        assert_eq!(made(envelope, both, keys), Ok(()));
        assert_eq!(made(envelope, none, keys), Err(ProtectError::Unprotected));
        assert_eq!(made(envelope, compressed, keys), Err(ProtectError::Compression));
    }
    for envelope in [ded, Envelope::GeneralDed(None), Envelope::GeneralCiphering(header())] {
        assert_eq!(made(envelope, broadcast, keys), Err(ProtectError::KeySet));
    }
    for envelope in [glo, Envelope::GeneralGlo(None)] {
        assert_eq!(made(envelope, broadcast, keys), Ok(()));
    }
}

#[test]
fn a_title_that_is_not_the_originators_is_not_sent() {
    let keys = Keys { encryption: &[1; 16], authentication: &[2; 16] };
    let both = SecurityControl::authenticated_encryption(Suite::Suite0);
    let other = Some(SystemTitle::new([0; 8]));
    let of_another = GeneralCipheringHeader { originator: other, ..header() };
    for envelope in [
        Envelope::GeneralGlo(other),
        Envelope::GeneralDed(other),
        Envelope::GeneralCiphering(of_another),
    ] {
        assert_eq!(made(envelope, both, keys), Err(ProtectError::OtherOriginator));
    }
}

#[test]
fn keys_that_do_not_fit_the_suite_make_nothing() {
    let envelope = Envelope::GeneralGlo(Some(TITLE));
    for suite in [Suite::Suite0, Suite::Suite1, Suite::Suite2] {
        let control = SecurityControl::authenticated_encryption(suite);
        let expected = suite.key_len();
        for actual in (0..=48).filter(|len| *len != expected) {
            let (right, wrong) = (vec![1; expected], vec![1; actual]);
            let keys = Keys { encryption: &wrong, authentication: &right };
            let role = KeyRole::Encryption;
            let refused = Err(ProtectError::KeyLength { role, expected, actual });
            assert_eq!(made(envelope, control, keys), refused);
            let keys = Keys { encryption: &right, authentication: &wrong };
            let role = KeyRole::Authentication;
            let refused = Err(ProtectError::KeyLength { role, expected, actual });
            assert_eq!(made(envelope, control, keys), refused);
        }
    }
}

#[test]
fn wrapped_keys_agreed_keys_and_signatures_have_the_suites_lengths() {
    let octets = |len: usize| format!("82{len:04X}{}", "AB".repeat(len));
    for len in 0..=256 {
        let general = |key_info: &str| format!("DD0000000000{key_info}{}", &GET[2..]);
        let wrapped = general(&format!("010100{}", octets(len)));
        match len {
            24 | 40 => is_unsupported(&wrapped, Unsupported::WrappedKey),
            _ => is_malformed(&wrapped, "wrapped key", 9),
        }
        let agreed = general(&format!("01020101{}", octets(len)));
        match len {
            128 | 192 => is_unsupported(&agreed, Unsupported::AgreedKey),
            _ => is_malformed(&agreed, "key-ciphered-data", 10),
        }
        let signed = format!("DF000000000000{}", octets(len));
        match len {
            64 | 96 => is_unsupported(&signed, Unsupported::GeneralSigning),
            _ => is_malformed(&signed, "signature", 7),
        }
    }
}
