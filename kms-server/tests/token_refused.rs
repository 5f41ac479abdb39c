//! Tokens that lack something: the whole table is told, `init` refuses them, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;

use std::{path::Path, thread::sleep, time::Duration};

use hsm_common::Home;
use kms_server::hsm::{
    Config, Device as _, OaepHash,
    pkcs11::{InitError, Pkcs11Token, ProbeDepth, ProbeReport, init, probe, take_back},
};

/// What a token that lacks something answers: CKR_MECHANISM_INVALID, and to what.
const NO_EC: &str = "C_GenerateKeyPair return=0x70 mechanism=0x1040";
const NO_RSA: &str = "C_GenerateKeyPair return=0x70 mechanism=0x0";
const NO_KEY_WRAP: &str = "C_WrapKey return=0x70 mechanism=0x2109";
const NO_GCM: &str = "C_EncryptInit return=0x70 mechanism=0x1087";
/// The signing key is the third pair of the trial, and the third of those that are made.
const FAILS_AT_THE_LAST_KEY: &str = "C_GenerateKeyPair return=0x30 after=5 times=1";

fn objects(directory: &Path) -> usize {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            if path.is_dir() {
                objects(&path)
            } else {
                usize::from(path.extension().is_some_and(|it| it == "object"))
            }
        })
        .sum()
}

fn failed(report: &ProbeReport) -> Vec<&str> {
    report.verdict().unwrap_err().into_iter().map(|row| row.what.as_str()).collect()
}

fn faulty(home: &Home) -> Pkcs11Token {
    Pkcs11Token::connect(home.faulty(), home.canaries()).unwrap()
}

