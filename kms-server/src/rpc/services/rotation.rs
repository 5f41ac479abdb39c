//! `Rotation`: the life of meters' keys.

use std::{sync::Arc, time::Instant};

use kms_proto::v1::{
    self, CompromiseKeyRequest, CompromiseKeyResponse, ConfirmKeyRequest, ConfirmKeyResponse,
    DestroyKeyRequest, DestroyKeyResponse, KeyPlace, NextTransferRequest, NextTransferResponse,
    RestoreKeyRequest, RestoreKeyResponse, ReviveKeyRequest, ReviveKeyResponse, RollBackKeyRequest,
    RollBackKeyResponse, SetLegalHoldRequest, SetLegalHoldResponse, StageKeyRequest,
    StageKeyResponse, rotation_server,
};
use tonic::{Request, Response, Status, async_trait};

use super::in_order::{Answers, to_its_end};
use crate::{
    ciphering::Ciphering,
    lifecycle::{Lifecycle, LifecycleError, Stepped},
    rpc::{
        access::{
            policy::{Permit, Policy},
            verb::Verb,
        },
        gate::recording::Recorder,
        messages::{deadline::timeout_of, request_id::RequestId, rotation, status::Refused, words},
        shares::budget::Budget,
    },
    transmitting::{Origin, Transmitting},
};
use kms_core::{
    MeterId, Numbered as _,
    audit::{AuditedCall, Subject},
    block::BlockMark,
    life::choosing::Place,
};

/// Who rotates keys, and who decides about single ones.
#[derive(Clone)]
pub(crate) struct RotationService {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) transmitting: Arc<Transmitting>,
    pub(crate) ciphering: Arc<Ciphering>,
    pub(crate) audit: Recorder,
    pub(crate) budget: Budget,
    pub(crate) policy: Arc<Policy>,
}

/// A call about one version of a key.
struct AboutVersion {
    call: AuditedCall,
    id: MeterId,
    place: Place,
    version: u16,
}

impl RotationService {
    fn about<T>(
        &self,
        permit: &Permit,
        request: &Request<T>,
        (place, version): (Option<KeyPlace>, u32),
    ) -> Result<AboutVersion, Status> {
        let call = self.audit.call(permit, request);
        let (id, place) = rotation::place(place)?;
        Ok(AboutVersion { call, id, place, version: rotation::version(version)? })
    }

    /// Carries a change to its end, whoever hangs up, and records why it failed.
    async fn change<T: Send + 'static>(
        &self,
        permit: &Permit,
        about: (AuditedCall, MeterId),
        change: impl Future<Output = Result<T, LifecycleError>> + Send + 'static,
    ) -> Result<T, Status> {
        let charge = self.budget.charge(permit, 1)?;
        let audit = self.audit.clone();
        let (call, id) = about;
        to_its_end(async move {
            let _charge = charge;
            match change.await {
                Ok(done) => Ok(done),
                Err(error) => Err(audit.failure(&call, Subject::meter(&id), &error).await),
            }
        })
        .await
    }

    async fn replicated(&self, states: &[BlockMark]) -> i32 {
        words::replicated(self.lifecycle.replicated(states).await) as i32
    }
}

#[async_trait]
impl rotation_server::Rotation for RotationService {
    async fn stage_key(
        &self,
        request: Request<StageKeyRequest>,
    ) -> Result<Response<StageKeyResponse>, Status> {
        let permit = Permit::of(&request, Verb::StageKey)?;
        let call = self.audit.call(&permit, &request);
        let two_people = permit.second().is_some();
        let (id, wish) =
            rotation::wish(request.into_inner(), call.request_id.as_str(), two_people)?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let about = (call.clone(), id.clone());
        let staged = self
            .change(&permit, about, async move {
                let staged = lifecycle.stage_key(&call, &id, &wish).await?;
                staged.check()?;
                Ok(staged)
            })
            .await?;
        Ok(Response::new(rotation::staged(&staged)))
    }

