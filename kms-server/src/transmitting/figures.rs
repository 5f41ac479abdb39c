//! What was protected and refused.

use crate::telemetry::{
    catalogue::{COUNTERS_LEFT, PROTECTED},
    metrics::{Counter, Page},
};
use kms_core::{Numbered as _, Verdict, counters::line::SEQUENCES};

/// Since start.
#[derive(Default)]
pub(super) struct Figures {
    verdicts: [Counter; Verdict::COUNT],
}

impl Figures {
    pub(super) fn count(&self, verdict: Verdict) {
        if let Some(counter) = self.verdicts.get(verdict.index()) {
            counter.add(1);
        }
    }

    /// `left`: of the line that has the fewest; none is used yet: all of them.
    pub(super) fn tell(&self, page: &mut Page, left: Option<u32>) {
        for (verdict, counter) in Verdict::ALL.iter().zip(&self.verdicts) {
            page.counter(&PROTECTED, &[verdict.word().into()], counter);
        }
        page.sample(&COUNTERS_LEFT, &[], u64::from(left.unwrap_or(SEQUENCES)));
    }
}
