//! The figures of the wire: calls by verb and code, their queue and their work, connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tonic::Code;

use super::access::verb::Verb;
use crate::telemetry::{
    catalogue::{
        CALLERS_REFUSED, CONNECTIONS, EXECUTION, HANDSHAKES_FAILED, QUEUE, REQUESTS, UNREAD,
    },
    metrics::{Counter, Histogram, Page, Source},
};
use kms_core::Numbered as _;

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

/// The figures of one verb.
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

/// The words of `ErrorInfo` for refusals of callers whose certificate was accepted.
const STRANGERS: [&str; 6] = [
    "UNKNOWN_CALLER",
    "CERTIFICATE_WITHOUT_NAME",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_NOT_TRUSTED",
    "CERTIFICATE_REVOKED",
    "REVOCATION_LIST_EXPIRED",
];

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

    /// Counts a call of a caller with an accepted certificate that was refused with this word, if that is one
    /// of those that speak of the caller; then the word.
    pub(crate) fn refused(&self, word: &str) -> Option<&'static str> {
        let at = STRANGERS.iter().position(|stranger| *stranger == word)?;
        self.strangers[at].add(1);
        Some(STRANGERS[at])
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

impl Source for Figures {
    fn tell(&self, page: &mut Page) {
        let names = Verb::ALL.iter().map(|verb| verb.name()).chain(["Unknown"]);
        for (verb, of) in names.zip(&self.verbs) {
            for (code, count) in CODES.into_iter().zip(&of.codes) {
                page.counter(&REQUESTS, &[verb.into(), code.into()], count);
            }
            page.histogram(&QUEUE, &[verb.into()], &of.queue);
            page.histogram(&EXECUTION, &[verb.into()], &of.execution);
        }
        for (reason, count) in Turned::ALL.iter().zip(&self.turned) {
            page.counter(&HANDSHAKES_FAILED, &[reason.word().into()], count);
        }
        for (word, count) in STRANGERS.into_iter().zip(&self.strangers) {
            page.counter(&CALLERS_REFUSED, &[word.into()], count);
        }
        page.counter(&UNREAD, &[], &self.unread);
        page.sample(&CONNECTIONS, &[], self.connections.load(Ordering::Relaxed));
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
