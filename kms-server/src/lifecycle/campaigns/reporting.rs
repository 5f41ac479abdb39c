//! What came of work: the meter's own messages decide, by its record; everything else is a hint.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    storing::News,
    table::{Held, Shared},
    taking::{Under, Work, put_off, slot_of},
};
use crate::lifecycle::{error::LifecycleError, refusal::refusal, verbs::Lifecycle};
use dlms::class64::action_result;
use kms_core::{
    MeterId, MeterRecord, RefusalCode, SecuritySetup, SystemTitle, TransferResult,
    audit::AuditedCall,
    campaign::{
        Campaign, Part, Status,
        policy::Policy,
        row::{Action, Outcome, Phase, Row},
        stepping::{Heard, Step, report, step, work},
    },
    fact::{Fact, FactName},
    life::{
        choosing::{Pair, Place},
        evidence::{Shown, is_weak},
    },
};

/// A message of a meter that was opened.
#[derive(Clone, Debug)]
pub struct OpenedFrame {
    /// Whose it is.
    pub title: SystemTitle,
    /// The security setup whose keys opened it.
    pub setup: SecuritySetup,
    /// The pair that opened it, with a whole tag.
    pub pair: Option<Pair>,
    /// Keys that it vouches for.
    pub shown: Option<Shown>,
    /// What was in it.
    pub plaintext: Vec<u8>,
}

/// What somebody has to say of a meter.
#[derive(Clone, Debug)]
pub struct Reported {
    /// The meter.
    pub meter_id: MeterId,
    /// By this lease.
    pub lease: u64,
    /// How it went.
    pub outcome: Outcome,
    /// What came back.
    pub opened: Vec<OpenedFrame>,
    /// Pairs that were tried in vain.
    pub in_vain: Vec<Pair>,
    /// The beginning of what came back.
    pub frame: Vec<u8>,
    /// The lease is given back.
    pub end: bool,
}

/// What it came to.
#[derive(Debug)]
pub struct WorkVerdict {
    /// The meter.
    pub meter_id: MeterId,
    /// Its member, and what is next.
    pub outcome: Result<Work, LifecycleError>,
}

type Judged = Result<Work, LifecycleError>;

impl WorkVerdict {
    fn of((report, judged): (Reported, Option<Judged>)) -> Self {
        let outcome = judged.unwrap_or_else(|| Err(lease_over()));
        Self { meter_id: report.meter_id, outcome }
    }
}

fn say(verdicts: &mut [Option<Judged>], at: usize, judged: Judged) {
    if let Some(verdict) = verdicts.get_mut(at) {
        *verdict = Some(judged);
    }
}

/// The places of reports, by their campaigns' places.
fn by_slot(reports: &[Reported]) -> BTreeMap<u8, Vec<usize>> {
    let mut by_slot: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
    for (at, report) in reports.iter().enumerate() {
        by_slot.entry(slot_of(report.lease)).or_default().push(at);
    }
    by_slot
}

/// A report of a member that is under its lease.
struct Known {
    at: usize,
    row: Row,
}

