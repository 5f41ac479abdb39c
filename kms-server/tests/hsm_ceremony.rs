//! The ceremony between two real tokens of SoftHSM: the sealed KEKs of one come to the other, and to nobody else.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;

use std::{fs, sync::Arc};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::{
        Mechanism, MechanismType,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};
use hsm_common::{Home, PIN};
use kms_core::{BlockSecret, ClearKey, KeyId, SealedKek, enrolment::Fingerprint};
use kms_server::hsm::{
    BlockSeals as _, CeremonyKey, Config, Enrols as _, GcmOpen, HandedKeks, NotTrusted, OaepHash,
    Pin, SealedKeys as _, WrappedKey,
    pkcs11::{
        InitError, JoinKeys, Pkcs11Token, Received, TrustError, can_trust, distrust_peer,
        make_join_keys, receive_keks, sign_as_joining, trust_peer,
    },
};

const JOINING: &str = "ami-joining";

/// The token that joins: a second one in the same directory.
fn joining(home: &Home) -> Config {
    Config { token_label: JOINING.into(), ..home.config() }
}

/// The ceremony key of a request with this fingerprint.
fn ceremony_of(keys: &JoinKeys, request: u8) -> CeremonyKey {
    CeremonyKey::of(&Fingerprint([request; 32]), keys.ceremony.clone(), OaepHash::Sha1)
}

/// A joining token, and the KEKs that the other one wrapped to it.
fn recorded(home: &Home) -> (JoinKeys, HandedKeks) {
    let keys = make_join_keys(&joining(home), Some(&Home::so_pin())).unwrap();
    let ceremony = ceremony_of(&keys, 1);
    assert!(trust_peer(&home.config(), &Home::so_pin(), &ceremony).unwrap());
    let handed = home.token().hand_over_keks(&ceremony).unwrap().unwrap();
    (keys, handed)
}

fn received(home: &Home, keys: &JoinKeys, handed: &HandedKeks) -> Received {
    receive_keks(&joining(home), handed, &keys.ceremony).unwrap()
}

/// What somebody has who holds a user's PIN.
fn intruder(label: &str) -> Session {
    let module = Pkcs11::new(hsm_common::MODULE).unwrap();
    let _ = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let labelled = |slot: &_| module.get_token_info(*slot).is_ok_and(|it| it.label() == label);
    let slot = module.get_slots_with_token().unwrap().into_iter().find(labelled).unwrap();
    let session = module.open_rw_session(slot).unwrap();
    match session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned()))) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => session,
        Err(error) => panic!("{error}"),
    }
}

fn oaep() -> Mechanism<'static> {
    let (hash, mask) = (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1);
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()))
}

fn found(session: &Session, class: ObjectClass, label: &str) -> Vec<ObjectHandle> {
    let template = [Attribute::Class(class), Attribute::Label(label.into())];
    session.find_objects(&template).unwrap()
}

fn one(session: &Session, class: ObjectClass, label: &str) -> ObjectHandle {
    let [handle] = found(session, class, label)[..] else { panic!("{label}") };
    handle
}

/// The Green Book's example of authenticated encryption (suite 0).
const EK: [u8; 16] = 0x0001_0203_0405_0607_0809_0A0B_0C0D_0E0F_u128.to_be_bytes();
const TEXT: [u8; 13] = *b"\xC0\x01\x00\x00\x08\x00\x00\x01\x00\x00\xFF\x02\x00";

fn green_book() -> GcmOpen {
    GcmOpen {
        nonce: *b"MMM\x00\x00\xBC\x61\x4E\x01\x23\x45\x67",
        additional_data: b"\x30\xD0\xD1\xD2\xD3\xD4\xD5\xD6\xD7\xD8\xD9\xDA\xDB\xDC\xDD\xDE\xDF"
            .to_vec()
            .into(),
        ciphertext: b"\x41\x13\x12\xFF\x93\x5A\x47\x56\x68\x27\xC4\x67\xBC".to_vec(),
        tag: Some(*b"\x7D\x82\x5C\x3B\xE4\xA7\x7C\x3F\xCC\x05\x6B\x6B"),
    }
}

