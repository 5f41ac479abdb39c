//! Canaries: proofs that a KEK is the one this database was made with.
//!
//! A key check value proves nothing (it is a stored attribute), and a damaged key file may be another KEK
//! (`Quirk::DamagedKeysServe`). So `init` keeps for each KEK something that only that KEK opens, and every
//! start and every check opens it. The names (CKA_ID) are kept too: a half-made key has a label, but not
//! the id (`Quirk::LeavesHalfKeys`).

use cryptoki::{
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
    types::Ulong,
};
use subtle::ConstantTimeEq as _;

use super::template::{self, Birth, OurKey};
use crate::hsm::pkcs11::{
    calls::gcm::{Gcm, NONCE_LEN, Tag},
    connection::library::Library,
    failure::Failure,
};
use kms_core::SealedKek;

/// CKA_ID of a key of ours.
pub(crate) type KeyName = [u8; 16];

const MAGIC: [u8; 4] = *b"AMIC";
/// The sealed KEKs were made here.
const MADE: u8 = 1;
/// Another site's token handed the sealed KEKs over.
const RECEIVED: u8 = 2;
const ANSWER_LEN: usize = 32;
const SEALED_LEN: usize = ANSWER_LEN + Tag::Full as usize;
/// A wrapped AES-128 key (RFC 3394).
const WRAPPED_LEN: usize = 24;
/// Bound to the site KEK's canary, so that it never passes for a block's seal.
const SITE_LABEL: &[u8] = b"ami.kms canary of the site KEK v1";
const USE_LABEL: &[u8] = b"ami.kms canary of the use KEK v1";
/// The text that the use KEK's canary key encrypts, and the key that the meter-kek KEK's wraps.
pub(crate) const TEXT: [u8; 16] = *b"ami.kms canary 1";
/// The use KEK's canary key encrypts one text, once, and nothing else ever.
const USE_NONCE: [u8; NONCE_LEN] = [0; NONCE_LEN];
const USE_GCM: Gcm<'_> = Gcm { nonce: &USE_NONCE, additional: USE_LABEL, tag: Tag::Dlms };
const USE_PROOF_LEN: usize = TEXT.len() + Tag::Dlms as usize;

/// Proofs of a site's three KEKs, and their names. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canaries {
    /// How the sealed KEKs came to the token.
    sealed_born: Birth,
    pub(crate) site: KeyName,
    site_nonce: [u8; NONCE_LEN],
    site_sealed: [u8; SEALED_LEN],
    site_answer: [u8; ANSWER_LEN],
    pub(crate) meter_kek: KeyName,
    meter_wrapped: [u8; WRAPPED_LEN],
    meter_proof: [u8; WRAPPED_LEN],
    pub(crate) use_kek: KeyName,
    use_wrapped: [u8; WRAPPED_LEN],
    use_proof: [u8; USE_PROOF_LEN],
}

/// Bytes that are no canaries of a version that this build knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these are no canaries that this version can read")]
pub struct BadCanaries;

impl Canaries {
    /// Length of version 1, in bytes.
    pub const LEN: usize = MAGIC.len()
        + 1
        + 3 * 16
        + NONCE_LEN
        + SEALED_LEN
        + ANSWER_LEN
        + 3 * WRAPPED_LEN
        + USE_PROOF_LEN;

    /// The bytes for the domain record: magic, version, then every field at its fixed length.
    pub fn encode(&self) -> Vec<u8> {
        let Self {
            sealed_born,
            site,
            site_nonce,
            site_sealed,
            site_answer,
            meter_kek,
            meter_wrapped,
            meter_proof,
            use_kek,
            use_wrapped,
            use_proof,
        } = self;
        let version = match sealed_born {
            Birth::Here => MADE,
            Birth::Received => RECEIVED,
        };
        [
            &MAGIC[..],
            &[version],
            site,
            site_nonce,
            site_sealed,
            site_answer,
            meter_kek,
            meter_wrapped,
            meter_proof,
            use_kek,
            use_wrapped,
            use_proof,
        ]
        .concat()
    }

