//! Deeds that somebody with the user PIN would attempt: foreign uses, changed templates, later changes.

use cryptoki::{
    error::{Error, RvError},
    mechanism::{Mechanism, MechanismType, aead::GcmParams, ekdf::AesCbcDeriveParams},
    object::{Attribute, AttributeInfo, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
    types::Ulong,
};

use super::free_key::{free, own_key};
use crate::hsm::pkcs11::keys::template::{CKA_UNWRAP_TEMPLATE, OurKey, Usage};

/// Uses of a secret key, each by one mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    EncryptEcb,
    EncryptCbc,
    EncryptGcm,
    DecryptEcb,
    DecryptCbc,
    DecryptGcm,
    SignCmac,
    VerifyCmac,
    WrapKw,
    WrapKwp,
    UnwrapKw,
    UnwrapKwp,
    UnwrapCbc,
    DeriveCbc,
}

/// One block, of nothing in particular.
const BLOCK: [u8; 16] = [0x42; 16];
/// As long as a wrapped AES-128 key, a padded one, and a GCM tag with some text.
const BLOB: [u8; 32] = [0x42; 32];

impl Deed {
    pub(crate) const ALL: [Self; 14] = [
        Self::EncryptEcb,
        Self::EncryptCbc,
        Self::EncryptGcm,
        Self::DecryptEcb,
        Self::DecryptCbc,
        Self::DecryptGcm,
        Self::SignCmac,
        Self::VerifyCmac,
        Self::WrapKw,
        Self::WrapKwp,
        Self::UnwrapKw,
        Self::UnwrapKwp,
        Self::UnwrapCbc,
        Self::DeriveCbc,
    ];

    /// Whether a key with these usages and this mechanism may do it.
    pub(crate) fn is_rightful(self, usages: &[Usage], mechanism: MechanismType) -> bool {
        let (usage, own) = match self {
            Self::EncryptEcb => (Usage::Encrypt, MechanismType::AES_ECB),
            Self::EncryptCbc => (Usage::Encrypt, MechanismType::AES_CBC),
            Self::EncryptGcm => (Usage::Encrypt, MechanismType::AES_GCM),
            Self::DecryptEcb => (Usage::Decrypt, MechanismType::AES_ECB),
            Self::DecryptCbc => (Usage::Decrypt, MechanismType::AES_CBC),
            Self::DecryptGcm => (Usage::Decrypt, MechanismType::AES_GCM),
            Self::SignCmac => (Usage::Sign, MechanismType::AES_CMAC),
            Self::VerifyCmac => (Usage::Verify, MechanismType::AES_CMAC),
            Self::WrapKw => (Usage::Wrap, MechanismType::AES_KEY_WRAP),
            Self::WrapKwp => (Usage::Wrap, MechanismType::AES_KEY_WRAP_PAD),
            Self::UnwrapKw => (Usage::Unwrap, MechanismType::AES_KEY_WRAP),
            Self::UnwrapKwp => (Usage::Unwrap, MechanismType::AES_KEY_WRAP_PAD),
            Self::UnwrapCbc => (Usage::Unwrap, MechanismType::AES_CBC_PAD),
            Self::DeriveCbc => (Usage::Derive, MechanismType::AES_CBC_ENCRYPT_DATA),
        };
        usages.contains(&usage) && own == mechanism
    }

