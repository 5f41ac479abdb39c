//! Keys made for meters, inside the token.
//!
//! C_UnwrapKey (`meter-kek`) opens a meter's KEK: a session object that may only wrap. C_GenerateKey makes the key, a
//! session object too. C_Sign gives fingerprint and check value, C_WrapKey what the meter is sent and what is stored,
//! C_DestroyObject ends it. A key that several meters share is opened out of what is stored of it (C_UnwrapKey, with the
//! block's key) and goes the same way: whoever has a block's key could open it anyhow.
//!
//! One wrong answer would strand a meter, so each is held against another: the KEK is opened twice and the key wrapped
//! under either; what is stored is opened, and has to be the key. A meter's KEK may not unwrap, so nobody can open what
//! was wrapped under it but the meter.

use std::collections::HashSet;

use cryptoki::{mechanism::Mechanism, object::ObjectHandle, session::Session};

use super::{
    gcm::{Gcm, NONCE_LEN, Tag},
    sealed_file::{self, Objects, ZEROS, cmac},
};
use crate::hsm::{
    KeyLen, LockedKey, Made, MakeKeys, MakesKeys, NewKey, NotMade, ShareKey, StoreUnder,
    TokenError, WantedKey, lengths,
    pkcs11::{
        connection::{
            epoch::{Connection, Proof},
            token::Pkcs11Token,
        },
        failure::Failure,
        keys::{
            canary::{self, unwrap},
            fresh,
        },
    },
};
use kms_core::{Fingerprint, Kcv, SealedKek};

/// Session objects for one key at most: itself, as it comes out of storage, two texts that they wrap.
const OBJECTS_PER_KEY: u64 = 4;
/// A block's key is there twice, a meter's KEK too.
const OBJECTS_PER_OTHER: u64 = 2;
/// The key that everybody knows, and a canary's.
const OBJECTS_PER_CALL: u64 = 2;

impl MakesKeys for Pkcs11Token {
    fn make_keys(&self, job: &MakeKeys) -> Result<Made, TokenError> {
        const OPERATION: &str = "make keys";
        if !job.is_whole() {
            let source = "a bound is not kept, or a key has no KEK or no block".into();
            return Err(TokenError::Refused { operation: OPERATION, source });
        }
        self.call(OPERATION, Proof::Unwrap(SealedKek::MeterKek), |connection, session| {
            connection.count_objects(
                OBJECTS_PER_CALL
                    + OBJECTS_PER_KEY * job.keys.len() as u64
                    + OBJECTS_PER_OTHER * (job.keks.len() + job.wrap_keys.len()) as u64,
            );
            let mut objects = Objects { session, made: Vec::new() };
            let made = self.make(connection, &mut objects, job);
            // Destroyed whatever came of it: the session goes back to the pool.
            objects.destroy()?;
            made
        })
    }

    fn share_key(&self, job: &ShareKey) -> Result<Made, TokenError> {
        const OPERATION: &str = "share a key";
        if !job.is_whole() {
            let source = "a bound is not kept, or a key has no KEK or no block".into();
            return Err(TokenError::Refused { operation: OPERATION, source });
        }
        self.call(OPERATION, Proof::Unwrap(SealedKek::MeterKek), |connection, session| {
            connection.count_objects(
                OBJECTS_PER_CALL
                    + OBJECTS_PER_KEY * (1 + job.to.len()) as u64
                    + OBJECTS_PER_OTHER * (job.keks.len() + job.wrap_keys.len()) as u64,
            );
            let mut objects = Objects { session, made: Vec::new() };
            let shared = self.share(connection, &mut objects, job);
            objects.destroy()?;
            shared
        })
    }
}

impl Pkcs11Token {
    fn make(
        &self,
        connection: &Connection,
        objects: &mut Objects<'_>,
        job: &MakeKeys,
    ) -> Result<Made, Failure> {
        knows_cmac(objects, &job.fingerprint_label)?;
        let mut blocks = Vec::with_capacity(job.wrap_keys.len());
        for key in &job.wrap_keys {
            blocks.push(Block::create(objects, key)?);
        }
        let keks = self.open_keks(connection, objects, &job.keks)?;
        let maker = Maker { connection, blocks: &blocks, label: &job.fingerprint_label };
        let mut made = Vec::with_capacity(job.keys.len());
        for wanted in &job.keys {
            made.push(match keks.get(wanted.kek) {
                Some(Some(kek)) => Ok(maker.make(objects, wanted, *kek)?),
                _ => Err(NotMade::KekRefused),
            });
        }
        all_differ(&made)?;
        Ok(made)
    }

