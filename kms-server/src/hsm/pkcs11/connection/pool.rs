//! Sessions that are used: a bounded number, each by one caller at a time.
//!
//! There is no way to end an operation that was begun in a session and not carried out (PKCS #11
//! v2.40; C_SessionCancel came with v3.0). So a session goes back to the pool only when its user says
//! that it is clean; otherwise it is closed.

use std::{
    sync::{Condvar, Mutex},
    time::Duration,
};

use cryptoki::{context::Pkcs11, error::Error, session::Session, slot::Slot};

use super::lock::lock;
use crate::hsm::pkcs11::failure::Failure;

/// The sessions of one epoch.
pub(crate) struct Pool {
    pkcs11: Pkcs11,
    slot: Slot,
    sessions_max: usize,
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    idle: Vec<Session>,
    lent: usize,
}

impl Pool {
    /// An empty pool of at most `sessions_max`.
    pub(crate) fn new(pkcs11: Pkcs11, slot: Slot, sessions_max: usize) -> Self {
        Self {
            pkcs11,
            slot,
            sessions_max,
            state: Mutex::new(State { idle: Vec::new(), lent: 0 }),
            freed: Condvar::new(),
        }
    }

    /// A session, as soon as one is free; `Busy` after `patience`.
    pub(crate) fn lend(&self, patience: Duration) -> Result<Lease<'_>, Failure> {
        let (mut state, waited) = self
            .freed
            .wait_timeout_while(lock(&self.state), patience, |state| {
                state.lent >= self.sessions_max
            })
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if waited.timed_out() && state.lent >= self.sessions_max {
            return Err(Failure::Busy);
        }
        state.lent += 1;
        let idle = state.idle.pop();
        drop(state);
        // From here on the place is given back, whatever happens.
        let place = Place(self);
        let session = match idle {
            Some(session) => session,
            None => self.open()?,
        };
        Ok(Lease { session: Some(session), place })
    }

    /// Read-only sessions: they work with session objects, and no token object can be made, changed or
    /// destroyed through one. Not closed by the crate: after C_Finalize its number may be another's.
    fn open(&self) -> Result<Session, Error> {
        self.pkcs11.open_ro_session_no_drop(self.slot)
    }

    /// Sessions that are open, idle or lent.
    pub(crate) fn open_count(&self) -> usize {
        let state = lock(&self.state);
        state.idle.len() + state.lent
    }

    /// Closes what is idle. Only within the epoch.
    pub(crate) fn close_idle(&self) {
        // Not under the lock: a token that hangs would hang whoever asks how many there are.
        let idle = std::mem::take(&mut lock(&self.state).idle);
        idle.into_iter().for_each(close);
    }
}

/// Closes a session of the current epoch. That it could not be closed is of no use to anybody.
pub(crate) fn close(session: Session) {
    let _ = session.close();
}

/// One of the pool's places.
struct Place<'a>(&'a Pool);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).lent -= 1;
        self.0.freed.notify_one();
    }
}

/// A session on loan: closed when dropped, unless [`Lease::keep`] has said that it is clean.
pub(crate) struct Lease<'a> {
    /// `None` only while it is dropped.
    session: Option<Session>,
    place: Place<'a>,
}

impl Lease<'_> {
    /// The session.
    pub(crate) fn session(&self) -> Result<&Session, Failure> {
        self.session.as_ref().ok_or_else(|| Failure::Dirty("a session was given back".to_owned()))
    }

    /// Gives the session back: no operation is open in it.
    pub(crate) fn keep(mut self) {
        if let Some(session) = self.session.take() {
            lock(&self.place.0.state).idle.push(session);
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            close(session);
        }
    }
}