    /// Reads what [`Canaries::encode`] wrote; nothing longer, shorter or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadCanaries> {
        let mut rest = bytes;
        if take(&mut rest)? != MAGIC {
            return Err(BadCanaries);
        }
        let sealed_born = match take(&mut rest)? {
            [MADE] => Birth::Here,
            [RECEIVED] => Birth::Received,
            [_] => return Err(BadCanaries),
        };
        let canaries = Self {
            sealed_born,
            site: take(&mut rest)?,
            site_nonce: take(&mut rest)?,
            site_sealed: take(&mut rest)?,
            site_answer: take(&mut rest)?,
            meter_kek: take(&mut rest)?,
            meter_wrapped: take(&mut rest)?,
            meter_proof: take(&mut rest)?,
            use_kek: take(&mut rest)?,
            use_wrapped: take(&mut rest)?,
            use_proof: take(&mut rest)?,
        };
        if rest.is_empty() { Ok(canaries) } else { Err(BadCanaries) }
    }

    /// How a key of this database came to the token.
    pub(crate) fn birth_of(&self, key: OurKey) -> Birth {
        if key.migrates() { self.sealed_born } else { Birth::Here }
    }

    /// The proofs of the sealed KEKs alone, for the site that they are handed to.
    pub(crate) fn encode_sealed(&self) -> Vec<u8> {
        let Self { meter_wrapped, meter_proof, use_wrapped, use_proof, .. } = self;
        [&meter_wrapped[..], meter_proof, use_wrapped, use_proof].concat()
    }

    /// The canaries of a site whose sealed KEKs were handed over: they have to pass the proofs that came with
    /// them, in `sealed`. That of its own site KEK is made.
    pub(crate) fn receive(
        library: &Library,
        session: &Session,
        keks: &Keks,
        names: [KeyName; 3],
        sealed: &[u8],
    ) -> Result<Self, Failure> {
        let bad = |_| Failure::Unfit("the proofs of the sealed KEKs have another length".into());
        let mut rest = sealed;
        let mut canaries = Self {
            sealed_born: Birth::Received,
            site: names[0],
            site_nonce: [0; NONCE_LEN],
            site_sealed: [0; SEALED_LEN],
            site_answer: [0; ANSWER_LEN],
            meter_kek: names[1],
            meter_wrapped: take(&mut rest).map_err(bad)?,
            meter_proof: take(&mut rest).map_err(bad)?,
            use_kek: names[2],
            use_wrapped: take(&mut rest).map_err(bad)?,
            use_proof: take(&mut rest).map_err(bad)?,
        };
        if !rest.is_empty() {
            return Err(bad(BadCanaries));
        }
        let of_site = site_canary(library, session, keks)?;
        (canaries.site_nonce, canaries.site_sealed, canaries.site_answer) = of_site;
        canaries.prove(session, keks)?;
        Ok(canaries)
    }

    /// Whether the token seals and opens under its site KEK now.
    pub(crate) fn site_is_well(library: &Library, session: &Session, keks: &Keks) -> bool {
        let tried = site_canary(library, session, keks).and_then(|(nonce, sealed, answer)| {
            let opened = site_gcm(&nonce).decrypt(session, keks.site, &sealed)?;
            same(OurKey::SiteKek, &opened, &answer)
        });
        tried.is_ok()
    }

    /// The same sealed KEKs beside another site KEK, whose canary is made and proved.
    pub(crate) fn with_site_kek(
        &self,
        library: &Library,
        session: &Session,
        (handle, name): (ObjectHandle, KeyName),
    ) -> Result<Self, Failure> {
        // Of these a canary of the site KEK takes that one alone.
        let keks = Keks { site: handle, meter_kek: handle, use_kek: handle };
        let (site_nonce, site_sealed, site_answer) = site_canary(library, session, &keks)?;
        let canaries = Self { site: name, site_nonce, site_sealed, site_answer, ..self.clone() };
        canaries.prove_site(session, &keks)?;
        Ok(canaries)
    }

    /// Whether they prove the same sealed KEKs as those.
    pub(crate) fn has_sealed_keks_of(&self, other: &Self) -> bool {
        let sealed = |it: &Self| (it.sealed_born, it.meter_kek, it.use_kek, it.encode_sealed());
        sealed(self) == sealed(other)
    }

    /// The name of one of the KEKs; `None` for other keys.
    pub(crate) fn name_of(&self, key: OurKey) -> Option<KeyName> {
        match key {
            OurKey::SiteKek => Some(self.site),
            OurKey::MeterKek => Some(self.meter_kek),
            OurKey::UseKek => Some(self.use_kek),
            _ => None,
        }
    }

    /// Makes the canaries of three new KEKs. Leaves session objects behind; they die with `session`.
    pub(crate) fn make(
        library: &Library,
        session: &Session,
        keks: &Keks,
        names: [KeyName; 3],
    ) -> Result<Self, Failure> {
        let [site, meter_kek, use_kek] = names;
        let (site_nonce, site_sealed, site_answer) = site_canary(library, session, keks)?;
        let meter_wrapped = wrapped_key(session, keks.meter_kek)?;
        let use_wrapped = wrapped_key(session, keks.use_kek)?;
        let meter_key = unwrap(session, keks.meter_kek, SealedKek::MeterKek, &meter_wrapped)?;
        let use_key = unwrap(session, keks.use_kek, SealedKek::Use, &use_wrapped)?;
        let use_proof = USE_GCM.encrypt(session, use_key, &TEXT)?;
        let canaries = Self {
            sealed_born: Birth::Here,
            site,
            site_nonce,
            site_sealed,
            site_answer,
            meter_kek,
            meter_wrapped,
            meter_proof: wrap_text(session, meter_key)?,
            use_kek,
            use_wrapped,
            use_proof: exactly(&use_proof)?,
        };
        canaries.prove(session, keks)?;
        Ok(canaries)
    }

    /// Proves all three KEKs. Makes (and destroys) three session objects: for
    /// `Quirk::LeaksObjects`, not more than a few times a minute.
    pub(crate) fn prove(&self, session: &Session, keks: &Keks) -> Result<(), Failure> {
        self.prove_site(session, keks)?;
        self.prove_meter_kek(session, keks)?;
        let key = self.unwrap_use_key(session, keks)?;
        let proved = self.prove_use_key(session, key);
        session.destroy_object(key)?;
        proved
    }

    /// Opens the site KEK's canary.
    pub(crate) fn prove_site(&self, session: &Session, keks: &Keks) -> Result<(), Failure> {
        let gcm = site_gcm(&self.site_nonce);
        let opened = gcm.decrypt(session, keks.site, &self.site_sealed);
        let opened = opened.map_err(|failure| of_key(OurKey::SiteKek, failure))?;
        same(OurKey::SiteKek, &opened, &self.site_answer)
    }

    /// Unwraps the meter-kek KEK's canary key and wraps the known text with it.
    pub(crate) fn prove_meter_kek(&self, session: &Session, keks: &Keks) -> Result<(), Failure> {
        let key = unwrap(session, keks.meter_kek, SealedKek::MeterKek, &self.meter_wrapped)
            .map_err(|failure| of_key(OurKey::MeterKek, failure))?;
        let wrapped = wrap_text(session, key);
        session.destroy_object(key)?;
        let wrapped = wrapped.map_err(|failure| of_key(OurKey::MeterKek, failure))?;
        same(OurKey::MeterKek, &wrapped, &self.meter_proof)
    }

    /// Unwraps the use KEK's canary key; whoever keeps it destroys it.
    pub(crate) fn unwrap_use_key(
        &self,
        session: &Session,
        keks: &Keks,
    ) -> Result<ObjectHandle, Failure> {
        unwrap(session, keks.use_kek, SealedKek::Use, &self.use_wrapped)
            .map_err(|failure| of_key(OurKey::UseKek, failure))
    }

    /// Opens the known text with the use KEK's canary key.
    pub(crate) fn prove_use_key(
        &self,
        session: &Session,
        key: ObjectHandle,
    ) -> Result<(), Failure> {
        let opened = USE_GCM.decrypt(session, key, &self.use_proof);
        let opened = opened.map_err(|failure| of_key(OurKey::UseKek, failure))?;
        same(OurKey::UseKek, &opened, &TEXT)
    }
}

