//! The keys of a site that joins a key domain: all but the two sealed KEKs, which it gets from the site that
//! writes, and the ceremony key by which it gets them.

use cryptoki::session::Session;

use crate::hsm::{
    Config, Pin, RsaKey,
    pkcs11::{
        calls::{
            enrolling::{numbers_of, one_pair},
            signing,
        },
        connection::library::Library,
        failure::Failure,
        init::{InitError, logged_in, sync, undo},
        keys::{
            canary::KeyName,
            finding::find,
            making::{MadeKey, make, new_name, report},
            template::{self, Kept, OurKey},
        },
        probe::{
            run,
            subject::{ProbeDepth, Subject},
        },
    },
};
use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, AttributeType},
};
use kms_core::audit::{PublicKey, Signature};
use sha2::{Digest as _, Sha256};

/// The public halves that a request to join names.
#[derive(Clone, Debug)]
pub struct JoinKeys {
    /// CKA label of the token.
    pub token_label: String,
    /// Every key, in the order of making.
    pub keys: Vec<MadeKey>,
    /// What the site signs with.
    pub signing: PublicKey,
    /// What block secrets are wrapped to.
    pub transport_block: RsaKey,
    /// What the sealed KEKs are wrapped to, once.
    pub ceremony: RsaKey,
}

/// What a site has before its sealed KEKs come.
const JOINING: [OurKey; 5] = [
    OurKey::SiteKek,
    OurKey::TransportBlock,
    OurKey::TransportImport,
    OurKey::Signing,
    OurKey::Ceremony,
];

/// Makes the keys of a site that joins, or finds those that an attempt before has made: an attempt that was
/// interrupted goes on. The token is tried out first, ceremony key included. Refused where a sealed KEK is there.
///
/// Whatever fails destroys what was made this time.
pub fn make_join_keys(config: &Config, so_pin: Option<&Pin>) -> Result<JoinKeys, InitError> {
    config.check()?;
    let library = Library::load(&config.module)?;
    library.start()?;
    let _gate = library.enter();
    let (slot, session) = logged_in(&library, config, so_pin)?;
    for key in [OurKey::MeterKek, OurKey::UseKek] {
        if !find(&library, &session, key, None)?.is_empty() {
            return Err(InitError::KeysExist(vec![key.label().to_owned()]));
        }
    }
    let subject = Subject { library: &library, slot, config, canaries: None };
    if let Some(why) = run::within(subject, &session, ProbeDepth::Full)?.refusal() {
        return Err(InitError::Untrusted(why));
    }
    let mut names = Vec::new();
    let keys = make_missing(&library, &session, &mut names)
        .and_then(|keys| sync(config).map(|()| keys))
        .map_err(|error| undo(&library, &session, &names, error))?;
    read_public(&library, &session, config, keys).map_err(InitError::from)
}

/// Makes those that are not there; `names` is told of each before it is made.
fn make_missing(
    library: &Library,
    session: &Session,
    names: &mut Vec<(OurKey, KeyName)>,
) -> Result<Vec<MadeKey>, InitError> {
    let mut keys = Vec::new();
    for key in JOINING {
        let found = find(library, session, key, None)?;
        keys.push(match found.as_slice() {
            [] => {
                let name = new_name(library, session)?;
                names.push((key, name));
                make(library, session, key, &name, Kept::OnToken)?.1
            }
            [handle] => {
                template::verify(session, *handle, key, Kept::OnToken)?;
                report(session, *handle, key)?
            }
            several => {
                let several = format!("{} ({} of them)", key.label(), several.len());
                return Err(InitError::KeysExist(vec![several]));
            }
        });
    }
    Ok(keys)
}

fn read_public(
    library: &Library,
    session: &Session,
    config: &Config,
    keys: Vec<MadeKey>,
) -> Result<JoinKeys, Failure> {
    let numbers = |key| one_pair(library, session, key).and_then(|key| numbers_of(session, key));
    let private = signing::private_half(library, session)?;
    let name = session.get_attributes(private, &[AttributeType::Id])?;
    Ok(JoinKeys {
        token_label: config.token_label.clone(),
        keys,
        signing: signing::public_half(library, session, name)?,
        transport_block: numbers(OurKey::TransportBlock)?,
        ceremony: numbers(OurKey::Ceremony)?,
    })
}

/// ECDSA P-256 over the SHA-256 of `message`, made with the signing key of a site that is not founded yet.
pub fn sign_as_joining(config: &Config, message: &[u8]) -> Result<Signature, InitError> {
    let library = Library::load(&config.module)?;
    library.start()?;
    let _gate = library.enter();
    let session = library.pkcs11().open_rw_session(library.slot(&config.token_label)?)?;
    library.login(&session, config)?;
    let key = signing::private_half(&library, &session)?;
    let signature = session.sign(&Mechanism::Ecdsa, key, &Sha256::digest(message))?;
    let len = signature.len();
    let wrong = |_| InitError::Token(format!("the token signs with {len} bytes, not 64"));
    signature.try_into().map_err(wrong)
}

/// The id of a key.
pub(super) fn name_of(
    session: &Session,
    handle: cryptoki::object::ObjectHandle,
) -> Result<KeyName, Failure> {
    let read = session.get_attributes(handle, &[AttributeType::Id])?;
    let name = match read.as_slice() {
        [Attribute::Id(name)] => name.as_slice().try_into().ok(),
        _ => None,
    };
    name.ok_or_else(|| Failure::Unfit("a key of ours has an id that is none of ours".to_owned()))
}
