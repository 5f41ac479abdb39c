//! The token against a real SoftHSM: seals, sealed keys, and that nothing altered opens.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;

use std::sync::atomic::{AtomicBool, Ordering};

use aes_gcm::{
    KeyInit as _,
    aead::{AeadInOut as _, array::Array},
};
use kms_core::{BlockSecret, ClearKey, KeyId, SealedKek};
use kms_server::hsm::{
    BlockSeals as _, Device as _, GcmOpen, NotAuthentic, SealedKeys as _, Signs as _, TokenError,
    WrappedKey,
    pkcs11::{InitError, init, make_ceremony_key},
};

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

on_a_token! {
    fn a_token_is_found_while_another_process_logs_in_to_it(home) {
        let test = "a_token_is_found_while_another_process_logs_in_to_it";
        hsm_common::with_logins_beside(test, home, || {
            for _ in 0..12 {
                assert!(hsm_common::connects_anew(test));
            }
        });
    }

    fn a_seal_opens_in_its_place_and_nowhere_else(home) {
        let token = home.token();
        let sealed = token.seal(b"domain/7/1", &secret(7)).unwrap();
        let opened = token.open(b"domain/7/1", &sealed).unwrap();
        assert_eq!(opened.expose_block_secret_bytes(), &[7; 32]);
        for place in [&b"domain/8/1"[..], b"domain/7/2", b"domain/7/1 ", b""] {
            assert!(refused(token.open(place, &sealed)), "{place:?}");
        }
        assert_eq!(token.status().fault, None);
    }

    fn two_seals_of_one_secret_differ(home) {
        let token = home.token();
        let one = token.seal(b"p", &secret(7)).unwrap();
        assert_ne!(one, token.seal(b"p", &secret(7)).unwrap());
    }

    fn a_seal_with_any_bit_flipped_or_of_any_other_length_does_not_open(home) {
        let token = home.token();
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

    fn an_apdu_opens_under_its_wrapped_key_and_a_forged_one_does_not(home) {
        let token = home.token();
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
            assert_eq!(opened, [
                Ok(b"a reading".to_vec()),
                Err(NotAuthentic),
                Err(NotAuthentic),
                Err(NotAuthentic),
                Ok(b"a reading".to_vec()),
                Ok(vec![]),
            ]);
        }
        let status = token.status();
        assert_eq!((status.connection_epoch, status.fault), (1, None));
    }

    fn a_wrapped_key_of_a_wrong_length_or_with_any_bit_flipped_is_refused(home) {
        let token = home.token();
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

    fn a_clear_key_that_is_no_aes_key_is_not_wrapped(home) {
        let token = home.token();
        for len in [0, 1, 8, 15, 17, 24, 31, 33] {
            let key = ClearKey::new(vec![9; len]);
            assert!(refused(token.wrap(SealedKek::Use, &key)), "{len} bytes");
        }
    }

    fn a_blob_of_one_sealed_kek_does_not_open_under_the_other(home) {
        let token = home.token();
        let wrapped = token.wrap(SealedKek::MeterKek, &ClearKey::new(vec![9; 16])).unwrap();
        let key = WrappedKey { id: KeyId([3; 16]), wrapped };
        assert!(refused(token.open_apdus(&key, &[apdu([9; 16], 1, b"x")])));
    }

    fn many_more_keys_than_the_cache_holds_each_open_their_own_from_many_threads(home) {
        let token = home.token();
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

    fn other_wrapped_bytes_under_the_same_id_are_another_key(home) {
        let token = home.token();
        for value in [[1; 16], [2; 16], [1; 16]] {
            let wrapped = token.wrap(SealedKek::Use, &ClearKey::new(value.to_vec())).unwrap();
            let key = WrappedKey { id: KeyId([4; 16]), wrapped };
            let opened = token.open_apdus(&key, &[apdu(value, 1, b"mine")]).unwrap();
            assert_eq!(opened, [Ok(b"mine".to_vec())]);
        }
    }

    fn a_restart_opens_what_was_sealed_before(home) {
        let sealed = home.token().seal(b"p", &secret(3)).unwrap();
        let opened = home.token().open(b"p", &sealed).unwrap();
        assert_eq!(opened.expose_block_secret_bytes(), &[3; 32]);
    }

    fn a_key_is_made_while_others_look_for_keys(home) {
        let token = home.token();
        let made = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    // Each signature looks for the signing key.
                    while !made.load(Ordering::Acquire) {
                        token.sign(b"a head").unwrap();
                    }
                });
            }
            let key = make_ceremony_key(&home.config());
            made.store(true, Ordering::Release);
            key.unwrap();
        });
        assert_eq!(token.status().connection_epoch, 1);
    }

    fn keys_are_made_once(home) {
        let again = init(&home.config(), Some(&hsm_common::Home::so_pin()));
        let Err(InitError::KeysExist(names)) = again else { panic!("{again:?}") };
        assert_eq!(names.len(), 6);
        assert!(names.contains(&"ami-site-kek".to_owned()));
        home.token().check().unwrap();
    }

    fn random_bytes_are_random_and_the_token_counts_its_calls(home) {
        let token = home.token();
        let (mut one, mut two) = ([0; 32], [0; 32]);
        token.random(&mut one).unwrap();
        token.random(&mut two).unwrap();
        assert_ne!(one, two);
        token.check().unwrap();
        let status = token.status();
        assert_eq!((status.calls, status.label.as_str()), (3, "ami-test"));
        assert_eq!(status.model, "SoftHSM v2");
    }
}
