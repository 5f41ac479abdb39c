//! The module in this process: C_Initialize, slots, C_Login (PKCS #11 v3.0, sections 5.4 to 5.6).
//!
//! C_Initialize and C_Login hold for the whole process, so what guards them does too: one [`Library`]
//! for each module, however many tokens and probes use it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    session::{Session, UserType},
    slot::{Slot, TokenInfo},
    types::AuthPin,
};

use sha2::{Digest as _, Sha256};

use super::lock::{lock, read, write};
use crate::hsm::{
    Config,
    pkcs11::{
        failure::{Failure, ckr},
        quirks::{NEEDED, Quirk},
    },
};

/// So many random bytes do not come twice, nor all the same.
const TELLING: usize = 8;

/// Every module that was loaded, by its path: dlopen gives the same one twice, and so must we.
static LOADED: Mutex<BTreeMap<PathBuf, Arc<Library>>> = Mutex::new(BTreeMap::new());

/// Steps that the tokens of this process have taken.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// The number of steps that the tokens of this process have taken so far. Whoever waits for a token sees by it
/// whether it works or hangs; while keys are made, one step may take as long as that takes.
pub fn steps() -> u64 {
    STEPS.load(Ordering::Relaxed)
}

/// A token has answered.
pub(crate) fn step() {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

/// One PKCS #11 module.
pub(crate) struct Library {
    pkcs11: Pkcs11,
    /// Each call holds it for reading, C_Finalize for writing: in-flight calls finish first.
    gate: RwLock<Gate>,
    /// Held for writing while a token object is made or destroyed, for reading by C_FindObjects:
    /// `Quirk::CreateMeetsFind`.
    pub(crate) objects: RwLock<()>,
    /// The beginning of the last random bytes, hashed: a generator that repeats itself is told by it.
    last_random: Mutex<[u8; 32]>,
    /// Labels of tokens that refused the PIN. Never emptied: a further try could lock the token.
    refused_pins: Mutex<BTreeSet<String>>,
}

/// The reason why there is no library, with what is known to be behind it: `Quirk::WantsParameters`.
fn not_initialised(error: &Error) -> String {
    let told = ckr(error);
    match error {
        Error::Pkcs11(RvError::ArgumentsBad, _) => format!(
            "{told}: the library wants parameters of its own, as NSS's softokn does, and this service \
             gives none: such a library can't be used"
        ),
        // The one code for all that a library misses before it has a token to speak of.
        Error::Pkcs11(RvError::GeneralError, _) => format!(
            "{told}: mostly, something that the library needs is not there, or this account can't read it. {NEEDED}; else \
             see the vendor's settings and log"
        ),
        _ => told,
    }
}

/// The number of times that the library is initialised anew because it had read half of a token.
const READ_TRIES: u32 = 5;

/// The number of times that a token's information is asked for, and the pause between.
const TOKEN_INFO_TRIES: u32 = 4;
const TOKEN_INFO_PAUSE: Duration = Duration::from_millis(20);

/// Some of the slots.
#[derive(Default)]
pub(crate) struct Slots {
    pub(crate) chosen: Vec<Slot>,
    /// Numbers of slots whose token is there and tells nothing that can be read, and why: it may be
    /// `Quirk::UnreadableClock`.
    pub(crate) unread: Vec<(u64, String)>,
}

/// Whether the library is initialised, and how often it has been.
#[derive(Clone, Copy)]
pub(crate) struct Gate {
    /// Rises with each C_Initialize, tried or done. A handle of another epoch may name another key.
    pub(crate) epoch: u64,
    /// Whether the last one succeeded.
    pub(crate) initialised: bool,
}

impl Library {
    /// Loads `module`, or finds it loaded.
    pub(crate) fn load(module: &Path) -> Result<Arc<Self>, Failure> {
        let mut loaded = lock(&LOADED);
        let path = module.canonicalize().unwrap_or_else(|_| module.to_owned());
        if let Some(library) = loaded.get(&path) {
            return Ok(Arc::clone(library));
        }
        let pkcs11 = Pkcs11::new(&path).map_err(|error| {
            Failure::Unfit(format!(
                "loading {}: install the token's software, or correct hsm.module ({error})",
                path.display()
            ))
        })?;
        let library = Arc::new(Self {
            pkcs11,
            gate: RwLock::new(Gate { epoch: 0, initialised: false }),
            objects: RwLock::new(()),
            last_random: Mutex::default(),
            refused_pins: Mutex::new(BTreeSet::new()),
        });
        loaded.insert(path, Arc::clone(&library));
        Ok(library)
    }

    /// Enters the library: as long as the guard lives, nobody finalises it.
    pub(crate) fn enter(&self) -> RwLockReadGuard<'_, Gate> {
        read(&self.gate)
    }

    /// Initialises the library if it is not. Says whether it was not.
    pub(crate) fn start(&self) -> Result<bool, Failure> {
        let gate = *self.enter();
        if gate.initialised {
            return Ok(false);
        }
        self.restart(gate.epoch).map(|()| true)
    }

    /// C_Finalize and C_Initialize, after all calls in flight; not if somebody else has done it since
    /// epoch `broken`. The cure of `Quirk::BlindUntilRestart`.
    pub(crate) fn restart(&self, broken: u64) -> Result<(), Failure> {
        let mut gate = write(&self.gate);
        if gate.epoch != broken && gate.initialised {
            return Ok(());
        }
        gate.epoch += 1;
        let was_initialised = std::mem::replace(&mut gate.initialised, false);
        // Only what was initialised: `Quirk::AbortsOnFinalize`. Not initialised by now is
        // as good as finalised, and a library that can't finalise is told by C_Initialize.
        if was_initialised {
            let _ = self.pkcs11.clone().finalize();
        }
        // The flag is there for `Quirk::NeedsLocking`.
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        let mut outcome = self.pkcs11.initialize(arguments);
        if let Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) = outcome {
            // By somebody else in this process, who may have begun long ago.
            let _ = self.pkcs11.clone().finalize();
            outcome = self.pkcs11.initialize(arguments);
        }
        outcome.map_err(|error| Failure::Broken(not_initialised(&error)))?;
        step();
        gate.initialised = true;
        Ok(())
    }

    /// Carries out `work`, and again after initialising the library anew where it had read half of a token.
    pub(crate) fn whole<T>(&self, work: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
        for _ in 1..READ_TRIES {
            // Before the work: what somebody else has initialised since is not ended again.
            let epoch = self.enter().epoch;
            match work() {
                Err(Failure::HalfRead(_)) => self.restart(epoch)?,
                outcome => return outcome,
            }
        }
        work()
    }

    /// The slot of the token with this label. Looked up each time: `Quirk::SlotsRenumber`.
    pub(crate) fn slot(&self, label: &str) -> Result<Slot, Failure> {
        let Slots { mut chosen, unread } =
            self.slots(|info| info.token_initialized() && info.label() == label)?;
        let missing = || {
            let mut reason = format!(
                "no slot has a token labelled `{label}`: put the token back, or correct \
                 hsm.token_label"
            );
            for (slot, why) in &unread {
                reason.push_str(&format!("; the token in slot {slot} can't be read: {why}"));
            }
            // It may be the one that can't be read.
            if unread.is_empty() { Failure::Broken(reason) } else { Failure::HalfRead(reason) }
        };
        let slot = chosen.pop().ok_or_else(missing)?;
        step();
        if chosen.is_empty() {
            Ok(slot)
        } else {
            Err(Failure::Unfit(format!("{} tokens are labelled `{label}`", chosen.len() + 1)))
        }
    }

    /// Asked again where the library could not read it: `Quirk::StumblesOverWriter`.
    pub(crate) fn token_info(&self, slot: Slot) -> Result<TokenInfo, Error> {
        let mut info = self.pkcs11.get_token_info(slot);
        for _ in 1..TOKEN_INFO_TRIES {
            let Err(Error::Pkcs11(RvError::GeneralError, _)) = info else { break };
            thread::sleep(TOKEN_INFO_PAUSE);
            info = self.pkcs11.get_token_info(slot);
        }
        info
    }

    /// The slots whose token information passes `choose`.
    pub(crate) fn slots(&self, choose: impl Fn(&TokenInfo) -> bool) -> Result<Slots, Failure> {
        let all = self.pkcs11.get_slots_with_token().map_err(|e| Failure::Broken(ckr(&e)))?;
        let mut slots = Slots::default();
        for slot in all {
            match self.token_info(slot) {
                Ok(info) if choose(&info) => slots.chosen.push(slot),
                Ok(_) => {}
                Err(error) => slots.unread.push((slot.id(), ckr(&error))),
            }
        }
        Ok(slots)
    }

    /// The crate's handle on the module.
    pub(crate) fn pkcs11(&self) -> &Pkcs11 {
        &self.pkcs11
    }

    /// C_GenerateRandom, and that it gave something: nonces and secrets come of it. Not a test of
    /// randomness.
    pub(crate) fn random(&self, session: &Session, out: &mut [u8]) -> Result<(), Failure> {
        session.generate_random_slice(out)?;
        let Some(begin) = out.first_chunk::<TELLING>() else { return Ok(()) };
        if out.iter().all(|byte| *byte == begin[0]) {
            return Err(Failure::garbled("random bytes that are all the same"));
        }
        let begin = Sha256::digest(begin).into();
        if std::mem::replace(&mut *lock(&self.last_random), begin) == begin {
            return Err(Failure::garbled("the same random bytes as before"));
        }
        Ok(())
    }

    /// Logs the user in. A refused PIN is refused from then on without asking the token.
    pub(crate) fn login(&self, session: &Session, config: &Config) -> Result<(), Failure> {
        let label = &config.token_label;
        let never_again = || {
            Failure::Refused(format!(
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
        let stumbles = Quirk::StumblesOverWriter.is_reckoned_with(config);
        if stumbles && let Err(Error::Pkcs11(RvError::GeneralError, _)) = outcome {
            outcome = session.login(UserType::User, Some(&pin));
        }
        step();
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
            Err(error) => Err(maybe_half_read(&error, config)),
        }
    }

    /// The library's knowledge of our token, in `slot`.
    pub(crate) fn our_token(&self, slot: Slot, config: &Config) -> Result<TokenInfo, Failure> {
        self.token_info(slot).map_err(|error| maybe_half_read(&error, config))
    }
}

/// The failure of a token that was found by its label: `Quirk::ReadsByHalf`, where these codes say that.
fn maybe_half_read(error: &Error, config: &Config) -> Failure {
    match error {
        Error::Pkcs11(RvError::UserPinNotInitialized | RvError::GeneralError, _)
            if Quirk::ReadsByHalf.is_reckoned_with(config) =>
        {
            Failure::HalfRead(ckr(error))
        }
        _ => Failure::Broken(ckr(error)),
    }
}