impl Lifecycle {
    /// Takes reports in, in their order.
    pub async fn report_work(
        &self,
        call: &AuditedCall,
        reports: Vec<Reported>,
    ) -> Result<Vec<WorkVerdict>, LifecycleError> {
        self.check_writes()?;
        self.take_opened(&reports).await?;
        let mut verdicts: Vec<Option<Judged>> = Vec::new();
        verdicts.resize_with(reports.len(), || None);
        for (slot, some) in by_slot(&reports) {
            let shared = self.drive_at(slot).await;
            match shared {
                Ok(shared) => {
                    self.report_of(call, &shared, (&reports, &some), &mut verdicts).await?
                }
                Err(error @ LifecycleError::Refused(_)) => {
                    some.iter().for_each(|at| say(&mut verdicts, *at, Err(same(&error))));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(reports.into_iter().zip(verdicts).map(WorkVerdict::of).collect())
    }

    /// Refused unless this meter is under this lease; 0: nobody says so.
    pub(in crate::lifecycle) async fn check_lease(
        &self,
        title: &SystemTitle,
        lease: u64,
    ) -> Result<(), LifecycleError> {
        if lease == 0 {
            return Ok(());
        }
        let now_ms = self.clock.unix_ms();
        if let Some(shared) = self.driven_at(slot_of(lease)).await {
            return held_or_over(shared.lock().await.driven.holds(title, lease, now_ms));
        }
        let name = FactName::of_campaign(slot_of(lease));
        let Some(Fact::Campaign(stored)) = self.records.fact(&name).await? else {
            return Err(lease_over());
        };
        let row = self.stored_row(&stored, title).await?;
        held_or_over(row.is_some_and(|row| row.lease == lease && row.is_leased(now_ms)))
    }

    async fn stored_row(
        &self,
        of: &Campaign,
        title: &SystemTitle,
    ) -> Result<Option<Row>, LifecycleError> {
        let (block, blocks) = (self.records.block_of(title), self.records.blocks());
        let part = FactName::of_campaign_part((block, blocks), of.slot, Part::chunk_of(title));
        Ok(match self.records.fact(&part).await? {
            Some(Fact::CampaignPart(part)) if part.campaign == of.id => part.row(title).cloned(),
            _ => None,
        })
    }

    /// The campaign of a lease's place, to be driven here.
    async fn drive_at(&self, slot: u8) -> Result<Shared, LifecycleError> {
        if let Some(shared) = self.driven_at(slot).await {
            return Ok(shared);
        }
        match self.records.fact(&FactName::of_campaign(slot)).await? {
            Some(Fact::Campaign(stored)) => self.drive_stored(*stored).await,
            _ => Err(lease_over()),
        }
    }

    /// What the meters have shown is in their records before anything is judged by these.
    async fn take_opened(&self, reports: &[Reported]) -> Result<(), LifecycleError> {
        let frames = reports.iter().flat_map(|report| &report.opened);
        let shown: Vec<(SystemTitle, Shown)> =
            frames.filter_map(|frame| Some((frame.title, frame.shown?))).collect();
        if !shown.is_empty() {
            self.take_shown(&shown).await?;
        }
        Ok(())
    }

    async fn report_of(
        &self,
        call: &AuditedCall,
        shared: &Shared,
        (reports, some): (&[Reported], &[usize]),
        verdicts: &mut [Option<Judged>],
    ) -> Result<(), LifecycleError> {
        let now_ms = self.clock.unix_ms();
        let (known, policy, name) = {
            let held = shared.lock().await;
            // A meter that comes twice in one call is judged once.
            let mut seen = BTreeSet::new();
            let mut known = Vec::new();
            for at in some {
                let Some(report) = reports.get(*at) else { continue };
                let title = self.title_of(&report.meter_id).await?;
                match held.driven.row(&title) {
                    Some(row)
                        if held.driven.holds(&title, report.lease, now_ms)
                            && seen.insert(title) =>
                    {
                        known.push(Known { at: *at, row: row.clone() });
                    }
                    _ => say(verdicts, *at, Err(lease_over())),
                }
            }
            let campaign = &held.driven.campaign;
            (known, campaign.policy.clone(), campaign.name.clone())
        };
        let mut judged = Vec::new();
        for Known { at, row } in known {
            let Some(report) = reports.get(at) else { continue };
            let under = Under { policy: &policy, name: &name };
            let was = row.clone();
            judged.push((at, was, self.judge_report(call, (report, row), under).await));
        }
        let mut held = shared.lock().await;
        // Somebody else said something of it meanwhile: what that came to stands.
        let as_it_was = |was: &Row| held.driven.row(&was.title) == Some(was);
        let judged = judged.into_iter().map(|(at, was, judged)| match as_it_was(&was) {
            true => (at, judged),
            false => (at, Err(lease_over())),
        });
        let judged: Vec<(usize, Judged)> = judged.collect();
        let rows: Vec<Row> =
            judged.iter().filter_map(|(_, it)| it.as_ref().ok().map(|it| it.row.clone())).collect();
        self.store_rows(call, &mut held, rows).await?;
        judged.into_iter().for_each(|(at, judged)| say(verdicts, at, judged));
        Ok(())
    }

    /// Stores rows, with what they make of the campaign.
    pub(super) async fn store_rows(
        &self,
        call: &AuditedCall,
        held: &mut Held,
        rows: Vec<Row>,
    ) -> Result<(), LifecycleError> {
        if rows.is_empty() {
            return Ok(());
        }
        let now_ms = self.clock.unix_ms();
        let before = held.driven.campaign.clone();
        let is_new = |row: &&Row| {
            let was = held.driven.row(&row.title).map(|row| row.phase);
            row.phase == Phase::Done && was != Some(Phase::Done)
        };
        let done = rows.iter().filter(is_new).count();
        let entry = self.campaign_entry(call, rows.len());
        let news = News { campaign: before.clone(), rows, entries: vec![entry] };
        self.store_campaign(held, &before, news).await?;
        (0..done).for_each(|_| held.driven.note_done(now_ms));
        self.judge_held(held).await
    }

    /// Stops a campaign where too many have failed, and ends it where nothing is left.
    pub(super) async fn judge_held(&self, held: &mut Held) -> Result<(), LifecycleError> {
        let before = held.driven.campaign.clone();
        if !held.driven.judge(self.clock.unix_ms()) {
            return Ok(());
        }
        let campaign = std::mem::replace(&mut held.driven.campaign, before.clone());
        let verb = match campaign.status {
            Status::Finished => "Rotation/CampaignFinished",
            _ => "Rotation/CampaignPaused",
        };
        tracing::warn!(campaign = %campaign.name, status = campaign.status.word(), reason = %campaign.reason, "a campaign is over, or has paused by itself");
        let entries =
            vec![self.campaign_entry(&AuditedCall::new("kms-server", verb), held.driven.len())];
        let news = News { campaign, rows: Vec::new(), entries };
        self.store_campaign(held, &before, news).await.map(drop)
    }

    /// The same by itself.
    pub(super) async fn judge_campaign(&self, shared: &Shared) -> Result<(), LifecycleError> {
        let mut held = shared.lock().await;
        self.judge_held(&mut held).await
    }

    async fn judge_report(
        &self,
        call: &AuditedCall,
        (reported, mut row): (&Reported, Row),
        under: Under<'_>,
    ) -> Result<Work, LifecycleError> {
        let (now_ms, policy) = (self.clock.unix_ms(), under.policy);
        let mut meter = self.get_by_title(&row.title).await?.record;
        if row.doing == Action::Transfer
            && let Some(changed) = self.hint(call, (&meter, &row), policy, reported).await?
        {
            meter = changed;
        }
        let heard = heard_of(reported, &meter, policy);
        let (mut action, mut pairs) = report(&meter, policy, &mut row, &heard, now_ms);
        // The next of its keys, under the same lease.
        if row.lease != 0
            && let Step::Stage(at) = step(&meter, policy, &row)
        {
            let (changed, refused) = self.stage_for(call, (meter, &mut row), under, at).await;
            meter = changed;
            match refused {
                Some(error) => {
                    tracing::debug!(meter = %meter.meter_id, %error, "its next key can't be staged now");
                    put_off(&mut row, &error, now_ms);
                    (action, pairs) = (Action::Nothing, Vec::new());
                }
                None => {
                    let holds = heard.opened.last().copied();
                    (action, pairs) = work(&meter, policy, &row, holds);
                    row.doing = action;
                }
            }
        }
        Ok(Work::of(meter, row, policy, (action, pairs)))
    }

    /// What the meter answered to the transfer, if that is worth a note: it proves keys that nothing else does.
    async fn hint(
        &self,
        call: &AuditedCall,
        (meter, row): (&MeterRecord, &Row),
        policy: &Policy,
        reported: &Reported,
    ) -> Result<Option<MeterRecord>, LifecycleError> {
        let Step::Transfer { at, version, sent: true } = step(meter, policy, row) else {
            return Ok(None);
        };
        let Some(place) = policy.places().nth(at) else { return Ok(None) };
        let result = answered(reported);
        if !is_worth(meter, place, version, result) {
            return Ok(None);
        }
        let stepped = self.confirm_key(call, &meter.meter_id, place, result).await?;
        Ok(Some(stepped.meter))
    }
}

/// What the meter said to the transfer.
fn answered(reported: &Reported) -> TransferResult {
    match reported.opened.iter().find_map(|it| action_result(&it.plaintext)) {
        Some((_, 0)) => TransferResult::Success,
        Some(_) => TransferResult::Refused,
        None => TransferResult::NoAnswer,
    }
}

fn is_worth(meter: &MeterRecord, place: Place, version: u16, result: TransferResult) -> bool {
    let weak = place.version(meter, version).is_ok_and(|key| is_weak(meter, key));
    result == TransferResult::Refused || (weak && result == TransferResult::Success)
}

/// The pairs that opened what came back: of the carrier's setup, and the last one of the setup that is rotated.
fn heard_of(reported: &Reported, meter: &MeterRecord, policy: &Policy) -> Heard {
    let own = || reported.opened.iter().filter(|it| it.title == meter.system_title);
    let of = |setup| own().filter(move |it| it.setup == setup).filter_map(|it| it.pair);
    Heard {
        outcome: reported.outcome,
        opened: of(policy.carrier.setup).collect(),
        again: of(policy.setup).next_back(),
        in_vain: reported.in_vain.clone(),
        frame: reported.frame.clone(),
        end: reported.end,
    }
}

fn held_or_over(holds: bool) -> Result<(), LifecycleError> {
    if holds { Ok(()) } else { Err(lease_over()) }
}

fn lease_over() -> LifecycleError {
    let reason = "the lease is over, or is another meter's: what the meter sent was opened all the same; take work anew";
    LifecycleError::Refused(refusal(RefusalCode::LeaseOver, reason))
}

fn same(error: &LifecycleError) -> LifecycleError {
    match error {
        LifecycleError::Refused(refusal) => LifecycleError::Refused(refusal.clone()),
        _ => LifecycleError::Busy,
    }
}
