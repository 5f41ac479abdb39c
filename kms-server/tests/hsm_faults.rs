//! Faults of the token against a real SoftHSM: what goes away, comes back, or is not what it was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;

use std::{fs, sync::Arc, thread::sleep, time::Duration};

use cryptoki::{
    context::Pkcs11,
    object::{Attribute, AttributeType, ObjectClass},
    session::{Session, UserType},
    types::AuthPin,
};
use hsm_common::{Home, MODULE, PIN};
use kms_core::{BlockSecret, ClearKey, KeyId, SealedKek};
use kms_server::hsm::{
    BlockSeals as _, Config, Device as _, GcmOpen, Hsm, Pin, SealedKeys as _, TokenError,
    WrappedKey,
    pkcs11::{Canaries, InitError, Pkcs11Token, ProbeDepth, init, make_ceremony_key, probe},
};

/// Longer than the pause between two attempts to reconnect.
const PAUSE: Duration = Duration::from_millis(250);

fn secret() -> BlockSecret {
    BlockSecret::fill_with(|bytes| {
        bytes.fill(7);
        Ok::<(), ()>(())
    })
    .unwrap()
}

fn unfit<T>(outcome: Result<T, TokenError>) -> String {
    match outcome.map(|_| ()) {
        Err(TokenError::Unfit { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

fn unreachable<T>(outcome: Result<T, TokenError>) -> String {
    match outcome {
        Err(TokenError::Unreachable { reason }) => reason,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it worked"),
    }
}

fn opens(token: &Pkcs11Token, sealed: &[u8]) -> bool {
    token.open(b"p", sealed).is_ok_and(|s| s.expose_block_secret_bytes() == &[7; 32])
}

/// Somebody else in this process, with the same library: call it while it is initialised.
fn intruder() -> Session {
    let library = Pkcs11::new(MODULE).unwrap();
    let slot = library.get_slots_with_initialized_token().unwrap()[0];
    let session = library.open_rw_session(slot).unwrap();
    let _ = session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned())));
    session
}

on_a_token! {
    fn a_token_that_was_read_by_half_is_read_again(home) {
        let connect = || Pkcs11Token::connect(home.faulty(), home.canaries());
        for code in ["0x102", "0x5"] {
            home.faults().set(&format!("C_Login return={code} times=3")).unwrap();
            assert_eq!(connect().unwrap().status().fault, None, "{code}");
            home.faults().set(&format!("C_Login return={code} times=3")).unwrap();
            assert!(probe(&home.faulty(), Some(&home.canaries()), ProbeDepth::Start).is_ok(), "{code}");
            home.faults().set(&format!("C_Login return={code}")).unwrap();
            let reason = unreachable(connect());
            assert!(reason.starts_with("C_Login: CKR_"), "{reason}");
            home.faults().clear().unwrap();
        }
        // How often the library asks for one answer is its own; each of these comes somewhere in between.
        for times in [1, 3, 4, 5, 8, 9, 12] {
            for after in 0..3 {
                let rule = format!("C_GetTokenInfo return=0x5 after={after} times={times}");
                home.faults().set(&rule).unwrap();
                assert_eq!(connect().unwrap().status().fault, None, "{rule}");
                home.faults().set(&rule).unwrap();
                assert!(probe(&home.faulty(), Some(&home.canaries()), ProbeDepth::Start).is_ok(), "{rule}");
            }
        }
        home.faults().clear().unwrap();
    }

    fn a_token_directory_that_goes_and_comes_back_is_used_again_in_a_new_epoch(home) {
        let token = home.token();
        let sealed = token.seal(b"p", &secret()).unwrap();
        let wrapped = token.wrap(SealedKek::Use, &ClearKey::new(vec![9; 16])).unwrap();
        let key = WrappedKey { id: KeyId([1; 16]), wrapped };
        token.open_apdus(&key, &[]).unwrap();
        let aside = home.tokens().with_extension("aside");
        fs::rename(home.tokens(), &aside).unwrap();

        unreachable(token.open(b"p", &sealed));
        unreachable(token.open(b"p", &sealed));
        unreachable(token.check());
        sleep(PAUSE);
        let reason = unreachable(token.check());
        assert!(reason.contains("C_Initialize"), "{reason}");
        assert_eq!(token.status().fault, Some(reason));

        fs::rename(&aside, home.tokens()).unwrap();
        sleep(PAUSE);
        assert!(opens(&token, &sealed));
        token.open_apdus(&key, &[]).unwrap();
        token.check().unwrap();
        let status = token.status();
        assert!(status.connection_epoch > 1);
        assert_eq!(status.fault, None);
    }

    fn a_wrapped_key_is_not_called_forged_because_the_token_is_gone(home) {
        let token = home.token();
        let wrapped = token.wrap(SealedKek::Use, &ClearKey::new(vec![9; 16])).unwrap();
        fs::rename(home.tokens(), home.tokens().with_extension("aside")).unwrap();
        unreachable(token.open_apdus(&WrappedKey { id: KeyId([1; 16]), wrapped }, &[]));
    }

    fn handles_of_an_epoch_that_another_token_ended_are_not_used(home) {
        let (one, other) = (home.token(), home.token());
        let sealed = one.seal(b"p", &secret()).unwrap();
        let wrapped = other.wrap(SealedKek::Use, &ClearKey::new(vec![9; 16])).unwrap();
        let key = WrappedKey { id: KeyId([1; 16]), wrapped };
        other.open_apdus(&key, &[]).unwrap();
        // `one` finds the library finalised and begins a new epoch; `other` has old handles.
        Pkcs11::new(MODULE).unwrap().finalize().unwrap();
        unreachable(one.open(b"p", &sealed));
        assert!(opens(&one, &sealed));
        for _ in 0..3 {
            assert!(opens(&other, &sealed));
            other.open_apdus(&key, &[]).unwrap();
            assert!(opens(&one, &sealed));
        }
        assert_eq!(one.status().connection_epoch, 2);
        assert_eq!(other.status().connection_epoch, 2);
        drop(one);
        assert!(opens(&other, &sealed));
    }

    fn many_callers_share_one_reconnection(home) {
        let token = home.token();
        let sealed = token.seal(b"p", &secret()).unwrap();
        Pkcs11::new(MODULE).unwrap().finalize().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| while !opens(&token, &sealed) {
                    sleep(Duration::from_millis(5));
                });
            }
        });
        assert_eq!(token.status().connection_epoch, 2);
    }

    fn a_logged_out_user_is_logged_in_again(home) {
        let token = home.token();
        let sealed = token.seal(b"p", &secret()).unwrap();
        intruder().logout().unwrap();
        unreachable(token.open(b"p", &sealed));
        assert!(opens(&token, &sealed));
    }

    fn a_pin_that_was_refused_is_never_tried_again(home) {
        let wrong = Config { pin: Pin::new("000000".into()), ..home.config() };
        let reason = unfit(Pkcs11Token::connect(wrong, home.canaries()));
        assert!(reason.contains("refused the user PIN"), "{reason}");
        // Even the right one is not: that shows that the token was not asked.
        for _ in 0..2 {
            let reason = unfit(Pkcs11Token::connect(home.config(), home.canaries()));
            assert!(reason.contains("not tried again"), "{reason}");
        }
    }

    fn canaries_of_other_keys_are_refused_and_name_the_kek(home) {
        let bytes = home.canaries().encode();
        // An id that no key has, then a proof that another KEK made.
        for (at, name) in [(5, "ami-site-kek"), (113, "ami-meter-kek"), (177, "ami-use-kek")] {
            for (at, told) in [(at, "0 keys"), (at + 16 + 12, "canary")] {
                let mut other = bytes.clone();
                other[at] ^= 1;
                let canaries = Canaries::decode(&other).unwrap();
                let connected = Pkcs11Token::connect(home.config(), canaries);
                // SoftHSM says the same of another key and of a dead disk, so there a second start is
                // worth a try.
                let reason = if told == "canary" && !matches!(connected, Err(TokenError::Unfit { .. })) {
                    unreachable(connected)
                } else {
                    unfit(connected)
                };
                assert!(reason.contains(name) && reason.contains(told), "{at}: {reason}");
            }
        }
        home.token().check().unwrap();
    }

    fn a_second_key_with_the_name_and_id_of_a_kek_is_refused_by_name(home) {
        drop(home.token());
        let session = intruder();
        let label = Attribute::Label(b"ami-use-kek".to_vec());
        let kek = session.find_objects(std::slice::from_ref(&label)).unwrap()[0];
        let id = session.get_attributes(kek, &[AttributeType::Id]).unwrap().remove(0);
        session
            .create_object(&[
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(cryptoki::object::KeyType::AES),
                Attribute::Token(true),
                Attribute::Value(vec![7; 32]),
                label,
                id,
            ])
            .unwrap();
        let reason = unfit(Pkcs11Token::connect(home.config(), home.canaries()));
        assert!(reason.contains("2 keys ami-use-kek"), "{reason}");
    }

    fn a_kek_that_went_is_a_fault_of_the_device_and_names_the_kek(home) {
        let token = home.token();
        let sealed = token.seal(b"p", &secret()).unwrap();
        let session = intruder();
        let label = Attribute::Label(b"ami-site-kek".to_vec());
        let kek = session.find_objects(&[label]).unwrap()[0];
        session.destroy_object(kek).unwrap();
        drop(session);
        unreachable(token.open(b"p", &sealed));
        let reason = unreachable(token.open(b"p", &sealed));
        assert!(reason.contains("0 keys ami-site-kek"), "{reason}");
    }

    fn a_ceremony_key_is_made_once(home) {
        let made = make_ceremony_key(&home.config()).unwrap();
        assert_eq!(made.label, "ami-ceremony");
        assert_eq!(made.fingerprint.map(|hex| hex.len()), Some(64));
        let again = make_ceremony_key(&home.config());
        assert!(matches!(again, Err(InitError::KeysExist(_))), "{again:?}");
    }

    fn a_token_that_another_process_locks_times_out_at_the_door_and_comes_back(home) {
        const TEST: &str = "a_token_that_another_process_locks_times_out_at_the_door_and_comes_back";
        let token = home.token();
        let sealed = token.seal(b"p", &secret()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let hsm = Hsm::new(Arc::new(token), 2, PAUSE, 2 * PAUSE);
        let mut other = hsm_common::lock_token(TEST, home);
        runtime.block_on(async {
            for _ in 0..2 {
                let outcome = hsm.open(b"p".to_vec(), sealed.clone()).await;
                assert!(matches!(outcome, Err(TokenError::TimedOut { .. })), "{outcome:?}");
            }
            let outcome = hsm.open(b"p".to_vec(), sealed.clone()).await;
            assert!(matches!(outcome, Err(TokenError::Busy)), "{outcome:?}");
            assert_eq!(hsm.status().connection_epoch, 1);
        });
        other.wait().unwrap();
        runtime.block_on(async {
            sleep(PAUSE);
            assert!(hsm.open(b"p".to_vec(), sealed).await.is_ok());
            assert!(hsm.check().await.is_ok());
        });
        assert_eq!(hsm.status().connection_epoch, 1, "slow is not broken");
    }

    fn every_call_goes_through_the_door(home) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let hsm = Hsm::new(Arc::new(home.token()), 4, Duration::from_secs(5), Duration::from_secs(5));
        runtime.block_on(async {
            hsm.check().await.unwrap();
            let (_, sealed) = hsm.seal(b"p".to_vec(), secret()).await.unwrap();
            hsm.open(b"p".to_vec(), sealed).await.unwrap();
            let key = ClearKey::new(vec![9; 16]);
            let wrapped = hsm.wrap(SealedKek::Use, key).await.unwrap();
            let key = WrappedKey { id: KeyId([1; 16]), wrapped };
            let forged = GcmOpen {
                nonce: [0; 12],
                additional_data: Vec::new().into(),
                ciphertext: Vec::new(),
                tag: Some([0; 12]),
            };
            assert!(hsm.open_apdus(key, vec![forged]).await.unwrap()[0].is_err());
            assert_eq!(hsm.random(16).await.unwrap().len(), 16);
        });
        let status = hsm.status();
        assert_eq!((status.connection_epoch, status.fault), (1, None));
    }
}