fn readable() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

on_a_token! {
    fn the_received_kek_is_the_same_and_a_key_wrapped_at_one_site_opens_an_apdu_at_the_other(home) {
        let (keys, handed) = recorded(home);
        let received = received(home, &keys, &handed);
        assert_eq!(received.keys.len(), 6);
        let (here, there) = (
            home.token(),
            Pkcs11Token::connect(joining(home), received.canaries.clone()).unwrap(),
        );
        let probed = there.probe(kms_server::hsm::pkcs11::ProbeDepth::Start).unwrap();
        assert_eq!(probed.refusal(), None, "a received KEK withstands what one that was made does");
        let wrapped = here.wrap(SealedKek::Use, &ClearKey::new(EK.to_vec())).unwrap();
        let key = WrappedKey { id: KeyId([1; 16]), wrapped };
        assert_eq!(there.open_apdus(&key, &[green_book()]).unwrap(), [Ok(TEXT.to_vec())]);
        let wrapped = there.wrap(SealedKek::Use, &ClearKey::new(EK.to_vec())).unwrap();
        let key = WrappedKey { id: KeyId([2; 16]), wrapped };
        assert_eq!(here.open_apdus(&key, &[green_book()]).unwrap(), [Ok(TEXT.to_vec())]);
        // No site KEK is shared: neither opens what the other sealed.
        let secret = BlockSecret::fill_with(|bytes| { bytes.fill(3); Ok::<(), ()>(()) }).unwrap();
        assert!(there.open(b"p", &here.seal(b"p", &secret).unwrap()).is_err());
        // The ceremony is over: its key is gone.
        let session = intruder(JOINING);
        assert!(found(&session, ObjectClass::PRIVATE_KEY, "ami-ceremony").is_empty());
        assert!(found(&session, ObjectClass::PUBLIC_KEY, "ami-ceremony").is_empty());
    }

    fn a_recorded_bundle_and_the_receivers_pin_do_not_give_the_kek(home) {
        let (keys, handed) = recorded(home);
        let session = intruder(JOINING);
        let ceremony = one(&session, ObjectClass::PRIVATE_KEY, "ami-ceremony");
        for blob in [&handed.meter_kek.wrapped, &handed.use_kek.wrapped] {
            for template in [
                readable(),
                [readable(), vec![Attribute::Wrap(true), Attribute::Unwrap(true)]].concat(),
                [readable(), vec![Attribute::WrapWithTrusted(true)]].concat(),
                vec![Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)],
            ] {
                let unwrapped = session.unwrap_key(&oaep(), ceremony, blob, &template);
                let Err(Error::Pkcs11(code, _)) = unwrapped else { panic!("{template:?}") };
                assert_eq!(code, RvError::TemplateInconsistent, "{template:?}");
            }
            assert!(session.decrypt(&oaep(), ceremony, blob).is_err());
            assert!(session.decrypt(&Mechanism::RsaX509, ceremony, blob).is_err());
            assert!(session.unwrap_key(&Mechanism::RsaPkcs, ceremony, blob, &readable()).is_err());
        }
        for change in [Attribute::Decrypt(true), Attribute::Sensitive(false), Attribute::Modifiable(true)] {
            assert!(session.update_attributes(ceremony, std::slice::from_ref(&change)).is_err(), "{change:?}");
            assert!(session.copy_object(ceremony, std::slice::from_ref(&change)).is_err(), "{change:?}");
        }
        drop(session);
        // The control: taken as it should be, the same blobs are the KEKs.
        received(home, &keys, &handed);
    }

    fn no_key_of_the_users_takes_the_sealed_keks_out_and_none_passes_for_the_officers(home) {
        let keys = make_join_keys(&joining(home), Some(&Home::so_pin())).unwrap();
        let ceremony = ceremony_of(&keys, 1);
        let public = |more: &[Attribute]| {
            let all = [
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::KeyType(KeyType::RSA),
                Attribute::Token(true),
                Attribute::Private(false),
                Attribute::Wrap(true),
                Attribute::Id(ceremony.id.to_vec()),
                Attribute::Label(ceremony.label().into_bytes()),
                Attribute::Modulus(ceremony.key.modulus.clone()),
                Attribute::PublicExponent(ceremony.key.exponent.clone()),
            ];
            [&all[..], more].concat()
        };
        {
            let session = intruder(hsm_common::LABEL);
            assert!(session.create_object(&public(&[Attribute::Trusted(true)])).is_err());
            let own = session.create_object(&public(&[])).unwrap();
            assert!(session.update_attributes(own, &[Attribute::Trusted(true)]).is_err());
            for label in ["ami-meter-kek", "ami-use-kek"] {
                let kek = one(&session, ObjectClass::SECRET_KEY, label);
                let Err(Error::Pkcs11(code, _)) = session.wrap_key(&oaep(), own, kek) else {
                    panic!("{label} came out");
                };
                assert_eq!(code, RvError::KeyNotWrappable, "{label}");
            }
            // It has the right numbers, id and label, and is not trusted.
            assert_eq!(home.token().hand_over_keks(&ceremony).unwrap(), Err(NotTrusted::Another));
        }
        // Nor does the officer's command overlook it.
        let refused = trust_peer(&home.config(), &Home::so_pin(), &ceremony);
        assert!(matches!(refused, Err(TrustError::Taken(NotTrusted::Another))), "{refused:?}");
    }

    fn a_trusted_key_is_held_against_the_request_and_serves_only_it(home) {
        let keys = make_join_keys(&joining(home), Some(&Home::so_pin())).unwrap();
        let ceremony = ceremony_of(&keys, 1);
        assert!(trust_peer(&home.config(), &Home::so_pin(), &ceremony).unwrap());
        assert!(!trust_peer(&home.config(), &Home::so_pin(), &ceremony).unwrap(), "it was done");
        {
            let token = home.token();
            assert!(token.hand_over_keks(&ceremony).unwrap().is_ok());
            let other_request = ceremony_of(&keys, 2);
            assert_eq!(token.hand_over_keks(&other_request).unwrap(), Err(NotTrusted::Missing));
            let mut other_key = ceremony.clone();
            other_key.key = token.transport_block_key().unwrap();
            assert_eq!(token.hand_over_keks(&other_key).unwrap(), Err(NotTrusted::Another));
            // It wraps by OAEP, and does nothing else, for the user either.
            let session = intruder(hsm_common::LABEL);
            let trusted = one(&session, ObjectClass::PUBLIC_KEY, &ceremony.label());
            let kek = one(&session, ObjectClass::SECRET_KEY, "ami-use-kek");
            assert!(session.wrap_key(&Mechanism::RsaPkcs, trusted, kek).is_err());
            assert!(session.encrypt(&oaep(), trusted, &[1; 32]).is_err());
            let change = [Attribute::Encrypt(true)];
            assert!(session.update_attributes(trusted, &change).is_err());
        }
        assert!(distrust_peer(&home.config(), &Home::so_pin(), &ceremony).unwrap());
        assert!(!distrust_peer(&home.config(), &Home::so_pin(), &ceremony).unwrap());
        assert_eq!(home.token().hand_over_keks(&ceremony).unwrap(), Err(NotTrusted::Missing));
    }

    fn a_wrong_officers_pin_is_said_so_and_trusts_nobody(home) {
        can_trust(&home.config(), &Home::so_pin()).unwrap();
        let wrong = can_trust(&home.config(), &Pin::new("00000000".into()));
        assert!(matches!(&wrong, Err(TrustError::Pin(label)) if label == hsm_common::LABEL), "{wrong:?}");
    }

    fn a_token_that_lets_nobody_trust_a_key_is_said_never_to_hand_its_keks_on(home) {
        home.faults().set("C_CreateObject return=0x10\n").unwrap();
        let refused = can_trust(&home.faulty(), &Home::so_pin());
        assert!(matches!(refused, Err(TrustError::Nobody(_))), "{refused:?}");
        assert!(refused.unwrap_err().to_string().contains("can never be handed on"));
        home.faults().clear().unwrap();
        can_trust(&home.faulty(), &Home::so_pin()).unwrap();
    }

    fn a_kek_that_is_not_the_senders_is_found_out_by_its_canary_and_destroyed(home) {
        let (keys, handed) = recorded(home);
        // OAEP is not authentic: whoever has the public key can wrap a KEK of his own to it.
        let own = BlockSecret::fill_with(|bytes| { bytes.fill(9); Ok::<(), ()>(()) }).unwrap();
        let forged = keys.ceremony.wrap_secret(OaepHash::Sha1, &own).unwrap();
        for of_meters in [true, false] {
            let mut bad = handed.clone();
            let kek = if of_meters { &mut bad.meter_kek } else { &mut bad.use_kek };
            kek.wrapped.clone_from(&forged);
            let refused = receive_keks(&joining(home), &bad, &keys.ceremony);
            let Err(InitError::Token(why)) = refused else { panic!("{refused:?}") };
            assert!(why.contains("canary"), "{why}");
        }
        let mut bad = handed.clone();
        bad.use_kek.wrapped[100] ^= 1;
        let refused = receive_keks(&joining(home), &bad, &keys.ceremony);
        let Err(InitError::Token(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("ami-use-kek of the bundle does not open"), "{why}");
        bad = handed.clone();
        bad.canaries.truncate(99);
        assert!(receive_keks(&joining(home), &bad, &keys.ceremony).is_err());
        let session = intruder(JOINING);
        for label in ["ami-meter-kek", "ami-use-kek"] {
            assert!(found(&session, ObjectClass::SECRET_KEY, label).is_empty(), "{label}");
        }
        drop(session);
        received(home, &keys, &handed);
        // They are there and proved: what another bundle says of them destroys nothing.
        assert!(receive_keks(&joining(home), &bad, &keys.ceremony).is_err());
        let session = intruder(JOINING);
        for label in ["ami-meter-kek", "ami-use-kek"] {
            assert_eq!(found(&session, ObjectClass::SECRET_KEY, label).len(), 1, "{label}");
        }
    }

    fn a_ceremony_that_was_interrupted_goes_on_and_one_that_is_over_does_not_begin_again(home) {
        let so_pin = Home::so_pin();
        let (keys, handed) = recorded(home);
        // The first half once more: the same keys.
        let again = make_join_keys(&joining(home), Some(&so_pin)).unwrap();
        assert_eq!((again.signing, &again.ceremony, &again.keys), (keys.signing, &keys.ceremony, &keys.keys));
        // One key less, as if the process had been killed between two.
        let session = intruder(JOINING);
        session.destroy_object(one(&session, ObjectClass::PRIVATE_KEY, "ami-transport-import")).unwrap();
        session.destroy_object(one(&session, ObjectClass::PUBLIC_KEY, "ami-transport-import")).unwrap();
        drop(session);
        let again = make_join_keys(&joining(home), None).unwrap();
        assert_eq!((again.signing, &again.ceremony), (keys.signing, &keys.ceremony));
        assert_ne!(again.keys, keys.keys);
        let first = received(home, &keys, &handed);
        // Interrupted after the KEKs came, before the database was founded: the ceremony key is gone by then.
        let second = received(home, &keys, &handed);
        let names = |received: &Received| received.keys.clone();
        assert_eq!(names(&first), names(&second));
        // A token that has sealed KEKs joins nobody.
        let refused = make_join_keys(&joining(home), None);
        assert!(matches!(refused, Err(InitError::KeysExist(_))), "{refused:?}");
        // A replay after the KEKs were lost: nothing opens it any more.
        let session = intruder(JOINING);
        for label in ["ami-meter-kek", "ami-use-kek"] {
            session.destroy_object(one(&session, ObjectClass::SECRET_KEY, label)).unwrap();
        }
        drop(session);
        let refused = receive_keks(&joining(home), &handed, &keys.ceremony);
        let Err(InitError::Token(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("the ceremony is over"), "{why}");
    }

    fn a_ceremony_key_that_somebody_planted_with_another_template_is_found_out(home) {
        let keys = make_join_keys(&joining(home), Some(&Home::so_pin())).unwrap();
        drop(keys);
        {
            let session = intruder(JOINING);
            for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
                session.destroy_object(one(&session, class, "ami-ceremony")).unwrap();
            }
            plant_ceremony_key(&session);
        }
        let refused = make_join_keys(&joining(home), None).unwrap_err();
        assert!(matches!(refused, InitError::Untrusted(_)), "{refused}");
        assert!(refused.to_string().contains("ami-ceremony"), "{refused}");
    }

    fn a_joining_site_signs_before_it_is_founded(home) {
        let keys = make_join_keys(&joining(home), Some(&Home::so_pin())).unwrap();
        let signature = sign_as_joining(&joining(home), b"a request").unwrap();
        assert!(kms_core::audit::is_signed(&keys.signing, b"a request", &signature));
        assert!(!kms_core::audit::is_signed(&keys.signing, b"another", &signature));
    }

    fn a_key_under_a_sealed_kek_comes_under_a_new_one_with_the_officers_help_and_not_without(home) {
        rotate(home);
    }
}

