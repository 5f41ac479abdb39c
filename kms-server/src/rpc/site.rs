//! `Site.GetStatus`: how the site is, answered even when its parts are not.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use kms_proto::v1::{
    GetStatusRequest, GetStatusResponse, KeyringStatus as WireKeyring, StandbyStatus, StoreStatus,
    TokenStatus as WireToken, WarmUp, site_server,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status, async_trait};

use super::{figures::Figures, policy::Permit, tls::Tls, verb::Verb};
use crate::{
    audit::Audit,
    hsm::TokenStatus,
    keyring::{DamageStatus, Keyring, KeyringStatus},
    store::{ReadStore, StandbyLag, StoreError},
};
use kms_core::{DomainRecord, ports::Clock};

/// How long the database may take over its count. Short: an operator asks for the status because
/// something hangs.
const STORE_PATIENCE: Duration = Duration::from_millis(500);

/// A standby that is further behind is a fault: the runbook's alarm.
const LAG_ALARM_BYTES: u64 = 500_000_000;

/// Our certificate's end is a fault from this long before it on.
const CERTIFICATE_WARNING_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// What is known of the token without asking the device.
pub type TokenStatusSource = Arc<dyn Fn() -> TokenStatus + Send + Sync>;

/// The operators' view of the site.
pub(super) struct SiteService {
    pub(super) keyring: Arc<Keyring>,
    pub(super) token: TokenStatusSource,
    pub(super) store: Arc<dyn ReadStore>,
    pub(super) audit: Arc<Audit>,
    pub(super) domain: DomainRecord,
    pub(super) single_site: bool,
    pub(super) clock: Arc<dyn Clock>,
    /// By the clock's monotonic time.
    pub(super) started_ms: u64,
    pub(super) tls: Arc<Tls>,
    pub(super) figures: Arc<Figures>,
}

#[async_trait]
impl site_server::Site for SiteService {
    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        Permit::of(&request, Verb::GetStatus)?;
        let _executing = self.figures.execute(Verb::GetStatus);
        let mut store = store_status(self.store.as_ref()).await;
        let (token, keyring) = ((self.token)(), self.keyring.status());
        store.not_following_ms =
            keyring.not_following.as_ref().map_or(0, |silence| silence.since_ms);
        let mut faults = faults(&token, &store, &keyring);
        faults.extend(self.audit.status().fault.map(|fault| format!("audit: {fault}")));
        faults.extend(self.certificate_faults());
        Ok(Response::new(GetStatusResponse {
            site: self.domain.site.clone(),
            domain_id: Bytes::copy_from_slice(&self.domain.domain.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.domain.epoch.0,
            single_site: self.single_site,
            uptime_ms: self.clock.monotonic_ms().saturating_sub(self.started_ms),
            warm_up: Some(warm_up(&keyring)),
            token: Some(wire_token(token)),
            store: Some(store),
            keyring: Some(wire_keyring(&keyring)),
            faults,
        }))
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

async fn store_status(store: &dyn ReadStore) -> StoreStatus {
    let (meters, fault) = match timeout(STORE_PATIENCE, store.count_meters()).await {
        Ok(Ok(meters)) => (Some(meters), String::new()),
        Ok(Err(error)) => (None, error.to_string()),
        Err(_) => {
            (None, format!("the database did not answer within {} ms", STORE_PATIENCE.as_millis()))
        }
    };
    let lag = match meters {
        Some(_) => timeout(STORE_PATIENCE, store.standby_lag()).await,
        None => Ok(Ok(None)),
    };
    let fault = match (&lag, meters) {
        (Ok(Ok(None)), Some(_)) => match timeout(STORE_PATIENCE, store.takes_changes()).await {
            Ok(Err(error @ StoreError::ReadOnlyPrimary)) => error.to_string(),
            _ => fault,
        },
        _ => fault,
    };
    StoreStatus {
        kind: store.kind().to_owned(),
        reachable: meters.is_some(),
        meters: meters.unwrap_or(0),
        fault,
        standby: lag.ok().and_then(Result::ok).flatten().map(wire_standby),
        not_following_ms: 0, // The keyring knows.
    }
}

fn wire_standby(lag: StandbyLag) -> StandbyStatus {
    StandbyStatus {
        lag_bytes: lag.bytes,
        lag_seconds: lag.ms.unwrap_or(0) as f64 / 1_000.0,
        receiving: lag.receiving,
    }
}

/// What is wrong with a standby.
fn standby_faults(standby: &StandbyStatus) -> Vec<String> {
    let StandbyStatus { lag_bytes, lag_seconds, receiving } = standby;
    let mut faults = Vec::new();
    if !receiving {
        faults.push(format!(
            "the database is a standby that receives nothing from its primary; the last commit that \
             it replayed is {lag_seconds:.0} s old"
        ));
    }
    if *lag_bytes > LAG_ALARM_BYTES {
        faults.push(format!(
            "the database is a standby {} MB behind its primary (alarm at {} MB)",
            lag_bytes / 1_000_000,
            LAG_ALARM_BYTES / 1_000_000
        ));
    }
    faults
}

/// What is wrong now, in sentences.
fn faults(token: &TokenStatus, store: &StoreStatus, keyring: &KeyringStatus) -> Vec<String> {
    let mut faults = Vec::new();
    faults.extend(token.fault.as_ref().map(|fault| format!("token: {fault}")));
    if !store.fault.is_empty() {
        faults.push(store.fault.clone());
    }
    faults.extend(store.standby.iter().flat_map(standby_faults));
    faults.extend(keyring.not_following.as_ref().map(|silence| match silence.since_ms {
        0 => format!("keyring: {}", silence.reason),
        ms => format!(
            "not following the other servers since {} s: {}",
            ms.div_ceil(1_000),
            silence.reason
        ),
    }));
    faults.extend(keyring.faults.iter().map(|fault| format!("keyring: {fault}")));
    if keyring.blocks_failed > 0 {
        faults.push(format!(
            "keyring: {} of {} blocks can't be used, or not wholly; the log says why",
            keyring.blocks_failed, keyring.blocks_total
        ));
    }
    faults.extend(damage_faults(&keyring.damage));
    faults
}

/// Each damaged record by name, as far as the status names them, and each id that the index has wrong.
fn damage_faults(damage: &DamageStatus) -> Vec<String> {
    let DamageStatus { records, named, lies, lies_met: _ } = damage;
    let mut faults: Vec<String> = named.iter().map(|record| format!("keyring: {record}")).collect();
    let further = records.saturating_sub(named.len() as u64);
    if further > 0 {
        faults.push(format!(
            "keyring: {further} further records were changed outside this service; the log names them"
        ));
    }
    faults.extend(lies.iter().map(|lie| format!("store: {lie}")));
    faults
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keyring::{DamagedRecord, IndexLie},
        store::{Holder, MeterPlace, StoreError, StoredBlock},
    };
    use kms_core::{BlockNo, Fingerprint, Head, MeterId, SystemTitle};

    /// A database that only counts, in its way.
    enum Store {
        Well,
        Broken,
        Hanging,
    }

    #[async_trait]
    impl ReadStore for Store {
        fn kind(&self) -> &'static str {
            "sqlite"
        }

        async fn count_meters(&self) -> Result<u64, StoreError> {
            match self {
                Self::Well => Ok(7),
                Self::Broken => Err(StoreError::Unreachable { reason: "no disk".into() }),
                Self::Hanging => std::future::pending().await,
            }
        }

        async fn domain(&self) -> Result<Option<DomainRecord>, StoreError> {
            Ok(None)
        }

        async fn heads(&self) -> Result<Vec<Head>, StoreError> {
            Ok(Vec::new())
        }

        async fn block(&self, _: BlockNo) -> Result<Option<StoredBlock>, StoreError> {
            Ok(None)
        }

        async fn find_meter(&self, _: &MeterId) -> Result<Option<MeterPlace>, StoreError> {
            Ok(None)
        }

        async fn find_title(&self, _: &SystemTitle) -> Result<Option<MeterPlace>, StoreError> {
            Ok(None)
        }

        async fn list_meters(
            &self,
            _: Option<&MeterId>,
            _: u32,
        ) -> Result<Vec<MeterPlace>, StoreError> {
            Ok(Vec::new())
        }

        async fn holders_of(&self, _: &[Fingerprint], _: u32) -> Result<Vec<Holder>, StoreError> {
            Ok(Vec::new())
        }
    }

