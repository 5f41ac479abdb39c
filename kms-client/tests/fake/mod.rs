//! A service in the same process: mutual TLS is real, keys are not. "Decrypts" by giving the APDU
//! back, and fails as often as it is told to.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use kms_proto::v1;
use kms_proto::v1::meters_server::Meters;
use kms_proto::v1::site_server::Site;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

pub(crate) mod campaigns;
mod ciphering;
mod rotation;
mod world;

pub(crate) use world::World;

/// The script by which the service misbehaves, and what it saw.
#[derive(Default)]
pub(crate) struct Script {
    /// The next so many calls fail with this code.
    pub(crate) failures: AtomicU32,
    pub(crate) code: Mutex<Option<Code>>,
    /// Every call takes this long.
    pub(crate) delay: Mutex<Duration>,
    /// Changes are refused, since another site is the primary.
    pub(crate) not_primary: AtomicBool,
    /// It becomes so when a stream breaks.
    pub(crate) breaks_as_it_is_fenced: AtomicBool,
    /// The site's role, epoch, and whether it writes.
    pub(crate) standing: Mutex<v1::SiteStanding>,
    /// So many promotions are refused, since the site is not in step.
    pub(crate) out_of_step: AtomicU32,
    /// What is said when sites are to be brought in step, and what was asked.
    pub(crate) progress: Mutex<Vec<v1::SyncProgress>>,
    pub(crate) syncs: Mutex<Vec<v1::SyncNowRequest>>,
    /// Records that were set aside, a page each; what was asked to be decided takes the first away.
    pub(crate) aside: Mutex<Vec<v1::DivergenceRow>>,
    pub(crate) decided: Mutex<Vec<v1::ResolveDivergenceRequest>>,
    /// What is said of changes: whether the other site has them.
    pub(crate) replicated: AtomicI32,
    /// Streams break after so many messages, `failures` times.
    pub(crate) break_after: AtomicU32,
    pub(crate) calls: AtomicU32,
    pub(crate) counter: AtomicU32,
    pub(crate) batches: Mutex<Vec<usize>>,
    pub(crate) page_sizes: Mutex<Vec<u32>>,
    pub(crate) timeouts: Mutex<Vec<String>>,
    pub(crate) request_ids: Mutex<Vec<String>>,
    /// Of the calls about keys.
    pub(crate) rotation: rotation::Rotated,
    /// Of those about campaigns.
    pub(crate) campaigns: campaigns::Campaigned,
}

impl Script {
    pub(crate) fn replicated(&self) -> i32 {
        self.replicated.load(Ordering::SeqCst)
    }

    pub(crate) fn failing(code: Code, times: u32) -> Arc<Self> {
        let script = Self { code: Mutex::new(Some(code)), ..Self::default() };
        script.failures.store(times, Ordering::SeqCst);
        Arc::new(script)
    }

    fn fails(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }

    /// As [`Script::begin`], of a change.
    async fn begin_change<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.begin(request).await?;
        if !self.not_primary.load(Ordering::SeqCst) {
            return Ok(());
        }
        let details = ErrorDetails::with_error_info("NOT_PRIMARY", "ami.kms.v1", []);
        Err(Status::with_error_details(Code::FailedPrecondition, "not here", details))
    }

    async fn begin<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let timeout = request.metadata().get("grpc-timeout").map(|value| value.to_str().unwrap());
        self.timeouts.lock().unwrap().extend(timeout.map(str::to_owned));
        let id = request.metadata().get("x-request-id").expect("every call has a name");
        self.request_ids.lock().unwrap().push(id.to_str().unwrap().to_owned());
        let delay = *self.delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        let code = *self.code.lock().unwrap();
        match code {
            Some(code) if self.fails() => {
                let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(120)));
                Err(Status::with_error_details(code, "told to fail", details))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Clone)]
struct Fake(Arc<Script>);

