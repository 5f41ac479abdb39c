//! `Site.GetStatus`: how the site is, answered even when its parts are not. `Site.EnrolPeer`: another site joins.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use kms_proto::v1::{
    self, AdmitEpochRequest, AdmitEpochResponse, BlockLeft, DemoteRequest, DemoteResponse,
    EnrolPeerRequest, EnrolPeerResponse, FollowerStatus as WireFollower,
    FollowingStatus as WireFollowing, ForgetRevocationListRequest, ForgetRevocationListResponse,
    GetBlockSecretRotationRequest, GetBlockSecretRotationResponse, GetReadinessRequest,
    GetReadinessResponse, GetStatusRequest, GetStatusResponse, KeyringStatus as WireKeyring,
    ListDivergenceRequest, ListDivergenceResponse, PlanPromotionRequest, PlanPromotionResponse,
    PromoteRequest, PromoteResponse, ReadinessStatus, RefusedBlock,
    ReplicationStatus as WireReplication, ResolveDivergenceRequest, ResolveDivergenceResponse,
    RotateBlockSecretsRequest, RotateBlockSecretsResponse, SiteToken, StandbyStatus, StoreStatus,
    SyncNowRequest, SyncProgress as WireProgress, TokenStatus as WireToken, WarmUp, site_server,
};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::{
    in_order::{Answers, to_its_end},
    site_keys::{KekAsked, ask_kek, begin, look, look_at_kek, wire_rotation},
};
use crate::{
    ciphering::Floors,
    enrolment::{Enroller, Enrolling},
    hsm::TokenStatus,
    keyring::{KeyringStatus, KnownToken, NotChanged, Promotion, Roles},
    lifecycle::{AsidePage, ForgetList, Lifecycle},
    replication::{
        self, Fencing, FollowerStatus, FollowingStatus, PeerHeard, Planning, ReplicationStatus,
        SyncAsked, Syncing,
    },
    rpc::{
        access::{policy::Permit, verb::Verb},
        figures::Figures,
        gate::recording::Recorder,
        messages::{
            divergence,
            enrolment_status::{of_enrolment, word_of_enrolment},
            plan::{wire_plan, wire_reports, wire_standing, wish},
            role_status::{of_fencing, of_role, word_of_fencing},
            status::Refused,
            sync_status::{of_sync, wire_progress},
            words,
        },
        shares::budget::Budget,
        tls::in_use::Tls,
    },
    site_health::{Looks, SiteHealth, StoreFacts, StoreFault},
    site_keys::{BlockSecretRotation, SiteKekRotation},
    store::StandbyLag,
    transmitting::Transmitting,
};
use kms_core::{
    BlockNo, DomainRecord, Epoch,
    audit::{AuditedCall, Detail, Subject},
    enrolment::Fingerprint,
    moment::Moment,
    ports::Clock,
    site::{changing, proving::Readiness, tokens::TokenId},
};

/// Our certificate's end is a fault from this long before it on.
const CERTIFICATE_WARNING_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// The longest time in which a status asks who the other sites are.
const PEERS_PATIENCE: Duration = Duration::from_millis(500);

/// Blocks that one call names, at most; none means all.
const SYNC_BLOCKS_MAX: usize = 65_536;

/// The operators' view of the site.
pub(crate) struct SiteService {
    pub(crate) looks: Looks,
    /// `None`: there is no other site.
    pub(crate) replication: Option<Arc<replication::Status>>,
    /// `None` likewise.
    pub(crate) syncing: Option<Arc<Syncing>>,
    /// `None` likewise.
    pub(crate) fencing: Option<Arc<Fencing>>,
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// `None` likewise.
    pub(crate) planning: Option<Arc<Planning>>,
    /// A promotion takes two people.
    pub(crate) promotion_takes_two: bool,
    pub(crate) roles: Arc<Roles>,
    pub(crate) floors: Arc<Floors>,
    pub(crate) transmitting: Arc<Transmitting>,
    pub(crate) rotation: Arc<BlockSecretRotation>,
    pub(crate) kek: Arc<SiteKekRotation>,
    pub(crate) recorder: Recorder,
    pub(crate) enroller: Arc<Enroller>,
    pub(crate) budget: Budget,
    pub(crate) domain: DomainRecord,
    pub(crate) single_site: bool,
    pub(crate) clock: Arc<dyn Clock>,
    /// By the clock's monotonic time.
    pub(crate) started: Moment,
    pub(crate) tls: Arc<Tls>,
    pub(crate) figures: Arc<Figures>,
}