    async fn next_transfer(
        &self,
        request: Request<NextTransferRequest>,
    ) -> Result<Response<NextTransferResponse>, Status> {
        let permit = Permit::of(&request, Verb::NextTransfer)?;
        let call = self.audit.call(&permit, &request);
        let until = timeout_of(request.metadata());
        let until = until.and_then(|timeout| Instant::now().checked_add(timeout));
        let request_id = request.extensions().get::<RequestId>().cloned();
        let (id, sending) = rotation::sending(request.into_inner())?;
        let (lifecycle, transmitting) =
            (Arc::clone(&self.lifecycle), Arc::clone(&self.transmitting));
        let (caller, policy) = (permit.caller().clone(), Arc::clone(&self.policy));
        let about = (call.clone(), id.clone());
        let answer = self
            .change(&permit, about, async move {
                let outgoing = lifecycle.next_transfer(&call, &id, &sending).await?;
                let Some(plain) = rotation::plain(&outgoing) else { return Ok(None) };
                let roles = policy.roles(&caller);
                let origin = Origin {
                    caller: caller.as_str(),
                    roles: roles.into_iter().flatten().map(|role| role.name()).collect(),
                    call: Verb::NextTransfer.name(),
                    request_id: request_id.as_ref().map_or("", RequestId::as_str),
                    until,
                };
                let batch = transmitting.protect_for(&origin, &[plain]).await;
                Ok(rotation::transfer(batch, outgoing.version))
            })
            .await?;
        let problem = "a dedicated key is known to its association alone: name another form";
        answer.map(Response::new).ok_or(Refused::Field { field: "form", problem }.into())
    }

    async fn confirm_key(
        &self,
        request: Request<ConfirmKeyRequest>,
    ) -> Result<Response<ConfirmKeyResponse>, Status> {
        let permit = Permit::of(&request, Verb::ConfirmKey)?;
        let call = self.audit.call(&permit, &request);
        let ConfirmKeyRequest { place, result } = request.into_inner();
        let (id, place) = rotation::place(place)?;
        let result = rotation::result(result)?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let about = (call.clone(), id.clone());
        let change = async move { lifecycle.confirm_key(&call, &id, place, result).await };
        let Stepped { said, meter, states } = self.change(&permit, about, change).await?;
        let newest = place.versions(&meter).filter(|key| key.life.transfer.is_some()).last();
        let proved = said.and_then(|it| meter.keys.iter().find(|key| key.id == it.key));
        let key = proved.or(newest).map(|key| words::key_of(&meter, key));
        let replicated = self.replicated(&states).await;
        Ok(Response::new(ConfirmKeyResponse { key, replicated }))
    }

    async fn roll_back_key(
        &self,
        request: Request<RollBackKeyRequest>,
    ) -> Result<Response<RollBackKeyResponse>, Status> {
        let permit = Permit::of(&request, Verb::RollBackKey)?;
        let RollBackKeyRequest { place, version } = request.get_ref().clone();
        let AboutVersion { call, id, place, version } =
            self.about(&permit, &request, (place, version))?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let about = (call.clone(), id.clone());
        let change = async move { lifecycle.roll_back_key(&call, &id, (place, version)).await };
        let Stepped { said: changed, states, .. } = self.change(&permit, about, change).await?;
        let replicated = self.replicated(&states).await;
        Ok(Response::new(RollBackKeyResponse { changed, replicated }))
    }

    async fn revive_key(
        &self,
        request: Request<ReviveKeyRequest>,
    ) -> Result<Response<ReviveKeyResponse>, Status> {
        let permit = Permit::of(&request, Verb::ReviveKey)?;
        let ReviveKeyRequest { place, version } = request.get_ref().clone();
        let AboutVersion { call, id, place, version } =
            self.about(&permit, &request, (place, version))?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let about = (call.clone(), id.clone());
        let change = async move { lifecycle.revive_key(&call, &id, (place, version)).await };
        let Stepped { said, states, .. } = self.change(&permit, about, change).await?;
        let replicated = self.replicated(&states).await;
        Ok(Response::new(ReviveKeyResponse { version: said.into(), replicated }))
    }

    async fn compromise_key(
        &self,
        request: Request<CompromiseKeyRequest>,
    ) -> Result<Response<CompromiseKeyResponse>, Status> {
        let permit = Permit::of(&request, Verb::CompromiseKey)?;
        let CompromiseKeyRequest { place, version } = request.get_ref().clone();
        let AboutVersion { call, id, place, version } =
            self.about(&permit, &request, (place, version))?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let about = (call.clone(), id.clone());
        let change = async move { lifecycle.compromise_key(&call, &id, (place, version)).await };
        let Stepped { said, states, .. } = self.change(&permit, about, change).await?;
        let (state, replicated) = (said.number().into(), self.replicated(&states).await);
        Ok(Response::new(CompromiseKeyResponse { state, replicated }))
    }