    fn share(
        &self,
        connection: &Connection,
        objects: &mut Objects<'_>,
        job: &ShareKey,
    ) -> Result<Made, Failure> {
        knows_cmac(objects, &job.fingerprint_label)?;
        let mut blocks = Vec::with_capacity(job.wrap_keys.len());
        for key in &job.wrap_keys {
            blocks.push(Block::create(objects, key)?);
        }
        let keks = self.open_keks(connection, objects, &job.keks)?;
        let maker = Maker { connection, blocks: &blocks, label: &job.fingerprint_label };
        let key = maker.open_shared(objects, job)?;
        let mut made = Vec::with_capacity(job.to.len());
        for wanted in &job.to {
            made.push(match keks.get(wanted.kek) {
                Some(Some(kek)) => Ok(maker.identify_and_wrap(objects, wanted, *kek, key)?),
                _ => Err(NotMade::KekRefused),
            });
        }
        match made.iter().flatten().all(|it| it.fingerprint == job.fingerprint) {
            true => Ok(made),
            false => Err(Failure::garbled(NOT_SHARED)),
        }
    }

    /// Opens each KEK. The canary is asked once for all that were refused, after them and in the same session, and
    /// then each is tried once more: what is refused twice, by a token that is well in between, is no KEK.
    fn open_keks(
        &self,
        connection: &Connection,
        objects: &mut Objects<'_>,
        blobs: &[Vec<u8>],
    ) -> Result<Vec<Option<Kek>>, Failure> {
        let mut keks = Vec::with_capacity(blobs.len());
        for blob in blobs {
            keks.push(Kek::open(connection, objects, blob)?);
        }
        if keks.iter().any(Option::is_none) {
            connection.prove(
                objects.session,
                &self.canaries(),
                Proof::Unwrap(SealedKek::MeterKek),
            )?;
        }
        for (kek, blob) in keks.iter_mut().zip(blobs) {
            if kek.is_none() {
                *kek = Kek::open(connection, objects, blob)?;
            }
        }
        Ok(keks)
    }
}

/// Tries the label's CMAC with a key that everybody knows: what is wrong each time in the same way would compare well.
fn knows_cmac(objects: &mut Objects<'_>, label: &[u8]) -> Result<(), Failure> {
    const WHAT: &str = "a CMAC is another than software computes";
    let session = objects.session;
    let key = sealed_file::create_block_key(session, &canary::TEXT, fresh::opened())?;
    let mac = cmac(session, objects.keep(key), label)?;
    match dlms::cmac::compute(&canary::TEXT, label) {
        Ok(known) if known == mac => Ok(()),
        _ => Err(Failure::garbled(WHAT)),
    }
}

/// A meter's KEK, opened twice.
#[derive(Clone, Copy)]
struct Kek([ObjectHandle; 2]);

impl Kek {
    /// `None`: it does not open, or the token is not well.
    fn open(
        connection: &Connection,
        objects: &mut Objects<'_>,
        blob: &[u8],
    ) -> Result<Option<Self>, Failure> {
        if !lengths::is_of_wrapped_key(blob.len()) {
            return Ok(None);
        }
        let under = connection.keks.meter_kek;
        let session = objects.session;
        let one = match unwrap(session, under, SealedKek::MeterKek, blob) {
            Ok(kek) => objects.keep(kek),
            Err(Failure::Data(_) | Failure::Doubtful(_)) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let other = unwrap(session, under, SealedKek::MeterKek, blob)
            .map_err(|failure| failure.of_own_work("a KEK that has opened does not open"))?;
        if other == one {
            return Err(Failure::garbled("two objects have one handle"));
        }
        Ok(Some(Self([one, objects.keep(other)])))
    }
}

/// A block's `wrap` key: one copy that wraps, and one that opens what the first has wrapped.
struct Block {
    wraps: ObjectHandle,
    opens: ObjectHandle,
}

impl Block {
    fn create(objects: &mut Objects<'_>, key: &LockedKey) -> Result<Self, Failure> {
        let (session, key) = (objects.session, (**key).as_ref());
        let wraps = objects.keep(sealed_file::create_wrap_key(session, key)?);
        let opens = sealed_file::create_block_key(session, key, fresh::unwrap_only())?;
        Ok(Self { wraps, opens: objects.keep(opens) })
    }
}

type Identity = (Fingerprint, Kcv);

/// What the keys of one call have in common.
struct Maker<'a> {
    connection: &'a Connection,
    blocks: &'a [Block],
    label: &'a [u8],
}

