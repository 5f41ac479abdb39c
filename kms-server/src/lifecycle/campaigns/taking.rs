//! Work is given out: meters under leases, their keys staged and proved, each with what is to be done.

use std::fmt::Display;

use futures_util::{StreamExt as _, stream};

use super::{
    selecting::wish,
    storing::News,
    table::{Held, Shared},
};
use crate::lifecycle::{
    error::LifecycleError, refusal::refusal, rotation::StagedKey, verbs::Lifecycle,
};
use kms_core::{
    KeyKind, MeterId, MeterRecord, RefusalCode, SystemTitle,
    audit::AuditedCall,
    campaign::{
        Status,
        driving::NoWork,
        policy::Policy,
        row::{Action, Phase, Row},
        stepping::{Next, Step, stand, step, work},
    },
    life::{choosing::Pair, staging::Wish},
};

/// Keys that are made at the same time.
const AT_ONCE: usize = 8;
/// Before a meter is tried again whose key could not be staged now.
const SOON_MS: u64 = 5_000;
/// The place of a campaign in a lease.
const SLOT_SHIFT: u32 = 56;

/// What is to be done with one meter.
#[derive(Clone, Debug)]
pub struct Work {
    /// The meter.
    pub meter_id: MeterId,
    /// Its title.
    pub title: SystemTitle,
    /// Its member's row.
    pub row: Row,
    /// What to do.
    pub action: Action,
    /// What is brought: kind and version.
    pub bringing: Option<(KeyKind, u16)>,
    /// The pairs for it.
    pub pairs: Vec<Pair>,
    /// By this.
    pub policy: Policy,
}

/// What somebody got.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// The work.
    pub work: Vec<Work>,
    /// Why there is none.
    pub reason: String,
    /// Milliseconds to wait.
    pub retry_after_ms: u64,
}

/// Of which campaign: its policy, and its name.
#[derive(Clone, Copy)]
pub(super) struct Under<'c> {
    pub(super) policy: &'c Policy,
    pub(super) name: &'c str,
}

/// A member, and its meter's record.
struct Looked {
    row: Row,
    meter: Result<MeterRecord, LifecycleError>,
}

/// What was given out, as it stood: keys are made meanwhile, and somebody may pause or cancel.
struct Were {
    status: Status,
    rows: Vec<Row>,
}

/// Rows on their way out.
struct Out {
    rows: Vec<Row>,
    were: Were,
}

impl Were {
    fn stand_in(&self, held: &Held) -> bool {
        let as_it_was = |row: &Row| held.driven.row(&row.title) == Some(row);
        held.driven.campaign.status == self.status && self.rows.iter().all(as_it_was)
    }
}

/// Why nothing of that goes out.
const CHANGED: &str = "the campaign was changed meanwhile: take work again";

/// A member on its way out.
struct Ready {
    row: Row,
    /// Its meter, if anything can be done with it.
    meter: Option<MeterRecord>,
    action: Action,
    pairs: Vec<Pair>,
}

/// The campaign's place in a lease's number.
pub(super) fn slot_of(lease: u64) -> u8 {
    (lease >> SLOT_SHIFT) as u8
}

impl Lifecycle {
    /// Meters to change now, at most so many, of this campaign or of any that runs.
    pub async fn take_work(
        &self,
        call: &AuditedCall,
        (campaign, worker): (Option<&str>, &str),
        most: usize,
    ) -> Result<Taken, LifecycleError> {
        self.check_writes()?;
        let mut all = match campaign {
            Some(name) => vec![self.drive(name).await?],
            None => self.drive_all().await?,
        };
        let mut taken = Taken {
            reason: "no campaign runs: `ami-tool rotate start` begins one".to_owned(),
            retry_after_ms: 60_000,
            ..Taken::default()
        };
        for shared in all.drain(..) {
            let room = most.saturating_sub(taken.work.len());
            if room == 0 {
                break;
            }
            let some = self.take_of(call, (&shared, worker), room).await?;
            taken.work.extend(some.work);
            (taken.reason, taken.retry_after_ms) = (some.reason, some.retry_after_ms);
        }
        if !taken.work.is_empty() {
            (taken.reason, taken.retry_after_ms) = (String::new(), 0);
        }
        Ok(taken)
    }

