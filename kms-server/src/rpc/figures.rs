//! What is counted on the wire: calls by verb and code, their queue and their work, connections.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tonic::Code;

use super::{
    access::verb::Verb, listen::connection::Peer, messages::status::Refused,
    shares::budget::Budget, tls::in_use::Tls,
};
use crate::telemetry::{
    catalogue::{
        CALLERS_REFUSED, CERTIFICATE_LEFT, CONNECTIONS, EXECUTION, HANDSHAKES_FAILED,
        IN_FLIGHT_BYTES, IN_FLIGHT_ITEMS, IN_FLIGHT_ITEMS_MAX, QUEUE, REQUESTS, UNREAD,
    },
    metrics::{Counter, Histogram, Page, Source},
};
use kms_core::{Numbered as _, ports::Clock};

const DAY_MS: f64 = 24.0 * 3_600.0 * 1_000.0;

/// All codes with their words, at their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

kms_core::numbered! {
    /// Why a connection was turned away.
    pub(crate) enum Turned "reason" {
        /// `connections_max` are open.
        Limit = 1 "limit",
        /// Its caller has his share of them.
        CallerLimit = 2 "caller_limit",
        /// Others came while it had not shaken hands.
        Crowded = 3 "crowded",
        /// The handshake took too long.
        Timeout = 4 "timeout",
        /// No HTTP/2 came after the handshake.
        NoPreface = 5 "no_preface",
        /// The client showed none.
        NoCertificate = 6 "no_certificate",
        /// The client's is not accepted.
        BadCertificate = 7 "bad_certificate",
        /// The client's was revoked.
        Revoked = 8 "revoked",
        /// No common version or protocol.
        Incompatible = 9 "incompatible",
        /// The client broke the handshake off, and said why.
        PeerAlert = 10 "peer_alert",
        /// The rest of what TLS can say.
        Tls = 11 "tls",
        /// The network.
        Io = 12 "io",
    }
}

/// Of one verb.
#[derive(Default)]
struct OfVerb {
    codes: [Counter; CODES.len()],
    queue: Histogram,
    execution: Histogram,
}

/// Since start.
pub(crate) struct Figures {
    /// At the verbs' numbers; the last is for paths that are none.
    verbs: Box<[OfVerb]>,
    turned: [Counter; Turned::COUNT],
    strangers: [Counter; STRANGERS.len()],
    unread: Counter,
    connections: AtomicU64,
}

/// Why a caller with an accepted certificate was refused all the same: the words of `ErrorInfo`.
const STRANGERS: [&str; 6] = [
    "UNKNOWN_CALLER",
    "CERTIFICATE_WITHOUT_NAME",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_NOT_TRUSTED",
    "CERTIFICATE_REVOKED",
    "REVOCATION_LIST_EXPIRED",
];

/// How often one caller's refusal gets a line of the log.
const STRANGER_LOGGED_EVERY: Duration = Duration::from_secs(60);
/// How many callers are remembered for that; beyond, the oldest line is forgotten.
const STRANGERS_MAX: usize = 256;

