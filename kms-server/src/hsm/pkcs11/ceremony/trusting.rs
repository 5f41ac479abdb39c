//! What only the security officer can do: to make the ceremony key of another site one that the sealed KEKs may
//! leave under (CKA_TRUSTED; PKCS #11 v3.0, 4.8). Everything else is denied to that key.
//!
//! It can be destroyed again (CKA_DESTROYABLE stays true), by the user as well: what he gains is that the officer
//! has to come once more. A key that nobody could destroy would stay a way out for ever.

use cryptoki::{
    error::{Error, RvError},
    mechanism::MechanismType,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};

use crate::hsm::{
    BadConfig, CeremonyKey, Config, NotTrusted, Pin, RsaKey,
    pkcs11::{
        calls::enrolling::trusted,
        connection::{library::Library, lock::write},
        failure::{Failure, ckr},
        init::{InitError, sync},
    },
};

/// The reason why a key is not trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A setting is out of bounds.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// The officer did not get in.
    #[error(
        "token `{0}` refused the security officer's PIN; it is not tried again: correct the file of \
         --so-pin-file"
    )]
    Pin(String),
    /// `Quirk::NobodyTrusts`.
    #[error(
        "this token lets nobody make a trusted key ({0}): its sealed KEKs can never be handed on. A site on such a \
         token can join another one: let a site whose token can do it found the domain"
    )]
    Nobody(String),
    /// Something else has the id of the request.
    #[error(transparent)]
    Taken(#[from] NotTrusted),
    /// The token did not do it.
    #[error("trusting the key: {0}")]
    Token(String),
    /// It may not be on disk.
    #[error(transparent)]
    Sync(InitError),
}

impl From<Failure> for TrustError {
    fn from(failure: Failure) -> Self {
        Self::Token(failure.reason())
    }
}

impl From<Error> for TrustError {
    fn from(error: Error) -> Self {
        Self::Token(ckr(&error))
    }
}

/// Makes `key` a trusted one, as security officer. The same once more changes nothing; false: it was one already.
/// The PIN is tried once. In a process of its own: an officer can't log in beside a user.
pub fn trust_peer(config: &Config, so_pin: &Pin, key: &CeremonyKey) -> Result<bool, TrustError> {
    as_officer(config, so_pin, |library, session| {
        match trusted(library, session, key)? {
            Ok(_) => return Ok(false),
            Err(NotTrusted::Missing) => {}
            Err(another) => return Err(another.into()),
        }
        let made = create(library, session, &template(key, true)).map_err(refused)?;
        // A token may take an attribute and forget it.
        let outcome = match trusted(library, session, key)? {
            Ok(_) => sync(config).map_err(TrustError::Sync),
            Err(_) => Err(TrustError::Nobody("it did not keep CKA_TRUSTED".to_owned())),
        };
        if outcome.is_err() {
            let _alone = write(&library.objects);
            let _ = session.destroy_object(made);
        }
        outcome.map(|()| true)
    })
}

/// Destroys the trusted key of a request: the ceremony is over. False: there was none.
pub fn distrust_peer(config: &Config, so_pin: &Pin, key: &CeremonyKey) -> Result<bool, TrustError> {
    as_officer(config, so_pin, |library, session| {
        let handle = match trusted(library, session, key)? {
            Ok(handle) => handle,
            Err(NotTrusted::Missing) => return Ok(false),
            Err(another) => return Err(another.into()),
        };
        let alone = write(&library.objects);
        session.destroy_object(handle)?;
        drop(alone);
        sync(config).map_err(TrustError::Sync)?;
        Ok(true)
    })
}

/// Whether the officer of this token can make a trusted key at all: tried with one that lives in the session.
pub fn can_trust(config: &Config, so_pin: &Pin) -> Result<(), TrustError> {
    let modulus = [&[0xC3; 383][..], &[1]].concat();
    let key = RsaKey { modulus, exponent: vec![1, 0, 1] };
    let key = CeremonyKey { id: [0; 16], key, oaep: config.oaep_hash };
    as_officer(config, so_pin, |library, session| {
        let made = create(library, session, &template(&key, false)).map_err(refused)?;
        let told = session.get_attributes(made, &[Attribute::Trusted(true).attribute_type()])?;
        session.destroy_object(made)?;
        if told.contains(&Attribute::Trusted(true)) {
            return Ok(());
        }
        Err(TrustError::Nobody("it did not keep CKA_TRUSTED".to_owned()))
    })
}

fn as_officer<T>(
    config: &Config,
    so_pin: &Pin,
    work: impl FnOnce(&Library, &Session) -> Result<T, TrustError>,
) -> Result<T, TrustError> {
    config.check()?;
    let library = Library::load(&config.module)?;
    library.start()?;
    let _gate = library.enter();
    let session = library.pkcs11().open_rw_session(library.slot(&config.token_label)?)?;
    let pin = AuthPin::from(so_pin.expose_pin().to_owned());
    match session.login(UserType::So, Some(&pin)) {
        Ok(()) => {}
        Err(Error::Pkcs11(
            RvError::PinIncorrect | RvError::PinLocked | RvError::PinInvalid | RvError::PinLenRange,
            _,
        )) => return Err(TrustError::Pin(config.token_label.clone())),
        Err(error) => return Err(error.into()),
    }
    let done = work(&library, &session);
    let _ = session.logout();
    done
}

fn create(
    library: &Library,
    session: &Session,
    template: &[Attribute],
) -> Result<ObjectHandle, Error> {
    let _alone = write(&library.objects);
    session.create_object(template)
}

/// C_CreateObject: it wraps, by OAEP, and does nothing else.
fn template(ceremony: &CeremonyKey, on_token: bool) -> Vec<Attribute> {
    let CeremonyKey { id, key, oaep: _ } = ceremony;
    vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Token(on_token),
        // An officer sees public objects only, and the user has to see this one.
        Attribute::Private(false),
        Attribute::Label(ceremony.label().into_bytes()),
        Attribute::Id(id.to_vec()),
        Attribute::Modulus(key.modulus.clone()),
        Attribute::PublicExponent(key.exponent.clone()),
        Attribute::Trusted(true),
        Attribute::Wrap(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::VerifyRecover(false),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS_OAEP]),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
    ]
}

/// What a token says that lets nobody do it.
fn refused(error: Error) -> TrustError {
    match &error {
        Error::Pkcs11(
            RvError::AttributeReadOnly
            | RvError::AttributeTypeInvalid
            | RvError::AttributeValueInvalid
            | RvError::TemplateInconsistent
            | RvError::UserNotLoggedIn,
            _,
        ) => TrustError::Nobody(ckr(&error)),
        _ => error.into(),
    }
}
