//! Keys that the token makes for meters, for as long as one call: what they, and what they are checked with, may do.

use cryptoki::{mechanism::MechanismType, object::Attribute, types::Ulong};

use super::template::{Usage, pinned};
use crate::hsm::{KeyLen, StoreUnder};
use kms_core::SealedKek;

/// C_GenerateKey for a meter's key: it may be wrapped, and identified by CMAC.
///
/// One that is stored under a sealed KEK can't be identified again when it comes out of that: all that it may do then
/// is what keys of its kind do. So here it may do that too, to be compared.
pub(crate) fn made(len: KeyLen, under: StoreUnder) -> Vec<Attribute> {
    let (deed, mechanism) = match under {
        StoreUnder::Block(_) => (None, None),
        StoreUnder::Kek(SealedKek::MeterKek) => {
            (Some(Usage::Wrap), Some(MechanismType::AES_KEY_WRAP))
        }
        StoreUnder::Kek(SealedKek::Use) => (Some(Usage::Encrypt), Some(MechanismType::AES_GCM)),
    };
    let usages: Vec<Usage> = [Usage::Sign].into_iter().chain(deed).collect();
    let mut template = pinned(&usages, MechanismType::AES_CMAC, false, true);
    for attribute in &mut template {
        if let Attribute::AllowedMechanisms(mechanisms) = attribute {
            mechanisms.extend(mechanism);
        }
    }
    template.insert(0, Attribute::ValueLen(Ulong::new(len.bytes() as u64)));
    template
}

/// The same key out of the form in which it is stored under a block's key: it may be identified, and does not
/// leave again.
pub(crate) fn opened() -> Vec<Attribute> {
    pinned(&[Usage::Sign], MechanismType::AES_CMAC, false, false)
}

/// A key that other meters are to have, too, out of the form in which it is stored under a block's key: it may be
/// identified, and wrapped again.
pub(crate) fn shared() -> Vec<Attribute> {
    pinned(&[Usage::Sign], MechanismType::AES_CMAC, false, true)
}

/// A block's `wrap` key, to open what was wrapped under it.
pub(crate) fn unwrap_only() -> Vec<Attribute> {
    pinned(&[Usage::Unwrap], MechanismType::AES_KEY_WRAP, false, false)
}
