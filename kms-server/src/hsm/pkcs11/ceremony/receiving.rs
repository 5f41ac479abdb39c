//! The sealed KEKs come to the token of a site that joins: C_UnwrapKey under the ceremony key, whose template
//! demands all that guards them, into token objects like those that `init` makes. They are proved by the canaries
//! that came with them before anything is done with them; then the ceremony key is destroyed.

use cryptoki::{
    object::{Attribute, ObjectClass, ObjectHandle},
    session::Session,
};

use super::joining::name_of;
use crate::hsm::{
    Config, HandedKek, HandedKeks, RsaKey,
    pkcs11::{
        calls::{
            enrolling::{numbers_of, one_pair},
            oaep,
        },
        connection::{
            library::{Library, step},
            lock::{read, write},
        },
        failure::Failure,
        init::{InitError, destroy, sync},
        keys::{
            canary::{Canaries, Keks},
            finding::find,
            making::{MadeKey, report},
            template::{self, Birth, Flat, Kept, Nested, OurKey},
        },
    },
};

/// The keys of a site whose sealed KEKs have come.
#[derive(Clone, Debug)]
pub struct Received {
    /// CKA label of the token.
    pub token_label: String,
    /// Every key.
    pub keys: Vec<MadeKey>,
    /// The canaries for the domain record.
    pub canaries: Canaries,
}

/// Takes both sealed KEKs over, proves them, and destroys the ceremony key. `ceremony` is the one that the request
/// named. An attempt that was interrupted goes on: what is there and passes its canary is taken as it is. If the
/// proof fails, both are destroyed.
pub fn receive_keks(
    config: &Config,
    handed: &HandedKeks,
    ceremony: &RsaKey,
) -> Result<Received, InitError> {
    config.check()?;
    let library = Library::load(&config.module)?;
    library.start()?;
    let _gate = library.enter();
    let session = library.pkcs11().open_rw_session(library.slot(&config.token_label)?)?;
    library.login(&session, config)?;
    let receiving = Receiving { library: &library, session: &session, config };
    let (canaries, keks) = receiving.take_both(handed, ceremony)?;
    receiving.end_ceremony()?;
    let mut keys = vec![
        report(&session, keks.site, OurKey::SiteKek)?,
        report(&session, keks.meter_kek, OurKey::MeterKek)?,
        report(&session, keks.use_kek, OurKey::UseKek)?,
    ];
    for key in [OurKey::TransportBlock, OurKey::TransportImport, OurKey::Signing] {
        keys.push(report(&session, one_pair(&library, &session, key)?, key)?);
    }
    Ok(Received { token_label: config.token_label.clone(), keys, canaries })
}

struct Receiving<'a> {
    library: &'a Library,
    session: &'a Session,
    config: &'a Config,
}

impl Receiving<'_> {
    fn take_both(
        &self,
        handed: &HandedKeks,
        ceremony: &RsaKey,
    ) -> Result<(Canaries, Keks), InitError> {
        let Self { library, session, config } = self;
        let HandedKeks { meter_kek, use_kek, canaries } = handed;
        let site = one_pair(library, session, OurKey::SiteKek)?;
        let names = [name_of(session, site)?, meter_kek.id, use_kek.id];
        let taken = self
            .take(OurKey::MeterKek, meter_kek, ceremony)
            .and_then(|meter| Ok((meter, self.take(OurKey::UseKek, use_kek, ceremony)?)));
        let proved = taken.and_then(|(meter_kek, use_kek)| {
            sync(config)?;
            let keks = Keks { site, meter_kek, use_kek };
            Ok((Canaries::receive(library, session, &keks, names, canaries)?, keks))
        });
        if let Err(InitError::KeysExist(_) | InitError::Sync { .. }) = &proved {
            return proved;
        }
        proved.map_err(|error| self.take_back(handed, error))
    }

    /// One of them, unless it is there.
    fn take(
        &self,
        key: OurKey,
        handed: &HandedKek,
        ceremony: &RsaKey,
    ) -> Result<ObjectHandle, InitError> {
        let Self { library, session, .. } = self;
        let handle = match find(library, session, key, None)?.as_slice() {
            [] => self.unwrap(key, handed, ceremony)?,
            [there] if name_of(session, *there)? == handed.id => *there,
            _ => return Err(InitError::KeysExist(vec![key.label().to_owned()])),
        };
        template::verify_born(session, handle, key, (Kept::OnToken, Birth::Received))?;
        Ok(handle)
    }

    fn unwrap(
        &self,
        key: OurKey,
        handed: &HandedKek,
        ceremony: &RsaKey,
    ) -> Result<ObjectHandle, InitError> {
        let Self { library, session, config } = self;
        let no_ceremony = || {
            InitError::Token(
                "the token has no ceremony key for this bundle: the ceremony is over, or was never begun here. \
                 Begin with `kms-server init --join --request`, and have that request enrolled"
                    .to_owned(),
            )
        };
        let with = match find(library, session, OurKey::Ceremony, None)?.as_slice() {
            [] => return Err(no_ceremony()),
            _ => one_pair(library, session, OurKey::Ceremony)?,
        };
        if numbers_of(session, with)? != *ceremony {
            return Err(no_ceremony());
        }
        let inner = key.unwraps().map(|template| Flat::new(&template)).transpose()?;
        let nested = inner.as_ref().map(Nested::unwrap_template);
        let template = template::receive_kek(key, &handed.id, nested.as_ref());
        let mechanism = oaep::mechanism(config.oaep_hash);
        // Nobody looks for objects meanwhile: `Quirk::CreateMeetsFind`.
        let alone = write(&library.objects);
        let unwrapped = session.unwrap_key(&mechanism, with, &handed.wrapped, &template);
        drop(alone);
        step();
        unwrapped.map_err(|error| {
            let reason = Failure::from(error).reason();
            InitError::Token(format!(
                "{} of the bundle does not open under this token's ceremony key ({reason})",
                key.label()
            ))
        })
    }

    /// Destroys what was taken over: it is not what the sender says.
    fn take_back(&self, handed: &HandedKeks, error: InitError) -> InitError {
        let Self { library, session, config } = self;
        let both = [(OurKey::MeterKek, &handed.meter_kek), (OurKey::UseKek, &handed.use_kek)];
        let left: Vec<String> = both
            .iter()
            .filter(|(key, kek)| destroy(library, session, *key, &kek.id).is_err())
            .map(|(key, kek)| format!("{} (id {})", key.label(), hex::encode(kek.id)))
            .collect();
        if !left.is_empty() {
            return InitError::LeftBehind { keys: left, why: error.into() };
        }
        sync(config).err().unwrap_or(error)
    }

    /// Both halves of the ceremony key, if they are there yet.
    fn end_ceremony(&self) -> Result<(), InitError> {
        let Self { library, session, config } = self;
        let label = Attribute::Label(OurKey::Ceremony.label().into());
        for class in [ObjectClass::PRIVATE_KEY, ObjectClass::PUBLIC_KEY] {
            let template = [Attribute::Class(class), Attribute::Token(true), label.clone()];
            let found = {
                let _quiet = read(&library.objects);
                session.find_objects(&template)?
            };
            for object in found {
                let _alone = write(&library.objects);
                session.destroy_object(object)?;
            }
        }
        sync(config)
    }
}