    async fn drive_all(&self) -> Result<Vec<Shared>, LifecycleError> {
        let mut all = Vec::new();
        let mut refused = None;
        for stored in self.stored_campaigns().await? {
            if !matches!(stored.status, Status::Running | Status::Paused) {
                continue;
            }
            match self.drive_stored(stored).await {
                Ok(shared) => all.push(shared),
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if all.is_empty() => Err(error),
            _ => Ok(all),
        }
    }

    async fn take_of(
        &self,
        call: &AuditedCall,
        (shared, worker): (&Shared, &str),
        most: usize,
    ) -> Result<Taken, LifecycleError> {
        let now_ms = self.clock.unix_ms();
        let mut numbers = vec![0; most * 8];
        self.draw(&mut numbers)?;
        let (rows, were, why, campaign) = {
            let mut held = shared.lock().await;
            let Held { driven, busy, .. } = &mut *held;
            let slot = driven.campaign.slot;
            let mut numbers = numbers.chunks_exact(8);
            let lease = || lease_in(slot, numbers.next().unwrap_or_default());
            let (rows, why) = driven.take((most, busy), now_ms, lease);
            busy.extend(rows.iter().map(|row| (row.title, row.label)));
            let were = rows.iter().filter_map(|row| driven.row(&row.title).cloned());
            let were = Were { status: driven.campaign.status, rows: were.collect() };
            (rows, were, why, driven.campaign.clone())
        };
        let titles: Vec<SystemTitle> = rows.iter().map(|row| row.title).collect();
        let under = Under { policy: &campaign.policy, name: &campaign.name };
        let outcome = self.give_out(call, (shared, worker), (Out { rows, were }, under)).await;
        let mut held = shared.lock().await;
        titles.iter().for_each(|title| _ = held.busy.remove(title));
        let mut taken = outcome?;
        if let Some(why) = why {
            taken.retry_after_ms = wait_of(&why, now_ms);
            taken.reason = why.to_string();
        }
        Ok(taken)
    }

    async fn give_out(
        &self,
        call: &AuditedCall,
        (shared, worker): (&Shared, &str),
        (out, under): (Out, Under<'_>),
    ) -> Result<Taken, LifecycleError> {
        let Out { rows, were } = out;
        if rows.is_empty() {
            // What paced it may have moved on; and whoever asks finds out that it is over.
            self.judge_campaign(shared).await?;
            return Ok(Taken::default());
        }
        let (ready, reason) = self.make_ready(call, rows, under).await;
        let mut held = shared.lock().await;
        if !were.stand_in(&held) {
            return Ok(Taken { reason: CHANGED.to_owned(), retry_after_ms: 100, work: Vec::new() });
        }
        let before = held.driven.campaign.clone();
        let rows: Vec<Row> = ready.iter().map(|it| it.row.clone()).collect();
        let given = ready.iter().filter(|it| it.action != Action::Nothing).count();
        let entry = self.campaign_entry(call, given);
        let entries = if given > 0 { vec![entry] } else { Vec::new() };
        let news = News { campaign: before.clone(), rows, entries };
        tracing::debug!(campaign = under.name, worker, given, "work is given out");
        self.store_campaign(&mut held, &before, news).await?;
        let work = ready.into_iter().filter_map(|it| it.work(under.policy)).collect();
        Ok(Taken { reason, retry_after_ms: SOON_MS, work })
    }

    /// Has these members' keys staged, many in one call, and says what is to be done with each. With the reason of the last
    /// that could not be.
    async fn make_ready(
        &self,
        call: &AuditedCall,
        rows: Vec<Row>,
        under: Under<'_>,
    ) -> (Vec<Ready>, String) {
        let (now_ms, policy) = (self.clock.unix_ms(), under.policy);
        let mut looks = Vec::with_capacity(rows.len());
        for row in rows {
            looks.push(self.looked_at(row, policy));
        }
        let mut looked: Vec<Looked> = stream::iter(looks).buffered(AT_ONCE).collect().await;
        self.stage_all(call, &mut looked, under).await;
        let mut reason = String::new();
        let mut ready = Vec::with_capacity(looked.len());
        for Looked { mut row, meter } in looked {
            let meter = match meter {
                Ok(meter) => self.proved_for(meter, policy, &row).await,
                Err(error) => Err(error),
            };
            ready.push(match meter {
                Ok(meter) => Ready::of(row, meter, policy),
                Err(error) => {
                    reason = error.to_string();
                    put_off(&mut row, &error, now_ms);
                    Ready { row, meter: None, action: Action::Nothing, pairs: Vec::new() }
                }
            });
        }
        (ready, reason)
    }

    /// The next keys of all that lack one, in one call.
    async fn stage_all(&self, call: &AuditedCall, looked: &mut [Looked], under: Under<'_>) {
        let (mut wanted, mut of) = (Vec::new(), Vec::new());
        for (index, one) in looked.iter().enumerate() {
            if let Some((at, wish)) = one.lacks(under) {
                wanted.push(wish);
                of.push((index, at));
            }
        }
        let staged = self.stage_keys(call, &wanted).await;
        for ((index, at), staged) in of.into_iter().zip(staged) {
            if let Some(one) = looked.get_mut(index) {
                one.take_key(at, staged.and_then(there));
            }
        }
    }

    /// Random bytes, or the refusal of what needs them.
    pub(super) fn draw(&self, bytes: &mut [u8]) -> Result<(), LifecycleError> {
        let none = |error: &dyn Display| refusal(RefusalCode::NoRandomness, error.to_string());
        let filled = self.randomness.fill(bytes);
        filled.map_err(|error| LifecycleError::Refused(none(&error)))
    }

    /// A member as its meter's record has it.
    async fn looked_at(&self, mut row: Row, policy: &Policy) -> Looked {
        let meter = self.get_by_title(&row.title).await.map(|view| view.record);
        match &meter {
            Ok(meter) => _ = stand(meter, policy, &mut row),
            // Somebody had been told to send: nobody can say that it was not.
            Err(_) => row.sent |= row.doing == Action::Transfer,
        }
        Looked { row, meter }
    }

    /// Stages the next key of a member.
    pub(super) async fn stage_for(
        &self,
        call: &AuditedCall,
        (meter, row): (MeterRecord, &mut Row),
        under: Under<'_>,
        at: usize,
    ) -> (MeterRecord, Option<LifecycleError>) {
        let Some(place) = under.policy.places().nth(at) else { return (meter, None) };
        let wish: Wish = wish(under.policy, place, under.name);
        match self.stage_key(call, &meter.meter_id, &wish).await.and_then(there) {
            Ok(StagedKey { meter, key, .. }) => {
                aim(row, at, key.version);
                (meter, None)
            }
            Err(error) => (meter, Some(error)),
        }
    }

    /// What is staged and not sent yet was proved by the other site.
    async fn proved_for(
        &self,
        meter: MeterRecord,
        policy: &Policy,
        row: &Row,
    ) -> Result<MeterRecord, LifecycleError> {
        let Step::Transfer { at, version, sent: false } = step(&meter, policy, row) else {
            return Ok(meter);
        };
        let place = policy.places().nth(at);
        let key = place.and_then(|place| place.version(&meter, version).ok().cloned());
        let Some(key) = key else { return Ok(meter) };
        let proved = self.prove_key(&meter.system_title, &key).await;
        let staged = StagedKey { meter, key, already: true, proved };
        staged.check()?;
        Ok(staged.meter)
    }
}

/// A staged key that may go out.
fn there(staged: StagedKey) -> Result<StagedKey, LifecycleError> {
    staged.check()?;
    Ok(staged)
}

fn aim(row: &mut Row, at: usize, version: u16) {
    if let Some(target) = row.targets.get_mut(at) {
        *target = version;
    }
}

/// A lease's number, from random bytes: never 0, which is nobody's.
fn lease_in(slot: u8, random: &[u8]) -> u64 {
    let number = u64::from_be_bytes(random.try_into().unwrap_or([1; 8]));
    let slot = u64::from(slot) << SLOT_SHIFT;
    (number & ((1 << SLOT_SHIFT) - 1)) | slot | 1
}

impl Looked {
    /// The key that it lacks, if anything can be done with it: its place among the policy's kinds, and what to stage.
    fn lacks(&self, under: Under<'_>) -> Option<(usize, (MeterId, Wish))> {
        let meter = self.meter.as_ref().ok().filter(|_| !self.row.phase.is_over())?;
        let Step::Stage(at) = step(meter, under.policy, &self.row) else { return None };
        let place = under.policy.places().nth(at)?;
        Some((at, (meter.meter_id.clone(), wish(under.policy, place, under.name))))
    }

    fn take_key(&mut self, at: usize, staged: Result<StagedKey, LifecycleError>) {
        if let Ok(staged) = &staged {
            aim(&mut self.row, at, staged.key.version);
        }
        self.meter = staged.map(|staged| staged.meter);
    }
}

impl Work {
    /// On this meter, as its row and its record stand.
    pub(super) fn of(meter: MeterRecord, row: Row, policy: &Policy, next: Next) -> Self {
        let bringing = bringing(&meter, policy, &row);
        let ((action, pairs), policy) = (next, policy.clone());
        let (meter_id, title) = (meter.meter_id, row.title);
        Self { meter_id, title, row, action, bringing, pairs, policy }
    }
}

impl Ready {
    /// As it is given out; `None`: nothing is to be done.
    fn work(self, policy: &Policy) -> Option<Work> {
        let Self { row, meter, action, pairs } = self;
        let meter = meter.filter(|_| action != Action::Nothing)?;
        Some(Work::of(meter, row, policy, (action, pairs)))
    }

    /// What is to be done with a member next.
    fn of(mut row: Row, meter: MeterRecord, policy: &Policy) -> Self {
        stand(&meter, policy, &mut row);
        let (action, pairs) = match row.phase.is_over() {
            true => (Action::Nothing, Vec::new()),
            false => work(&meter, policy, &row, None),
        };
        if action == Action::Nothing {
            row.lease = 0;
        }
        row.doing = action;
        row.refused = None;
        Self { row, meter: Some(meter), action, pairs }
    }
}

/// What a transfer brings.
pub(super) fn bringing(meter: &MeterRecord, policy: &Policy, row: &Row) -> Option<(KeyKind, u16)> {
    match step(meter, policy, row) {
        Step::Transfer { at, version, .. } => Some((*policy.kinds.get(at)?, version)),
        Step::Stage(_) | Step::Proved => None,
    }
}

/// A member whose key can't be staged: not now, or never.
pub(super) fn put_off(row: &mut Row, error: &LifecycleError, now_ms: u64) {
    row.lease = 0;
    row.doing = Action::Nothing;
    row.until_ms = now_ms.saturating_add(SOON_MS);
    let code = match error {
        LifecycleError::Refused(refusal) => refusal.code,
        LifecycleError::NotFound(_) => RefusalCode::MeterUnknown,
        LifecycleError::Damaged { .. } => RefusalCode::MeterDamaged,
        _ => return,
    };
    row.refused = Some(code);
    if !passes(code) && !row.sent {
        row.phase = Phase::Skipped;
        row.canary = false;
    }
}

/// Whether it goes away by itself.
const fn passes(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::NotProved | RefusalCode::NotTaken | RefusalCode::NoRandomness)
}

fn wait_of(why: &NoWork, now_ms: u64) -> u64 {
    const LOOK_MS: u64 = 5_000;
    let until = |at: u64| at.saturating_sub(now_ms).clamp(100, 60_000);
    match why {
        NoWork::NotRunning(..) | NoWork::Closed => 60_000,
        NoWork::Paced { at_ms } => until(*at_ms),
        NoWork::Capped | NoWork::Waiting { at_ms: None } => LOOK_MS,
        NoWork::Waiting { at_ms: Some(at) } => until(*at),
    }
}
