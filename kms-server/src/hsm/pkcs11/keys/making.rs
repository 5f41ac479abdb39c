//! Making one key: generated in the token with everything denied that it is not for, and read back.

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use sha2::{Digest as _, Sha256};

use super::{
    canary::KeyName,
    template::{self, Flat, Kept, Nested, OurKey},
};
use crate::hsm::pkcs11::{
    connection::{
        library::{Library, step},
        lock::write,
    },
    failure::Failure,
};

/// A key that was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MadeKey {
    /// CKA_LABEL.
    pub label: String,
    /// CKA_ID: 16 random bytes, in hexadecimal.
    pub id: String,
    /// SHA-256 of the public half, in hexadecimal, for people to compare: of the modulus (big-endian)
    /// of an RSA key, of the uncompressed point of a P-256 key. `None` for a KEK.
    pub fingerprint: Option<String>,
}

/// A CKA_ID.
pub(crate) fn new_name(library: &Library, session: &Session) -> Result<KeyName, Failure> {
    let mut name: KeyName = [0; 16];
    library.random(session, &mut name)?;
    Ok(name)
}

/// Generates one key or pair and reads it back.
pub(crate) fn make(
    library: &Library,
    session: &Session,
    key: OurKey,
    name: &KeyName,
    kept: Kept,
) -> Result<(ObjectHandle, MadeKey), Failure> {
    let inner = key.unwraps().map(|template| Flat::new(&template)).transpose()?;
    let nested = inner.as_ref().map(Nested::unwrap_template);
    // Nobody looks for objects meanwhile: `Quirk::CreateMeetsFind`.
    let alone = write(&library.objects);
    let (handle, fingerprint) = if key.class() == ObjectClass::SECRET_KEY {
        let template = kept.applied(template::generate_kek(key, name, nested.as_ref()));
        (session.generate_key(&Mechanism::AesKeyGen, &template)?, None)
    } else {
        let mechanism = if key == OurKey::Signing {
            Mechanism::EccKeyPairGen
        } else {
            Mechanism::RsaPkcsKeyPairGen
        };
        let (public, private) = template::generate_pair(key, name, nested.as_ref());
        let (public, private) = (kept.applied(public), kept.applied(private));
        let (public, private) = session.generate_key_pair(&mechanism, &public, &private)?;
        (private, Some(fingerprint(session, public, key)?))
    };
    drop(alone);
    step();
    template::verify(session, handle, key, kept)?;
    let report = MadeKey { label: key.label().to_owned(), id: hex::encode(name), fingerprint };
    Ok((handle, report))
}

/// What `make` says of a key that is there already.
pub(crate) fn report(
    session: &Session,
    handle: ObjectHandle,
    key: OurKey,
) -> Result<MadeKey, Failure> {
    let id = match session.get_attributes(handle, &[AttributeType::Id])?.as_slice() {
        [Attribute::Id(id)] => id.clone(),
        other => return Err(Failure::Broken(format!("{}: its id is {other:?}", key.label()))),
    };
    let fingerprint = match key.key_type() {
        KeyType::AES => None,
        _ => {
            let halves = session.find_objects(&[
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::Label(key.label().into()),
                Attribute::Id(id.clone()),
            ])?;
            let missing = || Failure::Broken(format!("{}: it has no public half", key.label()));
            Some(fingerprint(session, *halves.first().ok_or_else(missing)?, key)?)
        }
    };
    Ok(MadeKey { label: key.label().to_owned(), id: hex::encode(id), fingerprint })
}

fn fingerprint(session: &Session, public: ObjectHandle, key: OurKey) -> Result<String, Failure> {
    let what = if key == OurKey::Signing { AttributeType::EcPoint } else { AttributeType::Modulus };
    match session.get_attributes(public, &[what])?.as_slice() {
        [Attribute::Modulus(modulus)] => Ok(hex::encode(Sha256::digest(modulus))),
        // CKA_EC_POINT is an OCTET STRING of DER around the point: two bytes for P-256.
        [Attribute::EcPoint(point)] if point.len() == 67 => {
            Ok(hex::encode(Sha256::digest(point.get(2..).unwrap_or_default())))
        }
        other => Err(Failure::Broken(format!("{}: its public half is {other:?}", key.label()))),
    }
}
