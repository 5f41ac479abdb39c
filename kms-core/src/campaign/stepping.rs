//! One member's next step: by its meter's record, which alone says what the meter has shown.

use crate::{
    KeyKind, KeyRecord, KeyState, MeterRecord, SecuritySetup,
    life::choosing::{Pair, Place},
};

use super::{
    policy::Policy,
    row::{Action, FRAME_MAX, Outcome, Phase, Row, Tried},
};

/// Pairs that are tried on what a meter sends, at most.
const PAIRS_MAX: usize = 16;

/// What is to be done, and the pairs for it.
pub type Next = (Action, Vec<Pair>);

/// Where a member's meter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of this kind is to be staged.
    Stage(usize),
    /// What is staged is to be sent.
    Transfer {
        /// Its place among the policy's kinds.
        at: usize,
        /// Its version.
        version: u16,
        /// It was handed out before: the meter may hold it.
        sent: bool,
    },
    /// The meter has shown all of them.
    Proved,
}

/// Where a meter stands, by its record.
pub fn step(meter: &MeterRecord, policy: &Policy, row: &Row) -> Step {
    for (at, place) in policy.places().enumerate() {
        let target = row.targets.get(at).copied().unwrap_or_default();
        let Some(key) = place.versions(meter).find(|key| key.version == target) else {
            return Step::Stage(at);
        };
        if key.state == KeyState::PreActive {
            return Step::Transfer { at, version: target, sent: was_sent(key) };
        }
        // One that was withdrawn before the meter showed it is no key of the meter's.
        if key.state != KeyState::Active && !was_active(key) {
            return Step::Stage(at);
        }
    }
    Step::Proved
}

fn was_active(key: &KeyRecord) -> bool {
    key.life.past.iter().any(|past| past.state == KeyState::Active)
}

/// The pairs of a setup that a meter may hold, the likeliest first: what is staged and was sent, then what is preferred,
/// then the others from the newest on.
pub fn pairs(meter: &MeterRecord, setup: SecuritySetup) -> Vec<Pair> {
    let of = |kind| likely(meter, Place { setup, kind });
    let (encryption, authentication) = (of(KeyKind::Guek), of(KeyKind::Gak));
    let mut pairs: Vec<(usize, Pair)> = Vec::new();
    for (i, encryption) in encryption.iter().enumerate() {
        for (j, authentication) in authentication.iter().enumerate() {
            let pair = Pair { encryption: *encryption, authentication: Some(*authentication) };
            pairs.push((i + j, pair));
        }
    }
    pairs.sort_by_key(|(unlikely, _)| *unlikely);
    pairs.into_iter().map(|(_, pair)| pair).take(PAIRS_MAX).collect()
}

/// Versions that carry, the likeliest first.
fn likely(meter: &MeterRecord, place: Place) -> Vec<u16> {
    let preferred = place.carries(meter).map(|key| key.version);
    let carrying = place
        .versions(meter)
        .filter(|key| key.state.may_carry() && (key.state != KeyState::PreActive || was_sent(key)));
    let mut all: Vec<&KeyRecord> = carrying.collect();
    all.sort_by_key(|key| (class_of(key, preferred), std::cmp::Reverse(key.version)));
    all.into_iter().map(|key| key.version).collect()
}

/// 0: the likeliest.
fn class_of(key: &KeyRecord, preferred: Option<u16>) -> u8 {
    match key.state {
        KeyState::PreActive => 0,
        _ if Some(key.version) == preferred => 1,
        _ => 2,
    }
}

fn was_sent(key: &KeyRecord) -> bool {
    key.life.transfer.as_ref().is_some_and(|it| it.sent_ms.is_some())
}

/// What is to be done with a member next, and on which pairs. `holds`: the pair that its meter has answered under just now.
pub fn work(meter: &MeterRecord, policy: &Policy, row: &Row, holds: Option<Pair>) -> Next {
    let setup = policy.carrier.setup;
    let all = pairs(meter, setup);
    match step(meter, policy, row) {
        Step::Stage(_) => (Action::Nothing, Vec::new()),
        Step::Transfer { sent: false, .. } => {
            (Action::Transfer, holds.or_else(|| carried_by(meter, setup)).into_iter().collect())
        }
        Step::Transfer { sent: true, .. } => match holds {
            Some(pair) => (Action::Transfer, vec![pair]),
            None => (Action::Probe, some_of(&all, row, policy)),
        },
        Step::Proved if row.canary && !row.restarted => (Action::Restart, Vec::new()),
        // A canary shows after its restart what it holds.
        Step::Proved if row.canary => (Action::Probe, some_of(&all, row, policy)),
        Step::Proved => (Action::Nothing, Vec::new()),
    }
}