#[async_trait]
impl site_server::Site for SiteService {
    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        Permit::of(&request, Verb::GetStatus)?;
        let _executing = self.figures.execute(Verb::GetStatus);
        let standing = self.roles.standing();
        let mut facts = self.looks.all().await;
        facts.certificate_faults = self.certificate_faults();
        let replication = self.replication.as_ref().map(|status| status.all());
        let told = replication.iter().flat_map(|status| status.faults.clone());
        let rolled_back = self.roles.known_mark().map(|mark| {
            format!(
                "the database {} ({}): this site reads, and changes nothing until it is promoted above every epoch that is \
                 known (`site promote --above-epoch`)",
                mark.by.what(),
                mark.from
            )
        });
        facts.replication_faults = told.chain(rolled_back).chain(self.old_peer().await).collect();
        let heard = replication.as_ref().and_then(|status| status.heard.as_ref());
        let in_use = heard.and_then(|heard| heard.card.token);
        let tokens = self.tokens(in_use).await;
        facts.floor_faults = self.floors.faults();
        facts.counter_faults = self.transmitting.faults();
        let faults = SiteHealth::of(&facts).faults.into_iter().map(|fault| fault.sentence);
        Ok(Response::new(GetStatusResponse {
            site: self.domain.site.clone(),
            domain_id: Bytes::copy_from_slice(&self.domain.domain.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: standing.epoch.0,
            single_site: self.single_site,
            uptime_ms: self.clock.now().ms_since(self.started),
            faults: faults.collect(),
            warm_up: Some(warm_up(&facts.keyring)),
            store: Some(wire_store(facts.store, &facts.keyring)),
            keyring: Some(wire_keyring(&facts.keyring)),
            token: Some(wire_token(facts.token)),
            standing: Some(wire_standing(&standing)),
            undecided_divergence: replication.as_ref().map_or(0, |status| status.undecided),
            replication: replication.map(wire_replication),
            tokens,
        }))
    }

    async fn promote(
        &self,
        request: Request<PromoteRequest>,
    ) -> Result<Response<PromoteResponse>, Status> {
        let permit = Permit::of(&request, Verb::Promote)?;
        let _executing = self.figures.execute(Verb::Promote);
        let call = self.recorder.call(&permit, &request);
        let request = request.into_inner();
        let wish = wish(&request);
        let entry = self.recorder.entry(&call, Subject::NONE);
        let now_ms = self.clock.unix_ms();
        let (roles, recorder) = (Arc::clone(&self.roles), self.recorder.clone());
        self.may_ever_write(&call).await?;
        if let Some(planning) = self.planning.as_ref().filter(|_| !request.although_unproved)
            && let Err(error) = planning.ready().await
        {
            return Err(recorder.role_not_changed(&call, &error).await);
        }
        let Promotion { standing, left } = to_its_end(async move {
            match roles.promote(wish, entry, now_ms).await {
                Ok(promotion) => Ok(promotion),
                Err(error) => Err(recorder.role_not_changed(&call, &error).await),
            }
        })
        .await?;
        let left = left.into_iter().map(|(block, reason)| BlockLeft { block: block.0, reason });
        let standing = Some(wire_standing(&standing));
        Ok(Response::new(PromoteResponse { standing, left: left.collect() }))
    }

    async fn plan_promotion(
        &self,
        request: Request<PlanPromotionRequest>,
    ) -> Result<Response<PlanPromotionResponse>, Status> {
        Permit::of(&request, Verb::PlanPromotion)?;
        let _executing = self.figures.execute(Verb::PlanPromotion);
        let planning = self.planning.as_ref().ok_or(Refused::SingleSite)?;
        let plan = planning.plan(request.into_inner().open_blocks).await;
        let plan = plan.map_err(|error| of_role(&error))?;
        Ok(Response::new(wire_plan(plan, self.promotion_takes_two)))
    }

    async fn get_readiness(
        &self,
        request: Request<GetReadinessRequest>,
    ) -> Result<Response<GetReadinessResponse>, Status> {
        Permit::of(&request, Verb::GetReadiness)?;
        let _executing = self.figures.execute(Verb::GetReadiness);
        let replication = self.replication.as_ref().ok_or(Refused::SingleSite)?.all();
        let peers = self.roles.peers().await.map_err(|error| of_role(&error))?;
        let own = self.roles.site_keys().await.map_err(|error| of_role(&error))?;
        let peers = peers.into_iter().map(|peer| (peer.site.clone(), peer.keys()));
        let keys = [(self.domain.site.clone(), own)].into_iter().chain(peers).collect();
        let reports = wire_reports(&replication.reports, replication.colour, keys);
        Ok(Response::new(reports))
    }

