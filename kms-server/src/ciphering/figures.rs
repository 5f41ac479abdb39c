//! The figures of batches: within a batch in plain numbers, then added once for each verdict.

use super::item::Want;
use crate::telemetry::{
    catalogue::{MISSES, TOKEN_APDUS, VERDICTS},
    metrics::{Counter, Page},
};
use kms_core::{Numbered as _, Verdict};

/// The number of each verdict in one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VerdictCounts([u32; Verdict::COUNT]);

impl VerdictCounts {
    #[inline]
    pub(super) fn count(&mut self, verdict: Verdict) {
        self.0[verdict.index()] += 1;
    }
}

/// Since start.
#[derive(Default)]
pub(super) struct Figures {
    decrypted: [Counter; Verdict::COUNT],
    verified: [Counter; Verdict::COUNT],
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
            for (verdict, counter) in Verdict::ALL.iter().zip(counters) {
                page.counter(&VERDICTS, &[operation.into(), verdict.word().into()], counter);
            }
        }
        page.sample(&MISSES, &[], self.misses.get());
        page.sample(&TOKEN_APDUS, &[], self.token_apdus.get());
    }
}