on_a_blank_token! {
    fn init_refuses_a_token_that_lacks_what_will_be_used_and_leaves_nothing_behind(home) {
        hsm_common::blank_token();
        let before = objects(&home.tokens());
        for (lacks, row) in [
            (NO_EC, "key ami-signing"),
            (NO_RSA, "key ami-transport-block"),
            (NO_KEY_WRAP, "AES key wrap (RFC 3394, 4.1)"),
            (NO_GCM, "AES-GCM, caller's 96-bit nonce"),
        ] {
            home.faults().set(lacks).unwrap();
            let outcome = init(&home.faulty(), None);
            let Err(InitError::Untrusted(why)) = outcome else { panic!("{lacks}: {outcome:?}") };
            assert!(why.contains(row) && why.len() < 1_500, "{lacks}: {why}");
            assert_eq!(objects(&home.tokens()), before, "{lacks}");
        }
        home.faults().clear().unwrap();
        init(&home.faulty(), None).unwrap();
    }

    fn an_oaep_hash_that_the_token_lacks_is_one_sentence_that_names_the_setting(home) {
        hsm_common::blank_token();
        let outcome = init(&Config { oaep_hash: OaepHash::Sha256, ..home.config() }, None);
        let Err(InitError::Untrusted(why)) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains(r#"set hsm.oaep_hash = "sha1""#) && why.len() < 200, "{why}");
        init(&home.config(), None).unwrap();
    }

    fn keys_made_before_init_failed_are_destroyed(home) {
        hsm_common::blank_token();
        let before = objects(&home.tokens());
        home.faults().set(FAILS_AT_THE_LAST_KEY).unwrap();
        let outcome = init(&home.faulty(), None);
        assert!(matches!(outcome, Err(InitError::Token(_))), "{outcome:?}");
        assert_eq!(objects(&home.tokens()), before);
        // The disk, not the token; counted for what comes next.
        home.faults().set("log").unwrap();
        let nowhere = || Config { sync_dir: Some("/nowhere".into()), ..home.faulty() };
        assert!(matches!(init(&nowhere(), None), Err(InitError::Sync { .. })));
        assert_eq!(objects(&home.tokens()), before);
        // Three KEKs, three pairs: nine objects are destroyed in the end. Let the last three stay.
        let destroyed = home.faults().calls().iter().filter(|it| it.starts_with("C_DestroyObject")).count();
        home.faults().set(&format!("C_DestroyObject return=0x30 after={}", destroyed - 3)).unwrap();
        let outcome = init(&nowhere(), None);
        let Err(InitError::LeftBehind { keys, why }) = outcome else { panic!("{outcome:?}") };
        assert!(matches!(*why, InitError::Sync { .. }), "{why:?}");
        assert!(keys.iter().any(|key| key.starts_with("ami-signing (id ")), "{keys:?}");
    }

    fn what_init_made_is_taken_back(home) {
        hsm_common::blank_token();
        let before = objects(&home.tokens());
        let made = init(&home.config(), None).unwrap();
        assert_eq!(objects(&home.tokens()), before + 9);
        take_back(&home.config(), &made).unwrap();
        assert_eq!(objects(&home.tokens()), before);
        init(&home.config(), None).unwrap();
    }

    fn a_token_that_init_made_and_refused_is_taken_up_again(home) {
        home.faults().set(NO_EC).unwrap();
        let outcome = init(&home.faulty(), Some(&Home::so_pin()));
        assert!(matches!(outcome, Err(InitError::Untrusted(_))), "{outcome:?}");
        home.faults().clear().unwrap();
        init(&home.faulty(), Some(&Home::so_pin())).unwrap();
    }

    fn a_token_without_something_is_told_in_a_whole_table(home) {
        hsm_common::blank_token();
        for (lacks, row, still) in [
            (NO_EC, "key ami-signing", "key ami-transport-import"),
            (NO_RSA, "ami-ceremony: made for a trial", "key ami-signing"),
            ("C_GenerateKey return=0x54", "key ami-site-kek", "AES key wrap (RFC 3394, 4.1)"),
        ] {
            home.faults().set(lacks).unwrap();
            let report = probe(&home.faulty(), None, ProbeDepth::Full).unwrap();
            println!("{report}");
            assert!(failed(&report).contains(&row), "{lacks}: {report}");
            assert!(report.rows.iter().any(|it| it.what == still && it.ok), "{lacks}: {report}");
        }
        home.faults().clear().unwrap();
        let before = objects(&home.tokens());
        let report = probe(&home.faulty(), None, ProbeDepth::Full).unwrap();
        assert!(report.verdict().is_ok(), "{report}");
        // As much as after `init`, with keys that are made for it and gone again.
        assert!(report.rows.len() > 550, "{} rows", report.rows.len());
        assert_eq!(objects(&home.tokens()), before);
    }
}

on_a_token! {
    fn a_refusal_in_other_words_is_a_refusal(home) {
        let token = faulty(home);
        // CKR_USER_NOT_LOGGED_IN of who is logged in, CKR_ARGUMENTS_BAD.
        for code in ["0x101", "0x7"] {
            home.faults().set(&format!("C_SetAttributeValue return={code}")).unwrap();
            let report = token.probe(ProbeDepth::Start).unwrap();
            assert!(report.verdict().is_ok(), "{code}: {report}");
        }
        // Breakage is none.
        home.faults().set("C_SetAttributeValue return=0x5").unwrap();
        let report = token.probe(ProbeDepth::Start).unwrap();
        assert!(failed(&report).iter().all(|row| row.contains(": set ") || row.starts_with("set ")), "{report}");
    }

    fn a_token_whose_information_cannot_be_read_is_not_called_missing(home) {
        home.faults().set("C_GetTokenInfo garble=clock").unwrap();
        let Err(error) = Pkcs11Token::connect(home.faulty(), home.canaries()) else { panic!() };
        let told = error.to_string();
        assert!(told.contains("the token in slot ") && told.contains("can't be read"), "{told}");
    }

    fn nothing_is_finalised_that_was_not_initialised(home) {
        home.faults().set("log\nC_Initialize return=0x30 times=1").unwrap();
        assert!(Pkcs11Token::connect(home.faulty(), home.canaries()).is_err());
        // As NSS's library says that it wants parameters of its own.
        home.faults().set("log\nC_Initialize return=0x7 times=1").unwrap();
        let Err(error) = Pkcs11Token::connect(home.faulty(), home.canaries()) else { panic!() };
        assert!(error.to_string().contains("wants parameters of its own"), "{error}");
        let token = faulty(home);
        token.check().unwrap();
        let calls = home.faults().calls();
        assert!(!calls.iter().any(|call| call.starts_with("C_Finalize")), "{calls:?}");
        let began: Vec<_> = calls.iter().filter(|call| call.starts_with("C_Init")).take(3).collect();
        assert_eq!(began, ["C_Initialize 0x30", "C_Initialize 0x7", "C_Initialize 0x0"]);
    }

    fn a_library_whose_server_went_and_came_back_is_taken_up_without_a_restart(home) {
        let token = faulty(home);
        token.check().unwrap();
        // As p11-kit's remoting does it: every call fails, until it is initialised anew; and while there is
        // no server, that works and shows no slot.
        let dead: String = ["OpenSession", "EncryptInit", "DecryptInit", "Decrypt", "UnwrapKey", "FindObjectsInit", "GenerateRandom", "CloseSession", "Login", "CreateObject"]
            .map(|name| format!("C_{name} return=0x30\n"))
            .concat();
        home.faults().set(&format!("log\n{dead}C_GetTokenInfo return=0x30")).unwrap();
        for _ in 0..3 {
            assert!(token.check().is_err());
            sleep(Duration::from_millis(250));
        }
        let calls = home.faults().calls();
        let again = calls.windows(2).any(|two| two == ["C_Finalize 0x0", "C_Initialize 0x0"]);
        assert!(again, "{calls:?}");
        home.faults().clear().unwrap();
        sleep(Duration::from_millis(250));
        token.check().unwrap();
        assert_eq!(token.status().fault, None);
    }
}
