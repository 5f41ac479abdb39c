//! Everything that dies with one epoch: sessions, handles of KEKs, unwrapped keys.

use std::sync::{
    Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use cryptoki::{object::ObjectHandle, session::Session};

use super::{
    holder::Holder,
    library::Library,
    lock::lock,
    pool::{Pool, close},
};
use crate::hsm::{
    Config,
    pkcs11::{
        failure::Failure,
        keys::{
            canary::{Canaries, Keks, KeyName},
            finding::find,
            template::{self, Kept, OurKey},
        },
    },
};
use kms_core::SealedKek;

/// Two canary keys and the text that one of them wraps.
const OBJECTS_PER_PROOF: u64 = 3;

/// One sound connection to one token.
pub(crate) struct Connection {
    /// The library's epoch at its birth. In any other, its handles may name other keys.
    pub(crate) epoch: u64,
    pub(crate) model: String,
    /// The site KEK among them is the one of its beginning.
    pub(crate) keks: Keks,
    /// The site KEKs that were found and proved.
    sites: Mutex<Vec<(KeyName, ObjectHandle)>>,
    pub(crate) pool: Pool,
    pub(crate) holder: Mutex<Holder>,
    /// The private half of `transport-import`, once somebody imports.
    pub(crate) import_key: OnceLock<ObjectHandle>,
    /// The private half of `transport-block`, once a secret of another site comes.
    pub(crate) transport_block: OnceLock<ObjectHandle>,
    /// The use KEK's canary key, unwrapped.
    use_canary: ObjectHandle,
    /// Logged in, and kept open: when the last session closes, the user is logged out and all private
    /// handles die. Never used for anything else.
    anchor: Mutex<Session>,
    broken: AtomicBool,
    /// Session objects made outside the holder.
    objects: AtomicU64,
}

/// The canary that speaks for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The canary of the site KEK.
    Site,
    /// The canary of a sealed KEK, for unwrapping under it.
    Unwrap(SealedKek),
    /// The use KEK's canary key, for unwrapped keys.
    UseKey,
}

impl Connection {
    /// Logs in, finds the KEKs once, and proves them. Call within the library's gate, in `epoch`.
    pub(crate) fn open(
        library: &Library,
        config: &Config,
        canaries: &Canaries,
        epoch: u64,
    ) -> Result<Self, Failure> {
        let slot = library.slot(&config.token_label)?;
        let pkcs11 = library.pkcs11();
        let info = library.our_token(slot, config)?;
        // Not closed by the crate: after C_Finalize a session's number may be another's.
        let anchor = pkcs11.open_ro_session_no_drop(slot)?;
        let holder = match pkcs11.open_ro_session_no_drop(slot) {
            Ok(holder) => holder,
            Err(error) => {
                close(anchor);
                return Err(error.into());
            }
        };
        let sound = sound(library, config, canaries, &anchor, &holder);
        let (keks, use_canary) = match sound {
            Ok(sound) => sound,
            Err(failure) => {
                close(holder);
                close(anchor);
                return Err(failure);
            }
        };
        Ok(Self {
            epoch,
            model: info.model().to_owned(),
            keks,
            sites: Mutex::new(vec![(canaries.site, keks.site)]),
            pool: Pool::new(pkcs11.clone(), slot, config.sessions_max),
            holder: Mutex::new(Holder::new(holder, config.unwrapped_keys_max)),
            import_key: OnceLock::new(),
            transport_block: OnceLock::new(),
            use_canary,
            anchor: Mutex::new(anchor),
            broken: AtomicBool::new(false),
            objects: AtomicU64::new(0),
        })
    }

    /// Proves all three KEKs.
    pub(crate) fn prove_all(&self, session: &Session, canaries: &Canaries) -> Result<(), Failure> {
        self.count_objects(OBJECTS_PER_PROOF);
        canaries.prove(session, &self.keks_of(canaries)?)
    }

    /// The KEKs that these prove. A site KEK that nobody has looked for in this connection is not there.
    fn keks_of(&self, canaries: &Canaries) -> Result<Keks, Failure> {
        let site = self.known_site_kek(&canaries.site).ok_or_else(|| {
            Failure::Broken("the site KEK in use was not found in this connection".to_owned())
        })?;
        Ok(Keks { site, ..self.keks })
    }

    fn known_site_kek(&self, name: &KeyName) -> Option<ObjectHandle> {
        lock(&self.sites).iter().find(|(known, _)| known == name).map(|(_, handle)| *handle)
    }

