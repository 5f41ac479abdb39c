//! Between the wire's words for campaigns and ours.

use kms_proto::v1;

use super::{status::Refused, words};
use crate::lifecycle::{
    CampaignView, LeftOut, LifecycleError, MemberView, Members, MeterRotation, Selection, Started,
    Starting, Taken, Wanted, Work, WorkVerdict,
};
use kms_core::{
    AssociationForm, Carrier, KeyKind, Numbered, SecuritySetup,
    campaign::{
        policy::{Policy, Window},
        progress::Progress,
        row::{Action, Outcome, Phase, Tried},
    },
    life::choosing::Pair,
};

/// Members of one page.
const MEMBERS_MAX: u32 = 1_000;
const MEMBERS_DEFAULT: u32 = 100;
/// Meters that one call takes, or reports.
pub(crate) const WORK_MAX: usize = 256;
const WORK_DEFAULT: u32 = 16;
/// Messages of one report.
const APDUS_MAX: usize = 64;
/// Bytes of a title that a selection may begin with.
const TITLE_LEN: usize = 8;

/// A field, and what is wrong with it.
type Problem = (&'static str, &'static str);

const fn field(field: &'static str, problem: &'static str) -> Refused {
    Refused::Field { field, problem }
}

fn numbered<T: Numbered>(number: i32) -> Option<T> {
    T::from_number(u8::try_from(number).ok()?)
}

/// A number that has to be a smaller one.
fn small<T: TryFrom<u32>>(number: u32, (name, problem): Problem) -> Result<T, Refused> {
    T::try_from(number).map_err(|_| field(name, problem))
}

/// A number of which 0 is the default.
fn small_or(number: u32, default: u8, name: &'static str) -> Result<u8, Refused> {
    if number == 0 { Ok(default) } else { small(number, (name, "it is 1 to 255")) }
}

fn ms_or(seconds: u32, default_ms: u64) -> u64 {
    if seconds == 0 { default_ms } else { u64::from(seconds) * 1_000 }
}

/// A campaign that somebody wants.
pub(crate) fn starting(request: v1::StartCampaignRequest) -> Result<Starting, Refused> {
    let v1::StartCampaignRequest { name, policy, selection, dry_run, more } = request;
    let policy = policy_of(policy.ok_or(field("policy", "name at least its kinds"))?)?;
    let selection = selection_of(selection.unwrap_or_default())?;
    Ok(Starting { name, policy, selection, dry_run, more })
}

fn policy_of(wire: v1::CampaignPolicy) -> Result<Policy, Refused> {
    let default = Policy::default();
    let setup = ("policy.security_setup", "it is 0 to 255");
    let setup = SecuritySetup(small(wire.security_setup, setup)?);
    let kinds = wire.kinds.iter().map(|kind| numbered::<KeyKind>(*kind));
    let kinds: Option<Vec<KeyKind>> = kinds.collect();
    let policy = Policy {
        kinds: kinds.ok_or(field("policy.kinds", "name GUEK, GAK or both, each once"))?,
        setup,
        class_version: small(wire.class_version, ("policy.class_version", "it is 0 or 1"))?,
        carrier: carrier(wire.carrier, setup)?,
        rate_per_hour: wire.rate_per_hour,
        windows: wire.windows.iter().map(window).collect::<Result<_, _>>()?,
        exposure_cap: if wire.exposure_cap == 0 { default.exposure_cap } else { wire.exposure_cap },
        canaries: wire.canaries.unwrap_or(default.canaries),
        error_budget_permille: wire.error_budget_permille.unwrap_or(default.error_budget_permille),
        tries_max: small_or(wire.tries_max, default.tries_max, "policy.tries_max")?,
        retry_ms: ms_or(wire.retry_s, default.retry_ms),
        lease_ms: ms_or(wire.lease_s, default.lease_ms),
        hls_failures_max: small_or(
            wire.hls_failures_max,
            default.hls_failures_max,
            "policy.hls_failures_max",
        )?,
        hls_lock_ms: ms_or(wire.hls_lock_s, default.hls_lock_ms),
    };
    policy.check().map_err(|why| field(why.field, why.problem))?;
    Ok(policy)
}

