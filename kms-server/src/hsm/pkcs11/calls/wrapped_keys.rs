//! Keys of protection `HSM`: wrapped under a sealed KEK (RFC 3394), used only inside the token.

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use dlms::key_wrap::OVERHEAD_LEN;
use zeroize::{Zeroize as _, Zeroizing};

use super::gcm::{Gcm, NONCE_LEN, Tag};
use crate::hsm::{
    GcmOpen, NotAuthentic, SealedKeys, TokenError, WrappedKey, lengths,
    pkcs11::{
        connection::{
            epoch::{Connection, Proof},
            lock::lock,
            token::Pkcs11Token,
        },
        failure::Failure,
        keys::{
            canary::{self, Keks, unwrap},
            template::Usage,
        },
    },
};
use kms_core::{ClearKey, SealedKek};

impl SealedKeys for Pkcs11Token {
    fn wrap(&self, under: SealedKek, key: &ClearKey) -> Result<Vec<u8>, TokenError> {
        if !lengths::is_of_key(key.len()) {
            return Err(refused("wrap a key", format!("a key of {} bytes", key.len())));
        }
        self.call("wrap a key", Proof::Site, |connection, session| {
            connection.count_objects(1);
            let object = create(session, key)?;
            let kek = connection.keks.sealed(under);
            let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, kek, object);
            session.destroy_object(object)?;
            let wrapped = wrapped?;
            if wrapped.len() != key.len() + OVERHEAD_LEN {
                return Err(Failure::garbled("a wrapped key of another length"));
            }
            connection.count_objects(2);
            opens_as(session, &connection.keks, under, &wrapped, key)?;
            Ok(wrapped)
        })
    }

    fn open_apdus(
        &self,
        key: &WrappedKey,
        apdus: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
        const OPERATION: &str = "unwrap a key";
        if !lengths::is_of_wrapped_key(key.wrapped.len()) {
            return Err(refused(OPERATION, format!("{} wrapped bytes", key.wrapped.len())));
        }
        let proof = Proof::Unwrap(SealedKek::Use);
        self.call(OPERATION, proof, |connection, session| {
            let key = lock(&connection.holder).get(&connection.keks, key)?;
            self.open_each(connection, session, *key, apdus)
        })
    }
}

impl Pkcs11Token {
    /// Opens every APDU, then asks the canary once if the token was in doubt about any: a token may say the
    /// same of a forged tag and of its own breakage (`Quirk::OneCodeForAll`). Asked after the failures and
    /// in the same session, so that its answer covers them; once for all, so that forged APDUs cost little
    /// more than good ones. Those in doubt are then opened once more: what fails twice, with a token that
    /// is well in between, is forged.
    fn open_each(
        &self,
        connection: &Connection,
        session: &Session,
        key: ObjectHandle,
        apdus: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, Failure> {
        let mut doubtful = Vec::new();
        let mut opened = Vec::with_capacity(apdus.len());
        for (at, apdu) in apdus.iter().enumerate() {
            opened.push(match open(session, key, apdu) {
                Ok(plain) => Ok(plain),
                Err(Failure::Data(_)) => Err(NotAuthentic),
                Err(Failure::Doubtful(_)) => {
                    doubtful.push((at, apdu));
                    Err(NotAuthentic)
                }
                Err(failure) => return Err(failure),
            });
        }
        if !doubtful.is_empty() {
            connection.prove(session, &self.canaries(), Proof::UseKey)?;
        }
        for (at, apdu) in doubtful {
            let again = match open(session, key, apdu) {
                Ok(plain) => Ok(plain),
                Err(Failure::Data(_) | Failure::Doubtful(_)) => Err(NotAuthentic),
                Err(failure) => return Err(failure),
            };
            if let Some(place) = opened.get_mut(at) {
                *place = again;
            }
        }
        Ok(opened)
    }
}

/// Unwraps what was wrapped and has the result do the one thing that it may, which software does too
/// with the key as it came: so it is that key.
fn opens_as(
    session: &Session,
    keks: &Keks,
    under: SealedKek,
    wrapped: &[u8],
    key: &ClearKey,
) -> Result<(), Failure> {
    const WHAT: &str = "a wrapped key opens as another";
    let unwrapped = unwrap(session, keks.sealed(under), under, wrapped)
        .map_err(|failure| failure.of_own_work("a wrapped key does not open"))?;
    let same = match under {
        SealedKek::MeterKek => canary::wrap_text(session, unwrapped)
            .map(|blob| in_software::wraps(key, &canary::TEXT).as_deref() == Some(&blob[..])),
        // Opened and not sealed there: the token adds no nonce to those that the key has seen.
        SealedKek::Use => in_software::seals(key, &canary::TEXT).map_or(Ok(false), |sealed| {
            let gcm = Gcm { nonce: &[0; NONCE_LEN], additional: &[], tag: Tag::Dlms };
            gcm.decrypt(session, unwrapped, &sealed).map(|plain| plain[..] == canary::TEXT)
        }),
    };
    session.destroy_object(unwrapped)?;
    match same.map_err(|failure| failure.of_own_work(WHAT))? {
        true => Ok(()),
        false => Err(Failure::garbled(WHAT)),
    }
}

/// The deeds of a key that we have, without the token.
mod in_software {
    use aes_gcm::{
        AesGcm, KeyInit,
        aead::{
            Aead,
            consts::{U12, U12 as TagLen},
        },
        aes::{Aes128, Aes256},
    };
    use aes_kw::{KwAes128, KwAes256};

