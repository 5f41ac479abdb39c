//! The token against a real SoftHSM: the contract of every token, and what is SoftHSM's own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
#[macro_use]
mod hsm_contract;

use std::sync::atomic::{AtomicBool, Ordering};

use kms_core::BlockSecret;
use kms_server::hsm::{
    self, BlockSeals as _, Device as _, Signs as _,
    pkcs11::{InitError, init, make_ceremony_key},
};

macro_rules! on_softhsm {
    ($($case:ident)*) => {
        on_a_token! {$(
            fn $case(home) {
                hsm_contract::$case(&home.token());
            }
        )*}
    };
}

contract!(on_softhsm);

fn secret(byte: u8) -> BlockSecret {
    BlockSecret::fill_with(|bytes| {
        bytes.fill(byte);
        Ok::<(), ()>(())
    })
    .unwrap()
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