type Replies<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Meters for Fake {
    async fn create_meter(
        &self,
        request: Request<v1::CreateMeterRequest>,
    ) -> Result<Response<v1::CreateMeterResponse>, Status> {
        self.0.begin_change(&request).await?;
        let meter = request.into_inner().meter.unwrap();
        Ok(Response::new(v1::CreateMeterResponse {
            meter: Some(v1::Meter {
                meter_id: meter.meter_id,
                system_title: meter.system_title,
                ..Default::default()
            }),
            warnings: vec![],
            replicated: self.0.replicated(),
        }))
    }

    async fn get_meter(
        &self,
        request: Request<v1::GetMeterRequest>,
    ) -> Result<Response<v1::GetMeterResponse>, Status> {
        self.0.begin(&request).await?;
        if request.get_ref().meter_id == "m-7" {
            let meter = v1::Meter {
                meter_id: "m-7".into(),
                system_title: vec![7; 8].into(),
                block: 7,
                ..Default::default()
            };
            return Ok(Response::new(v1::GetMeterResponse { meter: Some(meter) }));
        }
        Err(Status::not_found("no such meter"))
    }

    async fn list_meters(
        &self,
        request: Request<v1::ListMetersRequest>,
    ) -> Result<Response<v1::ListMetersResponse>, Status> {
        self.0.begin(&request).await?;
        let v1::ListMetersRequest { after, page_size } = request.into_inner();
        self.0.page_sizes.lock().unwrap().push(page_size);
        let meter = |id: &str| v1::Meter {
            meter_id: id.into(),
            system_title: vec![1; 8].into(),
            ..Default::default()
        };
        let (meters, next) = match after.as_str() {
            "" => (vec![meter("a"), meter("b")], "b"),
            _ => (vec![meter("c")], ""),
        };
        Ok(Response::new(v1::ListMetersResponse { meters, next: next.into(), damaged: vec![] }))
    }

    async fn bury_damaged_meter(
        &self,
        request: Request<v1::BuryDamagedMeterRequest>,
    ) -> Result<Response<v1::BuryDamagedMeterResponse>, Status> {
        self.0.begin(&request).await?;
        let replicated = self.0.replicated();
        Ok(Response::new(v1::BuryDamagedMeterResponse { block: 7, replicated }))
    }

    async fn delete_meter(
        &self,
        request: Request<v1::DeleteMeterRequest>,
    ) -> Result<Response<v1::DeleteMeterResponse>, Status> {
        self.0.begin_change(&request).await?;
        Ok(Response::new(v1::DeleteMeterResponse { replicated: self.0.replicated() }))
    }

    async fn readmit_meter(
        &self,
        request: Request<v1::ReadmitMeterRequest>,
    ) -> Result<Response<v1::ReadmitMeterResponse>, Status> {
        self.0.begin(&request).await?;
        let replicated = self.0.replicated();
        Ok(Response::new(v1::ReadmitMeterResponse { replicated, ..Default::default() }))
    }

    async fn declare_counter(
        &self,
        request: Request<v1::DeclareCounterRequest>,
    ) -> Result<Response<v1::DeclareCounterResponse>, Status> {
        self.0.begin_change(&request).await?;
        let at_least = request.into_inner().last_invocation_counter.map_or(0, |last| last + 1);
        let reply = v1::DeclareCounterResponse { at_least, changed: true, ..Default::default() };
        Ok(Response::new(reply))
    }

    async fn set_policy(
        &self,
        request: Request<v1::SetPolicyRequest>,
    ) -> Result<Response<v1::SetPolicyResponse>, Status> {
        self.0.begin(&request).await?;
        let v1::SetPolicyRequest { meter_id, policy } = request.into_inner();
        let (system_title, replicated) = (vec![1; 8].into(), self.0.replicated());
        let meter = v1::Meter { meter_id, system_title, policy, ..Default::default() };
        Ok(Response::new(v1::SetPolicyResponse { meter: Some(meter), replicated }))
    }

    async fn get_import_key(
        &self,
        _: Request<v1::GetImportKeyRequest>,
    ) -> Result<Response<v1::GetImportKeyResponse>, Status> {
        Err(Status::unimplemented("the fake has no token"))
    }

    type ImportMetersStream = Replies<v1::ImportMetersResponse>;

    async fn import_meters(
        &self,
        request: Request<Streaming<v1::ImportMetersRequest>>,
    ) -> Result<Response<Self::ImportMetersStream>, Status> {
        self.0.begin_change(&request).await?;
        let script = Arc::clone(&self.0);
        let break_after = script.break_after.load(Ordering::SeqCst);
        let breaks = break_after > 0 && script.fails();
        let replicated = script.replicated();
        // Answers line by line, and may break in the middle of a message.
        let replies = request.into_inner().flat_map(move |message| {
            let script = Arc::clone(&script);
            let results =
                message.unwrap().lines.into_iter().enumerate().map(move |(index, line)| {
                    if breaks && index as u32 >= break_after {
                        let fenced = script.breaks_as_it_is_fenced.load(Ordering::SeqCst);
                        script.not_primary.fetch_or(fenced, Ordering::SeqCst);
                        return Err(Status::unavailable("going down"));
                    }
                    let meter_id = line.meter.unwrap().meter_id;
                    let outcome = if meter_id.starts_with("old") { 3 } else { 1 };
                    let result = v1::ImportResult {
                        line: line.line,
                        outcome,
                        meter_id,
                        ..Default::default()
                    };
                    Ok(v1::ImportMetersResponse { results: vec![result], replicated })
                });
            futures_util::stream::iter(results.collect::<Vec<_>>())
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

#[tonic::async_trait]
impl Site for Fake {
    async fn enrol_peer(
        &self,
        _: Request<v1::EnrolPeerRequest>,
    ) -> Result<Response<v1::EnrolPeerResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("a fake site enrols nobody"))
    }

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        self.0.begin(&request).await?;
        let standing = *self.0.standing.lock().unwrap();
        let standing = Some(standing).filter(|standing| standing.role != 0);
        let site = "north".into();
        Ok(Response::new(v1::GetStatusResponse { site, standing, ..Default::default() }))
    }

    async fn rotate_block_secrets(
        &self,
        request: Request<v1::RotateBlockSecretsRequest>,
    ) -> Result<Response<v1::RotateBlockSecretsResponse>, Status> {
        self.0.begin_change(&request).await?;
        let rotation = Some(v1::BlockSecretRotation { generation: 1, ..Default::default() });
        Ok(Response::new(v1::RotateBlockSecretsResponse { rotation }))
    }

    async fn get_block_secret_rotation(
        &self,
        request: Request<v1::GetBlockSecretRotationRequest>,
    ) -> Result<Response<v1::GetBlockSecretRotationResponse>, Status> {
        self.0.begin(&request).await?;
        let rotation = Some(v1::BlockSecretRotation::default());
        Ok(Response::new(v1::GetBlockSecretRotationResponse { rotation }))
    }

    async fn rotate_site_kek(
        &self,
        request: Request<v1::RotateSiteKekRequest>,
    ) -> Result<Response<v1::RotateSiteKekResponse>, Status> {
        self.0.begin_change(&request).await?;
        let rotation = Some(v1::SiteKekRotation { generation: 1, stage: 1, ..Default::default() });
        Ok(Response::new(v1::RotateSiteKekResponse { rotation }))
    }

    async fn get_site_kek_rotation(
        &self,
        request: Request<v1::GetSiteKekRotationRequest>,
    ) -> Result<Response<v1::GetSiteKekRotationResponse>, Status> {
        self.0.begin(&request).await?;
        let rotation = Some(v1::SiteKekRotation::default());
        Ok(Response::new(v1::GetSiteKekRotationResponse { rotation }))
    }

    async fn destroy_site_kek(
        &self,
        request: Request<v1::DestroySiteKekRequest>,
    ) -> Result<Response<v1::DestroySiteKekResponse>, Status> {
        self.0.begin_change(&request).await?;
        let rotation = Some(v1::SiteKekRotation::default());
        Ok(Response::new(v1::DestroySiteKekResponse { rotation }))
    }

    async fn get_readiness(
        &self,
        request: Request<v1::GetReadinessRequest>,
    ) -> Result<Response<v1::GetReadinessResponse>, Status> {
        self.0.begin(&request).await?;
        Ok(Response::new(v1::GetReadinessResponse::default()))
    }

    async fn plan_promotion(
        &self,
        request: Request<v1::PlanPromotionRequest>,
    ) -> Result<Response<v1::PlanPromotionResponse>, Status> {
        self.0.begin(&request).await?;
        let standing = Some(*self.0.standing.lock().unwrap());
        Ok(Response::new(v1::PlanPromotionResponse { standing, ..Default::default() }))
    }

    async fn promote(
        &self,
        request: Request<v1::PromoteRequest>,
    ) -> Result<Response<v1::PromoteResponse>, Status> {
        self.0.begin(&request).await?;
        let refused = |code, word: &str| {
            let details = ErrorDetails::with_error_info(word, "ami.kms.v1", []);
            Err(Status::with_error_details(code, "not now", details))
        };
        let mut standing = self.0.standing.lock().unwrap();
        if request.get_ref().expected_epoch != standing.epoch {
            return refused(Code::Aborted, "EPOCH_MOVED");
        }
        let less = |left: u32| left.checked_sub(1);
        let steps = &self.0.out_of_step;
        let waits = steps.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
        if waits && !request.get_ref().primary_is_lost {
            return refused(Code::FailedPrecondition, "NOT_IN_STEP");
        }
        *standing = v1::SiteStanding { role: 1, epoch: standing.epoch + 1, writes: true };
        let left = vec![];
        Ok(Response::new(v1::PromoteResponse { standing: Some(*standing), left }))
    }

    async fn list_divergence(
        &self,
        request: Request<v1::ListDivergenceRequest>,
    ) -> Result<Response<v1::ListDivergenceResponse>, Status> {
        self.0.begin(&request).await?;
        let v1::ListDivergenceRequest { after, id, .. } = request.into_inner();
        let all = self.0.aside.lock().unwrap();
        let undecided = all.len() as u64;
        let at = after.first().map_or(0, |at| usize::from(*at));
        let (rows, next) = match id.is_empty() {
            true => (all.get(at).cloned(), all.get(at + 1).map(|_| vec![at as u8 + 1])),
            false => (all.iter().find(|row| row.id == id).cloned(), None),
        };
        let (rows, next) = (rows.into_iter().collect(), next.unwrap_or_default().into());
        Ok(Response::new(v1::ListDivergenceResponse { rows, next, undecided }))
    }

    async fn resolve_divergence(
        &self,
        request: Request<v1::ResolveDivergenceRequest>,
    ) -> Result<Response<v1::ResolveDivergenceResponse>, Status> {
        self.0.begin_change(&request).await?;
        self.0.decided.lock().unwrap().push(request.into_inner());
        let mut all = self.0.aside.lock().unwrap();
        let decided = u32::from(all.first().is_some_and(|row| row.decided.is_none()));
        all.drain(..decided as usize);
        let more = !all.is_empty();
        Ok(Response::new(v1::ResolveDivergenceResponse {
            decided,
            changed: decided,
            more,
            replicated: self.0.replicated(),
            ..Default::default()
        }))
    }

    async fn admit_epoch(
        &self,
        request: Request<v1::AdmitEpochRequest>,
    ) -> Result<Response<v1::AdmitEpochResponse>, Status> {
        self.0.begin_change(&request).await?;
        let epoch = request.into_inner().epoch;
        let mut standing = self.0.standing.lock().unwrap();
        *standing = v1::SiteStanding { role: 2, writes: false, epoch };
        Ok(Response::new(v1::AdmitEpochResponse { standing: Some(*standing) }))
    }

    async fn forget_revocation_list(
        &self,
        request: Request<v1::ForgetRevocationListRequest>,
    ) -> Result<Response<v1::ForgetRevocationListResponse>, Status> {
        self.0.begin_change(&request).await?;
        let replicated = self.0.replicated();
        Ok(Response::new(v1::ForgetRevocationListResponse { resets: 1, replicated }))
    }

    type SyncNowStream = Replies<v1::SyncProgress>;

    async fn sync_now(
        &self,
        request: Request<v1::SyncNowRequest>,
    ) -> Result<Response<Self::SyncNowStream>, Status> {
        self.0.begin(&request).await?;
        let asked = request.into_inner();
        if asked.target == "west" {
            let details = ErrorDetails::with_error_info("UNKNOWN_SITE", "ami.kms.v1", []);
            let said = "no site west is known here, only north and south";
            return Err(Status::with_error_details(Code::NotFound, said, details));
        }
        self.0.syncs.lock().unwrap().push(asked);
        let progress = self.0.progress.lock().unwrap().clone();
        Ok(Response::new(Box::pin(futures_util::stream::iter(progress.into_iter().map(Ok)))))
    }

    async fn demote(
        &self,
        request: Request<v1::DemoteRequest>,
    ) -> Result<Response<v1::DemoteResponse>, Status> {
        self.0.begin(&request).await?;
        let mut standing = self.0.standing.lock().unwrap();
        *standing = v1::SiteStanding { role: 2, writes: false, ..*standing };
        Ok(Response::new(v1::DemoteResponse { standing: Some(*standing) }))
    }
}
