//! C2SP Wycheproof, as far as DLMS's lengths go; every other length is refused, and counted.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ops::RangeInclusive;

use dlms::cmac::{self, CmacError};
use dlms::gcm::{Gcm, GcmError};
use dlms::key_wrap::{self, KeyWrapError};
use serde::Deserialize;

#[derive(Deserialize)]
struct File<T> {
    #[serde(rename = "testGroups")]
    groups: Vec<Group<T>>,
}

#[derive(Deserialize)]
struct Group<T> {
    tests: Vec<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Test {
    tc_id: u32,
    key: String,
    msg: String,
    #[serde(default)]
    iv: String,
    #[serde(default)]
    aad: String,
    #[serde(default)]
    ct: String,
    #[serde(default)]
    tag: String,
    result: String,
}

fn tests(text: &str) -> Vec<Test> {
    let file: File<Test> = serde_json::from_str(text).unwrap();
    file.groups.into_iter().flat_map(|group| group.tests).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

/// The number of vectors of each outcome; asserted, so that an empty file can't pass.
#[derive(Default, Debug, PartialEq, Eq)]
struct Tally {
    accepted: u32,
    not_authentic: u32,
    refused_by_length: u32,
}

#[test]
fn key_wrap_takes_what_is_valid_and_nothing_else() {
    let mut tally = Tally::default();
    for test in tests(include_str!("vectors/wycheproof/aes_wrap_test.json")) {
        let (kek, key, wrapped) = (bytes(&test.key), bytes(&test.msg), bytes(&test.ct));
        let id = test.tc_id;
        let mut unwrapped = vec![0xEE; wrapped.len().saturating_sub(8)];
        match key_wrap::unwrap(&kek, &wrapped, &mut unwrapped) {
            Ok(()) => {
                tally.accepted += 1;
                assert_ne!(test.result, "invalid", "{id}");
                assert_eq!(unwrapped, key, "{id}");
                let mut again = vec![0; wrapped.len()];
                key_wrap::wrap(&kek, &key, &mut again).unwrap();
                assert_eq!(again, wrapped, "{id}");
            }
            Err(KeyWrapError::NotAuthentic) => {
                tally.not_authentic += 1;
                assert_eq!(test.result, "invalid", "{id}");
                assert!(
                    unwrapped.iter().all(|byte| *byte == 0),
                    "{id}: nothing of the key is left"
                );
            }
            Err(KeyWrapError::KekLength { actual }) => {
                tally.refused_by_length += 1;
                assert_eq!(actual, 24, "{id}");
            }
            Err(KeyWrapError::WrappedLength { actual }) => {
                tally.refused_by_length += 1;
                assert!(actual != 24 && actual != 40, "{id}");
                let refused = key_wrap::wrap(&kek, &key, &mut vec![0; key.len() + 8]);
                let expected = KeyWrapError::KeyLength { actual: key.len() };
                assert!(refused == Err(expected) || test.result == "invalid", "{id}");
            }
            Err(other) => panic!("{id}: {other:?}"),
        }
    }
    assert_eq!(tally, KEY_WRAP);
}

#[test]
fn cmac_takes_what_is_valid_and_nothing_else() {
    let mut tally = Tally::default();
    for test in tests(include_str!("vectors/wycheproof/aes_cmac_test.json")) {
        let (key, message, tag) = (bytes(&test.key), bytes(&test.msg), bytes(&test.tag));
        let id = test.tc_id;
        match cmac::verify(&key, &message, &tag) {
            Ok(()) => {
                tally.accepted += 1;
                assert_eq!(test.result, "valid", "{id}");
            }
            Err(CmacError::NotAuthentic) => {
                tally.not_authentic += 1;
                assert_eq!(test.result, "invalid", "{id}");
            }
            Err(CmacError::KeyLength { actual }) => {
                tally.refused_by_length += 1;
                assert!(actual != 16 && actual != 32, "{id}");
            }
            Err(CmacError::TagLength { .. }) => {
                panic!("{id}: every tag in the file has 128 bits");
            }
        }
    }
    assert_eq!(tally, CMAC);
}

#[test]
fn cmac_tags_cut_short_are_refused() {
    let tag = cmac::compute(&[1; 16], b"message").unwrap();
    for len in 0..tag.len() {
        let refused = cmac::verify(&[1; 16], b"message", &tag[..len]);
        assert_eq!(refused, Err(CmacError::TagLength { actual: len }));
    }
}

/// The file's tags have 128 bits; DLMS sends the first 96. An invalid tag whose first 96 bits are right
/// would be valid here: the file has such, and they are told by their tag.
#[test]
fn gcm_takes_what_is_valid_and_nothing_else() {
    let mut tally = Tally::default();
    for test in tests(include_str!("vectors/wycheproof/aes_gcm_test.json")) {
        let id = test.tc_id;
        let (key, nonce, tag) = (bytes(&test.key), bytes(&test.iv), bytes(&test.tag));
        let ciphertext = bytes(&test.ct);
        let Ok(gcm) = Gcm::new(&key) else {
            tally.refused_by_length += 1;
            assert_eq!(key.len(), 24, "{id}");
            continue;
        };
        let mut out = vec![0xEE; ciphertext.len()];
        let whole = gcm.open(&nonce, &bytes(&test.aad), &ciphertext, &tag, &mut out);
        assert!(matches!(
            whole,
            Err(GcmError::TagLength { actual: 16 } | GcmError::NonceLength { .. })
        ));
        match gcm.open(&nonce, &bytes(&test.aad), &ciphertext, &tag[..12], &mut out) {
            Ok(()) => {
                tally.accepted += 1;
                assert_eq!(out, bytes(&test.msg), "{id}");
                assert!(
                    test.result == "valid"
                        || ONLY_THE_LAST_BYTES_ARE_WRONG.iter().any(|ids| ids.contains(&id)),
                    "{id}"
                );
            }
            Err(GcmError::NotAuthentic) => {
                tally.not_authentic += 1;
                assert_eq!(test.result, "invalid", "{id}");
                assert!(out.iter().all(|byte| *byte == 0xEE), "{id}: nothing was written");
            }
            Err(GcmError::NonceLength { actual }) => {
                tally.refused_by_length += 1;
                assert_ne!(actual, 12, "{id}");
            }
            Err(other) => panic!("{id}: {other:?}"),
        }
    }
    assert_eq!(tally, GCM);
}

/// 165 cases: key encryption keys of 128 and 256 bits, keys of 128 and 256 bits.
const KEY_WRAP: Tally = Tally { accepted: 15, not_authentic: 36, refused_by_length: 114 };

/// 311 cases: keys of 128 and 256 bits, 102 cases each; the rest are keys of other lengths.
const CMAC: Tally = Tally { accepted: 42, not_authentic: 162, refused_by_length: 107 };

/// 316 cases: 67 with keys of 128 bits and 66 with keys of 256 bits have nonces of 96 bits; the rest are
/// other nonces and keys of 192 bits.
const GCM: Tally = Tally { accepted: 93, not_authentic: 40, refused_by_length: 183 };

/// "Flipped bit 96…127 in tag": behind the twelfth byte, which DLMS does not send.
const ONLY_THE_LAST_BYTES_ARE_WRONG: [RangeInclusive<u32>; 2] = [53..=59, 142..=148];