    fn token(fault: Option<&str>) -> TokenStatus {
        TokenStatus {
            label: "ami".into(),
            model: "m".into(),
            site_kek_id: [0; 16],
            connection_epoch: 1,
            calls: 2,
            fault: fault.map(Into::into),
        }
    }

    #[tokio::test]
    async fn a_database_that_hangs_does_not_hang_the_status() {
        let status = store_status(&Store::Hanging).await;
        assert!(!status.reachable);
        assert!(status.fault.contains("did not answer within 500 ms"), "{}", status.fault);
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_in_sentences_and_nothing_else_is() {
        let well = store_status(&Store::Well).await;
        assert_eq!((well.reachable, well.meters), (true, 7));
        assert_eq!(faults(&token(None), &well, &KeyringStatus::default()), [""; 0]);
        let keyring = KeyringStatus {
            blocks_total: 9,
            blocks_failed: 2,
            faults: vec!["no memory".into()],
            damage: DamageStatus {
                records: 3,
                named: vec![DamagedRecord {
                    block: BlockNo(7),
                    system_title: SystemTitle::new(*b"KFM\0\0\0\0\x01"),
                }],
                lies: vec![IndexLie {
                    meter_id: MeterId::new("m-1").unwrap(),
                    system_title: SystemTitle::new(*b"KFM\0\0\0\0\x02"),
                }],
                lies_met: 9,
            },
            ..KeyringStatus::default()
        };
        let broken = store_status(&Store::Broken).await;
        assert_eq!(
            faults(&token(Some("no slot")), &broken, &keyring),
            [
                "token: no slot",
                "the database is not reachable: no disk",
                "keyring: no memory",
                "keyring: 2 of 9 blocks can't be used, or not wholly; the log says why",
                "keyring: the record of meter 4B464D0000000001 in block 7 was changed outside this \
                 service: restore the database, or bury the meter (`ami-tool meter bury --system-title \
                 4B464D0000000001 --block 7`)",
                "keyring: 2 further records were changed outside this service; the log names them",
                "store: the index of meter ids says that m-1 has system title 4B464D0000000002, and the \
                 record there says otherwise: the database was changed outside this service",
            ]
        );
        assert!(!wire_token(token(Some("no slot"))).reachable);
    }
}
