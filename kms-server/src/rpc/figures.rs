//! What is counted on the wire: calls by verb and code, their queue and their work, connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tonic::Code;

use super::{budget::Budget, tls::Tls, verb::Verb};
use crate::{
    domain::ports::Clock,
    telemetry::{
        catalogue::{
            CERTIFICATE_LEFT, CONNECTIONS, EXECUTION, HANDSHAKES_FAILED, IN_FLIGHT_BYTES,
            IN_FLIGHT_ITEMS, IN_FLIGHT_ITEMS_MAX, QUEUE, REQUESTS,
        },
        metrics::{Counter, Histogram, Page, Source},
    },
};

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

/// Why a connection was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turned {
    /// `connections_max` are open.
    Limit,
    /// The handshake took too long.
    Timeout,
    /// The client showed none.
    NoCertificate,
    /// The client's is not accepted.
    BadCertificate,
    /// The client's was revoked.
    Revoked,
    /// No common version or protocol.
    Incompatible,
    /// The client broke the handshake off, and said why.
    PeerAlert,
    /// The rest of what TLS can say.
    Tls,
    /// The network.
    Io,
}

impl Turned {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Limit, "limit"),
        (Self::Timeout, "timeout"),
        (Self::NoCertificate, "no_certificate"),
        (Self::BadCertificate, "bad_certificate"),
        (Self::Revoked, "revoked"),
        (Self::Incompatible, "incompatible"),
        (Self::PeerAlert, "peer_alert"),
        (Self::Tls, "tls"),
        (Self::Io, "io"),
    ];
}

/// Of one verb.
#[derive(Default)]
struct OfVerb {
    codes: [Counter; CODES.len()],
    queue: Histogram,
    execution: Histogram,
}

/// Since start.
pub(super) struct Figures {
    /// At the verbs' numbers; the last is for paths that are none.
    verbs: Box<[OfVerb]>,
    turned: [Counter; Turned::ALL.len()],
    connections: AtomicU64,
}

impl Figures {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            verbs: (0..=Verb::ALL.len()).map(|_| OfVerb::default()).collect(),
            turned: Default::default(),
            connections: AtomicU64::new(0),
        })
    }

    /// Counts a call that has ended.
    pub(super) fn ended(&self, verb: Option<Verb>, code: Code) {
        if let Some(count) = self.of(verb).codes.get(code as usize) {
            count.add(1);
        }
    }

    /// Counts what a call's message has waited for its work to begin.
    pub(super) fn queued(&self, verb: Verb, waited: Duration) {
        self.of(Some(verb)).queue.observe(waited);
    }

    /// Measures a call's work until it is dropped.
    pub(super) fn execute(self: &Arc<Self>, verb: Verb) -> Executing {
        Executing { figures: Arc::clone(self), verb, begun: Instant::now() }
    }

    /// Counts a connection that was turned away.
    pub(super) fn turned_away(&self, why: Turned) {
        self.turned[why as usize].add(1);
    }

    /// Counts a connection as open until it is dropped.
    pub(super) fn connected(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(self))
    }

    fn of(&self, verb: Option<Verb>) -> &OfVerb {
        &self.verbs[verb.map_or(Verb::ALL.len(), |verb| verb as usize)]
    }
}

/// Work under way.
pub(super) struct Executing {
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
pub(super) struct Connected(Arc<Figures>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All that the wire has to tell.
pub(super) struct Wire {
    pub(super) figures: Arc<Figures>,
    pub(super) budget: Budget,
    pub(super) tls: Arc<Tls>,
    pub(super) clock: Arc<dyn Clock>,
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
        for ((_, reason), count) in Turned::ALL.into_iter().zip(&self.figures.turned) {
            page.counter(&HANDSHAKES_FAILED, &[reason.into()], count);
        }
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
        assert!(Turned::ALL.iter().enumerate().all(|(at, (it, _))| *it as usize == at));
        for (number, word) in CODES.into_iter().enumerate() {
            let camel = format!("{:?}", Code::from(number as i32)).to_lowercase();
            assert_eq!(word.replace('_', "").to_lowercase(), camel);
        }
    }
}
