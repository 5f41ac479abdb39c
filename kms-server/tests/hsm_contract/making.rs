//! Keys that the token makes for meters.

use std::sync::Arc;

use kms_core::{ClearKey, Fingerprint, KeyId, SealedKek};

use super::{apdu, refused};
use crate::hsm::{
    KeyLen, LockedKey, MADE_PER_CALL_MAX, Made, MakeKeys, NewKey, NotMade, ShareKey, StoreUnder,
    Token, WantedKey, WrappedKey,
};

/// KEKs of two meters.
const KEKS: [&[u8]; 2] = [&[0xE1; 16], &[0xE2; 32]];
/// The `wrap` keys of two blocks.
pub(crate) const WRAP_KEYS: [[u8; 32]; 2] = [[0xB1; 32], [0xB2; 32]];
const LABEL: &[u8] = b"a label";

const MEMORY: StoreUnder = StoreUnder::Block(1);
const HSM: StoreUnder = StoreUnder::Kek(SealedKek::Use);
const AS_KEK: StoreUnder = StoreUnder::Kek(SealedKek::MeterKek);

fn wanted(len: KeyLen, under: StoreUnder, kek: usize) -> WantedKey {
    WantedKey { len, under, kek }
}

fn job(keks: Vec<Vec<u8>>, keys: Vec<WantedKey>) -> MakeKeys {
    MakeKeys {
        fingerprint_label: LABEL.to_vec(),
        wrap_keys: WRAP_KEYS.map(|key| Arc::new(key) as LockedKey).into(),
        keks,
        keys,
    }
}

/// The KEKs of the two meters as their records have them.
fn keks(token: &dyn Token) -> Vec<Vec<u8>> {
    let wrap = |kek: &[u8]| token.wrap(SealedKek::MeterKek, &ClearKey::new(kek.to_vec())).unwrap();
    KEKS.map(wrap).into()
}

/// As a meter does it.
fn unwrapped(kek: &[u8], blob: &[u8]) -> Vec<u8> {
    let mut key = vec![0; blob.len() - dlms::key_wrap::OVERHEAD_LEN];
    dlms::key_wrap::unwrap(kek, blob, &mut key).unwrap();
    key
}

/// The key that the meter has now: the one that was told of.
fn at_the_meter(kek: &[u8], made: &NewKey, len: KeyLen) -> Vec<u8> {
    let key = unwrapped(kek, &made.meter_blob);
    assert_eq!(key.len(), len.bytes());
    let mac = |message: &[u8]| dlms::cmac::compute(&key, message).unwrap();
    assert_eq!(made.fingerprint, Fingerprint(mac(LABEL)));
    assert_eq!(made.kcv, mac(&[0; 16])[..5]);
    assert_eq!(made.storage_blob.len(), len.wrapped());
    key
}

pub(crate) fn a_new_key_is_at_the_meter_what_is_stored_and_told_of_it(token: &dyn Token) {
    let job = a_job(token);
    let made = token.make_keys(&job).unwrap();
    all_are_sound(token, &job, &made);
    let status = token.status();
    assert_eq!((status.connection_epoch, status.fault), (1, None));
}

/// Keys for every place, of either length, for both meters.
pub(crate) fn a_job(token: &dyn Token) -> MakeKeys {
    let keys = [MEMORY, HSM, AS_KEK, StoreUnder::Block(0)].into_iter().flat_map(|under| {
        [(KeyLen::Aes128, 0), (KeyLen::Aes256, 1), (KeyLen::Aes128, 1)]
            .map(|(len, kek)| wanted(len, under, kek))
    });
    job(keks(token), keys.collect())
}

/// Each key is at its meter what was told of it, and is stored as that; all differ.
pub(crate) fn all_are_sound(token: &dyn Token, job: &MakeKeys, made: &Made) {
    assert_eq!(made.len(), job.keys.len());
    let mut values = Vec::new();
    for (wanted, made) in job.keys.iter().zip(made) {
        let made = made.as_ref().unwrap();
        let key = at_the_meter(KEKS[wanted.kek], made, wanted.len);
        match wanted.under {
            StoreUnder::Block(at) => assert_eq!(unwrapped(&WRAP_KEYS[at], &made.storage_blob), key),
            StoreUnder::Kek(SealedKek::Use) => decrypts(token, made, &key),
            StoreUnder::Kek(SealedKek::MeterKek) => is_a_kek(token, made, &key),
        }
        values.push(key);
    }
    values.sort();
    values.dedup();
    assert_eq!(values.len(), job.keys.len(), "no key is made twice");
}

/// What is stored for protection `HSM` opens what the meter sends under its new key.
fn decrypts(token: &dyn Token, made: &NewKey, key: &[u8]) {
    let stored = WrappedKey { id: KeyId(made.fingerprint.0), wrapped: made.storage_blob.clone() };
    match <[u8; 16]>::try_from(key) {
        Ok(key) => {
            let opened = token.open_apdus(&stored, &[apdu(key, 1, b"a reading")]).unwrap();
            assert_eq!(opened, [Ok(b"a reading".to_vec())]);
        }
        Err(_) => assert_eq!(token.open_apdus(&stored, &[]).unwrap(), []),
    }
}

/// What is stored of a new KEK carries keys to the meter that took it.
fn is_a_kek(token: &dyn Token, made: &NewKey, kek: &[u8]) {
    let next = job(vec![made.storage_blob.clone()], vec![wanted(KeyLen::Aes128, MEMORY, 0)]);
    let next = token.make_keys(&next).unwrap().remove(0).unwrap();
    at_the_meter(kek, &next, KeyLen::Aes128);
}

