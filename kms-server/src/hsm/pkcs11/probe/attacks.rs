//! The attacks of somebody who holds the user PIN, on the keys that `init` made. Each must be refused.
//!
//! Each runs in a session of its own, which takes with it whatever the attack made or left open. Beside
//! each group stands its control: the same thing done rightly, which must work.

use cryptoki::{
    error::{Error, RvError},
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, SessionState},
};

use super::{
    deeds::{Deed, changes, read_value, variations},
    free_key::{free, own_key},
    report::HANDING_ON,
    subject::{ProbeDepth, Subject},
    table::{Strict, Table},
};
use crate::hsm::pkcs11::{
    calls::{
        gcm::{Gcm, NONCE_LEN, Tag},
        oaep,
    },
    connection::{library::Library, lock::read},
    failure::{Failure, ckr},
    keys::{
        finding::find,
        making,
        template::{self, Birth, Kept, OurKey, Usage},
    },
};
use kms_core::SealedKek;

const USE: &str = "a key used for something else gives away what it guards";
const CHANGE: &str = "a key that can be changed or copied gains any use later";
const LOOSE: &str = "an unwrapped key that is less guarded than its KEK demands is a way out";
const OUT: &str = "a key that leaves the token is no longer the token's";

/// A run of all attacks.
pub(crate) struct Attacks<'a> {
    pub(crate) subject: Subject<'a>,
    pub(crate) table: &'a mut Table,
}

/// A key under attack.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) key: OurKey,
    pub(crate) handle: ObjectHandle,
    pub(crate) kept: Kept,
}

/// A token may say "not logged in" of what only its officer may do (`Quirk::OtherRefusals`): a refusal, as
/// long as the user still is logged in.
fn answered<T>(session: &Session, outcome: Result<T, Error>) -> Result<Result<T, Error>, Failure> {
    if let Err(Error::Pkcs11(RvError::UserNotLoggedIn, _)) = &outcome {
        let state = session.get_session_info()?.session_state();
        if !matches!(state, SessionState::RwUser | SessionState::RoUser) {
            return Err(Failure::Broken("the user is no longer logged in".to_owned()));
        }
    }
    Ok(outcome)
}

impl<'a> Attacks<'a> {
    pub(crate) fn new(subject: Subject<'a>, table: &'a mut Table) -> Self {
        Self { subject, table }
    }

    /// Attacks every key of ours. What can't be done is a row that failed, and the rest goes on.
    pub(crate) fn run(&mut self, session: &Session, depth: ProbeDepth) {
        let targets = self.targets(session);
        let of = |key| targets.iter().copied().find(|target| target.key == key);
        self.own_key_can_do_it_all();
        self.own_key_is_not_trusted();
        self.handing_on();
        if let Some(site) = of(OurKey::SiteKek) {
            self.site_kek(site);
        }
        if let (Some(meter), Some(uses)) = (of(OurKey::MeterKek), of(OurKey::UseKek)) {
            self.sealed_kek(meter, SealedKek::MeterKek, uses);
            self.sealed_kek(uses, SealedKek::Use, meter);
            for (target, other) in [(meter, uses), (uses, meter)] {
                let done = self.take_out(session, target, other, &targets);
                self.done(target.key, "what could take it out", done);
            }
        }
        self.new_keys();
        self.block_keys();
        for target in &targets {
            let done = self.pair(session, *target);
            self.done(target.key, "its public half", done);
        }
        if depth == ProbeDepth::Full {
            let done = self.ceremony(session);
            self.done(OurKey::Ceremony, "made for a trial", done);
            let done = self.ceremony_there(session);
            self.done(OurKey::Ceremony, "on the token", done);
        }
    }

    /// A step that could not be carried out is told as what must work and does not.
    fn done(&mut self, key: OurKey, what: &str, outcome: Result<(), Failure>) {
        if outcome.is_err() {
            self.table.control(format!("{}: {what}", key.label()), outcome);
        }
    }

