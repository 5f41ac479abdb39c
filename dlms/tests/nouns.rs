//! Titles, suites, security control bytes, service tags, keys: each holds what it means and no more.
#![allow(clippy::unwrap_used, reason = "tests")]

use dlms::gcm::Gcm;
use dlms::key_wrap::{self, KeyWrapError};
use dlms::{
    EncryptionKey, Form, FreshCounter, KeySet, Keys, NotASystemTitle, SecurityControl, ServiceTag,
    Suite, SystemTitle,
};

#[test]
fn a_system_title_is_written_as_it_is_read() {
    let title: SystemTitle = "4d4D4d0000bC614e".parse().unwrap();
    assert_eq!(title.as_bytes(), b"MMM\x00\x00\xBC\x61\x4E");
    assert_eq!(title.to_string(), "4D4D4D0000BC614E");
    assert_eq!(format!("{title:?}"), "SystemTitle(4D4D4D0000BC614E)");
    assert_eq!(SystemTitle::try_from(&title.as_bytes()[..]), Ok(title));
    assert_eq!(title.nonce(0x0123_4567), *b"MMM\x00\x00\xBC\x61\x4E\x01\x23\x45\x67");
}

#[test]
fn text_that_is_not_sixteen_hexadecimal_digits_is_not_a_title() {
    for text in [
        "",
        "4D4D4D0000BC614",
        "4D4D4D0000BC614E0",
        " 4D4D4D0000BC614",
        "4D4D4D0000BC614G",
        "+D4D4D0000BC614E",
        "0x4D4D4D0000BC61",
        "4D4D4D0000BC6\u{e9}4",
    ] {
        assert_eq!(text.parse::<SystemTitle>(), Err(NotASystemTitle), "{text}");
    }
    for len in (0..=16).filter(|len| *len != 8) {
        assert_eq!(SystemTitle::try_from(&vec![0; len][..]), Err(NotASystemTitle));
    }
}

#[test]
fn every_security_control_byte_comes_back_the_same_or_is_refused() {
    for byte in 0..=0xFF_u8 {
        match SecurityControl::from_byte(byte) {
            Ok(control) => {
                assert!(byte & 0x0F <= 2);
                assert_eq!(control.to_byte(), byte);
                assert_eq!(control.authenticated, byte & 0x10 != 0);
                assert_eq!(control.encrypted, byte & 0x20 != 0);
                assert_eq!(control.key_set == KeySet::Broadcast, byte & 0x40 != 0);
                assert_eq!(control.compressed, byte & 0x80 != 0);
            }
            Err(reserved) => assert!((3..=15).contains(&reserved.0) && reserved.0 == byte & 0x0F),
        }
    }
}

#[test]
fn suites_have_their_numbers_and_key_lengths() {
    for (number, key_len) in [(0, 16), (1, 16), (2, 32)] {
        let suite = Suite::try_from(number).unwrap();
        assert_eq!((suite.number(), suite.key_len()), (number, key_len));
    }
    assert!((3..=255).all(|number| Suite::try_from(number).is_err()));
}

#[test]
fn plain_apdus_have_their_ciphered_tags() {
    let table = [
        (0x01, 0x21, 0x41),
        (0x05, 0x25, 0x45),
        (0x06, 0x26, 0x46),
        (0x08, 0x28, 0x48),
        (0x0C, 0x2C, 0x4C),
        (0x0D, 0x2D, 0x4D),
        (0x0E, 0x2E, 0x4E),
        (0x16, 0x36, 0x56),
        (0x18, 0x38, 0x58),
        (0xC0, 0xC8, 0xD0),
        (0xC1, 0xC9, 0xD1),
        (0xC2, 0xCA, 0xD2),
        (0xC3, 0xCB, 0xD3),
        (0xC4, 0xCC, 0xD4),
        (0xC5, 0xCD, 0xD5),
        (0xC7, 0xCF, 0xD7),
    ];
    let row = |plain: u8| table.iter().find(|row| row.0 == plain);
    for plain in 0..=0xFF {
        for (key, form) in
            [(EncryptionKey::Global, Form::Glo), (EncryptionKey::Dedicated, Form::Ded)]
        {
            let tag = ServiceTag::for_plain(plain, key);
            let expected =
                row(plain).map(|(_, glo, ded)| if form == Form::Glo { *glo } else { *ded });
            assert_eq!(tag.map(ServiceTag::to_byte), expected, "{plain:02X}");
            assert!(tag.is_none_or(|tag| tag.form() == form));
        }
    }
}

