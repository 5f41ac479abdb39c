//! Makes the keys of a site, once.
//!
//! Generated in the token with everything denied that they are not for; read back; synced to disk,
//! since a token in software may not do that (`Quirk::NeverSyncs`); and proved by canaries.

use std::{fs, io, path::Path};

use cryptoki::{
    context::Pkcs11,
    object::Attribute,
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};

use super::{
    connection::{library::Library, lock::write},
    failure::{Failure, ckr},
    keys::{
        canary::{Canaries, Keks, KeyName},
        finding::find,
        making::{MadeKey, make, new_name},
        template::{Kept, OurKey},
    },
    probe::{
        run,
        subject::{ProbeDepth, Subject},
    },
    quirks::Quirk,
};
use crate::hsm::{BadConfig, Config, Pin};

/// The report of `init`.
#[derive(Clone, Debug)]
pub struct InitReport {
    /// CKA label of the token.
    pub token_label: String,
    /// Every key, in the order of making.
    pub keys: Vec<MadeKey>,
    /// The canaries for the domain record: without them the server takes no token.
    pub canaries: Canaries,
}

/// The reason why no keys were made, or not all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// A setting is out of bounds.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// A site's keys are made once. To begin again, use a fresh token.
    #[error(
        "the token has these keys already: {}; restore the database that was made with them, or, if there \
         was none because `init` was interrupted, begin with a fresh token (handbook, \"When `init` was \
         interrupted\")",
        .0.join(", ")
    )]
    KeysExist(Vec<String>),
    /// The token did not do it.
    #[error("making the keys: {0}")]
    Token(String),
    /// The token was tried out and is not to be trusted with keys. Nothing is left on it.
    #[error("no keys were made: {0}")]
    Untrusted(String),
    /// Some keys were made, and could not be destroyed again.
    #[error(
        "these keys were made and are left on the token: {}; destroy them, or use a fresh token: {why}",
        .keys.join(", ")
    )]
    LeftBehind {
        /// Label and id of each.
        keys: Vec<String>,
        /// The reason why `init` failed.
        why: Box<InitError>,
    },
    /// The keys were made, may not be on disk, and were destroyed again.
    #[error("syncing the token's directory {path}")]
    Sync {
        /// The directory.
        path: String,
        /// The system's word.
        #[source]
        source: io::Error,
    },
}

impl From<Failure> for InitError {
    fn from(failure: Failure) -> Self {
        Self::Token(failure.reason())
    }
}

impl From<cryptoki::error::Error> for InitError {
    fn from(error: cryptoki::error::Error) -> Self {
        Self::Token(ckr(&error))
    }
}

/// Makes the six permanent keys of a site, and their canaries.
///
/// First the token is tried out with keys as they will be, that live in a session only: one that can't
/// be trusted is refused, and nothing is left on it. Whatever fails after the first key was made
/// destroys what was made.
///
/// With `so_pin`, and if no token has the configured label, a blank token is initialised first, with
/// that PIN for its security officer and the configured one for its user. That can't be undone.
///
/// Not to be called in a process that serves: it holds the library for seconds.
pub fn init(config: &Config, so_pin: Option<&Pin>) -> Result<InitReport, InitError> {
    config.check()?;
    let library = Library::load(&config.module)?;
    library.start()?;
    let _gate = library.enter();
    let (slot, session) = logged_in(&library, config, so_pin)?;
    refuse_existing(&library, &session)?;
    let subject = Subject { library: &library, slot, config, canaries: None };
    let tried = run::within(subject, &session, ProbeDepth::Start)?;
    if let Some(why) = tried.refusal() {
        return Err(InitError::Untrusted(why));
    }
    let mut names = Vec::new();
    make_permanent(&library, &session, config, &mut names)
        .map_err(|error| undo(&library, &session, &names, error))
}

/// All keys; `names` is told of each before it is made.
fn make_permanent(
    library: &Library,
    session: &Session,
    config: &Config,
    names: &mut Vec<(OurKey, KeyName)>,
) -> Result<InitReport, InitError> {
    let mut handles = Vec::new();
    let mut keys = Vec::new();
    for key in OurKey::PERMANENT {
        let name = new_name(library, session)?;
        names.push((key, name));
        let (handle, report) = make(library, session, key, &name, Kept::OnToken)?;
        handles.push((handle, name));
        keys.push(report);
    }
    sync(config)?;
    let [(site, site_name), (meter_kek, meter_name), (use_kek, use_name), ..] = handles.as_slice()
    else {
        return Err(InitError::Token("a KEK was not made".to_owned()));
    };
    let keks = Keks { site: *site, meter_kek: *meter_kek, use_kek: *use_kek };
    let names = [*site_name, *meter_name, *use_name];
    let canaries = Canaries::make(library, session, &keks, names)?;
    Ok(InitReport { token_label: config.token_label.clone(), keys, canaries })
}

/// Destroys what was made, and says why; and which keys are left, if any.
pub(super) fn undo(
    library: &Library,
    session: &Session,
    names: &[(OurKey, KeyName)],
    error: InitError,
) -> InitError {
    let left: Vec<String> = names
        .iter()
        .filter(|(key, name)| destroy(library, session, *key, name).is_err())
        .map(|(key, name)| format!("{} (id {})", key.label(), hex::encode(name)))
        .collect();
    if left.is_empty() { error } else { InitError::LeftBehind { keys: left, why: error.into() } }
}