    /// The site KEK that these prove: found and proved, unless it is known.
    pub(crate) fn site_kek(
        &self,
        library: &Library,
        session: &Session,
        canaries: &Canaries,
    ) -> Result<ObjectHandle, Failure> {
        if let Some(known) = self.known_site_kek(&canaries.site) {
            return Ok(known);
        }
        let site = find_kek(library, session, OurKey::SiteKek, canaries)?;
        let keks = Keks { site, ..self.keks };
        // One wrong answer is the device's; two are another key.
        match canaries.prove_site(session, &keks) {
            Err(Failure::Unfit(_)) => canaries.prove_site(session, &keks)?,
            outcome => outcome?,
        }
        let mut sites = lock(&self.sites);
        sites.retain(|(known, _)| *known != canaries.site);
        sites.push((canaries.site, site));
        Ok(site)
    }

    /// It is destroyed.
    pub(crate) fn forget_site_kek(&self, name: &KeyName) {
        lock(&self.sites).retain(|(known, _)| known != name);
    }

    /// Counts session objects that were made, for `Quirk::LeaksObjects`.
    pub(crate) fn count_objects(&self, made: u64) {
        self.objects.fetch_add(made, Ordering::Relaxed);
    }

    /// Session objects made in this epoch, dead or alive.
    pub(crate) fn objects_made(&self) -> u64 {
        self.objects.load(Ordering::Relaxed) + lock(&self.holder).made()
    }

    /// Asks the canary of the same kind as a doubtful call, in the same session: the answer is about
    /// the device and about the session.
    pub(crate) fn prove(
        &self,
        session: &Session,
        canaries: &Canaries,
        proof: Proof,
    ) -> Result<(), Failure> {
        if matches!(proof, Proof::Unwrap(_)) {
            self.count_objects(OBJECTS_PER_PROOF);
        }
        match proof {
            Proof::Site => canaries.prove_site(session, &self.keks_of(canaries)?),
            Proof::Unwrap(SealedKek::MeterKek) => canaries.prove_meter_kek(session, &self.keks),
            Proof::Unwrap(SealedKek::Use) => {
                let key = canaries.unwrap_use_key(session, &self.keks)?;
                let proved = canaries.prove_use_key(session, key);
                session.destroy_object(key)?;
                proved
            }
            Proof::UseKey => canaries.prove_use_key(session, self.use_canary),
        }
    }

    /// Nothing of this epoch is used again.
    pub(crate) fn give_up(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Whether it was given up.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Closes its sessions. Only within its epoch: later their numbers may be another's.
    pub(crate) fn close(self) {
        self.pool.close_idle();
        close(into_inner(self.holder).into_session());
        close(into_inner(self.anchor));
    }
}

fn into_inner<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The KEKs and the use KEK's canary key, if everything is as `init` left it.
fn sound(
    library: &Library,
    config: &Config,
    canaries: &Canaries,
    anchor: &Session,
    holder: &Session,
) -> Result<(Keks, ObjectHandle), Failure> {
    library.login(anchor, config)?;
    let find = |key| find_kek(library, anchor, key, canaries);
    let keks = Keks {
        site: find(OurKey::SiteKek)?,
        meter_kek: find(OurKey::MeterKek)?,
        use_kek: find(OurKey::UseKek)?,
    };
    // One wrong answer is the device's; two are another key.
    match canaries.prove(anchor, &keks) {
        Err(Failure::Unfit(_)) => canaries.prove(anchor, &keks)?,
        outcome => outcome?,
    }
    Ok((keks, canaries.unwrap_use_key(holder, &keks)?))
}

/// C_FindObjects by label and id. None found is what a token that vanished looks like
/// (`Quirk::GoneLooksEmpty`); two are an attempt at something: neither is ever "not found".
fn find_kek(
    library: &Library,
    session: &Session,
    key: OurKey,
    canaries: &Canaries,
) -> Result<ObjectHandle, Failure> {
    let name = canaries.name_of(key).unwrap_or_default();
    let found = find(library, session, key, Some(&name))?;
    let [handle] = found.as_slice() else {
        return Err(Failure::Unfit(format!(
            "the token has {} keys {} with id {}, one is due: use the token that the database was \
             made with",
            found.len(),
            key.label(),
            hex::encode(name)
        )));
    };
    // Its attributes may have been lost: `Quirk::DamagedKeysServe`.
    template::verify_born(session, *handle, key, (Kept::OnToken, canaries.birth_of(key)))?;
    Ok(*handle)
}
