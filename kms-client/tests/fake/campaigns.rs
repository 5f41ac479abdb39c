//! Campaigns of the fake: what was asked of them, and what is answered.
#![allow(clippy::unwrap_used, reason = "helpers of tests may")]

use std::sync::Mutex;

use futures_util::stream;
use kms_proto::v1;
use tonic::{Request, Response, Status};

use super::{Fake, Replies};

/// What was asked, and what is answered.
#[derive(Default)]
pub(crate) struct Campaigned {
    pub(crate) starts: Mutex<Vec<v1::StartCampaignRequest>>,
    /// Meters that are left out of every start.
    pub(crate) left_out: Mutex<Vec<v1::LeftOut>>,
    /// Calls about one campaign: call, name, and what else was said.
    pub(crate) decided: Mutex<Vec<(&'static str, String, String)>>,
    /// The campaign that is shown; `None`: a running one.
    pub(crate) shown: Mutex<Option<v1::Campaign>>,
    /// What a watch says one after the other; it breaks where that ends before the campaign.
    pub(crate) watched: Mutex<Vec<v1::Campaign>>,
    pub(crate) members: Mutex<Vec<v1::CampaignMember>>,
    pub(crate) asked_members: Mutex<Vec<v1::ListCampaignMembersRequest>>,
    pub(crate) taken: Mutex<Vec<v1::TakeWorkRequest>>,
    pub(crate) work: Mutex<Vec<v1::Work>>,
    pub(crate) reports: Mutex<Vec<v1::WorkReport>>,
    pub(crate) meter: Mutex<v1::GetMeterRotationResponse>,
}

/// A campaign of four meters, of which one is done and one is failed and exposed.
pub(crate) fn campaign(status: v1::CampaignStatus) -> v1::Campaign {
    let progress = v1::CampaignProgress {
        members: 4,
        waiting: 1,
        sent: 1,
        done: 1,
        failed: 1,
        exposed: 2,
        orphans: 1,
        leased: 1,
        done_last_hour: 1,
        forecast_ms: 86_400_000,
        ..v1::CampaignProgress::default()
    };
    let label = |label: &str, canaries_done| v1::LabelProgress {
        label: label.into(),
        progress: Some(progress),
        canaries_done,
    };
    v1::Campaign {
        name: "spring".into(),
        status: status as i32,
        policy: Some(v1::CampaignPolicy {
            kinds: vec![v1::KeyKind::Guek as i32],
            exposure_cap: 100,
            canaries: Some(1),
            error_budget_permille: Some(20),
            tries_max: 5,
            retry_s: 900,
            lease_s: 600,
            hls_failures_max: 3,
            hls_lock_s: 900,
            ..v1::CampaignPolicy::default()
        }),
        asked_by: "alice".into(),
        driver: "node-1".into(),
        progress: Some(progress),
        labels: vec![label("MMM", true), label("acme-2", false)],
        ..v1::Campaign::default()
    }
}

impl Campaigned {
    fn shown(&self) -> v1::Campaign {
        let shown = self.shown.lock().unwrap().clone();
        shown.unwrap_or_else(|| campaign(v1::CampaignStatus::Running))
    }

    fn decide(&self, call: &'static str, name: String, more: String) -> Response<v1::Campaign> {
        self.decided.lock().unwrap().push((call, name, more));
        Response::new(self.shown())
    }
}

impl Fake {
    async fn campaigns<T>(&self, request: &Request<T>) -> Result<&Campaigned, Status> {
        self.begin_rotation(request).await?;
        Ok(&self.0.campaigns)
    }

    pub(super) async fn start(
        &self,
        request: Request<v1::StartCampaignRequest>,
    ) -> Result<Response<v1::StartCampaignResponse>, Status> {
        let campaigned = self.campaigns(&request).await?;
        let request = request.into_inner();
        let named = request.selection.as_ref().map_or(0, |it| it.meter_ids.len() as u64);
        campaigned.starts.lock().unwrap().push(request);
        let left_out = campaigned.left_out.lock().unwrap().clone();
        Ok(Response::new(v1::StartCampaignResponse {
            campaign: Some(campaigned.shown()),
            added: if named > 0 { named } else { 4 },
            already: 0,
            left_out_total: left_out.len() as u64,
            left_out,
            replicated: self.0.replicated(),
        }))
    }

    pub(super) async fn get(
        &self,
        request: Request<v1::GetCampaignRequest>,
    ) -> Result<Response<v1::Campaign>, Status> {
        let campaigned = self.campaigns(&request).await?;
        Ok(campaigned.decide("get", request.into_inner().name, String::new()))
    }

    pub(super) async fn list(
        &self,
        request: Request<v1::ListCampaignsRequest>,
    ) -> Result<Response<v1::ListCampaignsResponse>, Status> {
        let shown = self.campaigns(&request).await?.shown();
        Ok(Response::new(v1::ListCampaignsResponse { campaigns: vec![shown] }))
    }

    /// A page has two members at most.
    pub(super) async fn members(
        &self,
        request: Request<v1::ListCampaignMembersRequest>,
    ) -> Result<Response<v1::ListCampaignMembersResponse>, Status> {
        let campaigned = self.campaigns(&request).await?;
        let request = request.into_inner();
        let all = campaigned.members.lock().unwrap().clone();
        let behind = all.into_iter().filter(|it| it.system_title > request.after);
        let mut members: Vec<v1::CampaignMember> = behind.collect();
        campaigned.asked_members.lock().unwrap().push(request);
        let more = members.len() > 2;
        members.truncate(2);
        let next = members.last().filter(|_| more).map(|it| it.system_title.clone());
        let next = next.unwrap_or_default();
        Ok(Response::new(v1::ListCampaignMembersResponse { members, next }))
    }

