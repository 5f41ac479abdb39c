//! `Site.GetStatus`: how the site is, answered even when its parts are not. `Site.EnrolPeer`: another site joins.

use std::sync::Arc;

use bytes::Bytes;
use kms_proto::v1::{
    EnrolPeerRequest, EnrolPeerResponse, GetStatusRequest, GetStatusResponse,
    KeyringStatus as WireKeyring, StandbyStatus, StoreStatus, TokenStatus as WireToken, WarmUp,
    site_server,
};
use tonic::{Request, Response, Status, async_trait};

use super::in_order::to_its_end;
use crate::{
    enrolment::{Enroller, Enrolling},
    hsm::TokenStatus,
    keyring::KeyringStatus,
    rpc::{
        access::{policy::Permit, verb::Verb},
        figures::Figures,
        gate::recording::Recorder,
        messages::{
            enrolment_status::{of_enrolment, word_of_enrolment},
            status::Refused,
        },
        shares::budget::Budget,
        tls::in_use::Tls,
    },
    site_health::{Looks, SiteHealth, StoreFacts, StoreFault},
    store::StandbyLag,
};
use kms_core::{DomainRecord, enrolment::Fingerprint, moment::Moment, ports::Clock};

/// Our certificate's end is a fault from this long before it on.
const CERTIFICATE_WARNING_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// The operators' view of the site.
pub(crate) struct SiteService {
    pub(crate) looks: Looks,
    pub(crate) enroller: Arc<Enroller>,
    pub(crate) audit: Recorder,
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
        let mut facts = self.looks.all().await;
        facts.certificate_faults = self.certificate_faults();
        let faults = SiteHealth::of(&facts).faults.into_iter().map(|fault| fault.sentence);
        Ok(Response::new(GetStatusResponse {
            site: self.domain.site.clone(),
            domain_id: Bytes::copy_from_slice(&self.domain.domain.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.domain.epoch.0,
            single_site: self.single_site,
            uptime_ms: self.clock.now().ms_since(self.started),
            faults: faults.collect(),
            warm_up: Some(warm_up(&facts.keyring)),
            store: Some(wire_store(facts.store, &facts.keyring)),
            keyring: Some(wire_keyring(&facts.keyring)),
            token: Some(wire_token(facts.token)),
            ..Default::default()
        }))
    }

    async fn enrol_peer(
        &self,
        request: Request<EnrolPeerRequest>,
    ) -> Result<Response<EnrolPeerResponse>, Status> {
        let permit = Permit::of(&request, Verb::EnrolPeer)?;
        let call = self.audit.call(&permit, &request);
        let EnrolPeerRequest { request, fingerprint, replace } = request.into_inner();
        let fingerprint = <[u8; 32]>::try_from(fingerprint.as_ref())
            .map_err(|_| Refused::Field { field: "fingerprint", problem: "it has 32 bytes" })?;
        let asked =
            Enrolling { request: request.into(), fingerprint: Fingerprint(fingerprint), replace };
        let charge = self.budget.charge(&permit, 1)?;
        let (enroller, audit) = (Arc::clone(&self.enroller), self.audit.clone());
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
}

impl SiteService {
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
    }
}
