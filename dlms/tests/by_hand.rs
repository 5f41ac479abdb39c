//! APDUs of kinds that nobody published (suite 2, dedicated general form, identified key,
//! broadcast) are put together byte for byte here, with nothing of the crate but its verdict, and
//! must open.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{AesGcm, aes::Aes128, aes::Aes256};
use common::{SPEC, length_by_hand, open};
use dlms::{
    CipheredApdu, EncryptionKey, Form, GeneralCipheringAad, KeySet, Keys, OpenError, Side,
    SystemTitle,
};

const TITLE: [u8; 8] = *b"MAN\x40\x41\x42\x43\x44";
const COUNTER: [u8; 4] = [0x80, 0, 0, 0x01];
const EK: [u8; 32] = [0x11; 32];
const AK: [u8; 32] = [0x22; 32];
const PLAIN: &[u8] =
    &[0xC4, 1, 0xC1, 0, 9, 0x0C, 7, 0xE7, 2, 0x0F, 3, 0x11, 0x37, 0x15, 0, 0x80, 0, 0];

/// The raw crate, not ours: ciphertext and 12-byte tag.
fn gcm(key: &[u8], additional: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let nonce: [u8; 12] = [&TITLE[..], &COUNTER].concat().try_into().unwrap();
    let payload = Payload { msg: plaintext, aad: additional };
    match key.len() {
        16 => {
            AesGcm::<Aes128, U12, U12>::new_from_slice(key).unwrap().encrypt(&nonce.into(), payload)
        }
        _ => {
            AesGcm::<Aes256, U12, U12>::new_from_slice(key).unwrap().encrypt(&nonce.into(), payload)
        }
    }
    .unwrap()
}

/// Keys of the suite in the low half of `control`.
fn keys(control: u8) -> Keys<'static> {
    let len = if control & 0x0F == 2 { 32 } else { 16 };
    Keys { encryption: &EK[..len], authentication: &AK[..len] }
}

/// `prefix` ‖ LEN ‖ SC ‖ IC ‖ body, with the table of the Green Book for the additional data.
fn apdu(prefix: &[u8], control: u8, header: &[u8]) -> Vec<u8> {
    let keys = keys(control);
    let covered = [&[control], keys.authentication, header].concat();
    let body = match (control & 0x10 != 0, control & 0x20 != 0) {
        (true, true) => gcm(keys.encryption, &covered, PLAIN),
        (true, false) => {
            let tag = gcm(keys.encryption, &[&covered, PLAIN].concat(), &[]);
            [PLAIN, &tag].concat()
        }
        (false, true) => {
            let mut body = gcm(keys.encryption, &[], PLAIN);
            body.truncate(PLAIN.len());
            body
        }
        (false, false) => unreachable!(),
    };
    let content = [&[control][..], &COUNTER, &body].concat();
    [prefix, &length_by_hand(content.len()), &content].concat()
}

fn with_title(tag: u8) -> Vec<u8> {
    [&[tag, 8][..], &TITLE].concat()
}

fn opens(bytes: &[u8], gc_aad: GeneralCipheringAad) {
    let apdu = CipheredApdu::parse(bytes).unwrap();
    let control = apdu.security_control().to_byte();
    let title = SystemTitle::new(TITLE);
    let mut out = Vec::new();
    if apdu.security_control().authenticated {
        apdu.open(&keys(control), &title, gc_aad, &mut out).unwrap();
    } else {
        let refused = apdu.open(&keys(control), &title, gc_aad, &mut out);
        assert_eq!(refused, Err(OpenError::NotAuthenticated));
        apdu.decrypt_without_authentication(keys(control).encryption, &title, &mut out).unwrap();
    }
    assert_eq!(out, PLAIN, "SC {control:02X}");
    assert_eq!(apdu.invocation_counter(), 0x8000_0001);
}