    pub(super) async fn pause(
        &self,
        request: Request<v1::PauseCampaignRequest>,
    ) -> Result<Response<v1::Campaign>, Status> {
        let campaigned = self.campaigns(&request).await?;
        let v1::PauseCampaignRequest { name, reason } = request.into_inner();
        Ok(campaigned.decide("pause", name, reason))
    }

    pub(super) async fn resume(
        &self,
        request: Request<v1::ResumeCampaignRequest>,
    ) -> Result<Response<v1::Campaign>, Status> {
        let campaigned = self.campaigns(&request).await?;
        let v1::ResumeCampaignRequest { name, retry_failed } = request.into_inner();
        Ok(campaigned.decide("resume", name, retry_failed.to_string()))
    }

    pub(super) async fn cancel(
        &self,
        request: Request<v1::CancelCampaignRequest>,
    ) -> Result<Response<v1::Campaign>, Status> {
        let campaigned = self.campaigns(&request).await?;
        let v1::CancelCampaignRequest { name, reason } = request.into_inner();
        Ok(campaigned.decide("cancel", name, reason))
    }

    pub(super) async fn watch(
        &self,
        request: Request<v1::WatchCampaignRequest>,
    ) -> Result<Response<Replies<v1::Campaign>>, Status> {
        let campaigned = self.campaigns(&request).await?;
        let break_after = self.0.break_after.load(std::sync::atomic::Ordering::SeqCst) as usize;
        let mut left = campaigned.watched.lock().unwrap();
        let now = if break_after == 0 { left.len() } else { break_after.min(left.len()) };
        let said: Vec<_> = left.drain(..now).map(Ok).collect();
        Ok(Response::new(Box::pin(stream::iter(said))))
    }

    pub(super) async fn take(
        &self,
        request: Request<v1::TakeWorkRequest>,
    ) -> Result<Response<v1::TakeWorkResponse>, Status> {
        let campaigned = self.campaigns(&request).await?;
        campaigned.taken.lock().unwrap().push(request.into_inner());
        let work = campaigned.work.lock().unwrap().clone();
        let reason = if work.is_empty() { "none is left" } else { "" }.to_owned();
        let retry_after_ms = if work.is_empty() { 5_000 } else { 0 };
        Ok(Response::new(v1::TakeWorkResponse { work, reason, retry_after_ms }))
    }

    /// A lease of 1 is over, all others go on with a probe.
    pub(super) async fn report(
        &self,
        request: Request<v1::ReportWorkRequest>,
    ) -> Result<Response<v1::ReportWorkResponse>, Status> {
        let campaigned = self.campaigns(&request).await?;
        let verdict = |report: &v1::WorkReport| {
            let meter_id = report.meter_id.clone();
            if report.lease == 1 {
                let (code, reason) = ("LEASE_OVER".into(), "take work anew".into());
                return v1::WorkVerdict { meter_id, code, reason, ..Default::default() };
            }
            let mut next = work(&meter_id);
            next.action = v1::WorkAction::Probe as i32;
            let state = v1::MemberState::Sent as i32;
            v1::WorkVerdict { meter_id, state, next: Some(next), ..Default::default() }
        };
        let reports = request.into_inner().reports;
        let verdicts = reports.iter().map(verdict).collect();
        campaigned.reports.lock().unwrap().extend(reports);
        Ok(Response::new(v1::ReportWorkResponse { verdicts }))
    }

    pub(super) async fn meter_rotation(
        &self,
        request: Request<v1::GetMeterRotationRequest>,
    ) -> Result<Response<v1::GetMeterRotationResponse>, Status> {
        let campaigned = self.campaigns(&request).await?;
        Ok(Response::new(campaigned.meter.lock().unwrap().clone()))
    }
}

/// A transfer of GUEK 2 to a meter.
pub(crate) fn work(meter_id: &str) -> v1::Work {
    v1::Work {
        meter_id: meter_id.into(),
        system_title: vec![7; 8].into(),
        lease: (3 << 56) | 1,
        until_ms: 600_000,
        action: v1::WorkAction::Transfer as i32,
        kind: v1::KeyKind::Guek as i32,
        version: 2,
        carrier: Some(v1::KeyCarrier { security_setup: 0, client: 1, form: 3 }),
        pairs: vec![v1::KeyPair { encryption_key_version: 1, authentication_key_version: 1 }],
        canary: true,
        state: v1::MemberState::Staged as i32,
        ..v1::Work::default()
    }
}

/// A member that was sent a key and has failed since.
pub(crate) fn member(number: u8) -> v1::CampaignMember {
    let pair = v1::KeyPair { encryption_key_version: 2, authentication_key_version: 1 };
    v1::CampaignMember {
        meter_id: format!("m-{number}"),
        system_title: vec![number; 8].into(),
        label: "MMM".into(),
        state: v1::MemberState::Failed as i32,
        canary: true,
        exposed: true,
        failures: 5,
        last_outcome: v1::TransportOutcome::NoAnswer as i32,
        tried: vec![v1::KeyTried {
            at_ms: 60_000,
            pair: Some(pair),
            outcome: v1::TransportOutcome::Answered as i32,
            frame: vec![0xDB, 8].into(),
        }],
        ..v1::CampaignMember::default()
    }
}
