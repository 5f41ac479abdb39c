//! The module that tests put between the service and its token does what it is told, and else nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;

use std::{thread, time::Duration};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use hsm_common::{Home, PIN};

/// The token, through the module, with the crate alone.
struct Through {
    module: Pkcs11,
    slot: Slot,
    session: Session,
    key: ObjectHandle,
}

fn through(home: &Home) -> Through {
    let module = Pkcs11::new(home.faulty().module).unwrap();
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let slot = module.get_slots_with_initialized_token().unwrap()[0];
    let session = module.open_rw_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned()))).unwrap();
    let key = session
        .create_object(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
            Attribute::Sign(true),
            Attribute::Value(vec![7; 16]),
        ])
        .unwrap();
    Through { module, slot, session, key }
}

impl Through {
    fn mac(&self) -> Result<Vec<u8>, Error> {
        self.session.sign(&Mechanism::AesCMac, self.key, b"text")
    }
}

fn code<T: std::fmt::Debug>(outcome: Result<T, Error>) -> RvError {
    match outcome {
        Err(Error::Pkcs11(code, _)) => code,
        other => panic!("{other:?}"),
    }
}

on_a_token! {
    fn without_a_rule_everything_is_passed_on(home) {
        let through = through(home);
        let mac = through.mac().unwrap();
        assert_eq!(mac.len(), 16);
        assert_eq!(through.mac().unwrap(), mac);
        let info = through.module.get_token_info(through.slot).unwrap();
        assert_eq!(info.label(), hsm_common::LABEL);
    }

    fn a_code_is_returned_at_the_call_that_is_named_and_as_often(home) {
        let through = through(home);
        home.faults().set("C_SignInit return=0x30 after=1 times=2").unwrap();
        through.mac().unwrap();
        assert_eq!(code(through.mac()), RvError::DeviceError);
        assert_eq!(code(through.mac()), RvError::DeviceError);
        through.mac().unwrap();
        // Another file, and the count begins anew; then none.
        home.faults().set("C_SignInit return=0x31").unwrap();
        assert_eq!(code(through.mac()), RvError::DeviceMemory);
        home.faults().clear().unwrap();
        through.mac().unwrap();
    }

    fn a_rule_for_a_mechanism_leaves_the_others_alone(home) {
        let through = through(home);
        // CKM_AES_GCM, then CKM_AES_CMAC.
        home.faults().set("C_SignInit return=0x30 mechanism=0x1087").unwrap();
        through.mac().unwrap();
        home.faults().set("C_SignInit return=0x30 mechanism=0x108a").unwrap();
        assert_eq!(code(through.mac()), RvError::DeviceError);
    }

    fn what_a_call_gives_is_changed_in_each_form(home) {
        let through = through(home);
        let mac = through.mac().unwrap();
        let mut flipped = mac.clone();
        flipped[8] ^= 1;
        for (form, wanted) in [
            ("flip", flipped),
            ("zero", vec![0; 16]),
            ("cut", mac[..15].to_vec()),
        ] {
            home.faults().set(&format!("C_Sign garble={form} times=1")).unwrap();
            assert_eq!(through.mac().unwrap(), wanted, "{form}");
            assert_eq!(through.mac().unwrap(), mac, "once");
        }
        let first = through.session.generate_random_vec(16).unwrap();
        assert_ne!(through.session.generate_random_vec(16).unwrap(), first);
        let last = through.session.generate_random_vec(16).unwrap();
        home.faults().set("C_GenerateRandom garble=repeat").unwrap();
        assert_eq!(through.session.generate_random_vec(16).unwrap(), last);
        home.faults().set("C_GetTokenInfo garble=clock").unwrap();
        assert!(through.module.get_token_info(through.slot).is_err());
    }

    fn a_call_can_be_made_and_its_answer_changed(home) {
        let through = through(home);
        home.faults().set("C_Sign answer=0x30 times=1").unwrap();
        assert_eq!(code(through.mac()), RvError::DeviceError);
        // It was made: the session is well.
        through.mac().unwrap();
        // Not made: the operation is still open in it.
        home.faults().set("C_Sign return=0x30 times=1").unwrap();
        assert_eq!(code(through.mac()), RvError::DeviceError);
        assert_eq!(code(through.mac()), RvError::OperationActive);
    }

    fn a_call_waits_and_a_call_that_hangs_is_let_go(home) {
        let through = through(home);
        let begun = std::time::Instant::now();
        home.faults().set("C_Sign delay_ms=200 times=1").unwrap();
        through.mac().unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(200));
        home.faults().set("C_Sign hang").unwrap();
        let hanging = thread::spawn(move || through.mac().unwrap());
        thread::sleep(Duration::from_millis(300));
        assert!(!hanging.is_finished());
        home.faults().clear().unwrap();
        hanging.join().unwrap();
    }

    fn calls_are_written_down_with_what_they_answered(home) {
        let through = through(home);
        home.faults().set("log\nC_Sign answer=0x30 times=1").unwrap();
        let _ = through.mac();
        assert_eq!(home.faults().calls(), ["C_SignInit 0x0", "C_Sign 0x30"]);
    }

    fn the_process_ends_where_a_rule_says_so(home) {
        let through = through(home);
        home.faults().set("C_Sign exit=0").unwrap();
        // What the parent looks for, said by this process before it ends in the middle of the test.
        println!("1 passed");
        let _ = through.mac();
        std::process::exit(1);
    }

    fn a_rule_that_is_none_is_refused_where_it_is_written(home) {
        let refused = home.faults().set("C_Sign garbel=flip").unwrap_err().to_string();
        assert!(refused.contains("garbel"), "{refused}");
    }
}