#[test]
fn suite_2_opens_in_every_form() {
    for control in [0x12, 0x22, 0x32] {
        for prefix in [vec![0xCC], vec![0xD4], with_title(0xDB), with_title(0xDC)] {
            opens(&apdu(&prefix, control, &[]), SPEC);
        }
    }
}

#[test]
fn general_ded_opens_and_asks_for_the_dedicated_key() {
    for control in [0x10, 0x20, 0x30, 0x11, 0x21, 0x31] {
        let bytes = apdu(&with_title(0xDC), control, &[]);
        opens(&bytes, SPEC);
        let apdu = CipheredApdu::parse(&bytes).unwrap();
        assert_eq!(apdu.form(), Form::GeneralDed);
        assert_eq!(apdu.encryption_key(), EncryptionKey::Dedicated);
        assert_eq!(apdu.system_title(), Some(SystemTitle::new(TITLE)));
        assert_eq!(apdu.originating_side(), None);
    }
}

#[test]
fn broadcast_opens_with_bit_6_in_the_additional_data() {
    for control in [0x50, 0x60, 0x70, 0x51, 0x52, 0x72] {
        for prefix in [vec![0xC9], with_title(0xDB)] {
            let bytes = apdu(&prefix, control, &[]);
            opens(&bytes, SPEC);
            assert_eq!(CipheredApdu::parse(&bytes).unwrap().key_set(), KeySet::Broadcast);
        }
    }
}

#[test]
fn an_empty_title_opens_with_the_configured_one() {
    for tag in [0xDB, 0xDC] {
        let bytes = apdu(&[tag, 0], 0x30, &[]);
        opens(&bytes, SPEC);
        assert_eq!(CipheredApdu::parse(&bytes).unwrap().system_title(), None);
    }
}

/// Headers H: all fields, none, and one whose length octets are longer than they need be.
fn headers() -> Vec<Vec<u8>> {
    let recipient = [0x52; 8];
    let full = [&[3, 7, 7, 7, 8][..], &TITLE, &[8], &recipient, &[12], &[0xFF; 12], &[1, 0xAA]];
    let long = [
        &[0x81, 1, 7, 0x82, 0, 8][..],
        &TITLE,
        &[0x83, 0, 0, 8],
        &recipient,
        &[0x84, 0, 0, 0, 0, 0],
    ];
    vec![full.concat(), vec![0; 5], long.concat()]
}

#[test]
fn general_ciphering_with_an_identified_key_opens() {
    for header in headers() {
        for control in [0x10, 0x20, 0x30, 0x11, 0x31, 0x12, 0x22, 0x32] {
            for (key_id, key) in [(0, KeySet::Unicast), (1, KeySet::Broadcast)] {
                let prefix = [&[0xDD][..], &header, &[1, 0, key_id]].concat();
                let bytes = apdu(&prefix, control, &header);
                opens(&bytes, SPEC);
                let apdu = CipheredApdu::parse(&bytes).unwrap();
                assert_eq!(apdu.identified_key(), Some(key));
                assert_eq!(apdu.key_set(), key);
            }
        }
    }
}

#[test]
fn general_ciphering_without_its_header_covered_opens_by_its_profile_only() {
    for header in headers() {
        for control in [0x10, 0x30, 0x32] {
            let prefix = [&[0xDD][..], &header, &[1, 0, 0]].concat();
            let bytes = apdu(&prefix, control, &[]);
            opens(&bytes, GeneralCipheringAad::OmitHeader);
            let apdu = CipheredApdu::parse(&bytes).unwrap();
            let refused = open(&apdu, &keys(control), &SystemTitle::new(TITLE));
            assert_eq!(refused, Err(OpenError::NotAuthentic));
        }
    }
}

