//! A campaign as the node has it that drives it: all of its members, who may be begun next, and what stops it.

use std::collections::{BTreeMap, BTreeSet};

use dlms::SystemTitle;

use super::{
    Campaign, Status,
    row::{Action, Phase, Row},
};

/// Failures are counted against at least so many, so that the first one does not stop a small campaign.
const BUDGET_OF: u64 = 50;
/// The pace may be made up for by so much.
const BURST_MS: u64 = 60_000;
/// Completions of the last hour are counted by minutes.
const MINUTE_MS: u64 = 60_000;
/// An hour of them.
const MINUTES: usize = 60;

/// Why no work is given out now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWork {
    /// It does not run.
    #[error("the campaign is {}{}", .0.word(), if .1.is_empty() { String::new() } else { format!(": {}", .1) })]
    NotRunning(Status, String),
    /// Outside its windows.
    #[error("no window of the campaign is open now; what was begun is gone on with")]
    Closed,
    /// The pace is used up.
    #[error("the campaign's rate is used up for now")]
    Paced {
        /// There is room again then.
        at_ms: u64,
    },
    /// The cap or the canaries hold the rest back.
    #[error(
        "as many meters are between sent and proved as the exposure cap allows, or the canaries of their label are not \
         through: the others wait for these"
    )]
    Capped,
    /// All others are under a lease, or wait for another try.
    #[error("all meters that are left are under way, or wait for their next try")]
    Waiting {
        /// The first of them then; `None`: none is left.
        at_ms: Option<u64>,
    },
}

/// The counts of a label.
#[derive(Clone, Copy, Debug, Default)]
struct Label {
    exposed: u32,
    /// Canaries that are begun.
    canaries: u32,
    canaries_done: u32,
    canaries_failed: u32,
    done: u64,
    failed: u64,
}

/// Whether nothing has gone out to a member and nobody has it: pace, window, cap and canaries decide when it is begun.
fn waits(row: &Row) -> bool {
    row.lease == 0 && !row.sent && matches!(row.phase, Phase::Waiting | Phase::Staged)
}

/// A campaign and its members.
#[derive(Debug)]
pub struct Driven {
    /// As it is stored.
    pub campaign: Campaign,
    /// The time that the pace is used up to: stored with the next change.
    pub paced_ms: u64,
    rows: BTreeMap<SystemTitle, Row>,
    labels: Vec<Label>,
    /// Members that wait to be begun, by label and the time at which they may be.
    waiting: BTreeSet<(u8, u64, SystemTitle)>,
    /// Those that are to be gone on with, by the time at which they may be.
    begun: BTreeSet<(u64, SystemTitle)>,
    /// Where the next label begins: each has its turn.
    turn: u8,
    done_by_minute: BTreeMap<u64, u64>,
}

impl Driven {
    /// A campaign with its members.
    pub fn new(campaign: Campaign, rows: impl IntoIterator<Item = Row>) -> Self {
        let mut driven = Self {
            paced_ms: campaign.paced_ms,
            campaign,
            rows: BTreeMap::new(),
            labels: Vec::new(),
            waiting: BTreeSet::new(),
            begun: BTreeSet::new(),
            turn: 0,
            done_by_minute: BTreeMap::new(),
        };
        rows.into_iter().for_each(|row| driven.put(row));
        driven
    }

    /// All members, by title.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// Members behind a title.
    pub fn rows_after(&self, after: Option<SystemTitle>) -> impl Iterator<Item = &Row> {
        let behind = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.rows.range((behind, std::ops::Bound::Unbounded)).map(|(_, row)| row)
    }

    /// The count of its members.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A member.
    pub fn row(&self, title: &SystemTitle) -> Option<&Row> {
        self.rows.get(title)
    }

    /// Takes a row as it is stored now.
    pub fn put(&mut self, row: Row) {
        if let Some(old) = self.rows.remove(&row.title) {
            self.count(&old, false);
        }
        self.count(&row, true);
        self.rows.insert(row.title, row);
    }

    /// Notes that a member was done now.
    pub fn note_done(&mut self, now_ms: u64) {
        *self.done_by_minute.entry(now_ms / MINUTE_MS).or_default() += 1;
        while self.done_by_minute.len() > MINUTES {
            self.done_by_minute.pop_first();
        }
    }

    /// Members that were done within the last hour, as far as this node knows.
    pub fn done_last_hour(&self, now_ms: u64) -> u64 {
        let from = (now_ms / MINUTE_MS).saturating_sub(MINUTES as u64 - 1);
        self.done_by_minute.range(from..).map(|(_, count)| count).sum()
    }