    /// Our keys, each with a row that says whether it is as it was made. Before `init` there are none:
    /// then they are made as `init` would, in this session only.
    fn targets(&mut self, session: &Session) -> Vec<Target> {
        let mut targets = Vec::new();
        for key in OurKey::PERMANENT {
            let name = self.subject.canaries.and_then(|canaries| canaries.name_of(key));
            let found = find(self.subject.library, session, key, name.as_ref());
            let (target, told) = match found.as_deref() {
                Ok([]) if self.subject.canaries.is_none() => {
                    (self.trial(session, key), "made for a trial, as `init` would make it")
                }
                Ok([handle]) => {
                    let target = Target { key, handle: *handle, kept: Kept::OnToken };
                    let birth = self.subject.canaries.map(|canaries| canaries.birth_of(key));
                    let born = (target.kept, birth.unwrap_or(Birth::Here));
                    let sound = template::verify_born(session, *handle, key, born);
                    (sound.map(|()| target), "as it was made")
                }
                Ok(other) => {
                    let reason = format!("{} of them on the token", other.len());
                    (Err(Failure::Broken(reason)), "")
                }
                Err(failure) => (Err(Failure::Broken(failure.reason())), ""),
            };
            let sound = target.map(|target| {
                targets.push(target);
                told.to_owned()
            });
            self.table.ability(
                &format!("key {}", key.label()),
                "its attributes, read back, are what guards it",
                true,
                sound,
                ["attacked below", "not attacked"],
            );
        }
        targets
    }

    /// A key as `init` makes it, that dies with this session.
    pub(crate) fn trial(&self, session: &Session, key: OurKey) -> Result<Target, Failure> {
        let name = making::new_name(self.subject.library, session)?;
        let (handle, _) = making::make(self.subject.library, session, key, &name, Kept::ForTrial)?;
        Ok(Target { key, handle, kept: Kept::ForTrial })
    }

    /// In a session of its own.
    pub(crate) fn session(&self) -> Result<Session, Failure> {
        Ok(self.subject.library.pkcs11().open_rw_session(self.subject.slot)?)
    }

    pub(crate) fn control<T>(
        &mut self,
        what: String,
        act: impl FnOnce(&Session) -> Result<T, Failure>,
    ) {
        let outcome = self.session().and_then(|session| act(&session));
        self.table.control(what, outcome);
    }

    pub(crate) fn attack<T>(
        &mut self,
        what: String,
        why: &str,
        strict: Strict,
        act: impl FnOnce(&Session) -> Result<Result<T, Error>, Failure>,
    ) {
        let tried = self.session().and_then(|session| answered(&session, act(&session)?));
        self.table.attack(what, why, strict, tried);
    }

    fn own_key_can_do_it_all(&mut self) {
        for deed in Deed::ALL {
            self.control_deed(deed);
        }
    }

    /// A token that can't do it with a free key refuses it to ours as well: no control is needed then.
    fn control_deed(&mut self, deed: Deed) {
        let outcome = self.session().and_then(|session| {
            let own = own_key(&session, &[7; 16])?;
            Ok(deed.attempt(&session, own))
        });
        let told = match outcome {
            Ok(Ok(())) => "works".to_owned(),
            // The data that it was given was no good, but it was taken up.
            Ok(Err(error)) => match Failure::from(error) {
                Failure::Data(e) | Failure::Doubtful(e) => format!("taken up, {}", ckr(&e)),
                other => format!("not on this token, {}", other.reason()),
            },
            Err(failure) => failure.reason(),
        };
        let why = "what no key may do here is refused to ours as well";
        self.table.told(format!("a free key: {deed:?}"), why, told);
    }

    fn own_key_is_not_trusted(&mut self) {
        let why = "a trusted key takes the sealed KEKs out";
        self.attack("make an own trusted key".into(), why, Strict::Rule, |session| {
            let mut template = free(KeyType::AES);
            template.extend([
                Attribute::Private(false),
                Attribute::Wrap(true),
                Attribute::Trusted(true),
                Attribute::Value(vec![7; 32]),
            ]);
            Ok(session.create_object(&template))
        });
        self.attack("set Trusted(true) on an own key".into(), why, Strict::Rule, |session| {
            let own = own_key(session, &[7; 32])?;
            Ok(session.update_attributes(own, &[Attribute::Trusted(true)]))
        });
    }

    /// Whether the officer can, `Quirk::NobodyTrusts`, is not to be found out with the user's PIN.
    fn handing_on(&mut self) {
        self.table.limit(
            HANDING_ON,
            "the security officer has to make that site's key a trusted one (CKA_TRUSTED)",
            "where nobody can, a site on this token can join another one, and none can ever join it",
            "not to be tried with the user's PIN: `kms-server trust-peer --try --so-pin-file FILE` tries it"
                .to_owned(),
        );
    }

    fn site_kek(&mut self, site: Target) {
        self.control(format!("{}: AES-GCM there and back", site.key.label()), |session| {
            let gcm = Gcm { nonce: &[0; NONCE_LEN], additional: b"probe", tag: Tag::Full };
            let sealed = gcm.encrypt(session, site.handle, b"x")?;
            gcm.decrypt(session, site.handle, &sealed)
        });
        self.attack_in_place(site);
    }

