//! Two site KEKs in a real token, and a database that says which of them is in use.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
mod site_common;

use std::sync::Arc;

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};
use hsm_common::PIN;
use kms_core::{
    BlockSecret, ClearKey, SealedKek, Verdict,
    site::keks::{Kek, KekStage},
};
use kms_server::{
    hsm::{
        BlockSeals as _, Device as _, SealedKeys as _, SiteKeks as _, TokenError,
        pkcs11::{Canaries, Pkcs11Token, own_canaries},
    },
    keyring::KeksError,
    site_keys::SiteKekRotation,
};
use site_common::*;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

fn secret() -> BlockSecret {
    BlockSecret::fill_with(|bytes| {
        bytes.fill(7);
        Ok::<_, TokenError>(())
    })
    .unwrap()
}

/// What somebody has who holds the user's PIN.
fn session() -> Session {
    let module = Pkcs11::new(hsm_common::MODULE).unwrap();
    let _ = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let ours =
        |slot: &_| module.get_token_info(*slot).is_ok_and(|it| it.label() == hsm_common::LABEL);
    let slot = module.get_slots_with_token().unwrap().into_iter().find(ours).unwrap();
    let session = module.open_rw_session(slot).unwrap();
    match session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned()))) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => session,
        Err(error) => panic!("{error}"),
    }
}

fn labelled(session: &Session, label: &str) -> Vec<ObjectHandle> {
    let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.into())];
    session.find_objects(&template).unwrap()
}

fn word<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::Pkcs11(code, _)) => format!("{code:?}"),
        other => format!("{other:?}"),
    }
}

/// Works on the database as somebody would who can write to it and has no key.
async fn tamper(site: &Site, statement: &'static str) -> u64 {
    let options = SqliteConnectOptions::new().filename(&site.database);
    let mut database = SqliteConnection::connect_with(&options).await.unwrap();
    let done = sqlx::query(statement).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
    done.rows_affected()
}

async fn until(rotation: &SiteKekRotation, stage: KekStage) {
    for _ in 0..40 {
        if rotation.look().await.unwrap().stage == Some(stage) {
            return;
        }
        rotation.step().await.unwrap();
    }
    panic!("{:?}", rotation.look().await);
}

