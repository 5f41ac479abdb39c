//! What is counted of batches: within a batch in plain numbers, then added once for each verdict.

use super::Want;
use crate::telemetry::{
    catalogue::{MISSES, TOKEN_APDUS, VERDICTS},
    metrics::{Counter, Page},
};
use kms_core::Verdict;

/// All verdicts with their words, at their numbers less one.
const WORDS: [(Verdict, &str); 10] = [
    (Verdict::Ok, "OK"),
    (Verdict::OkUnauthenticated, "OK_UNAUTHENTICATED"),
    (Verdict::MicFailure, "MIC_FAILURE"),
    (Verdict::Replayed, "REPLAYED"),
    (Verdict::UnknownMeter, "UNKNOWN_METER"),
    (Verdict::NoUsableKey, "NO_USABLE_KEY"),
    (Verdict::PolicyRefused, "POLICY_REFUSED"),
    (Verdict::Malformed, "MALFORMED"),
    (Verdict::Unsupported, "UNSUPPORTED"),
    (Verdict::Unavailable, "UNAVAILABLE"),
];

/// How often each verdict is in one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VerdictCounts([u32; WORDS.len()]);

impl VerdictCounts {
    #[inline]
    pub(super) fn count(&mut self, verdict: Verdict) {
        // Numbers run from 1: the conformance of the two is tested below.
        if let Some(count) = self.0.get_mut(usize::from(verdict as u8).wrapping_sub(1)) {
            *count += 1;
        }
    }
}

/// Since start.
#[derive(Default)]
pub(super) struct Figures {
    decrypted: [Counter; WORDS.len()],
    verified: [Counter; WORDS.len()],
    pub(super) misses: Counter,
    pub(super) token_apdus: Counter,
}

impl Figures {
    /// Adds a batch.
    pub(super) fn count(&self, want: Want, batch: &VerdictCounts) {
        let counters = match want {
            Want::Plaintext => &self.decrypted,
            Want::Verdict => &self.verified,
        };
        for (counter, count) in counters.iter().zip(batch.0).filter(|(_, count)| *count > 0) {
            counter.add(count.into());
        }
    }

    pub(super) fn tell(&self, page: &mut Page) {
        for (operation, counters) in [("decrypt", &self.decrypted), ("verify", &self.verified)] {
            for ((_, verdict), counter) in WORDS.into_iter().zip(counters) {
                page.counter(&VERDICTS, &[operation.into(), verdict.into()], counter);
            }
        }
        page.sample(&MISSES, &[], self.misses.get());
        page.sample(&TOKEN_APDUS, &[], self.token_apdus.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_at_the_numbers_of_their_verdicts() {
        for (at, (verdict, _)) in WORDS.into_iter().enumerate() {
            assert_eq!(usize::from(verdict as u8), at + 1);
            let mut counts = VerdictCounts::default();
            counts.count(verdict);
            assert_eq!(counts.0[at], 1);
        }
    }
}