    /// Attempts it.
    pub(crate) fn attempt(self, session: &Session, key: ObjectHandle) -> Result<(), Error> {
        let mut nonce = [0; 12];
        let gcm = GcmParams::new(&mut nonce, &[], Ulong::new(96)).map(Mechanism::AesGcm)?;
        match self {
            Self::EncryptEcb => drop(session.encrypt(&Mechanism::AesEcb, key, &BLOCK)?),
            Self::EncryptCbc => drop(session.encrypt(&Mechanism::AesCbc(BLOCK), key, &BLOCK)?),
            Self::EncryptGcm => drop(session.encrypt(&gcm, key, &BLOCK)?),
            Self::DecryptEcb => drop(session.decrypt(&Mechanism::AesEcb, key, &BLOCK)?),
            Self::DecryptCbc => drop(session.decrypt(&Mechanism::AesCbc(BLOCK), key, &BLOCK)?),
            Self::DecryptGcm => drop(session.decrypt(&gcm, key, &BLOB)?),
            Self::SignCmac => drop(session.sign(&Mechanism::AesCMac, key, &BLOCK)?),
            // That the tag is wrong is an answer too: then the key was used.
            Self::VerifyCmac => match session.verify(&Mechanism::AesCMac, key, &BLOCK, &BLOCK) {
                Err(Error::Pkcs11(RvError::SignatureInvalid, _)) => {}
                other => other?,
            },
            Self::WrapKw | Self::WrapKwp => {
                let bait = own_key(session, &BLOCK)?;
                let mechanism = match self {
                    Self::WrapKw => Mechanism::AesKeyWrap,
                    _ => Mechanism::AesKeyWrapPad,
                };
                drop(session.wrap_key(&mechanism, key, bait)?);
            }
            Self::UnwrapKw => unwrap_free(session, &Mechanism::AesKeyWrap, key, &BLOB)?,
            Self::UnwrapKwp => unwrap_free(session, &Mechanism::AesKeyWrapPad, key, &BLOB)?,
            Self::UnwrapCbc => unwrap_free(session, &Mechanism::AesCbcPad(BLOCK), key, &BLOB)?,
            Self::DeriveCbc => {
                let parameters = AesCbcDeriveParams::new(BLOCK, &BLOB);
                let mechanism = Mechanism::AesCbcEncryptData(parameters);
                let mut template = free(KeyType::GENERIC_SECRET);
                template.push(Attribute::ValueLen(Ulong::new(BLOB.len() as u64)));
                session.derive_key(&mechanism, key, &template)?;
            }
        }
        Ok(())
    }
}

fn unwrap_free(
    session: &Session,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
    blob: &[u8],
) -> Result<(), Error> {
    session.unwrap_key(mechanism, key, blob, &free(KeyType::AES)).map(drop)
}

/// Every way to say a pinned template wrongly: each attribute turned over, left out, and said twice.
pub(crate) fn variations(template: &[Attribute]) -> Vec<(String, Vec<Attribute>)> {
    let mut all = Vec::new();
    for (at, attribute) in template.iter().enumerate() {
        let Some(turned) = turned(attribute) else { continue };
        let name = format!("{:?}", attribute.attribute_type());
        let mut other = template.to_vec();
        if let Some(place) = other.get_mut(at) {
            *place = turned.clone();
        }
        all.push((format!("{name} turned over"), other));
        let mut without = template.to_vec();
        without.remove(at);
        all.push((format!("{name} left out"), without.clone()));
        // First what is demanded, then what is wanted.
        without.insert(0, attribute.clone());
        without.insert(1, turned);
        all.push((format!("{name} said twice"), without));
    }
    all
}

fn turned(attribute: &Attribute) -> Option<Attribute> {
    Some(match attribute {
        Attribute::Token(on) => Attribute::Token(!on),
        Attribute::Private(on) => Attribute::Private(!on),
        Attribute::Sensitive(on) => Attribute::Sensitive(!on),
        Attribute::Extractable(on) => Attribute::Extractable(!on),
        Attribute::Encrypt(on) => Attribute::Encrypt(!on),
        Attribute::Decrypt(on) => Attribute::Decrypt(!on),
        Attribute::Sign(on) => Attribute::Sign(!on),
        Attribute::Verify(on) => Attribute::Verify(!on),
        Attribute::Wrap(on) => Attribute::Wrap(!on),
        Attribute::Unwrap(on) => Attribute::Unwrap(!on),
        Attribute::Derive(on) => Attribute::Derive(!on),
        Attribute::Copyable(on) => Attribute::Copyable(!on),
        Attribute::Modifiable(on) => Attribute::Modifiable(!on),
        Attribute::WrapWithTrusted(on) => Attribute::WrapWithTrusted(!on),
        Attribute::AllowedMechanisms(_) => {
            Attribute::AllowedMechanisms(vec![MechanismType::AES_ECB])
        }
        Attribute::Class(_) => Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(_) => Attribute::KeyType(KeyType::GENERIC_SECRET),
        _ => return None,
    })
}

