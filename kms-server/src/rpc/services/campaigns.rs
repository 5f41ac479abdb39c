//! `Rotation`, the calls about campaigns.

use std::{sync::Arc, time::Duration};

use futures_util::stream;
use kms_proto::v1::{
    self, Campaign, CancelCampaignRequest, GetCampaignRequest, PauseCampaignRequest,
    ResumeCampaignRequest,
};
use tonic::{Request, Response, Status};

use super::{
    in_order::{Answers, to_its_end},
    rotation::RotationService,
};
use crate::{
    ciphering::{Item, Named, OpenedBatch, Outcome, Want},
    lifecycle::{Lifecycle, LifecycleError, OpenedFrame, Reported},
    rpc::{
        access::{policy::Permit, verb::Verb},
        messages::{
            campaigns::{self, Report},
            lifecycle_status::of_lifecycle,
            status::Refused,
            words,
        },
    },
};
use kms_core::{
    Verdict,
    audit::{AuditedCall, Subject},
    life::choosing::Pair,
};

/// Between two answers of a watch.
const EVERY_S: u32 = 2;
/// The longest.
const EVERY_MAX_S: u32 = 3_600;
/// Bytes of a worker's name.
const WORKER_MAX: usize = 64;

type Told<T> = Result<Response<T>, Status>;

/// What somebody decides about a campaign.
enum Decision {
    Pause { reason: String },
    Resume { retry_failed: bool },
    Cancel { reason: String },
}

impl Decision {
    async fn carry_out(
        self,
        on: &Lifecycle,
        call: &AuditedCall,
        name: &str,
    ) -> Result<(), LifecycleError> {
        match self {
            Self::Pause { reason } => on.pause_campaign(call, name, &reason).await,
            Self::Resume { retry_failed } => on.resume_campaign(call, name, retry_failed).await,
            Self::Cancel { reason } => on.cancel_campaign(call, name, &reason).await,
        }
    }
}