on_a_blank_token! {
    fn init_makes_a_token_of_a_blank_one_and_says_the_fingerprints(home) {
        let begun = std::time::Instant::now();
        let report = init(&home.config(), Some(&Home::so_pin())).unwrap();
        println!("init: {:?}", begun.elapsed());
        let labels: Vec<_> = report.keys.iter().map(|key| key.label.as_str()).collect();
        assert_eq!(labels, [
            "ami-site-kek", "ami-meter-kek", "ami-use-kek",
            "ami-transport-block", "ami-transport-import", "ami-signing",
        ]);
        for key in &report.keys {
            assert_eq!(key.id.len(), 32);
            assert_eq!(key.fingerprint.is_some(), !key.label.ends_with("kek"), "{}", key.label);
        }
        let token = Pkcs11Token::connect(home.config(), report.canaries).unwrap();
        token.check().unwrap();
    }

    fn init_without_a_token_and_without_a_so_pin_is_refused(home) {
        let outcome = init(&home.config(), None);
        assert!(matches!(outcome, Err(InitError::Token(_))), "{outcome:?}");
    }

    fn init_whose_keys_cannot_be_synced_says_so(home) {
        let config = Config { sync_dir: Some("/nowhere".into()), ..home.config() };
        let outcome = init(&config, Some(&Home::so_pin()));
        assert!(matches!(outcome, Err(InitError::Sync { .. })), "{outcome:?}");
    }

    fn a_kek_with_an_open_template_is_refused_by_the_probe_and_by_the_server(home) {
        hsm_common::blank_token();
        let report = probe(&home.config(), None, ProbeDepth::Start).unwrap();
        assert!(report.verdict().is_ok());
        let session = intruder();
        session
            .generate_key(&cryptoki::mechanism::Mechanism::AesKeyGen, &[
                Attribute::Token(true),
                Attribute::Sensitive(true),
                Attribute::ValueLen(32.into()),
                Attribute::Label(b"ami-use-kek".to_vec()),
            ])
            .unwrap();
        let report = probe(&home.config(), None, ProbeDepth::Start).unwrap();
        let failed = report.verdict().unwrap_err();
        assert!(failed.iter().any(|row| row.what == "key ami-use-kek"), "{failed:?}");
    }
}
