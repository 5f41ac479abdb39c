//! Connections that were turned away: counted, and told to the log.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::rpc::figures::{Figures, Turned};
use kms_core::Numbered as _;

/// Strangers may fill a log; this is how often each cause gets a line of it.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// The refusals of connections, and for each cause how many there were since its last line of the log: what one
/// cause fills must not hide another.
pub(super) struct Refusals {
    figures: Arc<Figures>,
    logged: Mutex<[(Option<Instant>, u64); Turned::COUNT]>,
}

impl Refusals {
    pub(super) fn new(figures: Arc<Figures>) -> Self {
        Self { figures, logged: Mutex::default() }
    }

    /// Counts a connection that is turned away, and tells the log if it is time.
    pub(super) fn note(&self, address: SocketAddr, why: Turned, reason: &str) {
        self.figures.turned_away(why);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unlogged) = &mut logged[why.index()];
        if last.is_some_and(|last| last.elapsed() < REFUSALS_LOGGED_EVERY) {
            *unlogged += 1;
            return;
        }
        tracing::warn!(
            %address,
            cause = why.word(),
            reason,
            unlogged_since_last = *unlogged,
            "connection refused"
        );
        (*last, *unlogged) = (Some(Instant::now()), 0);
    }
}
