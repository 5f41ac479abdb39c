//! Keeps what was asked of keys, and answers as a service would.
#![allow(clippy::unwrap_used, reason = "helpers of tests may")]

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use kms_proto::v1;
use kms_proto::v1::rotation_server::Rotation;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Fake, Replies};

/// What was asked, and what is answered.
#[derive(Default)]
pub(crate) struct Rotated {
    pub(crate) staged: Mutex<Vec<v1::StageKeyRequest>>,
    pub(crate) sent: Mutex<Vec<v1::NextTransferRequest>>,
    pub(crate) answers: Mutex<Vec<v1::ConfirmKeyRequest>>,
    /// Calls about one version: name, place, version.
    pub(crate) versions: Mutex<Vec<(&'static str, v1::KeyPlace, u32)>>,
    pub(crate) last_ways: Mutex<Vec<bool>>,
    pub(crate) holds: Mutex<Vec<v1::SetLegalHoldRequest>>,
    /// All of them are refused with this word.
    pub(crate) refuses: Mutex<Option<&'static str>>,
    /// Why no other site proves what is staged; empty: one does.
    pub(crate) unproved: Mutex<String>,
    /// The verdict of a transfer; 0: OK.
    pub(crate) verdict: Mutex<i32>,
    /// The state after a compromise; 0: COMPROMISED.
    pub(crate) compromised: Mutex<i32>,
}

/// The only key of the fake's only meter.
fn key(state: v1::KeyState, reason: v1::KeyStateReason) -> v1::Key {
    v1::Key {
        key_id: vec![9; 16].into(),
        kind: v1::KeyKind::Guek as i32,
        version: 2,
        state: state as i32,
        reason: reason as i32,
        protection: v1::ProtectionLevel::Memory as i32,
        kcv: vec![1, 2, 3, 4, 5].into(),
        ..v1::Key::default()
    }
}

impl Fake {
    pub(super) async fn begin_rotation<T>(&self, request: &Request<T>) -> Result<&Rotated, Status> {
        self.0.begin_change(request).await?;
        match *self.0.rotation.refuses.lock().unwrap() {
            Some(word) => {
                let details = ErrorDetails::with_error_info(word, "ami.kms.v1", []);
                Err(Status::with_error_details(Code::InvalidArgument, "not so", details))
            }
            None => Ok(&self.0.rotation),
        }
    }
}

#[tonic::async_trait]
impl Rotation for Fake {
    async fn stage_key(
        &self,
        request: Request<v1::StageKeyRequest>,
    ) -> Result<Response<v1::StageKeyResponse>, Status> {
        let id = request.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
        let rotated = self.begin_rotation(&request).await?;
        let mut staged = rotated.staged.lock().unwrap();
        staged.push(request.into_inner());
        // As it was asked for first.
        let asked = staged.first().unwrap();
        let transfer = v1::KeyTransfer {
            request_id: id,
            kek_id: vec![4; 16].into(),
            class_version: asked.class_version,
            carrier: asked.carrier.or(Some(v1::KeyCarrier { form: 3, ..Default::default() })),
            unreplicated: asked.allow_unreplicated,
            ..Default::default()
        };
        let key = key(v1::KeyState::PreActive, v1::KeyStateReason::Staged);
        let key = Some(v1::Key { transfer: Some(transfer), ..key });
        let reason = rotated.unproved.lock().unwrap().clone();
        let (already, proved) = (staged.len() > 1, reason.is_empty());
        Ok(Response::new(v1::StageKeyResponse { key, already, proved, reason }))
    }

    async fn next_transfer(
        &self,
        request: Request<v1::NextTransferRequest>,
    ) -> Result<Response<v1::NextTransferResponse>, Status> {
        let rotated = self.begin_rotation(&request).await?;
        rotated.sent.lock().unwrap().push(request.into_inner());
        let verdict = (*rotated.verdict.lock().unwrap()).max(1);
        let refused = verdict != 1;
        Ok(Response::new(v1::NextTransferResponse {
            apdu: if refused { Default::default() } else { vec![0xDB, 8].into() },
            verdict,
            refusal: if refused { v1::TransmitRefusal::CounterUndeclared as i32 } else { 0 },
            reason: if refused { "declare it first".into() } else { String::new() },
            // As a server that gives out counters: each call gets one.
            invocation_counter: self.0.counter.fetch_add(1, Ordering::SeqCst),
            encryption_key_version: 1,
            authentication_key_version: 1,
            version: 2,
        }))
    }