/// The pair that carries a transfer where nobody knows better.
fn carried_by(meter: &MeterRecord, setup: SecuritySetup) -> Option<Pair> {
    let of = |kind| Place { setup, kind }.carries(meter).map(|key| key.version);
    Some(Pair { encryption: of(KeyKind::Guek)?, authentication: Some(of(KeyKind::Gak)?) })
}

/// As many as a meter takes before it locks, from where the last lease came to.
fn some_of(all: &[Pair], row: &Row, policy: &Policy) -> Vec<Pair> {
    let begin = usize::from(row.probed).checked_rem(all.len()).unwrap_or(0);
    all.iter().cycle().skip(begin).take(policy.probes().min(all.len())).copied().collect()
}

/// What came back of one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// How it went.
    pub outcome: Outcome,
    /// Pairs under which authentic messages of the meter's own were opened.
    pub opened: Vec<Pair>,
    /// The pair of the setup that is rotated, under which it sent something new.
    pub again: Option<Pair>,
    /// Pairs that were tried in vain.
    pub in_vain: Vec<Pair>,
    /// The beginning of what came back.
    pub frame: Vec<u8>,
    /// Whoever has it gives it back.
    pub end: bool,
}

/// The next thing to do with a member, after what was heard of it. `meter`: its record, with all that was proved by what
/// was heard. Its lease is over where nothing is to be done.
pub fn report(
    meter: &MeterRecord,
    policy: &Policy,
    row: &mut Row,
    heard: &Heard,
    now_ms: u64,
) -> Next {
    let answer = Answer { heard, was: row.doing, seen: heard.opened.last().copied() };
    note(row, heard, now_ms);
    stand(meter, policy, row);
    if row.phase.is_over() {
        return give_back(row, now_ms);
    }
    match heard.outcome {
        Outcome::GivenBack => return give_back(row, now_ms),
        Outcome::Unreachable => {
            // A sleeper is no failure; and it keeps the place of a canary only if it may hold something.
            row.canary &= row.phase != Phase::Waiting && row.phase != Phase::Staged;
            return give_back(row, now_ms.saturating_add(policy.retry_ms));
        }
        Outcome::Restarted => row.restarted = true,
        Outcome::Answered | Outcome::NoAnswer | Outcome::NotAuthenticated | Outcome::Refused => {}
    }
    if row.phase == Phase::Proved {
        return after_restart(meter, policy, row, answer, now_ms);
    }
    row.probed = match answer.seen {
        Some(_) => 0,
        None => row.probed.saturating_add(heard.in_vain.len() as u8), // A lease's, fewer than 255.
    };
    // What was given back above was not sent.
    row.tried_since |= answer.was == Action::Transfer;
    if let Some(wait_ms) = failed(meter, policy, row, answer) {
        row.failures = row.failures.saturating_add(1);
        if row.failures >= policy.tries_max {
            row.phase = Phase::Failed;
            return give_back(row, now_ms);
        }
        if wait_ms > 0 {
            return give_back(row, now_ms.saturating_add(wait_ms));
        }
    }
    row.tried_since &= answer.holds().is_none();
    if heard.end || answer.is_vain_probe() {
        let wait_ms = if heard.end { 0 } else { wait_after(heard.outcome, policy) };
        return give_back(row, now_ms.saturating_add(wait_ms));
    }
    go_on(meter, policy, row, answer.holds())
}

/// What was heard, and after what.
#[derive(Clone, Copy)]
struct Answer<'h> {
    heard: &'h Heard,
    /// What was to be done.
    was: Action,
    /// The pair under which the meter answered last.
    seen: Option<Pair>,
}

impl Answer<'_> {
    /// The pair that its meter holds, by its answer to a probe.
    fn holds(&self) -> Option<Pair> {
        self.seen.filter(|_| self.was == Action::Probe)
    }

    fn is_vain_probe(&self) -> bool {
        let is_given_back = self.heard.outcome == Outcome::GivenBack;
        self.was == Action::Probe && self.seen.is_none() && !is_given_back
    }
}

/// Notes in the row what was heard, and which pairs were tried.
fn note(row: &mut Row, heard: &Heard, now_ms: u64) {
    row.last = Some(heard.outcome);
    row.unreachable = heard.outcome == Outcome::Unreachable;
    let vain = heard.in_vain.iter().map(|pair| tried(*pair, heard.outcome, &[], now_ms));
    let opened = heard.opened.iter();
    let opened = opened.map(|pair| tried(*pair, Outcome::Answered, &heard.frame, now_ms));
    row.note_tried(vain.chain(opened));
}

fn tried(pair: Pair, outcome: Outcome, frame: &[u8], at_ms: u64) -> Tried {
    let frame = frame.iter().take(FRAME_MAX).copied().collect();
    Tried { at_ms, pair, outcome, frame }
}