/// The changes that would give a key of these usages another one, or a way out.
pub(crate) fn changes(
    class: ObjectClass,
    usages: &[Usage],
    wrapped_with_trusted: bool,
) -> Vec<(String, Attribute)> {
    let possible = if class == ObjectClass::SECRET_KEY { &Usage::ALL[..] } else { &Usage::PRIVATE };
    let mut all: Vec<Attribute> = possible
        .iter()
        .filter(|usage| !usages.contains(usage))
        .map(|usage| usage.attribute(true))
        .collect();
    all.extend([
        Attribute::Sensitive(false),
        Attribute::Modifiable(true),
        Attribute::Copyable(true),
        Attribute::Trusted(true),
        Attribute::AllowedMechanisms(vec![]),
        Attribute::VendorDefined((CKA_UNWRAP_TEMPLATE, vec![])),
    ]);
    all.push(if wrapped_with_trusted {
        Attribute::WrapWithTrusted(false)
    } else {
        Attribute::Extractable(true)
    });
    all.into_iter()
        .map(|attribute| {
            let name = match &attribute {
                Attribute::AllowedMechanisms(_) => "AllowedMechanisms(all)".to_owned(),
                Attribute::VendorDefined(_) => "UnwrapTemplate(none)".to_owned(),
                other => format!("{other:?}"),
            };
            (name, attribute)
        })
        .collect()
}

/// Reads the parts of a key that are the key. `Ok` only if one of them came out.
pub(crate) fn read_value(
    session: &Session,
    handle: ObjectHandle,
    key: OurKey,
) -> Result<(), Error> {
    let parts: &[AttributeType] = match key.key_type() {
        KeyType::RSA => &[
            AttributeType::PrivateExponent,
            AttributeType::Prime1,
            AttributeType::Prime2,
            AttributeType::Exponent1,
            AttributeType::Coefficient,
        ],
        _ => &[AttributeType::Value],
    };
    let told = session.get_attribute_info(handle, parts)?;
    // The crate gives an empty value where the token refuses: ask for the refusal itself.
    if told.iter().all(|info| matches!(info, AttributeInfo::Sensitive)) {
        let function = cryptoki::context::Function::GetAttributeValue;
        return Err(Error::Pkcs11(RvError::AttributeSensitive, function));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::SealedKek;

    #[test]
    fn no_attribute_of_a_template_escapes_the_variations() {
        let templates = [
            OurKey::MeterKek.unwraps(),
            OurKey::UseKek.unwraps(),
            OurKey::TransportImport.unwraps(),
            OurKey::Ceremony.unwraps(),
        ];
        for template in templates.into_iter().flatten() {
            let variations = variations(&template);
            assert_eq!(variations.len(), 3 * template.len());
            assert!(variations.iter().all(|(_, varied)| *varied != template));
        }
    }

    #[test]
    fn every_usage_that_a_key_lacks_is_among_the_changes() {
        for key in OurKey::PERMANENT {
            let changes = changes(key.class(), key.usages(), key.migrates());
            let possible =
                if key.class() == ObjectClass::SECRET_KEY { 7 } else { Usage::PRIVATE.len() };
            let usages = possible - key.usages().len();
            assert_eq!(changes.len(), usages + 7, "{key:?}");
        }
    }

    #[test]
    fn what_an_unwrapped_key_may_do_is_no_attack() {
        let rightful = |usages: &[Usage], mechanism| {
            Deed::ALL.into_iter().filter(|deed| deed.is_rightful(usages, mechanism)).count()
        };
        assert_eq!(rightful(&[Usage::Wrap], MechanismType::AES_KEY_WRAP), 1);
        assert_eq!(rightful(&[Usage::Encrypt, Usage::Decrypt], MechanismType::AES_GCM), 2);
        assert_eq!(rightful(OurKey::from(SealedKek::Use).usages(), MechanismType::AES_KEY_WRAP), 2);
    }
}