type SiteCanary = ([u8; NONCE_LEN], [u8; SEALED_LEN], [u8; ANSWER_LEN]);

fn site_canary(library: &Library, session: &Session, keks: &Keks) -> Result<SiteCanary, Failure> {
    let (mut nonce, mut answer) = ([0; NONCE_LEN], [0; ANSWER_LEN]);
    library.random(session, &mut nonce)?;
    library.random(session, &mut answer)?;
    let sealed = site_gcm(&nonce).encrypt(session, keks.site, &answer)?;
    Ok((nonce, exactly(&sealed)?, answer))
}

/// The parameters of the site KEK's seal on its canary's answer.
const fn site_gcm(nonce: &[u8; NONCE_LEN]) -> Gcm<'_> {
    Gcm { nonce, additional: SITE_LABEL, tag: Tag::Full }
}

/// Handles of the three KEKs, good within one epoch.
#[derive(Clone, Copy)]
pub(crate) struct Keks {
    pub(crate) site: ObjectHandle,
    pub(crate) meter_kek: ObjectHandle,
    pub(crate) use_kek: ObjectHandle,
}

impl Keks {
    pub(crate) fn sealed(&self, kek: SealedKek) -> ObjectHandle {
        match kek {
            SealedKek::MeterKek => self.meter_kek,
            SealedKek::Use => self.use_kek,
        }
    }
}