    async fn demote(
        &self,
        request: Request<DemoteRequest>,
    ) -> Result<Response<DemoteResponse>, Status> {
        let permit = Permit::of(&request, Verb::Demote)?;
        let _executing = self.figures.execute(Verb::Demote);
        let call = self.recorder.call(&permit, &request);
        let expected = Epoch(request.into_inner().expected_epoch);
        let entry = self.recorder.entry(&call, Subject::NONE);
        let now_ms = self.clock.unix_ms();
        let (roles, recorder) = (Arc::clone(&self.roles), self.recorder.clone());
        self.may_ever_write(&call).await?;
        let standing = to_its_end(async move {
            match roles.demote(expected, entry, now_ms).await {
                Ok(standing) => Ok(standing),
                Err(error) => Err(recorder.role_not_changed(&call, &error).await),
            }
        })
        .await?;
        Ok(Response::new(DemoteResponse { standing: Some(wire_standing(&standing)) }))
    }

    type SyncNowStream = Answers<WireProgress>;

    async fn sync_now(
        &self,
        request: Request<SyncNowRequest>,
    ) -> Result<Response<Self::SyncNowStream>, Status> {
        let permit = Permit::of(&request, Verb::SyncNow)?;
        let call = self.recorder.call(&permit, &request);
        let executing = self.figures.execute(Verb::SyncNow);
        let syncing = self.syncing.as_ref().ok_or(Refused::SingleSite)?;
        let SyncNowRequest { target, force, dry_run, blocks } = request.into_inner();
        let blocks = blocks.into_iter().take(SYNC_BLOCKS_MAX).map(BlockNo).collect();
        let asked = SyncAsked { target, force, dry_run, blocks };
        let said = syncing.begin(asked).await.map_err(|error| of_sync(&error))?;
        if !dry_run {
            // What is written is recorded where it is: here, who had it done.
            self.recorder.record(self.recorder.entry(&call, Subject::NONE)).await?;
        }
        let said = ReceiverStream::new(said).map(move |said| {
            let _executing = &executing;
            said.map(wire_progress).map_err(|error| of_sync(&error))
        });
        Ok(Response::new(Box::pin(said)))
    }

    async fn enrol_peer(
        &self,
        request: Request<EnrolPeerRequest>,
    ) -> Result<Response<EnrolPeerResponse>, Status> {
        let permit = Permit::of(&request, Verb::EnrolPeer)?;
        let call = self.recorder.call(&permit, &request);
        let EnrolPeerRequest { request, fingerprint, replace } = request.into_inner();
        let fingerprint = <[u8; 32]>::try_from(fingerprint.as_ref())
            .map_err(|_| Refused::Field { field: "fingerprint", problem: "it has 32 bytes" })?;
        let asked =
            Enrolling { request: request.into(), fingerprint: Fingerprint(fingerprint), replace };
        let charge = self.budget.charge(&permit, 1)?;
        let (enroller, audit) = (Arc::clone(&self.enroller), self.recorder.clone());
        let bundle = to_its_end(async move {
            let _charge = charge;
            match enroller.enrol(&call, &asked).await {
                Ok(bundle) => Ok(bundle),
                Err(error) => {
                    let (word, is_ours) = word_of_enrolment(&error);
                    audit.not_done(&call, word, is_ours).await?;
                    Err(of_enrolment(&error))
                }
            }
        })
        .await?;
        Ok(Response::new(EnrolPeerResponse { bundle: bundle.encode().into() }))
    }

