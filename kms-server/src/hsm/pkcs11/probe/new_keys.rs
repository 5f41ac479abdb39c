//! Keys that the token makes for meters: whether it can, and what may be done with one for as long as a call lasts.

use cryptoki::{
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, ObjectClass, ObjectHandle},
    session::Session,
};
use zeroize::Zeroizing;

use super::{
    attacks::Attacks,
    deeds::{Deed, read_value},
    free_key::own_key,
    table::Strict,
};
use crate::hsm::{
    KeyLen, StoreUnder,
    pkcs11::{
        failure::Failure,
        keys::{
            fresh,
            template::{OurKey, Usage},
        },
    },
};
use kms_core::SealedKek;

const WHY: &str = "a key that can do more than it is made for gives itself away while it is made";
/// A KEK that everybody knows.
const KEK: [u8; 16] = [0x4B; 16];
const TEXT: &[u8] = b"ami.kms probe";

/// Makes keys of either length as for meters, wraps them, and holds what the token says of them against what software
/// finds in what it wrapped. They are nobody's.
pub(crate) fn can_be_made(session: &Session) -> Result<String, Failure> {
    for len in [KeyLen::Aes128, KeyLen::Aes256] {
        let kek = own_key(session, &KEK)?;
        let key = generate(session, len, StoreUnder::Block(0))?;
        let told = session.sign(&Mechanism::AesCMac, key, TEXT)?;
        let blob = session.wrap_key(&Mechanism::AesKeyWrap, kek, key)?;
        session.destroy_object(key)?;
        session.destroy_object(kek)?;
        if blob.len() != len.wrapped() {
            return Err(Failure::Broken("a new key of another length".to_owned()));
        }
        let mut value = Zeroizing::new(vec![0; len.bytes()]);
        dlms::key_wrap::unwrap(&KEK, &blob, &mut value)
            .map_err(|_| Failure::Broken("what it wrapped does not open".to_owned()))?;
        if dlms::cmac::compute(&value, TEXT).is_ok_and(|mac| mac[..] == told[..]) {
            continue;
        }
        return Err(Failure::Broken("what it wrapped is another key".to_owned()));
    }
    Ok(String::new())
}

fn generate(session: &Session, len: KeyLen, under: StoreUnder) -> Result<ObjectHandle, Failure> {
    Ok(session.generate_key(&Mechanism::AesKeyGen, &fresh::made(len, under))?)
}

/// A key's name in the table, where it goes, and what it may do by which mechanism.
type Place = (&'static str, StoreUnder, &'static [(Usage, MechanismType)]);

/// What a key may do on its way to each place where keys are stored: its identity, and for the sealed KEKs the one
/// thing by which it is compared.
const PLACES: [Place; 3] = [
    ("a new key for protection MEMORY", StoreUnder::Block(0), &[IDENTIFIED]),
    (
        "a new key for protection HSM",
        StoreUnder::Kek(SealedKek::Use),
        &[IDENTIFIED, (Usage::Encrypt, MechanismType::AES_GCM)],
    ),
    (
        "a new KEK of a meter",
        StoreUnder::Kek(SealedKek::MeterKek),
        &[IDENTIFIED, (Usage::Wrap, MechanismType::AES_KEY_WRAP)],
    ),
];
const IDENTIFIED: (Usage, MechanismType) = (Usage::Sign, MechanismType::AES_CMAC);

impl Attacks<'_> {
    /// What somebody in this process could do to a key while it is made. That he can wrap it is no row: it is made to
    /// be wrapped.
    pub(crate) fn new_keys(&mut self) {
        for (name, under, rightful) in PLACES {
            let new = |session: &Session| generate(session, KeyLen::Aes128, under);
            self.control(format!("{name}: made, identified"), |session| {
                Ok(session.sign(&Mechanism::AesCMac, new(session)?, TEXT)?)
            });
            for deed in Deed::ALL {
                let may = |&(usage, mechanism)| deed.is_rightful(&[usage], mechanism);
                if !rightful.iter().any(may) {
                    self.attack(format!("{name}: {deed:?}"), WHY, Strict::Rule, |session| {
                        Ok(deed.attempt(session, new(session)?))
                    });
                }
            }
            let usages: Vec<Usage> = rightful.iter().map(|(usage, _)| *usage).collect();
            self.later_changes(name, ObjectClass::SECRET_KEY, &usages, false, new);
            self.attack(format!("{name}: read its value"), WHY, Strict::Rule, |session| {
                Ok(read_value(session, new(session)?, OurKey::UseKek))
            });
        }
    }

    /// The copy of a block's key that opens what was wrapped, for a check.
    pub(crate) fn block_keys(&mut self) {
        let name = "a block's key that opens";
        let mut template = fresh::unwrap_only();
        template.push(Attribute::Value(vec![7; 32]));
        let copy = |session: &Session| Ok(session.create_object(&template)?);
        self.foreign_uses(name, &[Usage::Unwrap], MechanismType::AES_KEY_WRAP, copy);
        self.later_changes(name, ObjectClass::SECRET_KEY, &[Usage::Unwrap], false, copy);
    }
}