    async fn destroy_key(
        &self,
        request: Request<DestroyKeyRequest>,
    ) -> Result<Response<DestroyKeyResponse>, Status> {
        let permit = Permit::of(&request, Verb::DestroyKey)?;
        let DestroyKeyRequest { place, version, last_way } = request.get_ref().clone();
        let AboutVersion { call, id, place, version } =
            self.about(&permit, &request, (place, version))?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let about = (call.clone(), id.clone());
        let change =
            async move { lifecycle.destroy_key(&call, &id, (place, version), last_way).await };
        let Stepped { said, states, .. } = self.change(&permit, about, change).await?;
        let replicated = self.replicated(&states).await;
        Ok(Response::new(DestroyKeyResponse { destroy_at_ms: said, replicated }))
    }

    async fn restore_key(
        &self,
        request: Request<RestoreKeyRequest>,
    ) -> Result<Response<RestoreKeyResponse>, Status> {
        let permit = Permit::of(&request, Verb::RestoreKey)?;
        let RestoreKeyRequest { place, version } = request.get_ref().clone();
        let AboutVersion { call, id, place, version } =
            self.about(&permit, &request, (place, version))?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let about = (call.clone(), id.clone());
        let change = async move { lifecycle.restore_key(&call, &id, (place, version)).await };
        let Stepped { said: changed, states, .. } = self.change(&permit, about, change).await?;
        let replicated = self.replicated(&states).await;
        Ok(Response::new(RestoreKeyResponse { changed, replicated }))
    }

    async fn set_legal_hold(
        &self,
        request: Request<SetLegalHoldRequest>,
    ) -> Result<Response<SetLegalHoldResponse>, Status> {
        let permit = Permit::of(&request, Verb::SetLegalHold)?;
        let call = self.audit.call(&permit, &request);
        let SetLegalHoldRequest { meter_id, hold } = request.into_inner();
        let id = words::meter_id("meter_id", &meter_id)?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let about = (call.clone(), id.clone());
        let change = async move { lifecycle.set_legal_hold(&call, &id, hold).await };
        let Stepped { said: changed, states, .. } = self.change(&permit, about, change).await?;
        let replicated = self.replicated(&states).await;
        Ok(Response::new(SetLegalHoldResponse { changed, replicated }))
    }

    async fn start_campaign(
        &self,
        request: Request<v1::StartCampaignRequest>,
    ) -> Result<Response<v1::StartCampaignResponse>, Status> {
        self.start(request).await
    }

    async fn get_campaign(
        &self,
        request: Request<v1::GetCampaignRequest>,
    ) -> Result<Response<v1::Campaign>, Status> {
        self.get(request).await
    }

    async fn list_campaigns(
        &self,
        request: Request<v1::ListCampaignsRequest>,
    ) -> Result<Response<v1::ListCampaignsResponse>, Status> {
        self.list(request).await
    }

    async fn list_campaign_members(
        &self,
        request: Request<v1::ListCampaignMembersRequest>,
    ) -> Result<Response<v1::ListCampaignMembersResponse>, Status> {
        self.members(request).await
    }

    async fn pause_campaign(
        &self,
        request: Request<v1::PauseCampaignRequest>,
    ) -> Result<Response<v1::Campaign>, Status> {
        self.pause(request).await
    }

    async fn resume_campaign(
        &self,
        request: Request<v1::ResumeCampaignRequest>,
    ) -> Result<Response<v1::Campaign>, Status> {
        self.resume(request).await
    }

    async fn cancel_campaign(
        &self,
        request: Request<v1::CancelCampaignRequest>,
    ) -> Result<Response<v1::Campaign>, Status> {
        self.cancel(request).await
    }

    async fn take_work(
        &self,
        request: Request<v1::TakeWorkRequest>,
    ) -> Result<Response<v1::TakeWorkResponse>, Status> {
        self.take(request).await
    }

    async fn report_work(
        &self,
        request: Request<v1::ReportWorkRequest>,
    ) -> Result<Response<v1::ReportWorkResponse>, Status> {
        self.report(request).await
    }

    async fn get_meter_rotation(
        &self,
        request: Request<v1::GetMeterRotationRequest>,
    ) -> Result<Response<v1::GetMeterRotationResponse>, Status> {
        self.meter_rotation(request).await
    }

    type WatchCampaignStream = Answers<v1::Campaign>;

    async fn watch_campaign(
        &self,
        request: Request<v1::WatchCampaignRequest>,
    ) -> Result<Response<Self::WatchCampaignStream>, Status> {
        self.watch(request).await
    }
}
