//! A token whose answer is wrong while it makes keys for meters: what it makes then is right, or is not made.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
#[allow(dead_code, unused_imports, unused_macros, reason = "this file uses a part")]
mod hsm_contract;

use std::collections::BTreeMap;

use cryptoki::{
    context::Pkcs11,
    session::{Session, UserType},
    types::AuthPin,
};
use hsm_common::{Home, MODULE, PIN};
use hsm_contract::making::{a_job, all_are_sound};
use hsm_contract::wrapped;
use kms_core::{ClearKey, SealedKek};
use kms_server::hsm::{
    self, Device as _, Made, MakeKeys, MakesKeys as _, NotMade, SealedKeys as _, TokenError,
    pkcs11::Pkcs11Token,
};

/// CKR_DEVICE_ERROR, CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED: what a token says of its own breakage and of
/// forged data alike.
const DOUBTFUL: [&str; 3] = ["0x30", "0x5", "0x6"];
/// What the token is asked for while it makes keys.
const GIVES_BYTES: [&str; 4] = ["C_WrapKey", "C_Sign", "C_Encrypt", "C_Decrypt"];
const GIVES_HANDLES: [&str; 3] = ["C_UnwrapKey", "C_GenerateKey", "C_CreateObject"];

/// One key for each place, the KEKs in turns.
fn a_small_job(token: &Pkcs11Token) -> MakeKeys {
    let whole = a_job(token);
    let keys = [0, 5, 6, 11].map(|at| whole.keys[at]).into();
    MakeKeys { keys, ..whole }
}

fn faulty(home: &Home) -> Pkcs11Token {
    Pkcs11Token::connect(home.faulty(), home.canaries()).unwrap()
}

/// A token under faults, made anew after each that it did not outlive.
struct Scene<'a> {
    home: &'a Home,
    token: Pkcs11Token,
    job: MakeKeys,
}

impl<'a> Scene<'a> {
    fn new(home: &'a Home) -> Self {
        let token = faulty(home);
        let job = a_small_job(&token);
        Self { home, token, job }
    }

    /// How often each function is called while these keys are made.
    fn calls(&self) -> BTreeMap<String, usize> {
        self.home.faults().set("log").unwrap();
        self.token.make_keys(&self.job).unwrap();
        self.home.faults().clear().unwrap();
        let mut calls = BTreeMap::new();
        for line in self.home.faults().calls() {
            *calls.entry(line.split(' ').next().unwrap().to_owned()).or_default() += 1;
        }
        calls
    }

    /// Makes the keys under a fault; whether it made them. Those that it made are sound, and a KEK that opens is
    /// not called one that does not.
    fn makes_under(&mut self, fault: &str) -> bool {
        self.home.faults().set(fault).unwrap();
        let made = self.token.make_keys(&self.job);
        self.home.faults().clear().unwrap();
        match made {
            Ok(made) => {
                assert!(made.iter().all(Result::is_ok), "{fault}: {made:?}");
                all_are_sound(&self.token, &self.job, &made);
                true
            }
            Err(TokenError::Unreachable { .. }) => {
                self.token = faulty(self.home);
                false
            }
            Err(other) => panic!("{fault}: {other:?}"),
        }
    }
}

/// Somebody else in this process, with the same library: sees all objects of all sessions.
fn objects(home: &Home) -> usize {
    let library = Pkcs11::new(MODULE).unwrap();
    let labelled = |slot: &_| {
        library.get_token_info(*slot).is_ok_and(|info| info.label() == home.config().token_label)
    };
    let slot = library.get_slots_with_token().unwrap().into_iter().find(labelled).unwrap();
    let session: Session = library.open_ro_session(slot).unwrap();
    let _ = session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned())));
    session.find_objects(&[]).unwrap().len()
}

fn refused(made: &Made) -> usize {
    made.iter().filter(|made| **made == Err(NotMade::KekRefused)).count()
}

