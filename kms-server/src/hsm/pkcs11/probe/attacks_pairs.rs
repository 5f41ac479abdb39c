//! The attacks on our key pairs.

use cryptoki::{
    error::{Error, RvError},
    mechanism::{
        Mechanism,
        elliptic_curve::{EcKdf, Ecdh1DeriveParams},
    },
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};

use super::{
    abilities::try_oaep,
    attacks::{Attacks, PublicHalf, Target},
    free_key::{free, own_key},
    table::Strict,
};
use crate::hsm::pkcs11::{
    calls::oaep,
    failure::Failure,
    keys::{
        finding::find,
        template::{self, Kept, OurKey, Usage},
    },
};

const READABLE: &str = "whoever recorded what was sent could read it";
const USE: &str = "a pair used for something else gives away what it guards";
/// The ephemeral key of an import file.
const IMPORT_KEY: [u8; 32] = [0x1D; 32];

impl Attacks<'_> {
    /// Attacks one of our pairs; KEKs are none.
    pub(crate) fn pair(&mut self, session: &Session, target: Target) -> Result<(), Failure> {
        match target.key {
            OurKey::TransportBlock => {
                let public = PublicHalf::read(self.subject.library, session, target)?;
                let own = public.own(session)?;
                try_oaep(self.table, session, self.subject.config, own, target.handle);
                session.destroy_object(own)?;
                self.rsa(target, &public);
            }
            OurKey::TransportImport | OurKey::Ceremony => {
                let public = PublicHalf::read(self.subject.library, session, target)?;
                self.rsa(target, &public);
                self.receiver(target, &public);
            }
            OurKey::Signing => self.signing(session, target)?,
            OurKey::SiteKek | OurKey::MeterKek | OurKey::UseKek => return Ok(()),
        }
        self.attack_in_place(target);
        Ok(())
    }

    /// A ceremony key is made and attacked. It lives in its session only, so one that belongs to a
    /// ceremony stays as it is.
    pub(crate) fn ceremony(&mut self, session: &Session) -> Result<(), Failure> {
        let target = self.trial(session, OurKey::Ceremony)?;
        self.pair(session, target)
    }

    /// The ceremony key that is on the token, if there is one: an attempt before may have made it, and so may
    /// somebody who had the PIN. The values of its unwrap template can't be read, so it is attacked, too.
    pub(crate) fn ceremony_there(&mut self, session: &Session) -> Result<(), Failure> {
        let key = OurKey::Ceremony;
        for handle in find(self.subject.library, session, key, None)? {
            template::verify(session, handle, key, Kept::OnToken)?;
            self.pair(session, Target { key, handle, kept: Kept::OnToken })?;
        }
        Ok(())
    }

    /// Foreign uses of an RSA private key.
    fn rsa(&mut self, target: Target, public: &PublicHalf) {
        let Target { key, handle, .. } = target;
        let name = key.label();
        let hash = self.subject.config.oaep_hash;
        let sealed = |session: &Session, mechanism: &Mechanism<'_>| {
            let own = public.own(session)?;
            session.encrypt(mechanism, own, &IMPORT_KEY).map_err(Failure::from)
        };
        let mut decrypts = vec![("PKCS #1 v1.5", Mechanism::RsaPkcs)];
        if !key.usages().contains(&Usage::Decrypt) {
            decrypts.push(("OAEP", oaep::mechanism(hash)));
        }
        for (how, mechanism) in decrypts {
            self.attack(format!("{name}: C_Decrypt, {how}"), READABLE, Strict::Rule, |session| {
                Ok(session.decrypt(&mechanism, handle, &sealed(session, &mechanism)?))
            });
        }
        self.attack(format!("{name}: C_Decrypt, raw RSA"), READABLE, Strict::Rule, |session| {
            let message = sealed(session, &oaep::mechanism(hash))?;
            Ok(session.decrypt(&Mechanism::RsaX509, handle, &message))
        });
        let mut unwraps = vec![("PKCS #1 v1.5", Mechanism::RsaPkcs)];
        if !key.usages().contains(&Usage::Unwrap) {
            unwraps.push(("OAEP", oaep::mechanism(hash)));
        }
        for (how, mechanism) in unwraps {
            self.attack(format!("{name}: C_UnwrapKey, {how}"), READABLE, Strict::Rule, |session| {
                let message = sealed(session, &mechanism)?;
                let template = key.unwraps().unwrap_or_else(|| free(KeyType::AES));
                Ok(session.unwrap_key(&mechanism, handle, &message, &template))
            });
        }
        self.attack(format!("{name}: C_Sign"), USE, Strict::Rule, |session| {
            Ok(session.sign(&Mechanism::RsaPkcs, handle, &IMPORT_KEY))
        });
    }

    /// Attacks on what is sent to a pair that may only unwrap.
    fn receiver(&mut self, target: Target, public: &PublicHalf) {
        let Target { key, handle, .. } = target;
        let name = key.label();
        let hash = self.subject.config.oaep_hash;
        let rightful = key.unwraps().unwrap_or_default();
        let unwrap = |session: &Session, template: &[Attribute]| -> Result<_, Failure> {
            let own = public.own(session)?;
            let message =
                session.wrap_key(&oaep::mechanism(hash), own, own_key(session, &IMPORT_KEY)?)?;
            Ok(session.unwrap_key(&oaep::mechanism(hash), handle, &message, template))
        };
        self.control(format!("{name}: unwrap as demanded"), |session| {
            let received = unwrap(session, &rightful)?;
            Ok(session.destroy_object(received?)?)
        });
        self.loose_templates(name, &rightful, unwrap);
        // A key that comes out of an import may do what the file's key is for, and nothing else. One that comes
        // out of a ceremony is a sealed KEK: attacked where it is one.
        if key == OurKey::TransportImport {
            let received = |session: &Session| Ok(unwrap(session, &rightful)??);
            let name = format!("received by {name}");
            self.foreign_uses(&name, &[Usage::Unwrap], OurKey::MeterKek.mechanism(), received);
            self.later_changes(&name, ObjectClass::SECRET_KEY, &[Usage::Unwrap], false, received);
        }
        self.inner_template(name, |session| Ok(unwrap(session, &rightful)??));
    }

    /// A template can't demand a template of what *its* keys unwrap.
    fn inner_template(
        &mut self,
        name: &str,
        received: impl FnOnce(&Session) -> Result<ObjectHandle, Failure>,
    ) {
        let outcome = self.session().and_then(|session| {
            let own = own_key(&session, &IMPORT_KEY)?;
            let key = own_key(&session, &[9; 16])?;
            let blob = session.wrap_key(&Mechanism::AesKeyWrap, own, key)?;
            let received = received(&session)?;
            let template = free(KeyType::AES);
            let inner = session.unwrap_key(&Mechanism::AesKeyWrap, received, &blob, &template);
            session.destroy_object(received)?;
            Ok(inner?)
        });
        self.table.limit(
            &format!("{name}: unwrap readable what a received key wraps"),
            "PKCS #11 has no nested unwrap templates",
            "whoever has both the PIN and the recorded file or bundle can read its keys",
            match outcome {
                Ok(_) => "possible".to_owned(),
                Err(failure) => format!("refused, {}", failure.reason()),
            },
        );
    }

    fn signing(&mut self, session: &Session, target: Target) -> Result<(), Failure> {
        let Target { key, handle, .. } = target;
        let name = key.label();
        let public = PublicHalf::find(self.subject.library, session, target)?;
        self.control(format!("{name}: sign and verify, ECDSA"), |session| {
            let signature = session.sign(&Mechanism::Ecdsa, handle, &IMPORT_KEY)?;
            session.verify(&Mechanism::Ecdsa, public, &IMPORT_KEY, &signature)?;
            match session.verify(&Mechanism::Ecdsa, public, &[0x1E; 32], &signature) {
                Err(Error::Pkcs11(RvError::SignatureInvalid, _)) => Ok(()),
                _ => Err(Failure::Broken("another message verifies too".to_owned())),
            }
        });
        let point = session.get_attributes(public, &[AttributeType::EcPoint])?;
        let Some(Attribute::EcPoint(point)) = point.first() else {
            return Err(Failure::Broken(format!("{name}: its point can't be read")));
        };
        self.attack(format!("{name}: derive, ECDH"), USE, Strict::Rule, |session| {
            let with = Ecdh1DeriveParams::new(EcKdf::null(), point);
            Ok(session.derive_key(
                &Mechanism::Ecdh1Derive(with),
                handle,
                &free(KeyType::GENERIC_SECRET),
            ))
        });
        Ok(())
    }
}