    async fn list_divergence(
        &self,
        request: Request<ListDivergenceRequest>,
    ) -> Result<Response<ListDivergenceResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListDivergence)?;
        let call = self.recorder.call(&permit, &request);
        let request = request.into_inner();
        let asked = divergence::asked(&request)?;
        let _charge = self.budget.charge(&permit, asked.limit as usize)?;
        let page = match request.id.is_empty() {
            true => self.lifecycle.divergence(asked).await,
            false => {
                let rows = self.lifecycle.set_aside(divergence::id_of(&request.id)?).await;
                rows.map(|rows| AsidePage { rows, ..AsidePage::default() })
            }
        };
        let AsidePage { rows, next, undecided } = match page {
            Ok(page) => page,
            Err(error) => return Err(self.recorder.failure(&call, Subject::NONE, &error).await),
        };
        let entry = self.recorder.entry(&call, Subject::NONE);
        self.recorder.record(entry.with(Detail::Items, rows.len() as u64)).await?;
        Ok(Response::new(ListDivergenceResponse {
            rows: rows.into_iter().map(divergence::wire_row).collect(),
            next: next.as_ref().map(divergence::wire_name).unwrap_or_default(),
            undecided,
        }))
    }

    async fn resolve_divergence(
        &self,
        request: Request<ResolveDivergenceRequest>,
    ) -> Result<Response<ResolveDivergenceResponse>, Status> {
        let permit = Permit::of(&request, Verb::ResolveDivergence)?;
        let call = self.recorder.call(&permit, &request);
        let (which, decision) = divergence::resolving(&request.into_inner())?;
        let charge = self.budget.charge(&permit, 1)?;
        let (lifecycle, audit) = (Arc::clone(&self.lifecycle), self.recorder.clone());
        let done = to_its_end(async move {
            let _charge = charge;
            match lifecycle.reconcile(&call, which, decision).await {
                Ok(done) => Ok(done),
                Err(error) => Err(audit.failure(&call, Subject::NONE, &error).await),
            }
        })
        .await?;
        let replicated = words::replicated(self.lifecycle.replicated(&done.states).await);
        Ok(Response::new(divergence::wire_reconciled(done, replicated)))
    }

    async fn admit_epoch(
        &self,
        request: Request<AdmitEpochRequest>,
    ) -> Result<Response<AdmitEpochResponse>, Status> {
        let permit = Permit::of(&request, Verb::AdmitEpoch)?;
        let call = self.recorder.call(&permit, &request);
        let fencing = Arc::clone(self.fencing.as_ref().ok_or(Refused::SingleSite)?);
        let epoch = Epoch(request.into_inner().epoch);
        let entry = self.recorder.entry(&call, Subject::NONE);
        let recorder = self.recorder.clone();
        let standing = to_its_end(async move {
            match fencing.admit(epoch, entry).await {
                Ok(standing) => Ok(standing),
                Err(error) => {
                    let status = of_fencing(&error);
                    recorder.not_done(&call, word_of_fencing(&error), false).await?;
                    Err(status)
                }
            }
        })
        .await?;
        Ok(Response::new(AdmitEpochResponse { standing: Some(wire_standing(&standing)) }))
    }

    async fn forget_revocation_list(
        &self,
        request: Request<ForgetRevocationListRequest>,
    ) -> Result<Response<ForgetRevocationListResponse>, Status> {
        let permit = Permit::of(&request, Verb::ForgetRevocationList)?;
        let call = self.recorder.call(&permit, &request);
        let ForgetRevocationListRequest { authority, number, from_number } = request.into_inner();
        let authority = authority[..].try_into().map_err(|_| Refused::Field {
            field: "authority",
            problem: "32 bytes, as the refusal of an older list names it",
        })?;
        let forget = ForgetList { authority, number: number.to_vec(), from: from_number.to_vec() };
        let (lifecycle, audit) = (Arc::clone(&self.lifecycle), self.recorder.clone());
        let (resets, states) = to_its_end(async move {
            match lifecycle.forget_list(&call, &forget).await {
                Ok(forgotten) => Ok(forgotten),
                Err(error) => Err(audit.failure(&call, Subject::NONE, &error).await),
            }
        })
        .await?;
        let replicated = words::replicated(self.lifecycle.replicated(&states).await) as i32;
        Ok(Response::new(ForgetRevocationListResponse { resets, replicated }))
    }

    async fn rotate_block_secrets(
        &self,
        request: Request<RotateBlockSecretsRequest>,
    ) -> Result<Response<RotateBlockSecretsResponse>, Status> {
        let permit = Permit::of(&request, Verb::RotateBlockSecrets)?;
        let call = self.recorder.call(&permit, &request);
        let (rotation, audit) = (Arc::clone(&self.rotation), self.recorder.clone());
        let progress = to_its_end(async move { begin(&rotation, &audit, &call).await }).await?;
        Ok(Response::new(RotateBlockSecretsResponse { rotation: Some(wire_rotation(progress)) }))
    }

    async fn get_block_secret_rotation(
        &self,
        request: Request<GetBlockSecretRotationRequest>,
    ) -> Result<Response<GetBlockSecretRotationResponse>, Status> {
        Permit::of(&request, Verb::GetBlockSecretRotation)?;
        let _executing = self.figures.execute(Verb::GetBlockSecretRotation);
        let rotation = Some(look(&self.rotation).await?);
        Ok(Response::new(GetBlockSecretRotationResponse { rotation }))
    }

    async fn rotate_site_kek(
        &self,
        request: Request<v1::RotateSiteKekRequest>,
    ) -> Result<Response<v1::RotateSiteKekResponse>, Status> {
        let permit = Permit::of(&request, Verb::RotateSiteKek)?;
        let call = self.recorder.call(&permit, &request);
        let rotation = Some(ask_kek((&self.kek, &self.recorder, KekAsked::Rotate), call).await?);
        Ok(Response::new(v1::RotateSiteKekResponse { rotation }))
    }

    async fn get_site_kek_rotation(
        &self,
        request: Request<v1::GetSiteKekRotationRequest>,
    ) -> Result<Response<v1::GetSiteKekRotationResponse>, Status> {
        Permit::of(&request, Verb::GetSiteKekRotation)?;
        let _executing = self.figures.execute(Verb::GetSiteKekRotation);
        let rotation = look_at_kek(&self.kek).await.map(Some)?;
        Ok(Response::new(v1::GetSiteKekRotationResponse { rotation }))
    }

    async fn destroy_site_kek(
        &self,
        request: Request<v1::DestroySiteKekRequest>,
    ) -> Result<Response<v1::DestroySiteKekResponse>, Status> {
        let permit = Permit::of(&request, Verb::DestroySiteKek)?;
        let call = self.recorder.call(&permit, &request);
        let asked = KekAsked::Destroy(request.into_inner().kek_id);
        let rotation = Some(ask_kek((&self.kek, &self.recorder, asked), call).await?);
        Ok(Response::new(v1::DestroySiteKekResponse { rotation }))
    }
}

