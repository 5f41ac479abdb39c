//! What every token does, whatever it is made of: run on SoftHSM by `hsm_token.rs`, and on the token in memory
//! beside it.
//!
//! Whoever takes this module in has `kms_server::hsm` at the root of its crate.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]
#![allow(missing_docs, reason = "not a library")]

pub(crate) mod making;

use std::sync::Arc;

use aes_gcm::{
    KeyInit as _,
    aead::{AeadInOut as _, array::Array},
};
use getrandom::{SysRng, rand_core::UnwrapErr};
use kms_core::{BlockSecret, ClearKey, Fingerprint, KeyId, SealedKek};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rsa::{BoxedUint, Oaep, RsaPublicKey};

use crate::hsm::{
    CeremonyKey, GcmOpen, ImportKey, KEYS_PER_CALL_MAX, LockedKey, NotAKey, NotAuthentic,
    NotTrusted, OaepHash, RsaKey, SealedValue, StoreUnder, TakeKeys, Token, TokenError, WrappedKey,
};

pub(crate) use making::{
    a_job_that_is_not_whole_makes_no_key, a_kek_that_does_not_open_fails_its_own_keys_and_no_other,
    a_key_that_is_shared_is_one_key_at_all_meters,
    a_new_key_is_at_the_meter_what_is_stored_and_told_of_it, what_is_not_the_key_is_not_shared,
};

/// Calls a macro with the names of all cases.
macro_rules! contract {
    ($run:ident) => {
        $run! {
            a_seal_opens_in_its_place_and_nowhere_else
            two_seals_of_one_secret_differ
            a_seal_with_any_bit_flipped_or_of_any_other_length_does_not_open
            an_apdu_opens_under_its_wrapped_key_and_a_forged_one_does_not
            a_wrapped_key_of_a_wrong_length_or_with_any_bit_flipped_is_refused
            a_clear_key_that_is_no_aes_key_is_not_wrapped
            a_blob_of_one_sealed_kek_does_not_open_under_the_other
            many_more_keys_than_the_cache_holds_each_open_their_own_from_many_threads
            other_wrapped_bytes_under_the_same_id_are_another_key
            random_bytes_differ_and_every_call_is_counted
            a_signature_verifies_over_its_message_and_no_other
            keys_of_a_sealed_file_come_out_identified_and_wrapped
            a_sealed_file_that_is_not_whole_or_of_another_key_is_refused
            a_block_secret_of_another_site_opens_and_with_any_byte_changed_does_not
            sealed_keks_are_not_handed_to_a_key_that_nobody_trusted
            a_new_key_is_at_the_meter_what_is_stored_and_told_of_it
            a_kek_that_does_not_open_fails_its_own_keys_and_no_other
            a_job_that_is_not_whole_makes_no_key
            a_key_that_is_shared_is_one_key_at_all_meters
            what_is_not_the_key_is_not_shared
        }
    };
}

type Aes128Gcm96 =
    aes_gcm::AesGcm<aes_gcm::aes::Aes128, aes_gcm::aead::consts::U12, aes_gcm::aead::consts::U12>;

fn secret(byte: u8) -> BlockSecret {
    BlockSecret::fill_with(|bytes| {
        bytes.fill(byte);
        Ok::<(), ()>(())
    })
    .unwrap()
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, TokenError>) -> bool {
    matches!(outcome, Err(TokenError::Refused { .. }))
}

/// An APDU as a meter sends it, sealed with a key that we know.
fn apdu(key: [u8; 16], counter: u32, plain: &[u8]) -> GcmOpen {
    let mut nonce = *b"KFM\x00\x01\x02\x03\x04\x00\x00\x00\x00";
    nonce[8..].copy_from_slice(&counter.to_be_bytes());
    let additional = [&[0x30][..], &[0xD0; 16]].concat();
    let mut buffer = plain.to_vec();
    let tag = Aes128Gcm96::new(&Array(key))
        .encrypt_inout_detached(&Array(nonce), &additional, buffer.as_mut_slice().into())
        .unwrap();
    GcmOpen { nonce, additional_data: additional.into(), ciphertext: buffer, tag: Some(tag.into()) }
}

/// The file's key of the sealed files below.
const FILE_KEY: [u8; 32] = [0xF1; 32];
/// The key of the block that their keys go to.
const WRAP_KEY: [u8; 32] = [0xB1; 32];