/// How sealed KEKs can be rotated: what they unwrap is not extractable (their template says so), so the KEK itself
/// is wrapped to a ceremony key of its own token, which the officer trusts, and comes back as a session object with
/// another template. Under that, a key comes out extractable, and goes under the new KEK. It is in clear nowhere.
fn rotate(home: &Home) {
    let old = {
        let token = home.token();
        token.wrap(SealedKek::Use, &ClearKey::new(EK.to_vec())).unwrap()
    };
    let made = kms_server::hsm::pkcs11::make_ceremony_key(&home.config()).unwrap();
    assert_eq!(made.label, "ami-ceremony");
    let (ceremony, new_kek) = {
        let session = intruder(hsm_common::LABEL);
        let private = one(&session, ObjectClass::PRIVATE_KEY, "ami-ceremony");
        let types = [AttributeType::Modulus, AttributeType::PublicExponent];
        let read = session.get_attributes(private, &types).unwrap();
        let [Attribute::Modulus(modulus), Attribute::PublicExponent(exponent)] = &read[..] else {
            panic!("{read:?}");
        };
        let key = kms_server::hsm::RsaKey { modulus: modulus.clone(), exponent: exponent.clone() };
        let new_kek = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)];
        let ceremony = CeremonyKey { id: [0x20; 16], key, oaep: OaepHash::Sha1 };
        (ceremony, new_kek)
    };
    let kek_type = Mechanism::AesKeyGen;
    // Without the officer: under the KEK as it stands a key comes out extractable by no template.
    {
        let session = intruder(hsm_common::LABEL);
        let kek = one(&session, ObjectClass::SECRET_KEY, "ami-use-kek");
        let opened = session.unwrap_key(&Mechanism::AesKeyWrap, kek, &old, &readable());
        assert!(opened.is_err());
        assert_eq!(home.token().hand_over_keks(&ceremony).unwrap(), Err(NotTrusted::Missing));
    }
    assert!(trust_peer(&home.config(), &Home::so_pin(), &ceremony).unwrap());
    let token = Arc::new(home.token());
    let handed = token.hand_over_keks(&ceremony).unwrap().unwrap();
    let session = intruder(hsm_common::LABEL);
    let private = one(&session, ObjectClass::PRIVATE_KEY, "ami-ceremony");
    let kek = [
        new_kek.to_vec(),
        vec![
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
            Attribute::Encrypt(false),
            Attribute::Decrypt(false),
            Attribute::Sign(false),
            Attribute::Verify(false),
            Attribute::Wrap(true),
            Attribute::Unwrap(true),
            Attribute::Derive(false),
            Attribute::AllowedMechanisms(vec![MechanismType::AES_KEY_WRAP]),
            Attribute::Copyable(false),
            Attribute::WrapWithTrusted(true),
            Attribute::Label(b"ami-use-kek-of-old".to_vec()),
            Attribute::Modifiable(false),
        ],
    ]
    .concat();
    let migrating = session.unwrap_key(&oaep(), private, &handed.use_kek.wrapped, &kek).unwrap();
    let sensitive = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
    ];
    let key = session.unwrap_key(&Mechanism::AesKeyWrap, migrating, &old, &sensitive).unwrap();
    let next = session
        .generate_key(
            &kek_type,
            &[
                Attribute::ValueLen(32.into()),
                Attribute::Token(false),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Wrap(true),
                Attribute::Unwrap(true),
            ],
        )
        .unwrap();
    let under_next = session.wrap_key(&Mechanism::AesKeyWrap, next, key).unwrap();
    assert_ne!(under_next, old);
    session.destroy_object(key).unwrap();
    // The same key: it opens the published example under the new KEK.
    let guek = [&sensitive[..], &[Attribute::Decrypt(true)]].concat();
    let key = session.unwrap_key(&Mechanism::AesKeyWrap, next, &under_next, &guek).unwrap();
    let GcmOpen { mut nonce, additional_data, ciphertext, tag } = green_book();
    let parameters =
        cryptoki::mechanism::aead::GcmParams::new(&mut nonce, &additional_data, 96.into()).unwrap();
    let sealed = [&ciphertext[..], &tag.unwrap()].concat();
    assert_eq!(session.decrypt(&Mechanism::AesGcm(parameters), key, &sealed).unwrap(), TEXT);
    session.destroy_object(migrating).unwrap();
    fs::metadata(home.tokens()).unwrap();
}