on_a_token! {
    fn a_token_makes_a_second_site_kek_opens_seals_of_either_and_destroys_the_first(home) {
        let token = home.token();
        let first = token.kek_in_use();
        let old = token.seal(b"p", &secret()).unwrap();
        let made = token.make_kek(&[5; 16]).unwrap();
        // Whoever was killed before he heard of it asks again, and gets the same one.
        let again = token.make_kek(&[5; 16]).unwrap();
        assert_eq!((made.id, again.id), ([5; 16], [5; 16]));
        assert_eq!(labelled(&session(), "ami-site-kek").len(), 2);
        // It is nobody's yet.
        assert!(token.seal_under(&[5; 16], b"p", &secret()).is_err());
        token.use_keks(&first, std::slice::from_ref(&made)).unwrap();
        assert_eq!(token.keks_that_open(), [first.id, [5; 16]]);
        let new = token.seal_under(&[5; 16], b"p", &secret()).unwrap();
        for (kek, sealed) in [(&first.id, &old), (&[5; 16], &new)] {
            assert_eq!(token.open_under(kek, b"p", sealed).unwrap().expose_block_secret_bytes(), &[7; 32]);
        }
        // A seal of one does not open under the other one.
        assert!(token.open_under(&first.id, b"p", &new).is_err());
        token.use_keks(&again, std::slice::from_ref(&first)).unwrap();
        assert_eq!(token.status().site_kek_id, [5; 16]);
        assert!(token.open(b"p", &new).is_ok() && token.open_under(&first.id, b"p", &old).is_ok());
        // What is in use is not destroyed, be it as the further one.
        for id in [[5; 16], first.id] {
            assert!(token.destroy_kek(&id).is_err());
        }
        token.use_keks(&again, &[]).unwrap();
        token.destroy_kek(&first.id).unwrap();
        token.destroy_kek(&first.id).unwrap();
        assert_eq!(labelled(&session(), "ami-site-kek").len(), 1);
        token.check().unwrap();
        assert!(token.open(b"p", &new).is_ok());
        assert!(token.use_keks(&first, &[]).is_err());
        assert_eq!(token.keks_that_open(), [[5; 16]]);
        // One that starts takes the first of these that the token has; one that knows the former one alone does not start.
        let both = vec![home.canaries(), Canaries::decode(&again.proof).unwrap()];
        let fresh = Pkcs11Token::connect(home.config(), own_canaries(&home.config(), both).unwrap()).unwrap();
        assert!(fresh.open(b"p", &new).is_ok());
        let Err(refused) = Pkcs11Token::connect(home.config(), home.canaries()) else { panic!() };
        assert!(refused.to_string().contains("the token has 0 keys ami-site-kek"), "{refused}");
    }

    fn a_server_whose_site_kek_was_destroyed_comes_back_with_the_new_one(home) {
        let (one, late) = (home.token(), home.token());
        let first = one.kek_in_use();
        let made = one.make_kek(&[6; 16]).unwrap();
        one.use_keks(&made, &[]).unwrap();
        one.destroy_kek(&first.id).unwrap();
        // It has not heard: its canary fails, its connection is given up, and no other one is to be had.
        assert!(late.check().is_err());
        late.use_keks(&made, &[]).unwrap();
        late.check().unwrap();
        assert_eq!(late.kek_in_use().id, [6; 16]);
    }

    fn a_site_kek_that_its_proof_is_not_of_is_not_used(home) {
        let token = home.token();
        let first = token.kek_in_use();
        let made = token.make_kek(&[5; 16]).unwrap();
        let other = token.make_kek(&[6; 16]).unwrap();
        let garbled = [&made.proof[..100], &other.proof[100..]].concat();
        for bad in [
            Kek { id: [9; 16], ..made.clone() },
            Kek { id: [6; 16], ..made.clone() },
            Kek { id: [5; 16], proof: garbled },
            Kek { id: [5; 16], proof: Vec::new() },
        ] {
            assert!(token.use_keks(&bad, &[]).is_err(), "{bad:?}");
            assert_eq!(token.kek_in_use(), first);
        }
        token.check().unwrap();
    }

    fn a_key_with_the_name_of_the_new_site_kek_that_somebody_else_made_is_not_taken(home) {
        // Somebody with the PIN makes one that he can read.
        let planted = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Label(b"ami-site-kek".to_vec()),
            Attribute::Id(vec![5; 16]),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Value(vec![1; 32]),
        ];
        session().create_object(&planted).unwrap();
        assert!(home.token().make_kek(&[5; 16]).is_err());
    }

    fn invariant_5_a_row_of_site_keks_that_somebody_changed_or_put_back_is_refused_by_name(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let rotation = site.kek_rotation();
            rotation.begin(&call("Site/RotateSiteKek")).await.unwrap();
            until(&rotation, KekStage::Moved).await;
            tamper(&site, "CREATE TABLE kept AS SELECT * FROM site_keks").await;
            until(&rotation, KekStage::Retired).await;
            tamper(&site, "CREATE TABLE newest AS SELECT * FROM site_keks").await;
            let learn = || site.keyring.keks.learn();
            // An older one, in the place of the newer one.
            tamper(&site, "DELETE FROM site_keks").await;
            assert!(matches!(learn().await, Err(KeksError::WentBack { .. })));
            tamper(&site, "INSERT INTO site_keks SELECT * FROM kept").await;
            assert!(matches!(learn().await, Err(KeksError::WentBack { .. })));
            // One that the token did not sign.
            tamper(&site, "UPDATE site_keks SET body = (SELECT body FROM newest)").await;
            assert!(matches!(learn().await, Err(KeksError::Changed)));
            // Meanwhile what is in use stays so, nothing is begun or destroyed, and meters' messages open.
            assert!(rotation.begin(&call("Site/RotateSiteKek")).await.is_err());
            assert!(rotation.destroy(&call("Site/DestroySiteKek"), &home.token().kek_in_use().id).await.is_err());
            assert!(rotation.step().await.is_err());
            assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
            tamper(&site, "UPDATE site_keks SET signature = (SELECT signature FROM newest)").await;
            assert!(learn().await.is_ok());
            until(&rotation, KekStage::Retired).await;
        });
    }

    fn twins_that_vanish_from_the_database_are_made_anew_and_the_former_kek_waits_for_them(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let rotation = site.kek_rotation();
            rotation.begin(&call("Site/RotateSiteKek")).await.unwrap();
            until(&rotation, KekStage::Closed).await;
            let twins = "DELETE FROM block_seals WHERE block = 3 AND kek_id NOT IN (SELECT kek_id FROM closed_keks)";
            assert_eq!(tamper(&site, twins).await, 1);
            until(&rotation, KekStage::Retired).await;
            let fresh = Arc::new(Site::new(home).await);
            fresh.keyring.keks.learn().await.unwrap();
            fresh.keyring.refresher.warm_up().await;
            assert_eq!(fresh.keyring.overview.status().blocks_open, 16);
            assert_eq!(fresh.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        });
    }

    fn a_former_seal_that_is_damaged_keeps_the_former_kek(home) {
        run(async {
            let site = Site::new(home).await;
            site.add(meter(1)).await;
            let rotation = site.kek_rotation();
            rotation.begin(&call("Site/RotateSiteKek")).await.unwrap();
            until(&rotation, KekStage::Closed).await;
            let former = rotation.look().await.unwrap();
            let damage = "UPDATE block_seals SET sealed = zeroblob(61) WHERE block = 3 AND kek_id IN (SELECT kek_id FROM closed_keks)";
            assert_eq!(tamper(&site, damage).await, 1);
            for _ in 0..3 {
                assert!(!rotation.step().await.unwrap());
            }
            let waits = rotation.look().await.unwrap();
            assert_eq!((waits.stage, waits.looked.seals), (Some(KekStage::Closed), former.looked.seals));
            assert_eq!(waits.waiting.len(), 1);
            assert_eq!(labelled(&session(), "ami-site-kek").len(), 2);
        });
    }

    fn by_the_users_pin_alone_no_key_comes_from_under_a_sealed_kek_to_another_one(home) {
        let wrapped = home.token().wrap(SealedKek::Use, &ClearKey::new((1..=16).collect())).unwrap();
        let session = session();
        let [kek] = labelled(&session, "ami-use-kek")[..] else { panic!() };
        let generated = |extractable| {
            let template = [
                Attribute::ValueLen(32.into()),
                Attribute::Token(false),
                Attribute::Sensitive(true),
                Attribute::Extractable(extractable),
                Attribute::Wrap(true),
                Attribute::Unwrap(true),
            ];
            session.generate_key(&Mechanism::AesKeyGen, &template).unwrap()
        };
        let next = generated(false);
        let base = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)];
        // As the KEK's unwrap template has it, but for this.
        let unwrapped = |extractable| {
            let pinned = [
                Attribute::Token(false),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(extractable),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::Sign(false),
                Attribute::Verify(false),
                Attribute::Wrap(false),
                Attribute::Unwrap(false),
                Attribute::Derive(false),
                Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]),
                Attribute::Copyable(false),
                Attribute::Modifiable(false),
            ];
            let template = [&base[..], &pinned].concat();
            session.unwrap_key(&Mechanism::AesKeyWrap, kek, &wrapped, &template)
        };
        // Extractable it does not come out: the KEK's unwrap template denies it.
        let denied = word(unwrapped(true));
        // As it comes out, it goes under no other KEK, and can't be made extractable or copied so.
        let key = unwrapped(false).unwrap();
        let told = session.get_attributes(key, &[AttributeType::Extractable]).unwrap();
        assert_eq!(told, [Attribute::Extractable(false)]);
        let wrap = word(session.wrap_key(&Mechanism::AesKeyWrap, next, key));
        let set = word(session.update_attributes(key, &[Attribute::Extractable(true)]));
        let copy = word(session.copy_object(key, &[Attribute::Extractable(true)]));
        println!("extractable: {denied}; wrapped: {wrap}; made extractable: {set}; copied: {copy}");
        assert_eq!((denied.as_str(), wrap.as_str()), ("TemplateInconsistent", "KeyUnextractable"));
        assert!(!set.starts_with("Ok") && !copy.starts_with("Ok"), "{set} {copy}");
        // Nor does the KEK itself go anywhere but under a key that the officer trusts.
        let kek_goes = word(session.wrap_key(&Mechanism::AesKeyWrap, next, kek));
        assert_eq!(kek_goes, "KeyNotWrappable");
    }
}