/// C_UnwrapKey, RFC 3394, into a session object that can do what `under` says and no more.
pub(crate) fn unwrap(
    session: &Session,
    kek: ObjectHandle,
    under: SealedKek,
    wrapped: &[u8],
) -> Result<ObjectHandle, Failure> {
    Ok(session.unwrap_key(&Mechanism::AesKeyWrap, kek, wrapped, &template::unwrapped(under))?)
}

/// A new random key under `kek`, never in clear.
fn wrapped_key(session: &Session, kek: ObjectHandle) -> Result<[u8; WRAPPED_LEN], Failure> {
    let key = session.generate_key(
        &Mechanism::AesKeyGen,
        &[
            Attribute::ValueLen(Ulong::new(TEXT.len() as u64)),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
        ],
    )?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, kek, key);
    session.destroy_object(key)?;
    exactly(&wrapped?)
}

/// Wraps the known text, as a key, under `key`.
pub(crate) fn wrap_text(
    session: &Session,
    key: ObjectHandle,
) -> Result<[u8; WRAPPED_LEN], Failure> {
    let text = session.create_object(&[
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Extractable(true),
        Attribute::Value(TEXT.to_vec()),
    ])?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, key, text);
    session.destroy_object(text)?;
    exactly(&wrapped?)
}

/// A canary can't be forged or damaged in the token: whatever goes wrong with it is the device's fault,
/// or another key than at init.
fn of_key(key: OurKey, failure: Failure) -> Failure {
    match failure {
        Failure::Dirty(_) | Failure::Busy => failure,
        Failure::Data(_) | Failure::Unfit(_) => {
            Failure::Unfit(format!("the canary of {} failed: {}", key.label(), failure.reason()))
        }
        _ => Failure::Broken(format!("the canary of {} failed: {}", key.label(), failure.reason())),
    }
}

fn same(key: OurKey, got: &[u8], wanted: &[u8]) -> Result<(), Failure> {
    if bool::from(got.ct_eq(wanted)) {
        return Ok(());
    }
    Err(Failure::Unfit(format!("{} is another key than at init", key.label())))
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Failure> {
    bytes
        .try_into()
        .map_err(|_| Failure::Broken(format!("{} bytes where {N} are due", bytes.len())))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadCanaries> {
    let (field, after) = rest.split_first_chunk().ok_or(BadCanaries)?;
    *rest = after;
    Ok(*field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canaries() -> Canaries {
        Canaries {
            sealed_born: Birth::Received,
            site: [1; 16],
            site_nonce: [2; 12],
            site_sealed: [3; 48],
            site_answer: [4; 32],
            meter_kek: [5; 16],
            meter_wrapped: [6; 24],
            meter_proof: [7; 24],
            use_kek: [8; 16],
            use_wrapped: [9; 24],
            use_proof: [10; 28],
        }
    }

    #[test]
    fn canaries_come_back_as_they_were() {
        let bytes = canaries().encode();
        assert_eq!(bytes.len(), Canaries::LEN);
        assert_eq!(Canaries::decode(&bytes), Ok(canaries()));
    }

    #[test]
    fn canaries_of_any_other_length_or_version_are_refused() {
        let bytes = canaries().encode();
        for len in 0..bytes.len() {
            assert_eq!(Canaries::decode(&bytes[..len]), Err(BadCanaries), "{len}");
        }
        assert_eq!(Canaries::decode(&[&bytes[..], &[0]].concat()), Err(BadCanaries));
        for at in 0..=MAGIC.len() {
            let mut other = bytes.clone();
            other[at] ^= 4;
            assert_eq!(Canaries::decode(&other), Err(BadCanaries), "{at}");
        }
    }
}