fn carrier(wire: Option<v1::KeyCarrier>, setup: SecuritySetup) -> Result<Carrier, Refused> {
    let Some(v1::KeyCarrier { security_setup, client, form }) = wire else {
        return Ok(Carrier { setup, ..Carrier::default() });
    };
    let form = form_of(form)?;
    let over = small(security_setup, ("policy.carrier.security_setup", "it is 0 to 255"))?;
    let client = small(client, ("policy.carrier.client", "it is 0 to 65,535"))?;
    Ok(Carrier { setup: SecuritySetup(over), client, form })
}

fn form_of(wire: i32) -> Result<AssociationForm, Refused> {
    match wire {
        0 => Ok(AssociationForm::default()),
        form => numbered(form).ok_or(field("policy.carrier.form", "there is no such form")),
    }
}

fn window(wire: &v1::CampaignWindow) -> Result<Window, Refused> {
    let bad = ("policy.windows", "minutes are 0 to 1440, days a bit each");
    let (from_minute, to_minute) = (small(wire.from_minute, bad)?, small(wire.to_minute, bad)?);
    Ok(Window { from_minute, to_minute, weekdays: small(wire.weekdays, bad)? })
}

fn selection_of(wire: v1::MeterSelection) -> Result<Selection, Refused> {
    let v1::MeterSelection {
        meter_ids,
        profile,
        id_prefix,
        title_prefix,
        older_than_days,
        compromised,
    } = wire;
    if title_prefix.len() > TITLE_LEN {
        return Err(field("selection.title_prefix", "a system title has 8 bytes"));
    }
    let ids = meter_ids.iter().map(|id| words::meter_id("selection.meter_ids", id));
    Ok(Selection {
        meter_ids: ids.collect::<Result<_, _>>()?,
        profile,
        id_prefix,
        title_prefix: title_prefix.to_vec(),
        older_than_days,
        compromised,
    })
}

/// What became of a start.
pub(crate) fn started(started: Started, replicated: i32) -> v1::StartCampaignResponse {
    let Started { view, added, already, left_out, left_out_total, .. } = started;
    v1::StartCampaignResponse {
        campaign: Some(campaign(view)),
        added,
        already,
        left_out: left_out.into_iter().map(wire_left).collect(),
        left_out_total,
        replicated,
    }
}

fn wire_left(LeftOut { meter_id, code, reason }: LeftOut) -> v1::LeftOut {
    v1::LeftOut { meter_id: meter_id.to_string(), code: code.word().to_owned(), reason }
}

/// A campaign, and how far it is.
pub(crate) fn campaign(view: CampaignView) -> v1::Campaign {
    let CampaignView { campaign, progress, labels, canaries_done, done_last_hour, forecast_ms } =
        view;
    let all = v1::CampaignProgress {
        done_last_hour,
        forecast_ms: forecast_ms.unwrap_or_default(),
        ..counts(&progress)
    };
    let names = campaign.labels.iter().zip(&labels).zip(canaries_done);
    let labels = names.map(|((label, progress), canaries_done)| v1::LabelProgress {
        label: label.clone(),
        progress: Some(counts(progress)),
        canaries_done,
    });
    v1::Campaign {
        labels: labels.collect(),
        name: campaign.name,
        status: campaign.status as i32,
        reason: campaign.reason,
        policy: Some(wire_policy(&campaign.policy)),
        started_ms: campaign.started_ms,
        ended_ms: campaign.ended_ms.unwrap_or_default(),
        asked_by: campaign.asked_by,
        driver: campaign.driver,
        progress: Some(all),
    }
}

fn counts(progress: &Progress) -> v1::CampaignProgress {
    let of = |phase| progress.of(phase);
    v1::CampaignProgress {
        members: progress.members,
        waiting: of(Phase::Waiting),
        staged: of(Phase::Staged),
        sent: of(Phase::Sent),
        proved: of(Phase::Proved),
        done: of(Phase::Done),
        failed: of(Phase::Failed),
        skipped: of(Phase::Skipped),
        left: of(Phase::Left),
        unreachable: progress.unreachable,
        leased: progress.leased,
        exposed: progress.exposed,
        orphans: progress.orphans,
        done_last_hour: 0,
        forecast_ms: 0,
    }
}