    fn count(&mut self, row: &Row, comes: bool) {
        let at = usize::from(row.label);
        if self.labels.len() <= at {
            self.labels.resize(at + 1, Label::default());
        }
        if let Some(label) = self.labels.get_mut(at) {
            let by = |counter: &mut u32, is: bool| {
                if is {
                    *counter =
                        if comes { counter.saturating_add(1) } else { counter.saturating_sub(1) };
                }
            };
            by(&mut label.exposed, row.is_exposed());
            // One that was given back unsent keeps no place: it is begun anew, or another one is.
            by(&mut label.canaries, row.canary && !waits(row));
            by(&mut label.canaries_failed, row.canary && row.phase == Phase::Failed);
            by(&mut label.canaries_done, row.canary && row.phase == Phase::Done);
            let long = |counter: &mut u64, is: bool| {
                if is {
                    *counter =
                        if comes { counter.saturating_add(1) } else { counter.saturating_sub(1) };
                }
            };
            long(&mut label.done, row.phase == Phase::Done);
            long(&mut label.failed, row.phase == Phase::Failed);
        }
        if row.phase.is_over() {
            return;
        }
        match (waits(row), comes) {
            (false, true) => _ = self.begun.insert((row.until_ms, row.title)),
            (false, false) => _ = self.begun.remove(&(row.until_ms, row.title)),
            (true, true) => _ = self.waiting.insert((row.label, row.until_ms, row.title)),
            (true, false) => _ = self.waiting.remove(&(row.label, row.until_ms, row.title)),
        }
    }

    /// Members that somebody may have now, at most so many: those that were begun first, then others as far as pace,
    /// window, cap and canaries allow. With a lease each, and as canaries where they are. Nothing is stored yet. `busy`:
    /// members that are being prepared by another call; they count as sent.
    pub fn take(
        &mut self,
        (most, busy): (usize, &BTreeMap<SystemTitle, u8>),
        now_ms: u64,
        mut lease: impl FnMut() -> u64,
    ) -> (Vec<Row>, Option<NoWork>) {
        let mut taken: Vec<Row> = Vec::new();
        let Campaign { status, reason, .. } = &self.campaign;
        if !matches!(status, Status::Running | Status::Paused) {
            return (taken, Some(NoWork::NotRunning(*status, reason.clone())));
        }
        let due = self.begun.iter().take_while(|(until, _)| *until <= now_ms);
        for (_, title) in due.filter(|(_, title)| !busy.contains_key(title)).take(most) {
            taken.extend(self.rows.get(title).cloned());
        }
        let mut why = None;
        if taken.len() < most {
            why = self.begin(most, &mut taken, busy, now_ms);
        }
        for row in &mut taken {
            row.lease = lease();
            row.until_ms = now_ms.saturating_add(self.campaign.policy.lease_ms);
        }
        let why = if taken.is_empty() { why } else { None };
        (taken, why)
    }

    fn begin(
        &mut self,
        most: usize,
        taken: &mut Vec<Row>,
        busy: &BTreeMap<SystemTitle, u8>,
        now_ms: u64,
    ) -> Option<NoWork> {
        let Campaign { status, reason, policy, .. } = &self.campaign;
        if *status == Status::Paused {
            return Some(NoWork::NotRunning(*status, reason.clone()));
        }
        if self.waiting.is_empty() {
            return Some(NoWork::Waiting { at_ms: self.begun.first().map(|(at, _)| *at) });
        }
        if !policy.is_open(now_ms) {
            return Some(NoWork::Closed);
        }
        let (cap, canaries, pace) = (policy.exposure_cap, policy.canaries, policy.pace_ms());
        let labels = self.labels.len() as u8; // At most 64.
        let mut held = false;
        for step in 0..labels {
            let label = self.turn.wrapping_add(step) % labels;
            let Some(counts) = self.labels.get(usize::from(label)).copied() else { continue };
            let preparing = busy.values().filter(|it| **it == label).count() as u32; // Few.
            let mut room = cap.saturating_sub(counts.exposed.saturating_add(preparing));
            let is_gated = counts.canaries_done < canaries;
            if is_gated {
                room = room.min(canaries.saturating_sub(counts.canaries.saturating_add(preparing)));
            }
            let of_label = self.waiting.range((label, 0, SystemTitle::new([0; 8]))..);
            let ready = of_label.take_while(|(it, at, _)| *it == label && *at <= now_ms);
            for (_, _, title) in ready.filter(|(_, _, title)| !busy.contains_key(title)) {
                if taken.len() >= most {
                    self.turn = label.wrapping_add(1) % labels;
                    return None;
                }
                if room == 0 {
                    held = true;
                    break;
                }
                if pace > 0 {
                    let used = self.paced_ms.max(now_ms.saturating_sub(BURST_MS));
                    if used > now_ms {
                        return Some(NoWork::Paced { at_ms: used });
                    }
                    self.paced_ms = used.saturating_add(pace);
                }
                if let Some(row) = self.rows.get(title) {
                    taken.push(Row { canary: is_gated, ..row.clone() });
                    room -= 1;
                }
            }
        }
        Some(if held { NoWork::Capped } else { NoWork::Waiting { at_ms: self.next_ms(now_ms) } })
    }

