//! Sealed imports inside the token.
//!
//! C_UnwrapKey (RSA-OAEP, `transport-import`) makes the file's key: a session object that may only
//! unwrap, as the template of `transport-import` demands. C_UnwrapKey (AES key wrap) under it makes each
//! meter key: a session object that may only sign by CMAC and be wrapped. C_Sign gives fingerprint and
//! check value, C_WrapKey the form for storage, C_DestroyObject ends it.
//!
//! Nothing is kept from call to call: no handle can outlive its epoch, and an import that comes back
//! after an hour finds what it needs. What this costs is one RSA operation for each call.

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, ObjectHandle},
    session::Session,
};
use zeroize::Zeroizing;

use crate::hsm::{
    ImportKey, ImportsKeys, NotAKey, RsaKey, SealedValue, StoreUnder, TakeKeys, Taken, TakenKey,
    TokenError, lengths,
    pkcs11::{
        calls::{
            enrolling::{numbers_of, one_pair},
            oaep,
        },
        connection::{
            epoch::{Connection, Proof},
            token::Pkcs11Token,
        },
        failure::Failure,
        keys::{
            canary::unwrap,
            template::{self, OurKey},
        },
    },
};
use kms_core::{Fingerprint, SealedKek};

/// A key check value is the CMAC of as many zeros.
pub(super) const ZEROS: [u8; 16] = [0; 16];

impl ImportsKeys for Pkcs11Token {
    fn import_key(&self) -> Result<ImportKey, TokenError> {
        let hash = self.config.oaep_hash;
        self.call("read its import key", Proof::Site, |connection, session| {
            let private = one_import_key(self, connection, session)?;
            let RsaKey { modulus, exponent } = numbers_of(session, private)?;
            Ok(ImportKey { modulus, exponent, oaep_hash: hash })
        })
    }

    fn take_keys(&self, job: &TakeKeys) -> Result<Taken, TokenError> {
        const OPERATION: &str = "take keys of a sealed file";
        if !job.is_whole() {
            let source = "the file's key or a block's has another length".into();
            return Err(TokenError::Refused { operation: OPERATION, source });
        }
        self.call(OPERATION, Proof::Unwrap(SealedKek::Use), |connection, session| {
            let mut objects = Objects { session, made: Vec::new() };
            let taken = self.take(connection, &mut objects, job);
            connection.count_objects(objects.made_ever(job));
            // Destroyed whatever came of it: the session goes back to the pool.
            let destroyed = objects.destroy();
            destroyed?;
            taken
        })
    }
}

/// Session objects that have to be destroyed.
pub(super) struct Objects<'a> {
    pub(super) session: &'a Session,
    pub(super) made: Vec<ObjectHandle>,
}

impl Objects<'_> {
    pub(super) fn keep(&mut self, object: ObjectHandle) -> ObjectHandle {
        self.made.push(object);
        object
    }

    /// Tried once more with all others if that fails; then it is told.
    pub(super) fn destroy_now(&mut self, object: ObjectHandle) {
        if self.session.destroy_object(object).is_err() {
            self.made.push(object);
        }
    }

    /// For the leak that `check` watches: at most this many, if no key was refused.
    fn made_ever(&self, job: &TakeKeys) -> u64 {
        let each = |key: &SealedValue| match key.under {
            StoreUnder::Block(_) => 1,
            StoreUnder::Kek(_) => 3,
        };
        self.made.len() as u64 + job.keys.iter().map(each).sum::<u64>()
    }

    pub(super) fn destroy(self) -> Result<(), Failure> {
        let Self { session, made } = self;
        let destroyed: Vec<_> =
            made.into_iter().map(|object| session.destroy_object(object)).collect();
        // All are tried before the first failure is told.
        destroyed.into_iter().collect::<Result<(), _>>().map_err(|error| {
            match Failure::from(error) {
                // The key may still be there: end the session, and its objects with it.
                Failure::Data(error) | Failure::Doubtful(error) => {
                    Failure::Dirty(error.to_string())
                }
                failure => failure,
            }
        })
    }
}

impl Pkcs11Token {
    fn take(
        &self,
        connection: &Connection,
        objects: &mut Objects<'_>,
        job: &TakeKeys,
    ) -> Result<Taken, Failure> {
        let session = objects.session;
        let import_key = one_import_key(self, connection, session)?;
        let demanded = OurKey::TransportImport.unwraps().unwrap_or_default();
        let mechanism = oaep::mechanism(self.config.oaep_hash);
        let file_key =
            session.unwrap_key(&mechanism, import_key, &job.wrapped_file_key, &demanded)?;
        objects.keep(file_key);
        let mut blocks = Vec::with_capacity(job.wrap_keys.len());
        for key in &job.wrap_keys {
            let wrap_key = create_wrap_key(session, (**key).as_ref())?;
            blocks.push(objects.keep(wrap_key));
        }
        let keep = template::taken();
        let from = File { connection, key: file_key, blocks: &blocks, template: &keep, job };
        let mut refused = Vec::new();
        let mut taken = Vec::with_capacity(job.keys.len());
        for (at, key) in job.keys.iter().enumerate() {
            taken.push(from.take(objects, key)?);
            if taken.last().is_some_and(Result::is_err) {
                refused.push((at, key));
            }
        }
        // Asked once for all that were refused, after them and in the same session: a token may say the
        // same of a forged blob and of its own breakage (`Quirk::OneCodeForAll`). Then each is tried once
        // more: what is refused twice, by a token that is well in between, is no key.
        if !refused.is_empty() {
            connection.prove(session, &self.canaries(), Proof::Unwrap(SealedKek::Use))?;
        }
        for (at, key) in refused {
            let again = from.take(objects, key)?;
            if let Some(place) = taken.get_mut(at) {
                *place = again;
            }
        }
        Ok(taken)
    }
}

