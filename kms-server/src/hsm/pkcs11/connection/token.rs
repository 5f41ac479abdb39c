//! The traits over a connection, and the way back after a fault.
//!
//! A call enters the library (so that nobody finalises it), takes a session, works, and says what became of
//! the session. A fault ends the epoch; the next call makes a new one: C_Finalize, C_Initialize, log in,
//! find the KEKs, prove them (which is the cure of `Quirk::NeverReconnects`, too). One caller does that,
//! the others wait for it.

use std::{
    sync::{
        Arc, Mutex, RwLock, RwLockReadGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cryptoki::session::Session;

use super::{
    epoch::{Connection, Proof},
    library::{Gate, Library},
    lock::{lock, read, write},
};
use crate::hsm::{
    Config, Device, TokenError, TokenStatus,
    pkcs11::{
        failure::Failure,
        keys::{canary::Canaries, finding::find, template::OurKey},
        quirks::Quirk,
    },
};

/// Between two attempts to reconnect. A dead token is asked five times a second, not at every call.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// The number of times that a token is looked for before the first connection, and the pause between.
const FIRST_TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Sessions that one call may use before the connection is given up.
const ATTEMPTS_MAX: usize = 4;

/// Session objects after which `check` makes the connection anew, for `Quirk::LeaksObjects`: of each 242
/// bytes are lost.
const OBJECTS_PER_EPOCH_MAX: u64 = 500_000;

/// A token behind a PKCS #11 library.
pub struct Pkcs11Token {
    pub(crate) config: Config,
    pub(crate) module: Arc<Library>,
    /// The site KEKs in use, each beside the sealed KEKs: the first one is what seals are made under.
    keks: RwLock<Vec<Arc<Canaries>>>,
    /// What it was connected with.
    first: Arc<Canaries>,
    link: Mutex<Link>,
    known: Mutex<Known>,
    calls: AtomicU64,
}

/// The way to the connection. Locked for as long as somebody reconnects.
struct Link {
    connection: Option<Arc<Connection>>,
    /// When a connection was last tried, and what came of it.
    tried: Option<Instant>,
    reason: String,
}

/// The answer of `status`; never locked while the device is asked.
struct Known {
    model: String,
    epoch: u64,
    fault: Option<String>,
    /// The connection of that epoch, while it lives.
    connection: Weak<Connection>,
}

/// Within the library's gate, with a connection of this very epoch.
struct Inside<'a> {
    _gate: RwLockReadGuard<'a, Gate>,
    connection: Arc<Connection>,
}

/// Those of `all` whose site KEK is on the configured token: a site may have several tokens, and each has proofs of its
/// own. Where there is no choice nothing is asked.
pub fn own_canaries(config: &Config, mut all: Vec<Canaries>) -> Result<Canaries, TokenError> {
    match all.as_slice() {
        [_, _, ..] => choose(config, &all).map_err(|failure| not_connected(&failure)),
        _ => all.pop().ok_or_else(|| {
            not_connected(&Failure::Unfit("the database names no token".to_owned()))
        }),
    }
}

fn choose(config: &Config, all: &[Canaries]) -> Result<Canaries, Failure> {
    let library = Library::load(&config.module)?;
    if library.start()? {
        find_token(&library, &config.token_label)?;
    }
    let _gate = library.enter();
    let session = library.pkcs11().open_ro_session(library.slot(&config.token_label)?)?;
    library.login(&session, config)?;
    for canaries in all {
        if !find(&library, &session, OurKey::SiteKek, Some(&canaries.site))?.is_empty() {
            return Ok(canaries.clone());
        }
    }
    Err(Failure::Unfit(format!(
        "token `{}` has the site KEK of none of the {} tokens that the database names: use one of those, or enrol it \
         (`kms-server init --join --request FILE --same-site`)",
        config.token_label,
        all.len()
    )))
}

impl Pkcs11Token {
    /// Loads the module, logs in, finds the three KEKs that `canaries` name and proves them.
    ///
    /// A second attempt with a PIN that the token has refused is refused without asking the token.
    pub fn connect(config: Config, canaries: Canaries) -> Result<Self, TokenError> {
        config.check().map_err(|bad| TokenError::Refused {
            operation: "take this configuration",
            source: bad.into(),
        })?;
        let library = Library::load(&config.module).map_err(|failure| not_connected(&failure))?;
        let connection = first_connection(&library, &config, &canaries)
            .map_err(|failure| not_connected(&failure))?;
        let connection = Arc::new(connection);
        let known = Known {
            model: connection.model.clone(),
            epoch: connection.epoch,
            fault: None,
            connection: Arc::downgrade(&connection),
        };
        Ok(Self {
            config,
            module: library,
            first: Arc::new(canaries.clone()),
            keks: RwLock::new(vec![Arc::new(canaries)]),
            link: Mutex::new(Link {
                connection: Some(connection),
                tried: None,
                reason: String::new(),
            }),
            known: Mutex::new(known),
            calls: AtomicU64::new(0),
        })
    }

    /// The proofs of the KEKs in use.
    pub(crate) fn canaries(&self) -> Arc<Canaries> {
        read(&self.keks).first().map_or_else(|| Arc::clone(&self.first), Arc::clone)
    }

    /// The same of each site KEK that seals are opened under.
    pub(crate) fn site_keks(&self) -> Vec<Arc<Canaries>> {
        read(&self.keks).clone()
    }

    /// The next call may connect at once: with other KEKs than the last attempt, which failed.
    pub(crate) fn may_connect_at_once(&self) {
        lock(&self.link).tried = None;
    }

    /// These from now on.
    pub(crate) fn take_site_keks(&self, keks: Vec<Arc<Canaries>>) {
        *write(&self.keks) = keks;
    }

    /// Carries out `work` in a session of the pool.
    ///
    /// `work` runs again, in another session, where the first was not clean, and where the token is in
    /// doubt (`Quirk::OneCodeForAll`) while the canary named by `proof` is well: what fails twice is
    /// tampered with, what failed once was the device.
    pub(crate) fn call<T>(
        &self,
        operation: &'static str,
        proof: Proof,
        mut work: impl FnMut(&Connection, &Session) -> Result<T, Failure>,
    ) -> Result<T, TokenError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let inside = self.inside()?;
        let connection = &*inside.connection;
        let mut doubted = false;
        let mut last = Failure::Busy;
        for _ in 0..ATTEMPTS_MAX {
            let lease = connection.pool.lend(self.config.patience);
            let lease = lease.map_err(|failure| self.broke(connection, &failure))?;
            let session = lease.session().map_err(|failure| self.broke(connection, &failure))?;
            let failure = match work(connection, session) {
                Ok(done) => {
                    lease.keep();
                    return Ok(done);
                }
                Err(Failure::Doubtful(error)) => {
                    match connection.prove(session, &self.canaries(), proof) {
                        Ok(()) if doubted => Failure::Data(error),
                        Ok(()) => {
                            doubted = true;
                            lease.keep();
                            continue;
                        }
                        Err(failure) => failure,
                    }
                }
                Err(failure) => failure,
            };
            match failure {
                Failure::Data(error) => {
                    lease.keep();
                    return Err(TokenError::Refused { operation, source: error.into() });
                }
                // The lease closes the session.
                Failure::Dirty(reason) => {
                    tracing::warn!(operation, reason, "a session of the token is given up");
                    last = Failure::Dirty(reason);
                }
                _ => return Err(self.broke(connection, &failure)),
            }
        }
        Err(self.broke(connection, &last))
    }

    /// Gives the connection up (except when it is merely busy) and says why.
    fn broke(&self, connection: &Connection, failure: &Failure) -> TokenError {
        if matches!(failure, Failure::Busy) {
            return TokenError::Busy;
        }
        connection.give_up();
        tracing::warn!(
            epoch = connection.epoch,
            reason = failure.reason(),
            "token connection lost"
        );
        self.note(failure)
    }

    fn note(&self, failure: &Failure) -> TokenError {
        lock(&self.known).fault = Some(failure.reason());
        unreachable(failure)
    }

    /// Enters with a connection that is sound as far as anybody knows, making one if need be.
    fn inside(&self) -> Result<Inside<'_>, TokenError> {
        // Twice: another token of the same library may begin a new epoch between our two steps.
        for _ in 0..2 {
            let connection = self.connection()?;
            let gate = self.module.enter();
            if gate.epoch == connection.epoch && gate.initialised {
                return Ok(Inside { _gate: gate, connection });
            }
        }
        Err(self
            .note(&Failure::Broken("the library is being initialised over and over".to_owned())))
    }

    /// The connection, or a new one. Never call it from within the gate: making one waits for the gate.
    fn connection(&self) -> Result<Arc<Connection>, TokenError> {
        let mut link = lock(&self.link);
        let gate = *self.module.enter();
        if let Some(connection) = &link.connection {
            if connection.epoch == gate.epoch && !connection.is_broken() {
                return Ok(Arc::clone(connection));
            }
            link.reason = lock(&self.known).fault.clone().unwrap_or_default();
        }
        if link.tried.is_some_and(|tried| tried.elapsed() < RECONNECT_PAUSE) {
            return Err(TokenError::Unreachable { reason: link.reason.clone() });
        }
        let outcome = self.reconnect(&mut link, gate.epoch);
        link.tried = Some(Instant::now());
        outcome.map_err(|failure| {
            link.reason = failure.reason();
            self.note(&failure)
        })
    }

    fn reconnect(&self, link: &mut Link, broken: u64) -> Result<Arc<Connection>, Failure> {
        // A connection of an older epoch was ended by somebody else's restart: the library is fresh.
        let ours = link.connection.take().is_none_or(|old| old.epoch == broken);
        if ours {
            self.module.restart(broken)?;
        } else {
            self.module.start()?;
        }
        let gate = self.module.enter();
        let connection =
            Arc::new(Connection::open(&self.module, &self.config, &self.canaries(), gate.epoch)?);
        let mut known = lock(&self.known);
        known.model.clone_from(&connection.model);
        known.epoch = connection.epoch;
        known.connection = Arc::downgrade(&connection);
        // Opening has proved every KEK.
        known.fault = None;
        link.connection = Some(Arc::clone(&connection));
        tracing::info!(epoch = connection.epoch, "token connected anew, its KEKs proved");
        Ok(connection)
    }
}