    fn sealed_kek(&mut self, target: Target, kek: SealedKek, other: Target) {
        let name = target.key.label();
        let rightful = template::unwrapped(kek);
        let unwrap = |session: &Session, template: &[Attribute]| -> Result<_, Failure> {
            let blob = blob_under(session, target.handle)?;
            Ok(session.unwrap_key(&Mechanism::AesKeyWrap, target.handle, &blob, template))
        };
        self.control(format!("{name}: wrap and unwrap as demanded"), |session| {
            unwrap(session, &rightful)?.map_err(Failure::from)
        });
        self.loose_templates(name, &rightful, unwrap);
        let what = format!("{name}: unwrap what {} wrapped", other.key.label());
        self.attack(what, LOOSE, Strict::Maths, |session| {
            let blob = blob_under(session, other.handle)?;
            Ok(session.unwrap_key(&Mechanism::AesKeyWrap, target.handle, &blob, &rightful))
        });
        let (usages, mechanism): (&[Usage], _) = match kek {
            SealedKek::MeterKek => (&[Usage::Wrap], target.key.mechanism()),
            SealedKek::Use => (&[Usage::Encrypt, Usage::Decrypt], OurKey::SiteKek.mechanism()),
        };
        let unwrapped = |session: &Session| unwrap(session, &rightful)?.map_err(Failure::from);
        let name = format!("unwrapped under {name}");
        self.foreign_uses(&name, usages, mechanism, unwrapped);
        self.later_changes(&name, ObjectClass::SECRET_KEY, usages, false, unwrapped);
        self.attack(format!("{name}: read its value"), OUT, Strict::Rule, |session| {
            Ok(read_value(session, unwrapped(session)?, target.key))
        });
        self.out_under_own_key(&name, unwrapped);
        self.attack_in_place(target);
    }

    /// Foreign uses, changes and reading of a token key.
    pub(crate) fn attack_in_place(&mut self, target: Target) {
        let Target { key, handle, .. } = target;
        let name = key.label();
        if key.class() == ObjectClass::SECRET_KEY {
            self.foreign_uses(name, key.usages(), key.mechanism(), |_| Ok(handle));
        }
        self.later_changes(name, key.class(), key.usages(), key.migrates(), |_| Ok(handle));
        self.attack(format!("{name}: read its value"), OUT, Strict::Rule, |session| {
            Ok(read_value(session, handle, key))
        });
        self.out_under_own_key(name, |_| Ok(handle));
    }

    /// Every template but the rightful one is refused, or what it leaves open turns out as demanded.
    pub(crate) fn loose_templates(
        &mut self,
        name: &str,
        rightful: &[Attribute],
        unwrap: impl Fn(&Session, &[Attribute]) -> Result<Result<ObjectHandle, Error>, Failure>,
    ) {
        for (variation, template) in variations(rightful) {
            let tried = self.session().and_then(|session| match unwrap(&session, &template)? {
                Ok(key) => {
                    let same = is_as(&session, key, rightful);
                    let _ = session.destroy_object(key);
                    Ok(Ok(same?))
                }
                Err(refusal) => answered(&session, Err(refusal)),
            });
            let what = format!("{name}: unwrap, {variation}");
            self.table.attack_unless(what, LOOSE, Strict::Rule, tried);
        }
    }

    pub(crate) fn foreign_uses(
        &mut self,
        name: &str,
        usages: &[Usage],
        mechanism: cryptoki::mechanism::MechanismType,
        key: impl Fn(&Session) -> Result<ObjectHandle, Failure>,
    ) {
        for deed in Deed::ALL {
            if !deed.is_rightful(usages, mechanism) {
                self.attack(format!("{name}: {deed:?}"), USE, Strict::Rule, |session| {
                    Ok(deed.attempt(session, key(session)?))
                });
            }
        }
    }

    /// Only on keys whose attributes read back right: a change that succeeded would be there to stay.
    pub(crate) fn later_changes(
        &mut self,
        name: &str,
        class: ObjectClass,
        usages: &[Usage],
        migrates: bool,
        key: impl Fn(&Session) -> Result<ObjectHandle, Failure>,
    ) {
        for (change, attribute) in changes(class, usages, migrates) {
            let wanted = [attribute];
            self.attack(format!("{name}: set {change}"), CHANGE, Strict::Rule, |session| {
                Ok(session.update_attributes(key(session)?, &wanted))
            });
            let wanted = [Attribute::Token(false), wanted[0].clone()];
            self.attack(format!("{name}: copy with {change}"), CHANGE, Strict::Rule, |session| {
                Ok(session.copy_object(key(session)?, &wanted))
            });
        }
        self.attack(format!("{name}: copy"), CHANGE, Strict::Rule, |session| {
            Ok(session.copy_object(key(session)?, &[Attribute::Token(false)]))
        });
    }