fn wire_policy(policy: &Policy) -> v1::CampaignPolicy {
    v1::CampaignPolicy {
        kinds: policy.kinds.iter().map(|kind| *kind as i32).collect(),
        security_setup: policy.setup.0.into(),
        class_version: policy.class_version.into(),
        carrier: Some(words::key_carrier(&policy.carrier)),
        rate_per_hour: policy.rate_per_hour,
        windows: policy.windows.iter().map(wire_window).collect(),
        exposure_cap: policy.exposure_cap,
        canaries: Some(policy.canaries),
        error_budget_permille: Some(policy.error_budget_permille),
        tries_max: policy.tries_max.into(),
        retry_s: seconds_of(policy.retry_ms),
        lease_s: seconds_of(policy.lease_ms),
        hls_failures_max: policy.hls_failures_max.into(),
        hls_lock_s: seconds_of(policy.hls_lock_ms),
    }
}

fn wire_window(window: &Window) -> v1::CampaignWindow {
    let Window { from_minute, to_minute, weekdays } = *window;
    let (from_minute, to_minute) = (from_minute.into(), to_minute.into());
    v1::CampaignWindow { from_minute, to_minute, weekdays: weekdays.into() }
}

fn seconds_of(ms: u64) -> u32 {
    u32::try_from(ms / 1_000).unwrap_or(u32::MAX)
}

/// Which members somebody wants to see.
pub(crate) fn wanted(request: &v1::ListCampaignMembersRequest) -> Result<Wanted, Refused> {
    let phase = match request.state {
        0 => None,
        state => Some(numbered(state).ok_or(field("state", "there is no such state"))?),
    };
    let limit = match request.limit {
        0 => MEMBERS_DEFAULT,
        limit if limit <= MEMBERS_MAX => limit,
        _ => return Err(field("limit", "a page has at most 1,000 members")),
    };
    let after = words::optional_title("after", &request.after)?;
    Ok(Wanted { phase, exposed: request.exposed, after, limit: limit as usize })
}

/// A page of members.
pub(crate) fn members(page: Members) -> v1::ListCampaignMembersResponse {
    let next = page.next.map(|title| title.as_bytes().to_vec()).unwrap_or_default();
    v1::ListCampaignMembersResponse {
        members: page.members.into_iter().map(member).collect(),
        next: next.into(),
    }
}

fn member(view: MemberView) -> v1::CampaignMember {
    let MemberView { meter_id, row, label, leased } = view;
    v1::CampaignMember {
        meter_id,
        system_title: row.title.as_bytes().to_vec().into(),
        label,
        state: row.phase as i32,
        canary: row.canary,
        exposed: row.is_exposed(),
        unreachable: row.unreachable,
        failures: row.failures.into(),
        until_ms: row.until_ms,
        leased,
        last_outcome: row.last.map_or(0, |outcome| outcome as i32),
        reason: row.refused.map(|code| code.word().to_owned()).unwrap_or_default(),
        tried: row.tried.iter().map(wire_tried).collect(),
    }
}

fn wire_tried(tried: &Tried) -> v1::KeyTried {
    let Tried { at_ms, pair, outcome, frame } = tried;
    let (pair, frame) = (Some(wire_pair(pair)), frame.clone().into());
    v1::KeyTried { at_ms: *at_ms, pair, outcome: *outcome as i32, frame }
}

fn wire_pair(pair: &Pair) -> v1::KeyPair {
    v1::KeyPair {
        encryption_key_version: pair.encryption.into(),
        authentication_key_version: pair.authentication.unwrap_or_default().into(),
    }
}

fn pair(wire: &v1::KeyPair) -> Result<Pair, Refused> {
    let bad = ("reports.pairs_tried", "a key's version is 1 to 65,535");
    let authentication = small(wire.authentication_key_version, bad)?;
    let authentication = Some(authentication).filter(|version| *version > 0);
    Ok(Pair { encryption: small(wire.encryption_key_version, bad)?, authentication })
}

/// How many meters somebody wants.
pub(crate) fn most(most: u32) -> Result<usize, Refused> {
    let most = if most == 0 { WORK_DEFAULT } else { most } as usize;
    if most > WORK_MAX {
        return Err(field("most", "one call takes at most 256 meters"));
    }
    Ok(most)
}

/// Work that is given out.
pub(crate) fn taken(taken: Taken) -> v1::TakeWorkResponse {
    let Taken { work, reason, retry_after_ms } = taken;
    v1::TakeWorkResponse { work: work.into_iter().map(wire_work).collect(), reason, retry_after_ms }
}