    async fn confirm_key(
        &self,
        request: Request<v1::ConfirmKeyRequest>,
    ) -> Result<Response<v1::ConfirmKeyResponse>, Status> {
        let rotated = self.begin_rotation(&request).await?;
        let request = request.into_inner();
        let is_weak = request.place.as_ref().unwrap().kind == v1::KeyKind::Gbek as i32;
        rotated.answers.lock().unwrap().push(request);
        let key = match is_weak {
            true => key(v1::KeyState::Active, v1::KeyStateReason::ConfirmedByResult),
            false => key(v1::KeyState::PreActive, v1::KeyStateReason::Staged),
        };
        let replicated = self.0.replicated();
        Ok(Response::new(v1::ConfirmKeyResponse { key: Some(key), replicated }))
    }

    async fn roll_back_key(
        &self,
        request: Request<v1::RollBackKeyRequest>,
    ) -> Result<Response<v1::RollBackKeyResponse>, Status> {
        let rotated = self.begin_rotation(&request).await?;
        let v1::RollBackKeyRequest { place, version } = request.into_inner();
        let mut asked = rotated.versions.lock().unwrap();
        let changed = asked.is_empty();
        asked.push(("rollback", place.unwrap(), version));
        let replicated = self.0.replicated();
        Ok(Response::new(v1::RollBackKeyResponse { changed, replicated }))
    }

    async fn revive_key(
        &self,
        request: Request<v1::ReviveKeyRequest>,
    ) -> Result<Response<v1::ReviveKeyResponse>, Status> {
        let rotated = self.begin_rotation(&request).await?;
        let v1::ReviveKeyRequest { place, version } = request.into_inner();
        rotated.versions.lock().unwrap().push(("revive", place.unwrap(), version));
        let (version, replicated) = (version + 2, self.0.replicated());
        Ok(Response::new(v1::ReviveKeyResponse { version, replicated }))
    }

    async fn compromise_key(
        &self,
        request: Request<v1::CompromiseKeyRequest>,
    ) -> Result<Response<v1::CompromiseKeyResponse>, Status> {
        let rotated = self.begin_rotation(&request).await?;
        let v1::CompromiseKeyRequest { place, version } = request.into_inner();
        rotated.versions.lock().unwrap().push(("compromise", place.unwrap(), version));
        let state = (*rotated.compromised.lock().unwrap()).max(v1::KeyState::Compromised as i32);
        let replicated = self.0.replicated();
        Ok(Response::new(v1::CompromiseKeyResponse { state, replicated }))
    }

    async fn destroy_key(
        &self,
        request: Request<v1::DestroyKeyRequest>,
    ) -> Result<Response<v1::DestroyKeyResponse>, Status> {
        let rotated = self.begin_rotation(&request).await?;
        let v1::DestroyKeyRequest { place, version, last_way } = request.into_inner();
        rotated.versions.lock().unwrap().push(("destroy", place.unwrap(), version));
        rotated.last_ways.lock().unwrap().push(last_way);
        let (destroy_at_ms, replicated) = (86_400_000, self.0.replicated());
        Ok(Response::new(v1::DestroyKeyResponse { destroy_at_ms, replicated }))
    }

    async fn restore_key(
        &self,
        request: Request<v1::RestoreKeyRequest>,
    ) -> Result<Response<v1::RestoreKeyResponse>, Status> {
        let rotated = self.begin_rotation(&request).await?;
        let v1::RestoreKeyRequest { place, version } = request.into_inner();
        rotated.versions.lock().unwrap().push(("restore", place.unwrap(), version));
        let replicated = self.0.replicated();
        Ok(Response::new(v1::RestoreKeyResponse { changed: true, replicated }))
    }

    async fn set_legal_hold(
        &self,
        request: Request<v1::SetLegalHoldRequest>,
    ) -> Result<Response<v1::SetLegalHoldResponse>, Status> {
        let rotated = self.begin_rotation(&request).await?;
        rotated.holds.lock().unwrap().push(request.into_inner());
        let replicated = self.0.replicated();
        Ok(Response::new(v1::SetLegalHoldResponse { changed: true, replicated }))
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

    type WatchCampaignStream = Replies<v1::Campaign>;

    async fn watch_campaign(
        &self,
        request: Request<v1::WatchCampaignRequest>,
    ) -> Result<Response<Self::WatchCampaignStream>, Status> {
        self.watch(request).await
    }
}