/// Callers whose certificate an authority signed and whom the policy or a list does not let in: that is a
/// mistake of somebody, so an operator is to see it; but not once for each call.
pub(crate) struct Strangers {
    figures: Arc<Figures>,
    /// When each was last told of, and how often it was refused since.
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
        let word = refused.word();
        let Some(at) = STRANGERS.iter().position(|stranger| *stranger == word) else { return };
        self.figures.strangers[at].add(1);
        let caller = peer.and_then(Peer::name).map_or_else(String::new, ToString::to_string);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (caller, STRANGERS[at]);
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

impl Figures {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            verbs: (0..=Verb::ALL.len()).map(|_| OfVerb::default()).collect(),
            turned: Default::default(),
            strangers: Default::default(),
            unread: Counter::default(),
            connections: AtomicU64::new(0),
        })
    }

    /// Counts a call that has ended.
    pub(crate) fn ended(&self, verb: Option<Verb>, code: Code) {
        if let Some(count) = self.of(verb).codes.get(code as usize) {
            count.add(1);
        }
    }

    /// Counts what a call's message has waited for its work to begin.
    pub(crate) fn queued(&self, verb: Verb, waited: Duration) {
        self.of(Some(verb)).queue.observe(waited);
    }

    /// Measures a call's work until it is dropped.
    pub(crate) fn execute(self: &Arc<Self>, verb: Verb) -> Executing {
        Executing { figures: Arc::clone(self), verb, begun: Instant::now() }
    }

    /// Counts a connection that was turned away.
    pub(crate) fn turned_away(&self, why: Turned) {
        self.turned[why.index()].add(1);
    }

    /// Counts a connection that was cut because its answers were not read.
    pub(crate) fn cut_unread(&self) {
        self.unread.add(1);
    }

    /// Counts a connection as open until it is dropped.
    pub(crate) fn connected(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(self))
    }

    fn of(&self, verb: Option<Verb>) -> &OfVerb {
        &self.verbs[verb.map_or(Verb::ALL.len(), |verb| verb as usize)]
    }
}

/// Work under way.
pub(crate) struct Executing {
    figures: Arc<Figures>,
    verb: Verb,
    begun: Instant,
}

impl Drop for Executing {
    fn drop(&mut self) {
        self.figures.of(Some(self.verb)).execution.observe(self.begun.elapsed());
    }
}

/// An open connection.
pub(crate) struct Connected(Arc<Figures>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All that the wire has to tell.
pub(crate) struct Wire {
    pub(crate) figures: Arc<Figures>,
    pub(crate) budget: Budget,
    pub(crate) tls: Arc<Tls>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Source for Wire {
    fn tell(&self, page: &mut Page) {
        let names = Verb::ALL.iter().map(|verb| verb.name()).chain(["Unknown"]);
        for (verb, of) in names.zip(&self.figures.verbs) {
            for (code, count) in CODES.into_iter().zip(&of.codes) {
                page.counter(&REQUESTS, &[verb.into(), code.into()], count);
            }
            page.histogram(&QUEUE, &[verb.into()], &of.queue);
            page.histogram(&EXECUTION, &[verb.into()], &of.execution);
        }
        for (reason, count) in Turned::ALL.iter().zip(&self.figures.turned) {
            page.counter(&HANDSHAKES_FAILED, &[reason.word().into()], count);
        }
        for (word, count) in STRANGERS.into_iter().zip(&self.figures.strangers) {
            page.counter(&CALLERS_REFUSED, &[word.into()], count);
        }
        page.counter(&UNREAD, &[], &self.figures.unread);
        page.sample(&CONNECTIONS, &[], self.figures.connections.load(Ordering::Relaxed));
        let (items, items_max, bytes) = self.budget.in_flight();
        page.sample(&IN_FLIGHT_ITEMS, &[], items as u64);
        page.sample(&IN_FLIGHT_ITEMS_MAX, &[], items_max as u64);
        page.sample(&IN_FLIGHT_BYTES, &[], bytes as u64);
        let (loaded, now_ms) = (self.tls.current(), self.clock.unix_ms());
        let certificates = [
            ("server", Some(loaded.not_after_ms)),
            ("client_ca", Some(loaded.authorities_not_after_ms)),
            ("client_crl", loaded.lists_due.map(|due| due.next_ms)),
        ];
        for (certificate, not_after_ms) in certificates {
            let Some(not_after_ms) = not_after_ms else { continue };
            let left = (not_after_ms as f64 - now_ms as f64) / DAY_MS;
            page.sample(&CERTIFICATE_LEFT, &[certificate.into()], left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_at_the_numbers_of_what_they_name() {
        assert!(Verb::ALL.iter().enumerate().all(|(at, verb)| *verb as usize == at));
        for (number, word) in CODES.into_iter().enumerate() {
            let camel = format!("{:?}", Code::from(number as i32)).to_lowercase();
            assert_eq!(word.replace('_', "").to_lowercase(), camel);
        }
    }
}