fn wire_work(work: Work) -> v1::Work {
    let Work { meter_id, title, row, action, bringing, pairs, policy } = work;
    let (kind, version) = match bringing {
        Some((kind, version)) => (kind as i32, version.into()),
        None => (0, 0),
    };
    v1::Work {
        meter_id: meter_id.to_string(),
        system_title: title.as_bytes().to_vec().into(),
        lease: row.lease,
        until_ms: row.until_ms,
        action: action as i32,
        kind,
        security_setup: policy.setup.0.into(),
        version,
        carrier: Some(words::key_carrier(&policy.carrier)),
        pairs: pairs.iter().map(wire_pair).collect(),
        canary: row.canary,
        state: row.phase as i32,
    }
}

/// A report, without its messages.
pub(crate) struct Report {
    pub(crate) meter_id: kms_core::MeterId,
    pub(crate) lease: u64,
    pub(crate) outcome: Outcome,
    pub(crate) apdus: Vec<bytes::Bytes>,
    pub(crate) in_vain: Vec<Pair>,
    pub(crate) end: bool,
}

/// Reports as they come in.
pub(crate) fn reports(request: v1::ReportWorkRequest) -> Result<Vec<Report>, Refused> {
    if request.reports.is_empty() || request.reports.len() > WORK_MAX {
        return Err(field("reports", "one call has 1 to 256 reports"));
    }
    request.reports.into_iter().map(report).collect()
}

fn report(wire: v1::WorkReport) -> Result<Report, Refused> {
    let v1::WorkReport { meter_id, lease, outcome, apdus, pairs_tried, end } = wire;
    if apdus.len() > APDUS_MAX || pairs_tried.len() > APDUS_MAX {
        return Err(field("reports.apdus", "a report has at most 64 messages and 64 pairs"));
    }
    let meter_id = words::meter_id("reports.meter_id", &meter_id)?;
    let no_outcome = field("reports.outcome", "say how it went: there is no such outcome");
    let outcome = numbered(outcome).ok_or(no_outcome)?;
    let in_vain = pairs_tried.iter().map(pair).collect::<Result<_, _>>()?;
    Ok(Report { meter_id, lease, outcome, apdus, in_vain, end })
}

/// What reports came to.
pub(crate) fn verdicts(verdicts: Vec<WorkVerdict>) -> v1::ReportWorkResponse {
    v1::ReportWorkResponse { verdicts: verdicts.into_iter().map(verdict).collect() }
}

fn verdict(WorkVerdict { meter_id, outcome }: WorkVerdict) -> v1::WorkVerdict {
    let of_outcome = outcome.map_or_else(|error| refused(&error), going_on);
    v1::WorkVerdict { meter_id: meter_id.to_string(), ..of_outcome }
}

/// What is next, without whose it is.
fn going_on(work: Work) -> v1::WorkVerdict {
    let state = work.row.phase as i32;
    let code = work.row.refused.filter(|_| work.action == Action::Nothing);
    let code = code.map(|code| code.word().to_owned()).unwrap_or_default();
    v1::WorkVerdict { state, code, next: Some(wire_work(work)), ..Default::default() }
}

/// Why a report was refused, without whose it is.
fn refused(error: &LifecycleError) -> v1::WorkVerdict {
    let (code, reason) = (code_of(error), error.to_string());
    v1::WorkVerdict { code, reason, ..Default::default() }
}

fn code_of(error: &LifecycleError) -> String {
    match error {
        LifecycleError::Refused(refusal) => refusal.code.word().to_owned(),
        _ => "UNAVAILABLE".to_owned(),
    }
}

/// What stands of one meter.
pub(crate) fn meter_rotation(rotation: MeterRotation) -> v1::GetMeterRotationResponse {
    let MeterRotation { meter, member: found, pairs, advice } = rotation;
    let transferred =
        |kind| matches!(kind, KeyKind::Guek | KeyKind::Gbek | KeyKind::Gak | KeyKind::Kek);
    let keys = meter.keys.iter().filter(|key| transferred(key.kind));
    let (campaign, found) = found.unzip();
    v1::GetMeterRotationResponse {
        keys: keys.map(|key| words::key_of(&meter, key)).collect(),
        campaign: campaign.unwrap_or_default(),
        member: found.map(member),
        pairs: pairs.iter().map(wire_pair).collect(),
        actions: advice
            .into_iter()
            .map(|it| v1::NextAction { command: it.command, reason: it.reason })
            .collect(),
    }
}

/// Bytes of an answer that are remembered.
pub(crate) const fn frame_len() -> usize {
    kms_core::campaign::row::FRAME_MAX
}