    /// The time at which the next of those that wait may be begun.
    fn next_ms(&self, now_ms: u64) -> Option<u64> {
        let later = |label: u8| {
            let from = (label, now_ms.saturating_add(1), SystemTitle::new([0; 8]));
            self.waiting.range(from..).next().filter(|(it, ..)| *it == label).map(|(_, at, _)| *at)
        };
        (0..self.labels.len() as u8).filter_map(later).min() // At most 64.
    }

    /// Whether the canaries of a label are through.
    pub fn canaries_done(&self, label: usize) -> bool {
        let done = self.labels.get(label).map_or(0, |label| label.canaries_done);
        done >= self.campaign.policy.canaries
    }

    /// Whether a lease is held by whoever says so.
    pub fn holds(&self, title: &SystemTitle, lease: u64, now_ms: u64) -> bool {
        self.rows
            .get(title)
            .is_some_and(|row| lease != 0 && row.lease == lease && row.is_leased(now_ms))
    }

    /// Members that may hold what they have not shown, and are under no lease.
    pub fn exposed(&self, now_ms: u64) -> impl Iterator<Item = &Row> {
        self.rows.values().filter(move |row| row.is_exposed() && !row.is_leased(now_ms))
    }

    /// Stops it where too many have failed, and ends it where nothing is left. Whether that changed it.
    pub fn judge(&mut self, now_ms: u64) -> bool {
        if self.campaign.status != Status::Running {
            return false;
        }
        if let Some(reason) = self.over_budget() {
            self.campaign.status = Status::Paused;
            self.campaign.reason = reason;
            return true;
        }
        if self.waiting.is_empty() && self.begun.is_empty() {
            self.campaign.status = Status::Finished;
            self.campaign.ended_ms = Some(now_ms);
            return true;
        }
        false
    }

    fn over_budget(&self) -> Option<String> {
        let permille = u64::from(self.campaign.policy.error_budget_permille);
        let fell = |row: &&Row| row.canary && row.phase == Phase::Failed;
        let failed: u64 = self.labels.iter().map(|label| label.failed).sum();
        let since = failed.saturating_sub(u64::from(self.campaign.forgiven));
        if since == 0 {
            return None;
        }
        if self.labels.iter().any(|label| label.canaries_failed > 0)
            && let Some(row) = self.rows.values().find(fell)
        {
            let label = self.campaign.labels.get(usize::from(row.label));
            let (title, label) = (row.title, label.map_or("-", String::as_str));
            return Some(format!(
                "the canary {title} of {label} has failed: look at it before others follow"
            ));
        }
        let done: u64 = self.labels.iter().map(|label| label.done).sum();
        let allowed = permille.saturating_mul((done + since).max(BUDGET_OF)) / 1_000;
        (since > allowed).then(|| {
            format!("{since} meters have failed, {done} are done: more than {permille} of 1,000, the error budget")
        })
    }

    /// Goes on after a pause: what failed meanwhile has been seen. With `retry`, it is tried anew: those rows.
    pub fn resume(&mut self, retry: bool) -> Vec<Row> {
        let failed = self.rows.values().filter(|row| row.phase == Phase::Failed);
        let mut again: Vec<Row> = failed.cloned().collect();
        self.campaign.status = Status::Running;
        self.campaign.reason.clear();
        self.campaign.forgiven = if retry { 0 } else { again.len() as u32 }; // Fewer than members.
        for row in &mut again {
            // Its label's others wait for another one.
            row.canary = false;
            if !retry {
                continue;
            }
            row.phase = if row.sent { Phase::Sent } else { Phase::Staged };
            row.failures = 0;
            row.probed = 0;
            row.until_ms = 0;
            // What it fell back from proves nothing any more: it gets new keys.
            if row.restarted {
                row.targets = Default::default();
            }
            row.restarted = false;
        }
        again
    }

    /// Ends it: what nobody has begun is left. Those rows.
    pub fn cancel(&mut self, reason: &str, now_ms: u64) -> Vec<Row> {
        self.campaign.status = Status::Cancelled;
        reason.clone_into(&mut self.campaign.reason);
        self.campaign.ended_ms = Some(now_ms);
        let open = self.rows.values().filter(|row| !row.phase.is_over() && !row.is_exposed());
        let end = |row: &Row| Row {
            phase: if row.phase == Phase::Proved { Phase::Done } else { Phase::Left },
            lease: 0,
            doing: Action::Nothing,
            ..row.clone()
        };
        open.map(end).collect()
    }
}
