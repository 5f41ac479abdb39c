//! How far a campaign is.

use super::{
    driving::Driven,
    row::{Phase, Row},
};

/// Counts of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// All.
    pub members: u64,
    /// By phase, in the order of their numbers.
    pub phases: [u64; Phase::ALL.len()],
    /// Those that the last try did not reach and that are not over.
    pub unreachable: u64,
    /// Under a lease.
    pub leased: u64,
    /// That may hold what they have not shown.
    pub exposed: u64,
    /// Of these, those that nobody is going to do anything about.
    pub orphans: u64,
}

impl Progress {
    /// Members in a phase.
    pub fn of(&self, phase: Phase) -> u64 {
        self.phases.get(phase as usize - 1).copied().unwrap_or_default()
    }

    /// Members that are not over.
    pub fn left(&self) -> u64 {
        [Phase::Waiting, Phase::Staged, Phase::Sent, Phase::Proved]
            .iter()
            .map(|it| self.of(*it))
            .sum()
    }

    fn count(&mut self, row: &Row, is_over: bool, now_ms: u64) {
        self.members += 1;
        if let Some(count) = self.phases.get_mut(row.phase as usize - 1) {
            *count += 1;
        }
        self.unreachable += u64::from(row.unreachable && !row.phase.is_over());
        self.leased += u64::from(row.is_leased(now_ms));
        self.exposed += u64::from(row.is_exposed());
        self.orphans += u64::from(row.is_exposed() && (is_over || row.phase.is_over()));
    }
}

/// How far a campaign is: in all, and by label.
pub fn progress(driven: &Driven, now_ms: u64) -> (Progress, Vec<Progress>) {
    let is_over = driven.campaign.status.is_over();
    let mut all = Progress::default();
    let mut labels = vec![Progress::default(); driven.campaign.labels.len()];
    for row in driven.rows() {
        all.count(row, is_over, now_ms);
        if let Some(label) = labels.get_mut(usize::from(row.label)) {
            label.count(row, is_over, now_ms);
        }
    }
    (all, labels)
}

/// The time at which the rest is done at the pace of the last hour; `None`: nobody can say.
pub fn forecast(driven: &Driven, left: u64, now_ms: u64) -> Option<u64> {
    let an_hour = driven.done_last_hour(now_ms);
    (an_hour > 0 && left > 0)
        .then(|| now_ms.saturating_add(left.saturating_mul(3_600_000) / an_hour))
}