/// Seals to an import key as a client does.
fn sealed_to(key: &ImportKey, file_key: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| BoxedUint::from_be_slice_vartime(bytes);
    let public = RsaPublicKey::new(number(&key.modulus), number(&key.exponent)).unwrap();
    let mut random = UnwrapErr(SysRng);
    match key.oaep_hash {
        OaepHash::Sha1 => public.encrypt(&mut random, Oaep::<sha1::Sha1>::new(), file_key),
        OaepHash::Sha256 => public.encrypt(&mut random, Oaep::<sha2::Sha256>::new(), file_key),
    }
    .unwrap()
}

/// RFC 3394.
pub(crate) fn wrapped(kek: &[u8], key: &[u8]) -> Vec<u8> {
    let mut wrapped = vec![0; key.len() + dlms::key_wrap::OVERHEAD_LEN];
    dlms::key_wrap::wrap(kek, key, &mut wrapped).unwrap();
    wrapped
}

fn job(wrapped_file_key: Vec<u8>, keys: Vec<SealedValue>) -> TakeKeys {
    TakeKeys {
        wrapped_file_key,
        fingerprint_label: b"a label".to_vec(),
        wrap_keys: vec![Arc::new(WRAP_KEY) as LockedKey],
        keys,
    }
}

pub(crate) fn a_seal_opens_in_its_place_and_nowhere_else(token: &dyn Token) {
    let sealed = token.seal(b"domain/7/1", &secret(7)).unwrap();
    let opened = token.open(b"domain/7/1", &sealed).unwrap();
    assert_eq!(opened.expose_block_secret_bytes(), &[7; 32]);
    for place in [&b"domain/8/1"[..], b"domain/7/2", b"domain/7/1 ", b""] {
        assert!(refused(token.open(place, &sealed)), "{place:?}");
    }
    assert_eq!(token.status().fault, None);
}

pub(crate) fn two_seals_of_one_secret_differ(token: &dyn Token) {
    let one = token.seal(b"p", &secret(7)).unwrap();
    assert_ne!(one, token.seal(b"p", &secret(7)).unwrap());
}

pub(crate) fn a_seal_with_any_bit_flipped_or_of_any_other_length_does_not_open(token: &dyn Token) {
    let sealed = token.seal(b"p", &secret(7)).unwrap();
    for bit in 0..sealed.len() * 8 {
        let mut forged = sealed.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(refused(token.open(b"p", &forged)), "bit {bit}");
    }
    for len in 0..sealed.len() {
        assert!(refused(token.open(b"p", &sealed[..len])), "{len} bytes");
    }
    assert!(refused(token.open(b"p", &[&sealed[..], &[0]].concat())));
    assert_eq!(token.status().connection_epoch, 1, "tampering is not a fault of the device");
}

pub(crate) fn an_apdu_opens_under_its_wrapped_key_and_a_forged_one_does_not(token: &dyn Token) {
    let value = [0x5A; 16];
    let wrapped = token.wrap(SealedKek::Use, &ClearKey::new(value.to_vec())).unwrap();
    assert_eq!(wrapped.len(), 24);
    let key = WrappedKey { id: KeyId([1; 16]), wrapped };
    let good = apdu(value, 1, b"a reading");
    let mut forged = apdu(value, 2, b"a reading");
    forged.ciphertext[0] ^= 1;
    let mut other_tag = apdu(value, 3, b"a reading");
    other_tag.tag.as_mut().unwrap()[11] ^= 1;
    let mut other_aad = apdu(value, 4, b"a reading");
    other_aad.additional_data[0] ^= 1;
    let mut untagged = apdu(value, 5, b"a reading");
    untagged.tag = None;
    let batch = [good, forged, other_tag, other_aad, untagged, apdu(value, 6, b"")];
    for _ in 0..3 {
        let opened = token.open_apdus(&key, &batch).unwrap();
        assert_eq!(
            opened,
            [
                Ok(b"a reading".to_vec()),
                Err(NotAuthentic),
                Err(NotAuthentic),
                Err(NotAuthentic),
                Ok(b"a reading".to_vec()),
                Ok(vec![]),
            ]
        );
    }
    let status = token.status();
    assert_eq!((status.connection_epoch, status.fault), (1, None));
}

