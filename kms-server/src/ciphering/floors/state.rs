//! What is known of floors beside the floors: figures and faults.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use crate::telemetry::metrics::Counter;
use kms_core::{BlockNo, counters::LineName};

/// Broken rows that are named; the rest is counted.
const NAMED_MAX: usize = 8;
/// Broken rows that are known again, so that each is counted once.
const KNOWN_MAX: usize = 1_024;

/// Figures since start, and faults.
#[derive(Default)]
pub(super) struct State {
    pub(super) new: Counter,
    pub(super) duplicates: Counter,
    pub(super) replayed: Counter,
    /// What could not be judged.
    pub(super) unavailable: Counter,
    /// Counters that left out many.
    pub(super) jumps: Counter,
    pub(super) broken: Counter,
    faults: Mutex<Faults>,
}

#[derive(Default)]
struct Faults {
    /// Why what rose is not stored, while it lasts.
    not_stored: Option<String>,
    /// What the last run of this node forgot.
    gap: Option<String>,
    /// The database forgot some: it was rolled back.
    went_back: Option<String>,
    /// Rows that this site did not write: block and line.
    broken: BTreeSet<(BlockNo, LineName)>,
    /// The other site gave floors that it did not write, or that could not be taken in.
    from_peer: Option<String>,
}

impl State {
    /// What rose was stored, or was not.
    pub(super) fn stored(&self, outcome: Result<(), String>) {
        let mut faults = self.faults();
        if let (Err(reason), None) = (&outcome, &faults.not_stored) {
            tracing::warn!(reason, "receive floors are not stored");
        }
        faults.not_stored = outcome.err();
    }

    /// The last run of this node ended without storing what it knew.
    pub(super) fn forgot(&self, sentence: String) {
        tracing::warn!(sentence, "receive floors were lost");
        self.faults().gap = Some(sentence);
    }

    /// The database is an older one.
    pub(super) fn went_back(&self, sentence: String) {
        tracing::warn!(sentence, "receive floors were lost");
        self.faults().went_back = Some(sentence);
    }

    /// A row is not what this site wrote.
    pub(super) fn broke(&self, block: BlockNo, line: &LineName) {
        let is_new = {
            let broken = &mut self.faults().broken;
            broken.len() < KNOWN_MAX && broken.insert((block, *line))
        };
        if is_new {
            self.broken.add(1);
            tracing::error!(
                block = block.0,
                originator = %line.originator,
                "a stored receive floor was changed outside this service: it is not used"
            );
        }
    }

    /// What the other site gave was taken in, or was not.
    pub(super) fn took_from_peer(&self, outcome: Result<(), String>) {
        let mut faults = self.faults();
        if let (Err(reason), None) = (&outcome, &faults.from_peer) {
            tracing::warn!(reason, "the other site's receive floors are not taken in");
        }
        faults.from_peer = outcome.err();
    }

    /// The faults, as sentences.
    pub(super) fn sentences(&self) -> Vec<String> {
        let faults = self.faults();
        let lost = faults.gap.iter().chain(&faults.went_back);
        let mut sentences: Vec<String> = lost.cloned().collect();
        sentences.extend(faults.not_stored.iter().map(|reason| {
            format!("receive floors are kept in memory alone, they can't be stored: {reason}")
        }));
        sentences.extend(faults.from_peer.iter().map(|reason| {
            format!("the other site's receive floors are not all taken in: {reason}")
        }));
        sentences.extend(faults.broken.iter().take(NAMED_MAX).map(|(block, line)| {
            format!(
                "the receive floor of originator {} in block {} was changed in the database outside this service: it is \
                 not used, and replaced when the meter's next message comes; find out who changed it",
                line.originator, block.0
            )
        }));
        sentences
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