/// A ceremony key whose attributes read as ours do, and whose unwrap template, of the same length, has every KEK come
/// out readable.
fn plant_ceremony_key(session: &Session) {
    let (yes, no) = (&[1u8][..], &[0u8][..]);
    let word = |value: u64| value.to_ne_bytes().to_vec();
    let (class, aes, key_wrap) = (word(4), word(0x1F), word(0x2109));
    // Class, key type, token, private, sensitive, extractable, the seven uses, allowed mechanisms, copyable, wrap with
    // trusted, modifiable (PKCS #11, Attribute types).
    let pinned: [(u64, &[u8]); 17] = [
        (0x000, &class),
        (0x100, &aes),
        (0x001, no),
        (0x002, yes),
        (0x103, no),
        (0x162, yes),
        (0x104, no),
        (0x105, no),
        (0x108, no),
        (0x10A, no),
        (0x106, yes),
        (0x107, yes),
        (0x10C, no),
        (0x4000_0600, &key_wrap),
        (0x171, no),
        (0x210, no),
        (0x170, no),
    ];
    let entry = |(of, value): &(u64, &[u8])| {
        [word(*of), word(value.as_ptr() as u64), word(value.len() as u64)].concat()
    };
    let nested: Vec<u8> = pinned.iter().flat_map(entry).collect();
    let public = [
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Label(b"ami-ceremony".to_vec()),
        Attribute::Id(vec![7; 16]),
        Attribute::ModulusBits(3072.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::VerifyRecover(false),
        Attribute::Wrap(false),
        Attribute::Derive(false),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
    ];
    let private = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Label(b"ami-ceremony".to_vec()),
        Attribute::Id(vec![7; 16]),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::SignRecover(false),
        Attribute::Unwrap(true),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS_OAEP]),
        Attribute::VendorDefined((AttributeType::VendorDefined(0x4000_0212), nested)),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
    ];
    session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private).unwrap();
}
