//! Keys of protection `HSM`: wrapped under a sealed KEK (RFC 3394), used only inside the token.

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    connection::{Connection, Proof},
    fault::Fault,
    gcm::{self, Tag},
    lock::lock,
    template::Usage,
    token::{Blame, Pkcs11Token},
};
use crate::{
    domain::{ClearKey, SealedKek},
    hsm::{GcmOpen, NotAuthentic, SealedKeys, TokenError, WrappedKey},
};

/// RFC 3394 adds one block of 64 bits.
const WRAP_OVERHEAD: usize = 8;
/// AES-128 and AES-256. SoftHSM would pad a value of another length with zeros, silently.
const KEY_LENS: [usize; 2] = [16, 32];

impl SealedKeys for Pkcs11Token {
    fn wrap(&self, under: SealedKek, key: &ClearKey) -> Result<Vec<u8>, TokenError> {
        if !KEY_LENS.contains(&key.len()) {
            return Err(refused("wrap a key", format!("a key of {} bytes", key.len())));
        }
        self.call("wrap a key", Proof::Site, Blame::Device, |connection, session| {
            connection.count_objects(1);
            let object = create(session, key)?;
            let kek = connection.keks.sealed(under);
            let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, kek, object);
            session.destroy_object(object)?;
            let wrapped = wrapped?;
            if wrapped.len() != key.len() + WRAP_OVERHEAD {
                return Err(Fault::Broken(format!("AES key wrap gave {} bytes", wrapped.len())));
            }
            Ok(wrapped)
        })
    }

    fn open_apdus(
        &self,
        key: &WrappedKey,
        apdus: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
        const OPERATION: &str = "unwrap a key";
        if !KEY_LENS.iter().any(|len| len + WRAP_OVERHEAD == key.wrapped.len()) {
            return Err(refused(OPERATION, format!("{} wrapped bytes", key.wrapped.len())));
        }
        let proof = Proof::Unwrap(SealedKek::Use);
        self.call(OPERATION, proof, Blame::Input, |connection, session| {
            let key = lock(&connection.holder).get(&connection.keks, key)?;
            self.open_each(connection, session, *key, apdus)
        })
    }
}

impl Pkcs11Token {
    /// Opens every APDU, then asks the canary once if the token was in doubt about any: a token says
    /// the same of a forged tag and of its own breakage. Asked after the failures and in the same
    /// session, so that its answer covers them; once for all, so that forged APDUs cost little more
    /// than good ones.
    fn open_each(
        &self,
        connection: &Connection,
        session: &Session,
        key: ObjectHandle,
        apdus: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, Fault> {
        let mut doubtful = false;
        let mut opened = Vec::with_capacity(apdus.len());
        for apdu in apdus {
            opened.push(match open(session, key, apdu) {
                Ok(plain) => Ok(plain),
                // Nothing is authenticated without a tag, so there is nothing to be refused.
                Err(fault) if apdu.tag.is_none() => return Err(broken(fault)),
                Err(Fault::Data(_)) => Err(NotAuthentic),
                Err(Fault::Doubtful(_)) => {
                    doubtful = true;
                    Err(NotAuthentic)
                }
                Err(fault) => return Err(fault),
            });
        }
        if doubtful {
            connection.prove(session, &self.canaries, Proof::UseKey)?;
        }
        Ok(opened)
    }
}

fn open(session: &Session, key: ObjectHandle, apdu: &GcmOpen) -> Result<Vec<u8>, Fault> {
    let GcmOpen { nonce, additional_data, ciphertext, tag } = apdu;
    let mut plain = match tag {
        Some(tag) => {
            let sealed = [&ciphertext[..], tag].concat();
            gcm::decrypt(session, key, nonce, additional_data, &sealed, Tag::Dlms)?
        }
        // GCM is the only mechanism such a key allows, and it opens nothing without a tag. But its
        // cipher is a keystream XORed to the text (SP 800-38D, 6.5), and XOR is its own inverse: the
        // encryption of the ciphertext under the same nonce is the plaintext. No nonce is used twice
        // for sending: the tag is dropped and nothing of this leaves but the plaintext.
        None => {
            let mut twice = gcm::encrypt(session, key, nonce, &[], ciphertext, Tag::Dlms)?;
            let tail = ciphertext.len().min(twice.len());
            twice[tail..].zeroize();
            twice.truncate(tail);
            twice
        }
    };
    Ok(std::mem::take(&mut *plain))
}

/// Makes a session object of a key that came in clear, which may do nothing but be wrapped.
fn create(session: &Session, key: &ClearKey) -> Result<ObjectHandle, Fault> {
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

fn broken(fault: Fault) -> Fault {
    match fault {
        Fault::Data(_) | Fault::Doubtful(_) => Fault::Broken(fault.reason()),
        _ => fault,
    }
}

fn refused(operation: &'static str, reason: String) -> TokenError {
    TokenError::Refused { operation, source: reason.into() }
}