impl Maker<'_> {
    /// One key.
    fn make(
        &self,
        objects: &mut Objects<'_>,
        wanted: &WantedKey,
        kek: Kek,
    ) -> Result<NewKey, Failure> {
        let template = fresh::made(wanted.len, wanted.under);
        let key = objects.session.generate_key(&Mechanism::AesKeyGen, &template)?;
        let made = self.identify_and_wrap(objects, wanted, kek, key);
        objects.destroy_now(key);
        made
    }

    /// The key that is to be shared, out of what is stored of it.
    fn open_shared(
        &self,
        objects: &mut Objects<'_>,
        job: &ShareKey,
    ) -> Result<ObjectHandle, Failure> {
        let missing = || Failure::Broken("a key is in a block that is not there".to_owned());
        let block = self.blocks.get(job.stored.0).ok_or_else(missing)?;
        let (session, mechanism) = (objects.session, Mechanism::AesKeyWrap);
        let opened = session.unwrap_key(&mechanism, block.opens, &job.stored.1, &fresh::shared());
        let key = objects.keep(opened.map_err(Failure::from)?);
        match self.identify(session, key)?.0 == job.fingerprint {
            true => Ok(key),
            false => Err(Failure::garbled(NOT_SHARED)),
        }
    }

    fn identify_and_wrap(
        &self,
        objects: &mut Objects<'_>,
        wanted: &WantedKey,
        Kek([one, other]): Kek,
        key: ObjectHandle,
    ) -> Result<NewKey, Failure> {
        let (session, len) = (objects.session, wanted.len);
        let identity = self.identify(session, key)?;
        let meter_blob = wrap(session, one, key, len)?;
        let storage_blob = match wanted.under {
            StoreUnder::Block(at) => self.store_in_block(objects, at, (key, len), identity)?,
            StoreUnder::Kek(kek) => self.store_sealed(objects, kek, (key, len), identity)?,
        };
        if wrap(session, other, key, len)? != meter_blob || storage_blob == meter_blob {
            return Err(Failure::garbled("what the meter is sent, made twice, is not the same"));
        }
        let (fingerprint, kcv) = identity;
        Ok(NewKey { meter_blob, storage_blob, fingerprint, kcv })
    }

    /// Wraps under a block's key; what comes out again has the same identity.
    fn store_in_block(
        &self,
        objects: &mut Objects<'_>,
        at: usize,
        (key, len): (ObjectHandle, KeyLen),
        identity: Identity,
    ) -> Result<Vec<u8>, Failure> {
        let missing = || Failure::Broken("a key is for a block that is not there".to_owned());
        let block = self.blocks.get(at).ok_or_else(missing)?;
        let session = objects.session;
        let blob = wrap(session, block.wraps, key, len)?;
        let mechanism = Mechanism::AesKeyWrap;
        let opened = session.unwrap_key(&mechanism, block.opens, &blob, &fresh::opened());
        let opened = opened.map_err(|error| Failure::from(error).of_own_work(NOT_STORED))?;
        let again = self.identify(session, opened);
        objects.destroy_now(opened);
        same(again? == identity)?;
        Ok(blob)
    }

    /// Wraps under a sealed KEK. What comes out again can't be identified; it does the one thing that it may, which
    /// the key does too.
    fn store_sealed(
        &self,
        objects: &mut Objects<'_>,
        kek: SealedKek,
        (key, len): (ObjectHandle, KeyLen),
        identity: Identity,
    ) -> Result<Vec<u8>, Failure> {
        let (session, under) = (objects.session, self.connection.keks.sealed(kek));
        let blob = wrap(session, under, key, len)?;
        let opened = unwrap(session, under, kek, &blob)
            .map_err(|failure| failure.of_own_work(NOT_STORED))?;
        let is_same = do_the_same(session, kek, [key, opened], &identity.0);
        objects.destroy_now(opened);
        same(is_same.map_err(|failure| failure.of_own_work(NOT_STORED))?)?;
        same(self.identify(session, key)? == identity)?;
        Ok(blob)
    }

    fn identify(&self, session: &Session, key: ObjectHandle) -> Result<Identity, Failure> {
        let fingerprint = Fingerprint(cmac(session, key, self.label)?);
        let [a, b, c, d, e, ..] = cmac(session, key, &ZEROS)?;
        Ok((fingerprint, [a, b, c, d, e]))
    }
}

const NOT_SHARED: &str = "the key that is to be shared opens as another one";
const NOT_STORED: &str = "what is stored of a new key does not open as that key";

fn same(is_same: bool) -> Result<(), Failure> {
    if is_same { Ok(()) } else { Err(Failure::garbled(NOT_STORED)) }
}

/// Whether two keys are one, by what keys under `kek` may do.
fn do_the_same(
    session: &Session,
    kek: SealedKek,
    [key, opened]: [ObjectHandle; 2],
    Fingerprint(text): &Fingerprint,
) -> Result<bool, Failure> {
    match kek {
        SealedKek::MeterKek => {
            Ok(canary::wrap_text(session, key)? == canary::wrap_text(session, opened)?)
        }
        SealedKek::Use => {
            // The one use of this nonce, which no device has for a title: what it makes stays here. A text of this
            // key alone: an answer of before is not the same.
            let gcm = Gcm { nonce: &[0; NONCE_LEN], additional: &[], tag: Tag::Dlms };
            let sealed = gcm.encrypt(session, key, text)?;
            Ok(gcm.decrypt(session, opened, &sealed)?[..] == text[..])
        }
    }
}

/// RFC 3394, of the length that is due.
fn wrap(
    session: &Session,
    under: ObjectHandle,
    key: ObjectHandle,
    len: KeyLen,
) -> Result<Vec<u8>, Failure> {
    let blob = session.wrap_key(&Mechanism::AesKeyWrap, under, key)?;
    if blob.len() != len.wrapped() {
        return Err(Failure::garbled("a wrapped key of another length"));
    }
    Ok(blob)
}

/// A generator that repeats itself makes no keys.
fn all_differ(made: &Made) -> Result<(), Failure> {
    let mut seen = HashSet::new();
    if made.iter().flatten().all(|key| seen.insert(key.fingerprint.0)) {
        return Ok(());
    }
    Err(Failure::garbled("it made one key twice"))
}
