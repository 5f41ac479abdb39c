//! What crosses to and from the token of another site.
//!
//! C_WrapKey (RSA-OAEP) takes the sealed KEKs out under a key that the security officer trusted: they demand one
//! (CKA_WRAP_WITH_TRUSTED), and the user, who has our PIN, can't make one. C_Decrypt (RSA-OAEP,
//! `transport-block`) opens block secrets.

use cryptoki::{
    error::Error,
    mechanism::MechanismType,
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::Session,
};
use zeroize::Zeroizing;

use crate::hsm::{
    CeremonyKey, Enrols, HandedKek, HandedKeks, RsaKey, TokenError,
    enrolling::NotTrusted,
    lengths::RSA_LEN,
    pkcs11::{
        calls::oaep,
        connection::{
            epoch::{Connection, Proof},
            library::Library,
            lock::read,
            token::Pkcs11Token,
        },
        failure::Failure,
        keys::{
            finding::find,
            template::{self, Kept, OurKey},
        },
    },
};
use kms_core::BlockSecret;

impl Enrols for Pkcs11Token {
    fn transport_block_key(&self) -> Result<RsaKey, TokenError> {
        self.call("read its transport key", Proof::Site, |connection, session| {
            numbers_of(session, transport_block(self, connection, session)?)
        })
    }

    fn hand_over_keks(
        &self,
        to: &CeremonyKey,
    ) -> Result<Result<HandedKeks, NotTrusted>, TokenError> {
        self.call("hand its sealed KEKs over", Proof::Site, |connection, session| {
            let handle = match trusted(&self.module, session, to)? {
                Ok(handle) => handle,
                Err(refused) => return Ok(Err(refused)),
            };
            let wrapped = |kek: ObjectHandle| {
                let wrapped = session.wrap_key(&oaep::mechanism(to.oaep), handle, kek)?;
                if wrapped.len() == RSA_LEN {
                    return Ok(wrapped);
                }
                Err(Failure::garbled("a KEK wrapped by RSA-3072 has another length"))
            };
            let canaries = self.canaries();
            Ok(Ok(HandedKeks {
                meter_kek: HandedKek {
                    id: canaries.meter_kek,
                    wrapped: wrapped(connection.keks.meter_kek)?,
                },
                use_kek: HandedKek {
                    id: canaries.use_kek,
                    wrapped: wrapped(connection.keks.use_kek)?,
                },
                canaries: canaries.encode_sealed(),
            }))
        })
    }

    fn receive_secret(&self, wrapped: &[u8]) -> Result<BlockSecret, TokenError> {
        const OPERATION: &str = "open a block secret of another site";
        if wrapped.len() != RSA_LEN {
            let source = format!("it has {RSA_LEN} bytes, not {}", wrapped.len()).into();
            return Err(TokenError::Refused { operation: OPERATION, source });
        }
        let mechanism = oaep::mechanism(self.config.oaep_hash);
        self.call(OPERATION, Proof::Site, |connection, session| {
            let key = transport_block(self, connection, session)?;
            let plain = Zeroizing::new(session.decrypt(&mechanism, key, wrapped)?);
            BlockSecret::fill_with(|bytes| {
                // Whoever wrapped it wrapped something else.
                let plain: &[u8; BlockSecret::LEN] =
                    plain.as_slice().try_into().map_err(|_| Failure::Data(Error::InvalidValue))?;
                bytes.copy_from_slice(plain);
                Ok(())
            })
        })
    }
}

/// The trusted key of this request, found by its id and held against the request's own numbers.
pub(crate) fn trusted(
    library: &Library,
    session: &Session,
    to: &CeremonyKey,
) -> Result<Result<ObjectHandle, NotTrusted>, Failure> {
    let template = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::Token(true),
        Attribute::Id(to.id.to_vec()),
    ];
    let found = {
        let _quiet = read(&library.objects);
        session.find_objects(&template)?
    };
    let handle = match found.as_slice() {
        [] => return Ok(Err(NotTrusted::Missing)),
        [handle] => *handle,
        _ => return Ok(Err(NotTrusted::Another)),
    };
    let wanted = [
        Attribute::Trusted(true),
        Attribute::Wrap(true),
        Attribute::Encrypt(false),
        Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS_OAEP]),
        Attribute::Modifiable(false),
    ];
    let types: Vec<AttributeType> = wanted.iter().map(Attribute::attribute_type).collect();
    let told = session.get_attributes(handle, &types)?;
    let is_trusted = wanted.iter().all(|wanted| told.contains(wanted));
    if is_trusted && numbers_of(session, handle)? == to.key {
        return Ok(Ok(handle));
    }
    Ok(Err(NotTrusted::Another))
}

/// Modulus and exponent of an RSA key, either half. Of a pair of ours from the private one: whoever has the PIN
/// can put another public key beside it.
pub(crate) fn numbers_of(session: &Session, key: ObjectHandle) -> Result<RsaKey, Failure> {
    let types = [AttributeType::Modulus, AttributeType::PublicExponent];
    match session.get_attributes(key, &types)?.as_slice() {
        [Attribute::Modulus(modulus), Attribute::PublicExponent(exponent)] => {
            Ok(RsaKey { modulus: without_zeros(modulus), exponent: without_zeros(exponent) })
        }
        _ => Err(Failure::Broken("the numbers of an RSA key can't be read".to_owned())),
    }
}

/// One of our pairs, of which the token has one.
pub(crate) fn one_pair(
    library: &Library,
    session: &Session,
    key: OurKey,
) -> Result<ObjectHandle, Failure> {
    let found = find(library, session, key, None)?;
    let [handle] = found.as_slice() else {
        let count = found.len();
        return Err(Failure::Broken(format!("the token has {count} keys {}", key.label())));
    };
    template::verify(session, *handle, key, Kept::OnToken)?;
    Ok(*handle)
}

fn transport_block(
    token: &Pkcs11Token,
    connection: &Connection,
    session: &Session,
) -> Result<ObjectHandle, Failure> {
    if let Some(known) = connection.transport_block.get() {
        return Ok(*known);
    }
    let handle = one_pair(&token.module, session, OurKey::TransportBlock)?;
    Ok(*connection.transport_block.get_or_init(|| handle))
}

fn without_zeros(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|byte| *byte == 0).collect()
}