fn wire_replication(status: ReplicationStatus) -> WireReplication {
    let ReplicationStatus { peer, heard, following, readiness, colour, differences, .. } = status;
    let followers = status.followers.into_iter().map(wire_follower).collect();
    let (card, heard_ms) = match heard {
        Some(PeerHeard { card, ms }) => (Some(card), Some(ms)),
        None => (None, None),
    };
    let makeup = card.as_ref().and_then(|card| card.makeup.clone());
    WireReplication {
        peer,
        peer_epoch: card.as_ref().map_or(0, |card| card.epoch.0),
        peer_record_schema: card.as_ref().map_or(0, |card| card.record_schema),
        peer_store_schema: makeup.as_ref().map_or(0, |makeup| makeup.store_schema),
        peer_unknown_records: makeup.as_ref().map_or(0, |makeup| makeup.unknown_records),
        peer_unmet: makeup.map_or_else(Vec::new, |makeup| makeup.unmet),
        colour: colour.map_or_else(String::new, |colour| colour.word().to_owned()),
        differences: differences.iter().map(|it| it.word().to_owned()).collect(),
        witnessed_ms: status.witnessed_ms.unwrap_or(0),
        peer_release: card.map_or_else(String::new, |card| card.release),
        heard_ms,
        followers,
        unfollowed_ms: status.unfollowed_ms,
        following: following.map(wire_following),
        readiness: readiness.map(wire_readiness),
    }
}

fn wire_follower(follower: FollowerStatus) -> WireFollower {
    let FollowerStatus { site, behind, behind_ms } = follower;
    let (blocks_behind, changes_behind) = (behind.blocks, behind.changes);
    WireFollower { site, blocks_behind, changes_behind, behind_ms }
}

fn wire_following(following: FollowingStatus) -> WireFollowing {
    let FollowingStatus {
        connected,
        blocks_adopted,
        records_adopted,
        refused,
        refused_count,
        fault,
        compared_ms,
        differed,
    } = following;
    let refused = refused.into_iter();
    WireFollowing {
        connected,
        blocks_adopted,
        records_adopted,
        refused: refused.map(|it| RefusedBlock { block: it.block.0, reason: it.reason }).collect(),
        refused_count,
        fault: fault.unwrap_or_default(),
        compared_ms,
        differed,
    }
}