/// With a library that others have initialised, a second attempt after initialising it anew:
/// `Quirk::BlindUntilRestart`.
fn first_connection(
    library: &Library,
    config: &Config,
    canaries: &Canaries,
) -> Result<Connection, Failure> {
    let fresh = library.start()?;
    let open = || {
        if fresh {
            find_token(library, &config.token_label)?;
        }
        let gate = library.enter();
        Connection::open(library, config, canaries, gate.epoch)
    };
    library.whole(open).or_else(|failure| {
        let blind = Quirk::BlindUntilRestart.is_reckoned_with(config);
        if fresh || !blind || matches!(failure, Failure::Refused(_)) {
            return Err(failure);
        }
        let epoch = library.enter().epoch;
        library.restart(epoch)?;
        open()
    })
}

/// Initialises the library until it shows the token; nobody logs in yet. One that another process writes
/// at that moment may not be seen.
fn find_token(library: &Library, label: &str) -> Result<(), Failure> {
    for _ in 1..FIRST_TRIES {
        let (epoch, found) = {
            let gate = library.enter();
            (gate.epoch, library.slot(label))
        };
        match found {
            Err(Failure::Broken(_) | Failure::HalfRead(_)) => {
                thread::sleep(FIRST_PAUSE);
                library.restart(epoch)?;
            }
            _ => break,
        }
    }
    Ok(())
}