/// Before a meter is probed again.
fn wait_after(outcome: Outcome, policy: &Policy) -> u64 {
    let may_be_locked = outcome == Outcome::NotAuthenticated;
    if may_be_locked { policy.hls_lock_ms } else { policy.retry_ms }
}

/// The next thing under the same lease.
fn go_on(meter: &MeterRecord, policy: &Policy, row: &mut Row, holds: Option<Pair>) -> Next {
    let (doing, pairs) = work(meter, policy, row, holds);
    row.doing = doing;
    (doing, pairs)
}

/// Whether this was a try in vain, and how long the next one waits; 0: it goes on under the same lease.
fn failed(meter: &MeterRecord, policy: &Policy, row: &Row, answer: Answer<'_>) -> Option<u64> {
    match (answer.was, answer.heard.outcome) {
        // It answers under what it had before: the transfer did not take, if there was one since it was last asked.
        (Action::Probe, _) if answer.seen.is_some() => {
            let is_old = matches!(step(meter, policy, row), Step::Transfer { sent: true, .. });
            (is_old && row.tried_since).then_some(0)
        }
        // All pairs were tried, and none is its own.
        (Action::Probe, Outcome::NotAuthenticated | Outcome::Refused) => {
            let all = pairs(meter, policy.carrier.setup).len();
            (usize::from(row.probed) >= all).then_some(policy.hls_lock_ms)
        }
        (Action::Probe, Outcome::NoAnswer) => Some(policy.retry_ms),
        // It could not be sent at all: nothing is to be found out by a probe.
        (Action::Transfer, Outcome::NotAuthenticated | Outcome::Refused) => {
            let unsent = matches!(step(meter, policy, row), Step::Transfer { sent: false, .. });
            unsent.then_some(policy.hls_lock_ms.max(policy.retry_ms))
        }
        _ => None,
    }
}

/// A canary that has shown its keys: restarted, it shows them again, or it has fallen back.
fn after_restart(
    meter: &MeterRecord,
    policy: &Policy,
    row: &mut Row,
    answer: Answer<'_>,
    now_ms: u64,
) -> Next {
    let heard = answer.heard;
    match heard.again.filter(|_| row.restarted) {
        Some(pair) => {
            let is_new = is_new(pair, policy, row);
            row.phase = if is_new { Phase::Done } else { Phase::Failed };
            give_back(row, now_ms)
        }
        // It comes up again, or has not been restarted yet.
        None if row.restarted && heard.outcome == Outcome::Restarted && !heard.end => {
            go_on(meter, policy, row, None)
        }
        None if heard.outcome == Outcome::Answered && !heard.end && !row.restarted => {
            row.doing = Action::Restart;
            (Action::Restart, Vec::new())
        }
        None => give_back(row, now_ms.saturating_add(policy.retry_ms)),
    }
}

/// Whether this pair is all of what the campaign brings.
fn is_new(pair: Pair, policy: &Policy, row: &Row) -> bool {
    let mut kinds = policy.kinds.iter().zip(&row.targets);
    kinds.all(|(kind, target)| version_in(pair, *kind) == Some(*target))
}

fn version_in(pair: Pair, kind: KeyKind) -> Option<u16> {
    match kind {
        KeyKind::Guek => Some(pair.encryption),
        _ => pair.authentication,
    }
}

fn give_back(row: &mut Row, again_ms: u64) -> Next {
    row.lease = 0;
    row.doing = Action::Nothing;
    row.until_ms = again_ms;
    (Action::Nothing, Vec::new())
}

/// Brings a row to where its meter's record stands. Whether that changed it.
pub fn stand(meter: &MeterRecord, policy: &Policy, row: &mut Row) -> bool {
    let before = (row.phase, row.sent);
    let step = step(meter, policy, row);
    row.sent = match step {
        Step::Transfer { sent, .. } => sent,
        Step::Stage(_) | Step::Proved => false,
    };
    let phase = phase_at(step, row);
    if !keeps(row, step, phase) {
        row.phase = phase;
    }
    (row.phase, row.sent) != before
}

fn phase_at(step: Step, row: &Row) -> Phase {
    match step {
        Step::Proved if row.canary && row.phase != Phase::Done => Phase::Proved,
        Step::Proved => Phase::Done,
        Step::Transfer { sent: true, .. } => Phase::Sent,
        Step::Transfer { sent: false, .. } => Phase::Staged,
        // The first of its keys is not there yet; or the next one is not.
        Step::Stage(0) => Phase::Waiting,
        Step::Stage(_) => Phase::Staged,
    }
}

fn keeps(row: &Row, step: Step, phase: Phase) -> bool {
    match row.phase {
        // What has fallen back is failed, whatever it has shown before.
        Phase::Failed => step != Step::Proved || row.restarted,
        Phase::Skipped | Phase::Left => phase != Phase::Done && !row.sent,
        _ => false,
    }
}