pub(crate) fn a_wrapped_key_of_a_wrong_length_or_with_any_bit_flipped_is_refused(
    token: &dyn Token,
) {
    let wrapped = token.wrap(SealedKek::Use, &ClearKey::new(vec![9; 32])).unwrap();
    assert_eq!(wrapped.len(), 40);
    for len in (0..wrapped.len()).chain([41, 48]) {
        let mut cut = wrapped.clone();
        cut.resize(len, 0);
        let key = WrappedKey { id: KeyId([2; 16]), wrapped: cut };
        assert!(refused(token.open_apdus(&key, &[])), "{len} bytes");
    }
    for bit in 0..wrapped.len() * 8 {
        let mut forged = wrapped.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let key = WrappedKey { id: KeyId([2; 16]), wrapped: forged };
        assert!(refused(token.open_apdus(&key, &[])), "bit {bit}");
    }
    assert_eq!(token.status().connection_epoch, 1);
}

pub(crate) fn a_clear_key_that_is_no_aes_key_is_not_wrapped(token: &dyn Token) {
    for len in [0, 1, 8, 15, 17, 24, 31, 33] {
        let key = ClearKey::new(vec![9; len]);
        assert!(refused(token.wrap(SealedKek::Use, &key)), "{len} bytes");
    }
}

pub(crate) fn a_blob_of_one_sealed_kek_does_not_open_under_the_other(token: &dyn Token) {
    let wrapped = token.wrap(SealedKek::MeterKek, &ClearKey::new(vec![9; 16])).unwrap();
    let key = WrappedKey { id: KeyId([3; 16]), wrapped };
    assert!(refused(token.open_apdus(&key, &[apdu([9; 16], 1, b"x")])));
}

pub(crate) fn many_more_keys_than_the_cache_holds_each_open_their_own_from_many_threads(
    token: &dyn Token,
) {
    let keys: Vec<_> = (0..40u8)
        .map(|n| {
            let value = [n + 1; 16];
            let wrapped = token.wrap(SealedKek::Use, &ClearKey::new(value.to_vec())).unwrap();
            (value, WrappedKey { id: KeyId([n; 16]), wrapped })
        })
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (token, keys) = (&token, &keys);
            scope.spawn(move || {
                for round in 0..200usize {
                    let (value, key) = &keys[(round * (thread + 1) + thread) % keys.len()];
                    let opened = token.open_apdus(key, &[apdu(*value, 1, b"mine")]).unwrap();
                    assert_eq!(opened, [Ok(b"mine".to_vec())]);
                }
            });
        }
    });
    assert_eq!(token.status().connection_epoch, 1);
}

pub(crate) fn other_wrapped_bytes_under_the_same_id_are_another_key(token: &dyn Token) {
    for value in [[1; 16], [2; 16], [1; 16]] {
        let wrapped = token.wrap(SealedKek::Use, &ClearKey::new(value.to_vec())).unwrap();
        let key = WrappedKey { id: KeyId([4; 16]), wrapped };
        let opened = token.open_apdus(&key, &[apdu(value, 1, b"mine")]).unwrap();
        assert_eq!(opened, [Ok(b"mine".to_vec())]);
    }
}

pub(crate) fn random_bytes_differ_and_every_call_is_counted(token: &dyn Token) {
    let (mut one, mut two) = ([0; 32], [0; 32]);
    token.random(&mut one).unwrap();
    token.random(&mut two).unwrap();
    assert_ne!(one, two);
    token.check().unwrap();
    let status = token.status();
    assert_eq!((status.calls, status.fault), (3, None));
    assert!(!status.label.is_empty() && !status.model.is_empty());
}

pub(crate) fn a_signature_verifies_over_its_message_and_no_other(token: &dyn Token) {
    let public = token.public_key().unwrap();
    assert_eq!(token.public_key().unwrap(), public);
    let signature = token.sign(b"a head").unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public);
    public.verify(b"a head", &signature).unwrap();
    assert!(public.verify(b"another", &signature).is_err());
}