#[test]
fn the_header_of_general_ciphering_is_read_field_by_field() {
    let headers = headers();
    let prefix = [&[0xDD][..], headers.first().unwrap(), &[1, 0, 1]].concat();
    let bytes = apdu(&prefix, 0x30, &[]);
    let header = CipheredApdu::parse(&bytes).unwrap().general_ciphering_header().unwrap();
    assert_eq!(header.transaction_id, [7, 7, 7]);
    assert_eq!(header.originator, Some(SystemTitle::new(TITLE)));
    assert_eq!(header.recipient, Some(SystemTitle::new([0x52; 8])));
    assert_eq!(header.date_time, [0xFF; 12]);
    assert_eq!(header.other_information, [0xAA]);
    assert_eq!(header.identified_key, KeySet::Broadcast);
}

#[test]
fn the_additional_data_is_what_the_table_says() {
    let title = SystemTitle::new(TITLE);
    let header = headers().first().unwrap().clone();
    let general = [&[0xDD][..], &header, &[1, 0, 0]].concat();
    for control in [0x10, 0x20, 0x30, 0x32] {
        for (prefix, header) in [(vec![0xC8], vec![]), (general.clone(), header.clone())] {
            let bytes = apdu(&prefix, control, &header);
            let apdu = CipheredApdu::parse(&bytes).unwrap();
            let ak = keys(control).authentication;
            let expected = match control & 0x30 {
                0x10 => [&[control], ak, &header, PLAIN].concat(),
                0x20 => vec![],
                _ => [&[control], ak, &header].concat(),
            };
            let mut out = b"before".to_vec();
            apdu.additional_data(ak, SPEC, &mut out);
            assert_eq!(out, [&b"before"[..], &expected].concat());
            assert_eq!(apdu.nonce(&title)[..], [&TITLE[..], &COUNTER].concat());
        }
    }
}

#[test]
fn with_its_capacity_to_spare_the_buffer_is_not_moved() {
    let header = headers().first().unwrap().clone();
    let general = [&[0xDD][..], &header, &[1, 0, 0]].concat();
    for control in [0x10, 0x30, 0x12, 0x32] {
        for (prefix, header) in [(vec![0xC8], vec![]), (general.clone(), header.clone())] {
            let bytes = apdu(&prefix, control, &header);
            let apdu = CipheredApdu::parse(&bytes).unwrap();
            let mut out = Vec::with_capacity(4 + apdu.open_capacity(SPEC));
            out.extend_from_slice(b"four");
            let place = (out.as_ptr(), out.capacity());
            apdu.open(&keys(control), &SystemTitle::new(TITLE), SPEC, &mut out).unwrap();
            assert_eq!((out.as_ptr(), out.capacity()), place);
            assert_eq!(out, [b"four", PLAIN].concat());
        }
    }
}

#[test]
fn the_tag_tells_the_form_and_the_side() {
    let glo = [
        (Side::Client, &[0x21, 0x25, 0x26, 0x36, 0xC8, 0xC9, 0xCB][..]),
        (Side::Server, &[0x28, 0x2C, 0x2D, 0x2E, 0x38, 0xCA, 0xCC, 0xCD, 0xCF][..]),
    ];
    let ded = [
        (Side::Client, &[0x41, 0x45, 0x46, 0x56, 0xD0, 0xD1, 0xD3][..]),
        (Side::Server, &[0x48, 0x4C, 0x4D, 0x4E, 0x58, 0xD2, 0xD4, 0xD5, 0xD7][..]),
    ];
    for (form, key, table) in
        [(Form::Glo, EncryptionKey::Global, glo), (Form::Ded, EncryptionKey::Dedicated, ded)]
    {
        for (side, tags) in table {
            for tag in tags {
                let bytes = apdu(&[*tag], 0x30, &[]);
                opens(&bytes, SPEC);
                let apdu = CipheredApdu::parse(&bytes).unwrap();
                assert_eq!(apdu.tag(), *tag);
                assert_eq!(apdu.form(), form, "{tag:02X}");
                assert_eq!(apdu.encryption_key(), key, "{tag:02X}");
                assert_eq!(apdu.originating_side(), Some(side), "{tag:02X}");
            }
        }
    }
}
