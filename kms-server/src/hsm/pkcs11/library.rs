//! The module in this process: C_Initialize, slots, C_Login (PKCS #11 v3.0, sections 5.4 to 5.6).
//!
//! C_Initialize and C_Login hold for the whole process, so what guards them does too: one [`Library`]
//! for each module, however many tokens and probes use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock, RwLockReadGuard},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};

use super::{
    fault::{Fault, ckr},
    lock::{lock, read, write},
};
use crate::hsm::Config;

/// Every module that was loaded, by its path: dlopen gives the same one twice, and so must we.
static LOADED: Mutex<BTreeMap<PathBuf, Arc<Library>>> = Mutex::new(BTreeMap::new());

/// One PKCS #11 module.
pub(super) struct Library {
    pkcs11: Pkcs11,
    /// Each call holds it for reading, C_Finalize for writing: in-flight calls finish first.
    gate: RwLock<Gate>,
    /// Held for writing while a token object is made or destroyed, for reading by C_FindObjects:
    /// SoftHSM 2.6 fails at random when the two meet.
    pub(super) objects: RwLock<()>,
    /// Labels of tokens that refused the PIN. Never emptied: a further try could lock the token.
    refused_pins: Mutex<BTreeSet<String>>,
}

/// Whether the library is initialised, and how often it has been.
#[derive(Clone, Copy)]
pub(super) struct Gate {
    /// Rises with each C_Initialize, tried or done. A handle of another epoch may name another key.
    pub(super) epoch: u64,
    /// Whether the last one succeeded.
    pub(super) initialised: bool,
}

impl Library {
    /// Loads `module`, or finds it loaded.
    pub(super) fn load(module: &Path) -> Result<Arc<Self>, Fault> {
        let mut loaded = lock(&LOADED);
        let path = module.canonicalize().unwrap_or_else(|_| module.to_owned());
        if let Some(library) = loaded.get(&path) {
            return Ok(Arc::clone(library));
        }
        let pkcs11 = Pkcs11::new(&path).map_err(|error| {
            Fault::Broken(format!(
                "loading {}: install the token's software, or correct hsm.module ({error})",
                path.display()
            ))
        })?;
        let library = Arc::new(Self {
            pkcs11,
            gate: RwLock::new(Gate { epoch: 0, initialised: false }),
            objects: RwLock::new(()),
            refused_pins: Mutex::new(BTreeSet::new()),
        });
        loaded.insert(path, Arc::clone(&library));
        Ok(library)
    }

    /// Enters the library: as long as the guard lives, nobody finalises it.
    pub(super) fn enter(&self) -> RwLockReadGuard<'_, Gate> {
        read(&self.gate)
    }

    /// Initialises the library if it is not. Says whether it was not.
    pub(super) fn start(&self) -> Result<bool, Fault> {
        let gate = *self.enter();
        if gate.initialised {
            return Ok(false);
        }
        self.restart(gate.epoch).map(|()| true)
    }

    /// C_Finalize and C_Initialize, after all calls in flight; not if somebody else has done it since
    /// epoch `broken`. SoftHSM never again sees a token directory that came back without this.
    pub(super) fn restart(&self, broken: u64) -> Result<(), Fault> {
        let mut gate = write(&self.gate);
        if gate.epoch != broken && gate.initialised {
            return Ok(());
        }
        gate.epoch += 1;
        gate.initialised = false;
        // Not initialised is as good as finalised, and a library that can't finalise is told by
        // C_Initialize.
        let _ = self.pkcs11.clone().finalize();
        // Without CKF_OS_LOCKING_OK SoftHSM crashes within seconds of use by several threads.
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        self.pkcs11.initialize(arguments).map_err(|error| Fault::Broken(ckr(&error)))?;
        gate.initialised = true;
        Ok(())
    }

    /// The slot of the token with this label. Looked up each time: SoftHSM's slot numbers change.
    pub(super) fn slot(&self, label: &str) -> Result<Slot, Fault> {
        let missing = || {
            Fault::Broken(format!(
                "no slot has a token labelled `{label}`: put the token back, or correct \
                 hsm.token_label"
            ))
        };
        let mut found = self.slots(|info| info.token_initialized() && info.label() == label)?;
        let slot = found.pop().ok_or_else(missing)?;
        if found.is_empty() {
            Ok(slot)
        } else {
            Err(Fault::Broken(format!("{} tokens are labelled `{label}`", found.len() + 1)))
        }
    }

    /// The slots whose token information passes `choose`.
    pub(super) fn slots(
        &self,
        choose: impl Fn(&cryptoki::slot::TokenInfo) -> bool,
    ) -> Result<Vec<Slot>, Fault> {
        let slots = self.pkcs11.get_slots_with_token().map_err(|e| Fault::Broken(ckr(&e)))?;
        // A slot whose information can't be read is not ours, or is dead: the label will be missing.
        let told = slots
            .into_iter()
            .filter(|slot| self.pkcs11.get_token_info(*slot).is_ok_and(|i| choose(&i)));
        Ok(told.collect())
    }

    /// The crate's handle on the module.
    pub(super) fn pkcs11(&self) -> &Pkcs11 {
        &self.pkcs11
    }

    /// Logs the user in. A refused PIN is refused from then on without asking the token.
    pub(super) fn login(&self, session: &Session, config: &Config) -> Result<(), Fault> {
        let label = &config.token_label;
        let never_again = || {
            Fault::Refused(format!(
                "token `{label}` refused the user PIN; it is not tried again by this process: \
                 correct hsm.pin_file or hsm.pin_env, then start again"
            ))
        };
        // Held over the call: of two callers with a wrong PIN only one may try.
        let mut refused = lock(&self.refused_pins);
        if refused.contains(label) {
            return Err(never_again());
        }
        let pin = AuthPin::from(config.pin.expose_pin().to_owned());
        let mut outcome = session.login(UserType::User, Some(&pin));
        if let Err(Error::Pkcs11(RvError::GeneralError, _)) = outcome {
            // SoftHSM reads the token's files here and may meet another process's writing.
            outcome = session.login(UserType::User, Some(&pin));
        }
        match outcome {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinLocked
                | RvError::PinExpired
                | RvError::PinInvalid
                | RvError::PinLenRange,
                _,
            )) => {
                refused.insert(label.clone());
                Err(never_again())
            }
            Err(error) => Err(Fault::Broken(ckr(&error))),
        }
    }
}