pub(crate) fn keys_of_a_sealed_file_come_out_identified_and_wrapped(token: &dyn Token) {
    let import_key = token.import_key().unwrap();
    assert_eq!((import_key.modulus.len(), &import_key.exponent[..]), (384, &[1, 0, 1][..]));
    let value = [0x5A; 16];
    let sealed = |key: &[u8], under| SealedValue { wrapped: wrapped(&FILE_KEY, key), under };
    let mut forged = sealed(&value, StoreUnder::Block(0));
    forged.wrapped[3] ^= 1;
    let mut short = sealed(&value, StoreUnder::Block(0));
    short.wrapped.truncate(16);
    let use_kek = StoreUnder::Kek(SealedKek::Use);
    let keys = vec![
        sealed(&value, StoreUnder::Block(0)),
        forged,
        sealed(&[7; 32], StoreUnder::Block(0)),
        short,
        sealed(&value, use_kek),
    ];
    let taken = token.take_keys(&job(sealed_to(&import_key, &FILE_KEY), keys)).unwrap();
    let [one, Err(NotAKey), two, Err(NotAKey), three] = taken.as_slice() else {
        panic!("{taken:?}")
    };
    for (taken, key) in [(one, &value[..]), (two, &[7; 32])] {
        let taken = taken.as_ref().unwrap();
        let mac = |message: &[u8]| dlms::cmac::compute(key, message).unwrap();
        assert_eq!(taken.fingerprint, Fingerprint(mac(b"a label")));
        assert_eq!(taken.kcv, mac(&[0; 16])[..5]);
        assert_eq!(taken.wrapped, wrapped(&WRAP_KEY, key));
    }
    let three = three.as_ref().unwrap();
    assert_eq!(three.fingerprint, one.as_ref().unwrap().fingerprint);
    let key = WrappedKey { id: KeyId([5; 16]), wrapped: three.wrapped.clone() };
    let opened = token.open_apdus(&key, &[apdu(value, 1, b"mine")]).unwrap();
    assert_eq!(opened, [Ok(b"mine".to_vec())]);
    assert_eq!(token.status().fault, None);
}

pub(crate) fn a_sealed_file_that_is_not_whole_or_of_another_key_is_refused(token: &dyn Token) {
    let sealed = sealed_to(&token.import_key().unwrap(), &FILE_KEY);
    let value = |under| SealedValue { wrapped: wrapped(&FILE_KEY, &[9; 16]), under };
    let good = value(StoreUnder::Block(0));
    assert_eq!(token.take_keys(&job(sealed.clone(), vec![good.clone()])).unwrap().len(), 1);
    let mut forged = sealed.clone();
    forged[200] ^= 1;
    assert!(refused(token.take_keys(&job(forged, vec![good.clone()]))));
    let short = sealed[1..].to_vec();
    assert!(refused(token.take_keys(&job(short, vec![good.clone()]))));
    let astray = value(StoreUnder::Block(1));
    assert!(refused(token.take_keys(&job(sealed.clone(), vec![astray]))));
    let many = vec![good.clone(); KEYS_PER_CALL_MAX + 1];
    assert!(refused(token.take_keys(&job(sealed.clone(), many))));
    let other = TakeKeys { wrap_keys: vec![Arc::new([1; 16])], ..job(sealed, vec![good]) };
    assert!(refused(token.take_keys(&other)));
}

pub(crate) fn a_block_secret_of_another_site_opens_and_with_any_byte_changed_does_not(
    token: &dyn Token,
) {
    let hash = token.import_key().unwrap().oaep_hash;
    let key = token.transport_block_key().unwrap();
    assert_eq!(RsaKey::from_der(&key.to_der()), Ok(key.clone()));
    let wrapped = key.wrap_secret(hash, &secret(0x5B)).unwrap();
    assert_ne!(wrapped, key.wrap_secret(hash, &secret(0x5B)).unwrap());
    let opened = token.receive_secret(&wrapped).unwrap();
    assert_eq!(opened.expose_block_secret_bytes(), &[0x5B; 32]);
    for at in (0..wrapped.len()).step_by(7) {
        let mut forged = wrapped.clone();
        forged[at] ^= 1;
        assert!(refused(token.receive_secret(&forged)), "byte {at}");
    }
    for len in [0, 1, 383, 385] {
        let mut other = wrapped.clone();
        other.resize(len, 0);
        assert!(refused(token.receive_secret(&other)), "{len} bytes");
    }
    // Genuine, and no block secret: one of 16 bytes.
    let import_key = ImportKey { modulus: key.modulus, exponent: key.exponent, oaep_hash: hash };
    assert!(refused(token.receive_secret(&sealed_to(&import_key, &[7; 16]))));
    let status = token.status();
    assert_eq!((status.connection_epoch, status.fault), (1, None));
}

pub(crate) fn sealed_keks_are_not_handed_to_a_key_that_nobody_trusted(token: &dyn Token) {
    let hash = token.import_key().unwrap().oaep_hash;
    let key = token.transport_block_key().unwrap();
    let to = CeremonyKey { id: [0xCE; 16], key, oaep: hash };
    assert_eq!(token.hand_over_keks(&to).unwrap(), Err(NotTrusted::Missing));
    assert_eq!(token.status().fault, None);
}