/// Both halves of a key of this name.
pub(super) fn destroy(
    library: &Library,
    session: &Session,
    key: OurKey,
    name: &KeyName,
) -> Result<(), Failure> {
    let _alone = write(&library.objects);
    let ours = [
        Attribute::Token(true),
        Attribute::Label(key.label().into()),
        Attribute::Id(name.to_vec()),
    ];
    for object in session.find_objects(&ours)? {
        session.destroy_object(object)?;
    }
    Ok(())
}

/// Destroys the keys that [`init`] made: their database did not come to be.
pub fn take_back(config: &Config, made: &InitReport) -> Result<(), InitError> {
    let library = Library::load(&config.module)?;
    library.start()?;
    let _gate = library.enter();
    let session = library.pkcs11().open_rw_session(library.slot(&config.token_label)?)?;
    library.login(&session, config)?;
    for made in &made.keys {
        let key = OurKey::PERMANENT.into_iter().find(|key| key.label() == made.label);
        let name = hex::decode(&made.id).ok().and_then(|name| name.try_into().ok());
        if let (Some(key), Some(name)) = (key, name) {
            destroy(&library, &session, key, &name)?;
        }
    }
    sync(config)
}

/// Makes the RSA pair of a ceremony by itself: the peer's sealed KEKs are wrapped to it, and it is destroyed
/// once they are here and proved.
pub fn make_ceremony_key(config: &Config) -> Result<MadeKey, InitError> {
    config.check()?;
    let library = Library::load(&config.module)?;
    library.start()?;
    let _gate = library.enter();
    let slot = library.slot(&config.token_label)?;
    let session = library.pkcs11().open_rw_session(slot)?;
    library.login(&session, config)?;
    let key = OurKey::Ceremony;
    if !find(&library, &session, key, None)?.is_empty() {
        return Err(InitError::KeysExist(vec![key.label().to_owned()]));
    }
    let name = new_name(&library, &session)?;
    let made = make(&library, &session, key, &name, Kept::OnToken)
        .map_err(InitError::from)
        .and_then(|(_, report)| sync(config).map(|()| report));
    made.map_err(|error| undo(&library, &session, &[(key, name)], error))
}

/// The token's slot, and a session in which its user is logged in, as long as it lives; closed on drop, within
/// the gate. With `so_pin`, a blank token is initialised where none has the label.
pub(super) fn logged_in(
    library: &Library,
    config: &Config,
    so_pin: Option<&Pin>,
) -> Result<(Slot, Session), InitError> {
    let slot = match (library.slot(&config.token_label), so_pin) {
        (Ok(slot), _) => slot,
        (Err(_), Some(so_pin)) => initialise_blank(library, config, so_pin)?,
        (Err(failure @ Failure::Unfit(_)), None) => return Err(failure.into()),
        (Err(failure), None) => {
            let reason = failure.reason();
            return Err(InitError::Token(format!("{reason}; {MAKES_ONE}")));
        }
    };
    let session = library.pkcs11().open_rw_session(slot)?;
    library.login(&session, config)?;
    Ok((slot, session))
}

/// Said where the token is not there and nobody said that it is to be made.
const MAKES_ONE: &str =
    "if it is to be a new one, `--create-token --so-pin-file FILE` makes it of a blank token";

/// C_InitToken and C_InitPIN on the first slot that has a blank token.
fn initialise_blank(library: &Library, config: &Config, so_pin: &Pin) -> Result<Slot, InitError> {
    let pkcs11: &Pkcs11 = library.pkcs11();
    let blank = library.slots(|info| !info.token_initialized())?.chosen;
    let blank =
        blank.first().ok_or_else(|| InitError::Token("no slot has a blank token".into()))?;
    let so_pin = AuthPin::from(so_pin.expose_pin().to_owned());
    pkcs11.init_token(*blank, &so_pin, &config.token_label)?;
    // The slot's number may have changed: `Quirk::SlotsRenumber`.
    let slot = library.slot(&config.token_label)?;
    let session = pkcs11.open_rw_session(slot)?;
    session.login(UserType::So, Some(&so_pin))?;
    session.init_pin(&AuthPin::from(config.pin.expose_pin().to_owned()))?;
    session.logout()?;
    Ok(slot)
}

fn refuse_existing(library: &Library, session: &Session) -> Result<(), InitError> {
    let mut existing = Vec::new();
    for key in OurKey::PERMANENT {
        if !find(library, session, key, None)?.is_empty() {
            existing.push(key.label().to_owned());
        }
    }
    if existing.is_empty() { Ok(()) } else { Err(InitError::KeysExist(existing)) }
}

/// Brings every file of the token to disk, then every directory.
pub(super) fn sync(config: &Config) -> Result<(), InitError> {
    let due = Quirk::NeverSyncs.is_reckoned_with(config);
    let Some(directory) = config.sync_dir.as_ref().filter(|_| due) else {
        return Ok(());
    };
    sync_tree(directory)
        .map_err(|source| InitError::Sync { path: directory.display().to_string(), source })
}

fn sync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else if entry.file_type()?.is_file() {
            fs::File::open(entry.path())?.sync_all()?;
        }
    }
    fs::File::open(directory)?.sync_all()
}