/// A file that is open in the token.
struct File<'a> {
    connection: &'a Connection,
    key: ObjectHandle,
    blocks: &'a [ObjectHandle],
    template: &'a [Attribute],
    job: &'a TakeKeys,
}

impl File<'_> {
    /// One key, or that it is none.
    ///
    /// A key that is stored under a block's key is opened again by the keyring, which has that key. One that goes
    /// under a sealed KEK nobody can read: there the whole is done twice, and what was wrapped is
    /// unwrapped.
    fn take(
        &self,
        objects: &mut Objects<'_>,
        value: &SealedValue,
    ) -> Result<Result<TakenKey, NotAKey>, Failure> {
        let (under, kek) = match value.under {
            StoreUnder::Kek(kek) => (self.connection.keks.sealed(kek), Some(kek)),
            StoreUnder::Block(at) => {
                let missing =
                    || Failure::Broken("a key is for a block that is not there".to_owned());
                (*self.blocks.get(at).ok_or_else(missing)?, None)
            }
        };
        let taken = match self.take_once(objects, under, value) {
            Ok(taken) => taken,
            Err(Failure::Data(_) | Failure::Doubtful(_)) => return Ok(Err(NotAKey)),
            Err(failure) => return Err(failure),
        };
        let Some(kek) = kek else { return Ok(Ok(taken)) };
        const TWICE: &str = "a key that was taken twice is not the same";
        let again = self.take_once(objects, under, value);
        if again.map_err(|failure| failure.of_own_work(TWICE))? != taken {
            return Err(Failure::garbled(TWICE));
        }
        let stored = unwrap(objects.session, under, kek, &taken.wrapped)
            .map_err(|failure| failure.of_own_work("a wrapped key does not open"))?;
        objects.destroy_now(stored);
        Ok(Ok(taken))
    }

    /// One key in, identified, out again, gone.
    fn take_once(
        &self,
        objects: &mut Objects<'_>,
        under: ObjectHandle,
        value: &SealedValue,
    ) -> Result<TakenKey, Failure> {
        let session = objects.session;
        let wrapped = &value.wrapped;
        if !lengths::is_of_wrapped_key(wrapped.len()) {
            return Err(Failure::Data(cryptoki::error::Error::InvalidValue));
        }
        let key = session.unwrap_key(&Mechanism::AesKeyWrap, self.key, wrapped, self.template)?;
        let taken = identify_and_wrap(session, key, under, value, &self.job.fingerprint_label);
        objects.destroy_now(key);
        taken
    }
}

fn identify_and_wrap(
    session: &Session,
    key: ObjectHandle,
    under: ObjectHandle,
    value: &SealedValue,
    label: &[u8],
) -> Result<TakenKey, Failure> {
    let fingerprint = cmac(session, key, label)?;
    let [a, b, c, d, e, ..] = cmac(session, key, &ZEROS)?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, under, key)?;
    if wrapped.len() != value.wrapped.len() {
        return Err(Failure::garbled("a wrapped key of another length"));
    }
    Ok(TakenKey { fingerprint: Fingerprint(fingerprint), kcv: [a, b, c, d, e], wrapped })
}

pub(super) fn cmac(
    session: &Session,
    key: ObjectHandle,
    message: &[u8],
) -> Result<[u8; 16], Failure> {
    let mac = session.sign(&Mechanism::AesCMac, key, message)?;
    mac.try_into().map_err(|_| Failure::garbled("a CMAC of another length than 16"))
}

/// A copy of a block's `wrap` key that can wrap and nothing else.
pub(super) fn create_wrap_key(session: &Session, key: &[u8]) -> Result<ObjectHandle, Failure> {
    create_block_key(session, key, template::wrap_only())
}

/// A copy of a block's `wrap` key that can do what `template` says.
pub(super) fn create_block_key(
    session: &Session,
    key: &[u8],
    mut template: Vec<Attribute>,
) -> Result<ObjectHandle, Failure> {
    // Last, so that it can be taken off again: the crate does not wipe it.
    template.push(Attribute::Value(key.to_vec()));
    let object = session.create_object(&template);
    if let Some(Attribute::Value(bytes)) = template.pop() {
        drop(Zeroizing::new(bytes));
    }
    Ok(object?)
}

/// The private half of `transport-import`, found and verified once an epoch.
fn one_import_key(
    token: &Pkcs11Token,
    connection: &Connection,
    session: &Session,
) -> Result<ObjectHandle, Failure> {
    if let Some(known) = connection.import_key.get() {
        return Ok(*known);
    }
    let handle = one_pair(&token.module, session, OurKey::TransportImport)?;
    Ok(*connection.import_key.get_or_init(|| handle))
}