pub(crate) fn a_kek_that_does_not_open_fails_its_own_keys_and_no_other(token: &dyn Token) {
    let mut keks = keks(token);
    let mut forged = keks[0].clone();
    forged[7] ^= 1;
    let short = keks[0][1..].to_vec();
    let of_use = token.wrap(SealedKek::Use, &ClearKey::new(vec![9; 16])).unwrap();
    let padded = [&keks[0][..], &[0; 8]].concat();
    keks.extend([forged, short, of_use, padded, Vec::new()]);
    let count = keks.len();
    let keys: Vec<WantedKey> = (0..count)
        .flat_map(|kek| [MEMORY, AS_KEK].map(|under| wanted(KeyLen::Aes128, under, kek)))
        .collect();
    let made = token.make_keys(&job(keks, keys)).unwrap();
    assert_eq!(made.len(), 2 * count);
    for (at, made) in made.iter().enumerate() {
        match (at / 2, made) {
            (kek @ (0 | 1), Ok(made)) => drop(at_the_meter(KEKS[kek], made, KeyLen::Aes128)),
            (2.., Err(NotMade::KekRefused)) => {}
            _ => panic!("{at}: {made:?}"),
        }
    }
    let status = token.status();
    assert_eq!((status.connection_epoch, status.fault), (1, None));
}

pub(crate) fn a_job_that_is_not_whole_makes_no_key(token: &dyn Token) {
    let key = wanted(KeyLen::Aes128, MEMORY, 0);
    let good = || job(keks(token), vec![key]);
    assert_eq!(token.make_keys(&good()).unwrap().len(), 1);
    assert_eq!(token.make_keys(&job(Vec::new(), Vec::new())).unwrap(), []);
    let astray = vec![key, wanted(KeyLen::Aes128, StoreUnder::Block(2), 0)];
    assert!(refused(token.make_keys(&job(keks(token), astray))));
    let without_kek = vec![key, wanted(KeyLen::Aes128, MEMORY, 2)];
    assert!(refused(token.make_keys(&job(keks(token), without_kek))));
    let many = vec![key; MADE_PER_CALL_MAX + 1];
    assert!(refused(token.make_keys(&job(keks(token), many))));
    let many = vec![keks(token).remove(0); MADE_PER_CALL_MAX + 1];
    assert!(refused(token.make_keys(&job(many, vec![key]))));
    let short: LockedKey = Arc::new([1; 16]);
    assert!(refused(token.make_keys(&MakeKeys { wrap_keys: vec![short; 2], ..good() })));
}

/// A job that shares the key which was made first for block 1 with both meters, in both blocks.
fn sharing(token: &dyn Token) -> (ShareKey, NewKey) {
    let first = job(keks(token), vec![wanted(KeyLen::Aes128, MEMORY, 0)]);
    let made = token.make_keys(&first).unwrap().remove(0).unwrap();
    let MakeKeys { fingerprint_label, wrap_keys, keks, .. } = first;
    let to = [(0, 1), (1, 1), (0, 0)]
        .map(|(block, kek)| wanted(KeyLen::Aes128, StoreUnder::Block(block), kek));
    let (stored, fingerprint) = ((1, made.storage_blob.clone()), made.fingerprint);
    (ShareKey { fingerprint_label, wrap_keys, keks, stored, fingerprint, to: to.into() }, made)
}

pub(crate) fn a_key_that_is_shared_is_one_key_at_all_meters(token: &dyn Token) {
    let (job, first) = sharing(token);
    let key = at_the_meter(KEKS[0], &first, KeyLen::Aes128);
    let shared = token.share_key(&job).unwrap();
    assert_eq!(shared.len(), job.to.len());
    for (wanted, made) in job.to.iter().zip(shared) {
        let made = made.unwrap();
        assert_eq!((made.fingerprint, made.kcv), (first.fingerprint, first.kcv));
        assert_eq!(at_the_meter(KEKS[wanted.kek], &made, KeyLen::Aes128), key);
        let StoreUnder::Block(at) = wanted.under else { panic!("in a block") };
        assert_eq!(unwrapped(&WRAP_KEYS[at], &made.storage_blob), key);
    }
    // A KEK that does not open fails its own meter and no other.
    let (mut job, _) = sharing(token);
    job.keks[1][7] ^= 1;
    let shared = token.share_key(&job).unwrap();
    assert!(shared[2].is_ok() && shared[0] == Err(NotMade::KekRefused));
}

pub(crate) fn what_is_not_the_key_is_not_shared(token: &dyn Token) {
    let good = || sharing(token).0;
    assert!(token.share_key(&good()).is_ok());
    let mut forged = good();
    forged.stored.1[3] ^= 1;
    assert!(token.share_key(&forged).is_err());
    // It opens, and is another key than the one that was meant.
    let other = ShareKey { fingerprint: Fingerprint([7; 16]), ..good() };
    assert!(token.share_key(&other).is_err());
    assert!(refused(token.share_key(&ShareKey { stored: (2, vec![0; 24]), ..good() })));
    assert!(refused(token.share_key(&ShareKey { stored: (1, vec![0; 23]), ..good() })));
    let long = vec![wanted(KeyLen::Aes256, MEMORY, 0)];
    assert!(refused(token.share_key(&ShareKey { to: long, ..good() })));
    let many = vec![wanted(KeyLen::Aes128, MEMORY, 0); MADE_PER_CALL_MAX + 1];
    assert!(refused(token.share_key(&ShareKey { to: many, ..good() })));
    // The token is well, and goes on.
    assert!(token.share_key(&good()).is_ok());
}