    use kms_core::ClearKey;

    /// RFC 3394 of 16 bytes.
    pub(crate) fn wraps(key: &ClearKey, text: &[u8; 16]) -> Option<Vec<u8>> {
        let key = key.expose_clear_key_bytes();
        let mut blob = vec![0; text.len() + 8];
        match key.len() {
            16 => KwAes128::new_from_slice(key).ok()?.wrap_key(text, &mut blob).ok()?,
            _ => KwAes256::new_from_slice(key).ok()?.wrap_key(text, &mut blob).ok()?,
        };
        Some(blob)
    }

    /// AES-GCM, nonce of zeros, tag of 12 bytes. It stays in this process.
    pub(crate) fn seals(key: &ClearKey, text: &[u8; 16]) -> Option<Vec<u8>> {
        let key = key.expose_clear_key_bytes();
        let nonce = [0; 12].into();
        match key.len() {
            16 => {
                AesGcm::<Aes128, U12, TagLen>::new_from_slice(key).ok()?.encrypt(&nonce, &text[..])
            }
            _ => {
                AesGcm::<Aes256, U12, TagLen>::new_from_slice(key).ok()?.encrypt(&nonce, &text[..])
            }
        }
        .ok()
    }
}

fn open(session: &Session, key: ObjectHandle, apdu: &GcmOpen) -> Result<Vec<u8>, Failure> {
    let GcmOpen { nonce, additional_data, ciphertext, tag } = apdu;
    let gcm = |additional| Gcm { nonce, additional, tag: Tag::Dlms };
    let mut plain = match tag {
        Some(tag) => {
            let sealed = [&ciphertext[..], tag].concat();
            gcm(additional_data).decrypt(session, key, &sealed)?
        }
        // GCM is the only mechanism such a key allows, and it opens nothing without a tag. But its
        // cipher is a keystream XORed to the text (SP 800-38D, 6.5), and XOR is its own inverse: the
        // encryption of the ciphertext under the same nonce is the plaintext. No nonce is used twice
        // for sending: the tag is dropped and nothing of this leaves but the plaintext.
        None => {
            let mut twice = gcm(&[]).encrypt(session, key, ciphertext)?;
            let tail = ciphertext.len().min(twice.len());
            twice[tail..].zeroize();
            twice.truncate(tail);
            twice
        }
    };
    Ok(std::mem::take(&mut *plain))
}

/// Makes a session object of a key that came in clear, which may do nothing but be wrapped.
fn create(session: &Session, key: &ClearKey) -> Result<ObjectHandle, Failure> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
    ];
    template.extend(Usage::ALL.map(|usage| usage.attribute(false)));
    // Last, so that it can be taken off again: the crate does not wipe it.
    template.push(Attribute::Value(key.expose_clear_key_bytes().to_vec()));
    let object = session.create_object(&template);
    if let Some(Attribute::Value(bytes)) = template.pop() {
        drop(Zeroizing::new(bytes));
    }
    Ok(object?)
}

fn refused(operation: &'static str, reason: String) -> TokenError {
    TokenError::Refused { operation, source: reason.into() }
}
