//! Callers with an accepted certificate who are refused all the same: counted, and told to the log.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::peer::Peer;
use crate::rpc::{figures::Figures, messages::status::Refused};

/// The least time between two lines of the log about one caller and one reason.
const STRANGER_LOGGED_EVERY: Duration = Duration::from_secs(60);
/// The most callers and reasons remembered for that; beyond, the oldest line is forgotten.
const STRANGERS_MAX: usize = 256;

/// Callers whose certificate an authority signed and whom the policy or a list does not let in: that is a
/// mistake of somebody, so an operator is to see it; but not once for each call.
pub(crate) struct Strangers {
    figures: Arc<Figures>,
    /// The time at which each was last told of, and how often it was refused since.
    told: Mutex<HashMap<Told, (Instant, u64)>>,
}

/// A caller, and why it is refused.
type Told = (String, &'static str);

impl Strangers {
    pub(crate) fn new(figures: Arc<Figures>) -> Self {
        Self { figures, told: Mutex::default() }
    }

    /// Notes a refusal, if it is one of these.
    pub(crate) fn note(&self, peer: Option<&Peer>, refused: &Refused) {
        let Some(word) = self.figures.refused(refused.word()) else { return };
        let caller = peer.and_then(Peer::name).map_or_else(String::new, ToString::to_string);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (caller, word);
        let unlogged = match told.get_mut(&key) {
            Some((last, unlogged)) if last.elapsed() < STRANGER_LOGGED_EVERY => {
                *unlogged += 1;
                return;
            }
            Some((_, unlogged)) => *unlogged,
            None => 0,
        };
        if told.len() >= STRANGERS_MAX
            && !told.contains_key(&key)
            && let Some(oldest) = told.iter().min_by_key(|(_, (last, _))| *last)
        {
            let oldest = oldest.0.clone();
            told.remove(&oldest);
        }
        let address = peer.map(|peer| peer.address().to_string());
        tracing::warn!(
            caller = key.0,
            address,
            reason = word,
            unlogged_since_last = unlogged,
            "caller refused: {refused}"
        );
        told.insert(key, (Instant::now(), 0));
    }
}
