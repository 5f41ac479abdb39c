//! Signatures with the site's P-256 key (PKCS #11 v3.0, CKM_ECDSA over a hash made here).

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};
use sha2::{Digest as _, Sha256};

use crate::hsm::{
    Signs, TokenError,
    pkcs11::{
        connection::{epoch::Proof, library::Library, lock::read, token::Pkcs11Token},
        failure::Failure,
        keys::{
            finding::find,
            template::{self, Kept, OurKey},
        },
    },
};
use kms_core::audit::{PublicKey, Signature};

/// DER of an OCTET STRING of 65 bytes: what CKA_EC_POINT has before the point.
const OCTET_STRING: [u8; 2] = [0x04, 65];

impl Signs for Pkcs11Token {
    fn sign(&self, message: &[u8]) -> Result<Signature, TokenError> {
        let digest = Sha256::digest(message);
        self.call("sign", Proof::Site, |_, session| {
            let key = private_half(&self.module, session)?;
            let signature = session.sign(&Mechanism::Ecdsa, key, &digest)?;
            let len = signature.len();
            signature
                .try_into()
                .map_err(|_| Failure::Broken(format!("the token signs with {len} bytes, not 64")))
        })
    }

    fn public_key(&self) -> Result<PublicKey, TokenError> {
        self.call("show its public key", Proof::Site, |_, session| {
            let key = private_half(&self.module, session)?;
            let name = session.get_attributes(key, &[AttributeType::Id])?;
            public_half(&self.module, session, name)
        })
    }
}

/// The one signing key. Two are an attempt at something, none is what a token that vanished looks
/// like (`Quirk::GoneLooksEmpty`): it is never "not found".
pub(crate) fn private_half(library: &Library, session: &Session) -> Result<ObjectHandle, Failure> {
    let found = find(library, session, OurKey::Signing, None)?;
    let [handle] = found.as_slice() else {
        let label = OurKey::Signing.label();
        return Err(Failure::Broken(format!(
            "the token has {} keys {label}, one is due",
            found.len()
        )));
    };
    template::verify(session, *handle, OurKey::Signing, Kept::OnToken)?;
    Ok(*handle)
}

pub(crate) fn public_half(
    library: &Library,
    session: &Session,
    name: Vec<Attribute>,
) -> Result<PublicKey, Failure> {
    let mut template = name;
    template.extend([
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Label(OurKey::Signing.label().into()),
    ]);
    let found = {
        let _quiet = read(&library.objects);
        session.find_objects(&template)?
    };
    let [handle] = found.as_slice() else {
        return Err(Failure::Broken(format!(
            "the token has {} public halves of its signing key, one is due",
            found.len()
        )));
    };
    let point = match session.get_attributes(*handle, &[AttributeType::EcPoint])?.as_slice() {
        [Attribute::EcPoint(point)] => {
            point.strip_prefix(&OCTET_STRING).and_then(|point| point.try_into().ok())
        }
        _ => None,
    };
    point.ok_or_else(|| Failure::Broken("the signing key's public half is not on P-256".to_owned()))
}