impl RotationService {
    /// Carries a change of a campaign to its end, whoever hangs up.
    async fn of_campaign<T: Send + 'static>(
        &self,
        permit: &Permit,
        (call, charge): (AuditedCall, usize),
        change: impl Future<Output = Result<T, LifecycleError>> + Send + 'static,
    ) -> Result<T, Status> {
        let charge = self.budget.charge(permit, charge)?;
        let audit = self.audit.clone();
        to_its_end(async move {
            let _charge = charge;
            match change.await {
                Ok(done) => Ok(done),
                Err(error) => Err(audit.failure(&call, Subject::NONE, &error).await),
            }
        })
        .await
    }

    async fn seen(&self, name: &str) -> Result<v1::Campaign, Status> {
        let view = self.lifecycle.get_campaign(name).await;
        Ok(campaigns::campaign(view.map_err(|error| of_lifecycle(&error))?))
    }

    pub(super) async fn start(
        &self,
        request: Request<v1::StartCampaignRequest>,
    ) -> Result<Response<v1::StartCampaignResponse>, Status> {
        let permit = Permit::of(&request, Verb::StartCampaign)?;
        let call = self.audit.call(&permit, &request);
        let wanted = campaigns::starting(request.into_inner())?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let of = (call.clone(), 1);
        let started = self
            .of_campaign(&permit, of, async move { lifecycle.start_campaign(&call, &wanted).await })
            .await?;
        let replicated = words::replicated(self.lifecycle.replicated(&started.states).await) as i32;
        Ok(Response::new(campaigns::started(started, replicated)))
    }

    pub(super) async fn get(&self, request: Request<GetCampaignRequest>) -> Told<Campaign> {
        let permit = Permit::of(&request, Verb::GetCampaign)?;
        let _charge = self.budget.charge(&permit, 1)?;
        Ok(Response::new(self.seen(&request.get_ref().name).await?))
    }

    pub(super) async fn list(
        &self,
        request: Request<v1::ListCampaignsRequest>,
    ) -> Result<Response<v1::ListCampaignsResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListCampaigns)?;
        let _charge = self.budget.charge(&permit, 1)?;
        let views = self.lifecycle.list_campaigns().await.map_err(|error| of_lifecycle(&error))?;
        let campaigns = views.into_iter().map(campaigns::campaign).collect();
        Ok(Response::new(v1::ListCampaignsResponse { campaigns }))
    }

    pub(super) async fn members(
        &self,
        request: Request<v1::ListCampaignMembersRequest>,
    ) -> Result<Response<v1::ListCampaignMembersResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListCampaignMembers)?;
        let wanted = campaigns::wanted(request.get_ref())?;
        let _charge = self.budget.charge(&permit, wanted.limit)?;
        let page = self.lifecycle.list_campaign_members(&request.get_ref().name, wanted).await;
        let page = page.map_err(|error| of_lifecycle(&error))?;
        Ok(Response::new(campaigns::members(page)))
    }

    pub(super) async fn pause(&self, request: Request<PauseCampaignRequest>) -> Told<Campaign> {
        let permit = Permit::of(&request, Verb::PauseCampaign)?;
        let call = self.audit.call(&permit, &request);
        let PauseCampaignRequest { name, reason } = request.into_inner();
        self.decide(&permit, call, name, Decision::Pause { reason }).await
    }

    pub(super) async fn resume(&self, request: Request<ResumeCampaignRequest>) -> Told<Campaign> {
        let permit = Permit::of(&request, Verb::ResumeCampaign)?;
        let call = self.audit.call(&permit, &request);
        let ResumeCampaignRequest { name, retry_failed } = request.into_inner();
        self.decide(&permit, call, name, Decision::Resume { retry_failed }).await
    }

    pub(super) async fn cancel(&self, request: Request<CancelCampaignRequest>) -> Told<Campaign> {
        let permit = Permit::of(&request, Verb::CancelCampaign)?;
        let call = self.audit.call(&permit, &request);
        let CancelCampaignRequest { name, reason } = request.into_inner();
        self.decide(&permit, call, name, Decision::Cancel { reason }).await
    }

    /// Carries out what somebody has decided about a campaign, and shows how it stands then.
    async fn decide(
        &self,
        permit: &Permit,
        call: AuditedCall,
        name: String,
        decision: Decision,
    ) -> Told<Campaign> {
        let (lifecycle, of, wanted) =
            (Arc::clone(&self.lifecycle), (call.clone(), 1), name.clone());
        let change = async move { decision.carry_out(&lifecycle, &call, &wanted).await };
        self.of_campaign(permit, of, change).await?;
        Ok(Response::new(self.seen(&name).await?))
    }

    pub(super) async fn watch(
        &self,
        request: Request<v1::WatchCampaignRequest>,
    ) -> Result<Response<Answers<v1::Campaign>>, Status> {
        let _permit = Permit::of(&request, Verb::WatchCampaign)?;
        let v1::WatchCampaignRequest { name, every_s } = request.into_inner();
        let every = if every_s == 0 { EVERY_S } else { every_s.min(EVERY_MAX_S) };
        let first = self.seen(&name).await?;
        let this = self.clone();
        let answers = stream::unfold(Some(first), move |last| {
            let (this, name) = (this.clone(), name.clone());
            async move {
                let last = last?;
                if is_over(&last) {
                    return Some((Ok(last), None));
                }
                tokio::time::sleep(Duration::from_secs(every.into())).await;
                match this.seen(&name).await {
                    Ok(next) => Some((Ok(last), Some(next))),
                    Err(status) => Some((Err(status), None)),
                }
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    pub(super) async fn take(
        &self,
        request: Request<v1::TakeWorkRequest>,
    ) -> Result<Response<v1::TakeWorkResponse>, Status> {
        let permit = Permit::of(&request, Verb::TakeWork)?;
        let call = self.audit.call(&permit, &request);
        let v1::TakeWorkRequest { campaign, most, worker } = request.into_inner();
        let most = campaigns::most(most)?;
        if worker.is_empty() || worker.len() > WORKER_MAX {
            let problem = "who does it: a name of 1 to 64 bytes";
            return Err(Refused::Field { field: "worker", problem }.into());
        }
        let (lifecycle, of) = (Arc::clone(&self.lifecycle), (call.clone(), most));
        let taken = self
            .of_campaign(&permit, of, async move {
                let campaign = Some(campaign.as_str()).filter(|name| !name.is_empty());
                lifecycle.take_work(&call, (campaign, &worker), most).await
            })
            .await?;
        Ok(Response::new(campaigns::taken(taken)))
    }

    pub(super) async fn report(
        &self,
        request: Request<v1::ReportWorkRequest>,
    ) -> Result<Response<v1::ReportWorkResponse>, Status> {
        let permit = Permit::of(&request, Verb::ReportWork)?;
        let call = self.audit.call(&permit, &request);
        let reports = campaigns::reports(request.into_inner())?;
        let messages: usize = reports.iter().map(|report| report.apdus.len()).sum();
        let (lifecycle, ciphering) = (Arc::clone(&self.lifecycle), Arc::clone(&self.ciphering));
        let of = (call.clone(), messages + reports.len());
        let verdicts = self
            .of_campaign(&permit, of, async move {
                let items: Vec<Item<'_>> = reports.iter().flat_map(items_of).collect();
                let opened = ciphering.open_batch(&items, Want::Plaintext).await;
                let mut frames = frames(&opened).into_iter();
                let reported = reports.into_iter().map(|report| reported(report, &mut frames));
                lifecycle.report_work(&call, reported.collect()).await
            })
            .await?;
        Ok(Response::new(campaigns::verdicts(verdicts)))
    }

    pub(super) async fn meter_rotation(
        &self,
        request: Request<v1::GetMeterRotationRequest>,
    ) -> Result<Response<v1::GetMeterRotationResponse>, Status> {
        let permit = Permit::of(&request, Verb::GetMeterRotation)?;
        let _charge = self.budget.charge(&permit, 1)?;
        let id = words::meter_id("meter_id", &request.get_ref().meter_id)?;
        let rotation = self.lifecycle.meter_rotation(&id).await;
        let rotation = rotation.map_err(|error| of_lifecycle(&error))?;
        Ok(Response::new(campaigns::meter_rotation(rotation)))
    }
}

fn is_over(campaign: &Campaign) -> bool {
    let status = v1::CampaignStatus::try_from(campaign.status);
    matches!(status, Ok(v1::CampaignStatus::Finished | v1::CampaignStatus::Cancelled))
}

fn items_of(report: &Report) -> impl Iterator<Item = Item<'_>> {
    let named = Named::Id(report.meter_id.as_str());
    report.apdus.iter().map(move |apdu| Item { apdu, named, setup: None })
}

/// The messages of all reports, in their order, each with what it was opened to.
fn frames(opened: &OpenedBatch) -> Vec<Option<OpenedFrame>> {
    let mut plaintexts = opened.plaintexts.as_slice();
    let mut frames = Vec::with_capacity(opened.outcomes.len());
    for (outcome, len) in opened.outcomes.iter().zip(&opened.lengths) {
        let (plain, rest) = plaintexts.split_at_checked(*len as usize).unwrap_or_default();
        plaintexts = rest;
        frames.push(frame(outcome, plain));
    }
    frames
}

/// A report with its own of these messages, which are the next ones.
fn reported(report: Report, frames: &mut impl Iterator<Item = Option<OpenedFrame>>) -> Reported {
    let opened = frames.take(report.apdus.len()).flatten().collect();
    let frame = beginning(&report.apdus);
    let Report { meter_id, lease, outcome, in_vain, end, .. } = report;
    Reported { meter_id, lease, outcome, opened, in_vain, frame, end }
}

/// A message that was opened with a whole tag, and the pair that opened it.
fn frame(outcome: &Outcome, plain: &[u8]) -> Option<OpenedFrame> {
    // One under a compromised key says which keys the meter holds, too, and proves nothing.
    let is_whole = matches!(outcome.verdict, Verdict::Ok | Verdict::CompromisedKey);
    let title = outcome.system_title.filter(|_| is_whole)?;
    let (encryption, authentication) =
        (outcome.encryption_key_version, outcome.authentication_key_version);
    let pair = Pair { encryption, authentication: Some(authentication) };
    Some(OpenedFrame {
        title,
        setup: outcome.setup,
        // One that was opened before says nothing of now.
        pair: (!outcome.duplicate && encryption > 0 && authentication > 0).then_some(pair),
        shown: outcome.shown,
        plaintext: plain.to_vec(),
    })
}

fn beginning(apdus: &[bytes::Bytes]) -> Vec<u8> {
    let last = apdus.last().map(|apdu| &apdu[..]).unwrap_or_default();
    last.iter().take(campaigns::frame_len()).copied().collect()
}