    fn out_under_own_key(
        &mut self,
        name: &str,
        key: impl Fn(&Session) -> Result<ObjectHandle, Failure>,
    ) {
        for (how, mechanism) in
            [("AES-KW", Mechanism::AesKeyWrap), ("AES-KWP", Mechanism::AesKeyWrapPad)]
        {
            let what = format!("{name}: take it out under an own AES key, {how}");
            self.attack(what, OUT, Strict::Rule, |session| {
                let own = own_key(session, &[7; 32])?;
                Ok(session.wrap_key(&mechanism, own, key(session)?))
            });
        }
    }

    /// A sealed KEK may leave, but only under a key that the security officer trusted.
    fn take_out(
        &mut self,
        session: &Session,
        target: Target,
        other: Target,
        targets: &[Target],
    ) -> Result<(), Failure> {
        let name = target.key.label();
        for (whose, under) in [("itself", target), (other.key.label(), other)] {
            let what = format!("{name}: take it out under {whose}");
            self.attack(what, OUT, Strict::Rule, |session| {
                Ok(session.wrap_key(&Mechanism::AesKeyWrap, under.handle, target.handle))
            });
        }
        let Some(pair) = targets.iter().find(|target| target.key.key_type() == KeyType::RSA) else {
            return Ok(());
        };
        let public = PublicHalf::read(self.subject.library, session, *pair)?;
        let hash = self.subject.config.oaep_hash;
        self.control("a free key comes out under an own RSA key".into(), |session| {
            let own = public.own(session)?;
            Ok(session.wrap_key(&oaep::mechanism(hash), own, own_key(session, &[7; 32])?)?)
        });
        for (how, mechanism) in
            [("OAEP", oaep::mechanism(hash)), ("PKCS #1 v1.5", Mechanism::RsaPkcs)]
        {
            let what = format!("{name}: take it out under an own RSA key, {how}");
            self.attack(what, OUT, Strict::Rule, |session| {
                let own = public.own(session)?;
                Ok(session.wrap_key(&mechanism, own, target.handle))
            });
        }
        Ok(())
    }
}

/// The public half of one of our pairs, as anybody can read it.
pub(crate) struct PublicHalf {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl PublicHalf {
    pub(crate) fn read(
        library: &Library,
        session: &Session,
        target: Target,
    ) -> Result<Self, Failure> {
        let key = target.key;
        let handle = Self::find(library, session, target)?;
        let types = [AttributeType::Modulus, AttributeType::PublicExponent];
        match session.get_attributes(handle, &types)?.as_slice() {
            [Attribute::Modulus(modulus), Attribute::PublicExponent(exponent)] => {
                Ok(Self { modulus: modulus.clone(), exponent: exponent.clone() })
            }
            _ => Err(Failure::Broken(format!("{}: its public half can't be read", key.label()))),
        }
    }

    pub(crate) fn find(
        library: &Library,
        session: &Session,
        Target { key, kept, .. }: Target,
    ) -> Result<ObjectHandle, Failure> {
        let _quiet = read(&library.objects);
        let template = [
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            kept.attribute(),
            Attribute::Label(key.label().into()),
        ];
        let found = session.find_objects(&template)?;
        let missing = || Failure::Broken(format!("{}: it has no public half", key.label()));
        found.first().copied().ok_or_else(missing)
    }

    /// A session copy that may encrypt and wrap.
    pub(crate) fn own(&self, session: &Session) -> Result<ObjectHandle, Error> {
        session.create_object(&[
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Token(false),
            Attribute::Private(false),
            Attribute::Encrypt(true),
            Attribute::Wrap(true),
            Attribute::Modulus(self.modulus.clone()),
            Attribute::PublicExponent(self.exponent.clone()),
        ])
    }
}

/// A free key's blob under `kek`.
fn blob_under(session: &Session, kek: ObjectHandle) -> Result<Vec<u8>, Error> {
    let key = own_key(session, &[9; 16])?;
    session.wrap_key(&Mechanism::AesKeyWrap, kek, key)
}

/// Whether an object has these attributes.
fn is_as(session: &Session, key: ObjectHandle, template: &[Attribute]) -> Result<bool, Error> {
    let types: Vec<AttributeType> = template.iter().map(Attribute::attribute_type).collect();
    let read = session.get_attributes(key, &types)?;
    Ok(template.iter().all(|wanted| read.contains(wanted)))
}