fn wire_readiness(readiness: Readiness) -> ReadinessStatus {
    let Readiness { proved, unproved, failed, oldest_ms, failures, token, .. } = readiness;
    let oldest_proof_ms = oldest_ms.unwrap_or(0);
    let token = token.map_or_else(String::new, |token| token.to_string());
    ReadinessStatus { proved, unproved, failed, oldest_proof_ms, failures, token }
}

impl SiteService {
    /// Why a row of another site closes this one, if one does. Whatever hangs is told elsewhere.
    async fn old_peer(&self) -> Option<String> {
        match timeout(PEERS_PATIENCE, self.roles.peers()).await {
            Ok(Err(error @ NotChanged::OldPeer(_))) => Some(error.to_string()),
            _ => None,
        }
    }

    /// The tokens that count, those in use named; none, while that can't be told. `peers`: of the server that was heard last.
    async fn tokens(&self, peers: Option<TokenId>) -> Vec<SiteToken> {
        let Ok(Ok(known)) = timeout(PEERS_PATIENCE, self.roles.tokens()).await else {
            return Vec::new();
        };
        let wire = |token: KnownToken| SiteToken {
            in_use: token.is_own || token.site != self.domain.site && Some(token.id) == peers,
            id: token.id.to_string(),
            fingerprint: hex::encode(token.fingerprint),
            site: token.site,
        };
        known.into_iter().map(wire).collect()
    }

    /// Refuses a change of role at a site that has none to change.
    async fn may_ever_write(&self, call: &AuditedCall) -> Result<(), Status> {
        if self.roles.parity().is_some() {
            return Ok(());
        }
        let error = NotChanged::Standing(changing::NotChanged::Replica);
        Err(self.recorder.role_not_changed(call, &error).await)
    }

    fn certificate_faults(&self) -> Vec<String> {
        let left_ms = self.tls.current().not_after_ms.saturating_sub(self.clock.unix_ms());
        let expiry = match left_ms {
            0 => Some("this server's certificate has expired; install a new one".to_owned()),
            1..CERTIFICATE_WARNING_MS => Some(format!(
                "this server's certificate expires in {} hours; install a new one",
                left_ms / 3_600_000
            )),
            _ => None,
        };
        let lists = self.tls.current().lists_due.and_then(|due| due.warning(self.clock.unix_ms()));
        expiry.into_iter().chain(lists).chain(self.tls.fault()).collect()
    }
}

fn wire_store(store: StoreFacts, keyring: &KeyringStatus) -> StoreStatus {
    let StoreFacts { kind, meters, fault, standby } = store;
    StoreStatus {
        kind: kind.to_owned(),
        reachable: fault.as_ref().is_none_or(StoreFault::answers),
        meters,
        fault: fault.map_or_else(String::new, |fault| fault.to_string()),
        standby: standby.map(wire_standby),
        not_following_ms: keyring.not_following.as_ref().map_or(0, |silence| silence.since_ms),
    }
}

fn wire_standby(lag: StandbyLag) -> StandbyStatus {
    StandbyStatus {
        lag_bytes: lag.bytes,
        lag_seconds: lag.ms.unwrap_or(0) as f64 / 1_000.0,
        receiving: lag.receiving,
    }
}

fn warm_up(keyring: &KeyringStatus) -> WarmUp {
    WarmUp {
        blocks_total: keyring.blocks_total,
        blocks_open: keyring.blocks_open,
        blocks_failed: keyring.blocks_failed,
        done: keyring.warm_up_done,
        elapsed_ms: keyring.warm_up_elapsed_ms,
    }
}

fn wire_token(token: TokenStatus) -> WireToken {
    WireToken {
        label: token.label,
        model: token.model,
        reachable: token.fault.is_none(),
        connection_epoch: token.connection_epoch,
        fault: token.fault.unwrap_or_default(),
        calls: token.calls,
    }
}

fn wire_keyring(keyring: &KeyringStatus) -> WireKeyring {
    WireKeyring {
        resident_meters: keyring.resident_meters,
        arena_bytes_used: keyring.arena_bytes_used,
        arena_bytes_total: keyring.arena_bytes_total,
        memory_locked: keyring.memory_locked,
        damaged_records: keyring.damage.records,
        profiles: keyring.profiles.iter().map(ToString::to_string).collect(),
        profiles_digest: Bytes::copy_from_slice(&keyring.profiles_digest),
    }
}