impl Drop for Pkcs11Token {
    fn drop(&mut self) {
        let connection = lock(&self.link).connection.take().and_then(Arc::into_inner);
        let gate = self.module.enter();
        if let Some(connection) = connection
            && connection.epoch == gate.epoch
            && gate.initialised
        {
            connection.close();
        }
    }
}

impl Device for Pkcs11Token {
    fn random(&self, out: &mut [u8]) -> Result<(), TokenError> {
        self.call("give random bytes", Proof::Site, |_, session| self.module.random(session, out))
    }

    fn check(&self) -> Result<(), TokenError> {
        let prove = || {
            self.call("prove its KEKs", Proof::Site, |connection, session| {
                if has_leaked_enough(&self.config, connection.objects_made()) {
                    return Err(Failure::Broken("its library has leaked enough".to_owned()));
                }
                let canaries = self.canaries();
                connection.site_kek(&self.module, session, &canaries)?;
                connection.prove_all(session, &canaries)
            })
        };
        // The first failure ends the epoch, the second attempt begins a new one.
        prove().or_else(|_| prove())?;
        lock(&self.known).fault = None;
        Ok(())
    }

    fn status(&self) -> TokenStatus {
        let known = lock(&self.known);
        TokenStatus {
            label: self.config.token_label.clone(),
            model: known.model.clone(),
            site_kek_id: self.canaries().site,
            connection_epoch: known.epoch,
            calls: self.calls.load(Ordering::Relaxed),
            fault: known.fault.clone(),
        }
    }

    fn sessions_open(&self) -> Option<usize> {
        // Not under the lock: if it is the last to hold the connection, it drops it.
        let connection = lock(&self.known).connection.upgrade();
        let sound = connection.filter(|connection| !connection.is_broken());
        Some(sound.map_or(0, |connection| connection.pool.open_count()))
    }
}

/// Whether the connection is to be made anew after so many session objects.
fn has_leaked_enough(config: &Config, made: u64) -> bool {
    Quirk::LeaksObjects.is_reckoned_with(config) && made > OBJECTS_PER_EPOCH_MAX
}

/// The reason why there is no first connection: nothing has worked yet, so a token that is not the one is told
/// apart from one that is away.
pub(crate) fn not_connected(failure: &Failure) -> TokenError {
    match failure {
        Failure::Refused(reason) | Failure::Unfit(reason) => {
            TokenError::Unfit { reason: reason.clone() }
        }
        _ => unreachable(failure),
    }
}

/// The error that callers see.
pub(crate) fn unreachable(failure: &Failure) -> TokenError {
    match failure {
        Failure::Busy => TokenError::Busy,
        _ => TokenError::Unreachable { reason: failure.reason() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hsm::config::tests::config;

    #[test]
    fn an_epoch_ends_before_its_library_has_leaked_128_mib() {
        let config = config();
        assert!(has_leaked_enough(&config, (128 << 20) / 242));
        assert!(!has_leaked_enough(&config, 100_000));
    }
}