#[test]
fn debug_shows_no_key() {
    let keys = Keys { encryption: &[0xAB; 16], authentication: &[0xCD; 16] };
    assert_eq!(format!("{keys:?}"), "Keys { .. }");
    assert_eq!(format!("{:?}", Gcm::new(&[0xAB; 16]).unwrap()), "Gcm { .. }");
    let cmac = dlms::cmac::Cmac::new(&[0xAB; 16]).unwrap();
    assert_eq!(format!("{cmac:?}"), "Cmac { .. }");
}

#[test]
fn a_fresh_counter_shows_its_value_for_the_record() {
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(7);
    assert_eq!(counter.value(), 7);
}

#[test]
fn key_wrap_refuses_every_other_length() {
    let mut out = [0; 80];
    for kek in (0..=48).filter(|len| ![16, 32].contains(len)) {
        let refused = Err(KeyWrapError::KekLength { actual: kek });
        assert_eq!(key_wrap::wrap(&vec![1; kek], &[2; 16], &mut out[..24]), refused);
        assert_eq!(key_wrap::unwrap(&vec![1; kek], &[2; 24], &mut out[..16]), refused);
    }
    for key in (0..=64).filter(|len| ![16, 32].contains(len)) {
        let refused = Err(KeyWrapError::KeyLength { actual: key });
        assert_eq!(key_wrap::wrap(&[1; 16], &vec![2; key], &mut out[..key + 8]), refused);
    }
    for wrapped in (0..=64_usize).filter(|len| ![24, 40].contains(len)) {
        let refused = Err(KeyWrapError::WrappedLength { actual: wrapped });
        let out = &mut out[..wrapped.saturating_sub(8)];
        assert_eq!(key_wrap::unwrap(&[1; 16], &vec![2; wrapped], out), refused);
    }
    for actual in (0..=64).filter(|len| *len != 24) {
        let refused = Err(KeyWrapError::BufferLength { expected: 24, actual });
        assert_eq!(key_wrap::wrap(&[1; 16], &[2; 16], &mut out[..actual]), refused);
    }
    for actual in (0..=64).filter(|len| *len != 16) {
        let refused = Err(KeyWrapError::BufferLength { expected: 16, actual });
        assert_eq!(key_wrap::unwrap(&[1; 16], &[2; 24], &mut out[..actual]), refused);
    }
}

#[test]
fn a_wrapped_key_with_any_one_bit_flipped_does_not_unwrap() {
    for (kek, key) in [(16, 16), (16, 32), (32, 16), (32, 32)] {
        let (kek, key) = (vec![0x4B; kek], vec![0x5C; key]);
        let mut wrapped = vec![0; key.len() + key_wrap::OVERHEAD_LEN];
        key_wrap::wrap(&kek, &key, &mut wrapped).unwrap();
        let mut out = vec![0; key.len()];
        key_wrap::unwrap(&kek, &wrapped, &mut out).unwrap();
        assert_eq!(out, key);
        for bit in 0..wrapped.len() * 8 {
            let mut forged = wrapped.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            out.fill(0xEE);
            let refused = key_wrap::unwrap(&kek, &forged, &mut out);
            assert_eq!(refused, Err(KeyWrapError::NotAuthentic), "bit {bit}");
            assert!(out.iter().all(|byte| *byte == 0), "nothing of the key is left");
        }
    }
}