on_a_token! {
    fn one_garbled_answer_makes_no_wrong_key_whichever_it_is(home) {
        let mut scene = Scene::new(home);
        let calls = scene.calls();
        for function in GIVES_BYTES {
            for form in ["flip", "zero", "repeat", "cut"] {
                for after in 0..calls[function] {
                    let fault = format!("{function} garble={form} times=1 after={after}");
                    // Another session does better.
                    assert!(scene.makes_under(&fault) || form == "cut", "{fault}");
                }
            }
        }
        for function in GIVES_HANDLES {
            for form in ["flip", "zero", "repeat"] {
                for after in 0..calls[function] {
                    scene.makes_under(&format!("{function} garble={form} times=1 after={after}"));
                }
            }
        }
        // A handle that is another's, and nothing that tells it when it is destroyed.
        for after in 0..calls["C_UnwrapKey"] {
            let another = format!("C_UnwrapKey garble=repeat times=1 after={after}");
            scene.makes_under(&format!("{another}\nC_DestroyObject return=0x0"));
        }
    }

    fn a_token_that_always_garbles_its_answers_makes_no_key(home) {
        let mut scene = Scene::new(home);
        for function in GIVES_BYTES.into_iter().chain(GIVES_HANDLES) {
            for form in ["flip", "zero", "repeat", "cut"] {
                let fault = format!("{function} garble={form}");
                // Handles have one length, and the length of what was wrapped is asked for beforehand.
                let whole = form == "cut" && !["C_Sign", "C_Encrypt", "C_Decrypt"].contains(&function);
                assert_eq!(scene.makes_under(&fault), whole, "{fault}");
            }
        }
    }

    fn what_is_stored_is_the_key_and_not_another_that_opens_as_well(home) {
        let mut scene = Scene::new(home);
        let other = ClearKey::new(vec![9; 16]);
        let whole = std::mem::take(&mut scene.job.keys);
        for (wanted, blob) in whole.into_iter().zip([
            wrapped(&hsm_contract::making::WRAP_KEYS[1], &[9; 16]),
            scene.token.wrap(SealedKek::Use, &other).unwrap(),
            scene.token.wrap(SealedKek::MeterKek, &other).unwrap(),
        ]) {
            scene.job.keys = vec![wanted];
            // The second that is wrapped.
            let fault = format!("C_WrapKey gives={} after=1", hex::encode(blob));
            assert!(scene.makes_under(&format!("{fault} times=1")), "{fault}");
            assert!(!scene.makes_under(&fault), "{fault}");
        }
    }

    fn a_generator_that_repeats_itself_makes_no_keys(home) {
        let mut scene = Scene::new(home);
        scene.job.keys = vec![scene.job.keys[0]; 2];
        assert!(scene.makes_under(""));
        // What is destroyed stays, and is said to be new.
        let fault = "C_DestroyObject return=0x0\nC_GenerateKey garble=repeat after=1";
        assert!(!scene.makes_under(fault));
    }

    fn one_device_error_makes_no_wrong_key_and_refuses_no_kek(home) {
        let mut scene = Scene::new(home);
        let calls = scene.calls();
        for function in GIVES_BYTES.into_iter().chain(GIVES_HANDLES).chain(["C_SignInit", "C_DestroyObject"]) {
            for code in DOUBTFUL {
                for how in ["return", "answer"] {
                    for after in 0..calls[function] {
                        let fault = format!("{function} {how}={code} times=1 after={after}");
                        // Destroyed, and said to be still there: the second try finds a handle that is none.
                        let unsure = fault.starts_with("C_DestroyObject answer");
                        assert!(scene.makes_under(&fault) || unsure, "{fault}");
                    }
                }
            }
        }
        // A token that always says so is not well: that is no word about the KEKs.
        for code in DOUBTFUL {
            assert!(!scene.makes_under(&format!("C_UnwrapKey return={code}")), "{code}");
        }
    }

    fn whatever_comes_of_it_nothing_that_was_made_stays_in_the_token(home) {
        let token = faulty(home);
        let mut job = a_small_job(&token);
        token.make_keys(&job).unwrap();
        let before = objects(home);
        token.make_keys(&job).unwrap();
        assert_eq!(objects(home), before);
        job.keks[0][5] ^= 1;
        assert_eq!(refused(&token.make_keys(&job).unwrap()), 2);
        assert_eq!(objects(home), before);
        // Done over in another session, then not at all.
        job.keks[0][5] ^= 1;
        for fault in ["C_WrapKey garble=flip times=1 after=6", "C_Sign answer=0x30 times=1 after=9"] {
            home.faults().set(fault).unwrap();
            token.make_keys(&job).unwrap();
            home.faults().clear().unwrap();
            assert_eq!(objects(home), before, "{fault}");
        }
        assert_eq!(token.status().connection_epoch, 1);
    }
}
