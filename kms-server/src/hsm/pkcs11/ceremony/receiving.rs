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
        init::{InitError, sync, undo},
        keys::{
            canary::{Canaries, Keks, KeyName},
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
/// token says that the proof fails, what this attempt has made is destroyed; after an error of the token, which says
/// nothing of the keys, all stays for the next attempt.
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
        let mut made = Vec::new();
        self.take_and_prove(handed, ceremony, &mut made).map_err(|error| match error {
            NotTaken::Disproved(error) => self.take_back(&made, error),
            NotTaken::Unsaid(error) => error,
        })
    }

    fn take_and_prove(
        &self,
        handed: &HandedKeks,
        ceremony: &RsaKey,
        made: &mut Vec<(OurKey, KeyName)>,
    ) -> Result<(Canaries, Keks), NotTaken> {
        let Self { library, session, config } = self;
        let HandedKeks { meter_kek, use_kek, canaries } = handed;
        let site = one_pair(library, session, OurKey::SiteKek)?;
        let names = [name_of(session, site)?, meter_kek.id, use_kek.id];
        let meter_kek = self.take(OurKey::MeterKek, meter_kek, ceremony, made)?;
        let use_kek = self.take(OurKey::UseKek, use_kek, ceremony, made)?;
        sync(config)?;
        let keks = Keks { site, meter_kek, use_kek };
        let received = Canaries::receive(library, session, &keks, names, canaries);
        let received = received.map_err(|failure| {
            // Tampering and breakage may have one code: a token that proves its own KEK is well.
            let is_doubtful = matches!(failure, Failure::Broken(_));
            let disproved = is_doubtful && Canaries::site_is_well(library, session, &keks);
            match failure {
                failure if disproved => NotTaken::Disproved(failure.into()),
                failure => failure.into(),
            }
        })?;
        Ok((received, keks))
    }

    /// One of them, unless it is there. What this makes is added to `made`.
    fn take(
        &self,
        key: OurKey,
        handed: &HandedKek,
        ceremony: &RsaKey,
        made: &mut Vec<(OurKey, KeyName)>,
    ) -> Result<ObjectHandle, NotTaken> {
        let Self { library, session, .. } = self;
        let handle = match find(library, session, key, None)?.as_slice() {
            [] => {
                let handle = self.unwrap(key, handed, ceremony)?;
                made.push((key, handed.id));
                handle
            }
            [there] if name_of(session, *there)? == handed.id => *there,
            _ => return Err(InitError::KeysExist(vec![key.label().to_owned()]).into()),
        };
        template::verify_born(session, handle, key, (Kept::OnToken, Birth::Received))?;
        Ok(handle)
    }

    fn unwrap(
        &self,
        key: OurKey,
        handed: &HandedKek,
        ceremony: &RsaKey,
    ) -> Result<ObjectHandle, NotTaken> {
        let Self { library, session, config } = self;
        let no_ceremony = || {
            InitError::Token(
                "the token has no ceremony key for this bundle: the ceremony is over, or was never begun here. \
                 Begin with `kms-server init --join --request`, and have that request enrolled"
                    .to_owned(),
            )
        };
        let with = match find(library, session, OurKey::Ceremony, None)?.as_slice() {
            [] => return Err(no_ceremony().into()),
            _ => one_pair(library, session, OurKey::Ceremony)?,
        };
        if numbers_of(session, with)? != *ceremony {
            return Err(no_ceremony().into());
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
            let failure = Failure::from(error);
            let error = InitError::Token(format!(
                "{} of the bundle does not open under this token's ceremony key ({})",
                key.label(),
                failure.reason()
            ));
            if disproves(&failure) { NotTaken::Disproved(error) } else { NotTaken::Unsaid(error) }
        })
    }

    /// Destroys what this attempt has made: the token said that it is not what the sender says. What was there before
    /// stays, whatever a bundle says of it.
    fn take_back(&self, made: &[(OurKey, KeyName)], error: InitError) -> InitError {
        let Self { library, session, config } = self;
        match undo(library, session, made, error) {
            left @ InitError::LeftBehind { .. } => left,
            error => sync(config).err().unwrap_or(error),
        }
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

/// Why the sealed KEKs were not taken over.
enum NotTaken {
    /// The token said that one of them is not what the sender says, or does not open.
    Disproved(InitError),
    /// Nothing is known of them: the token failed, or something was in the way. What is there stays, and the next
    /// attempt goes on.
    Unsaid(InitError),
}

impl From<Failure> for NotTaken {
    fn from(failure: Failure) -> Self {
        let disproved = disproves(&failure);
        let error = InitError::from(failure);
        if disproved { Self::Disproved(error) } else { Self::Unsaid(error) }
    }
}

impl From<InitError> for NotTaken {
    fn from(error: InitError) -> Self {
        Self::Unsaid(error)
    }
}

impl From<cryptoki::error::Error> for NotTaken {
    fn from(error: cryptoki::error::Error) -> Self {
        Failure::from(error).into()
    }
}

/// Whether a failure is the token's word on the key, and not one of its own.
fn disproves(failure: &Failure) -> bool {
    matches!(failure, Failure::Data(_) | Failure::Doubtful(_) | Failure::Unfit(_))
}
