//! The status of a site.

use kms_core::enrolment::{Fingerprint, bundle::SignedEnrolment, request::SignedRequest};
use kms_proto::v1;
use kms_proto::v1::site_client::SiteClient;
use serde::Serialize;

use crate::call::{CallError, ProtocolError};
use crate::replication::{self, ReplicationStatus};
use crate::role::SiteStanding;
use crate::sites::Errand;
use crate::transport::Transport;

/// The status of a site, as the site says it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteStatus {
    /// Its name.
    pub site: String,
    /// The key domain; 32 hex digits.
    pub domain_id: String,
    /// Of the server.
    pub version: String,
    /// Of the site.
    pub epoch: u64,
    /// It is the only site of its domain, by configuration.
    pub single_site: bool,
    /// Since start.
    pub uptime_ms: u64,
    /// Opening blocks after start.
    pub warm_up: WarmUp,
    /// The HSM.
    pub token: TokenStatus,
    /// The database.
    pub store: StoreStatus,
    /// The resident keys.
    pub keyring: KeyringStatus,
    /// The present faults, in sentences.
    pub faults: Vec<String>,
    /// Its role; `None`: the server is of a release that knows of no other site.
    pub standing: Option<SiteStanding>,
    /// The other site; `None`: there is none.
    pub replication: Option<ReplicationStatus>,
    /// Records that one site wrote alone and that wait for a decision.
    pub undecided_divergence: u64,
    /// The tokens whose signatures count, of this site and of others; none: it can't be told now.
    pub tokens: Vec<SiteToken>,
}

/// A token whose signatures count for its site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SiteToken {
    /// The site.
    pub site: String,
    /// Its name: the beginning of its fingerprint, 16 hex digits.
    pub id: String,
    /// SHA-256 over its signing key, 64 hex digits.
    pub fingerprint: String,
    /// The server that answers has it; of another site, the server of it that was heard last.
    pub in_use: bool,
}

/// Opening blocks in the background after start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WarmUp {
    /// Blocks there are.
    pub blocks_total: u32,
    /// Of them, open.
    pub blocks_open: u32,
    /// Of them, not to be opened.
    pub blocks_failed: u32,
    /// Nothing is left to do.
    pub done: bool,
    /// Since it began.
    pub elapsed_ms: u64,
}

/// The HSM, as its user sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenStatus {
    /// Of the token.
    pub label: String,
    /// Of the token.
    pub model: String,
    /// It answers.
    pub reachable: bool,
    /// The number of the connection; it rises each time the connection is made anew.
    pub connection_epoch: u64,
    /// The fault, as a sentence; empty: there is none.
    pub fault: String,
    /// Since start.
    pub calls: u64,
}

/// The database.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StoreStatus {
    /// The engine: `sqlite` or `postgresql`.
    pub kind: String,
    /// It answers.
    pub reachable: bool,
    /// Meters in it.
    pub meters: u64,
    /// The fault, as a sentence; empty: there is none.
    pub fault: String,
    /// Set where the database follows another one: the server reads, and takes no changes.
    pub standby: Option<StandbyStatus>,
    /// Milliseconds for which nothing was heard of other servers' changes; 0: they are heard, or
    /// there are no other servers.
    pub not_following_ms: u64,
}

/// A database that follows its primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StandbyStatus {
    /// WAL that is not replayed yet.
    pub lag_bytes: u64,
    /// 0 while all that was received is replayed; else the age of the last replayed commit.
    pub lag_seconds: f64,
    /// Whether it receives from its primary now.
    pub receiving: bool,
}

/// The keys in the server's locked memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeyringStatus {
    /// Meters whose keys are resident.
    pub resident_meters: u64,
    /// Of the arena.
    pub arena_bytes_used: u64,
    /// Of the arena.
    pub arena_bytes_total: u64,
    /// False only where the configuration says so.
    pub memory_locked: bool,
    /// Records that are not what was written, in blocks that were read so far.
    pub damaged_records: u64,
    /// The device profiles that the site has, in order.
    pub profiles: Vec<String>,
    /// What two sites compare of them; 64 hex digits, empty where the service does not say.
    pub profiles_digest: String,
}

pub(crate) async fn status(transport: &Transport) -> Result<SiteStatus, CallError> {
    let send = |link, request| async move { SiteClient::new(link).get_status(request).await };
    let request = v1::GetStatusRequest {};
    Ok(from_wire(transport.call(Errand::Read, request, send).await?)?)
}

fn from_wire(wire: v1::GetStatusResponse) -> Result<SiteStatus, ProtocolError> {
    let warm_up = wire.warm_up.unwrap_or_default();
    let token = wire.token.unwrap_or_default();
    let store = wire.store.unwrap_or_default();
    let keyring = wire.keyring.unwrap_or_default();
    Ok(SiteStatus {
        site: wire.site,
        domain_id: hex::encode(&wire.domain_id),
        version: wire.version,
        epoch: wire.epoch,
        single_site: wire.single_site,
        uptime_ms: wire.uptime_ms,
        warm_up: WarmUp {
            blocks_total: warm_up.blocks_total,
            blocks_open: warm_up.blocks_open,
            blocks_failed: warm_up.blocks_failed,
            done: warm_up.done,
            elapsed_ms: warm_up.elapsed_ms,
        },
        token: TokenStatus {
            label: token.label,
            model: token.model,
            reachable: token.reachable,
            connection_epoch: token.connection_epoch,
            fault: token.fault,
            calls: token.calls,
        },
        store: StoreStatus {
            kind: store.kind,
            reachable: store.reachable,
            meters: store.meters,
            fault: store.fault,
            standby: store.standby.map(|standby| StandbyStatus {
                lag_bytes: standby.lag_bytes,
                lag_seconds: standby.lag_seconds,
                receiving: standby.receiving,
            }),
            not_following_ms: store.not_following_ms,
        },
        keyring: KeyringStatus {
            resident_meters: keyring.resident_meters,
            arena_bytes_used: keyring.arena_bytes_used,
            arena_bytes_total: keyring.arena_bytes_total,
            memory_locked: keyring.memory_locked,
            damaged_records: keyring.damaged_records,
            profiles: keyring.profiles,
            profiles_digest: hex::encode(&keyring.profiles_digest),
        },
        faults: wire.faults,
        replication: wire.replication.map(replication::from_wire),
        undecided_divergence: wire.undecided_divergence,
        tokens: wire.tokens.into_iter().map(site_token).collect(),
        standing: wire.standing.map(SiteStanding::from_wire).transpose()?,
    })
}

fn site_token(wire: v1::SiteToken) -> SiteToken {
    let v1::SiteToken { site, id, fingerprint, in_use } = wire;
    SiteToken { site, id, fingerprint, in_use }
}

/// Asks for the enrolment of another site.
pub(crate) async fn enrol(
    transport: &Transport,
    request: &SignedRequest,
    fingerprint: Fingerprint,
    replace: bool,
) -> Result<SignedEnrolment, CallError> {
    let send = |link, request| async move {
        let mut client =
            SiteClient::new(link).max_decoding_message_size(SignedEnrolment::LEN_MAX + 1024);
        client.enrol_peer(request).await
    };
    let request = v1::EnrolPeerRequest {
        request: request.encode().into(),
        fingerprint: fingerprint.0.to_vec().into(),
        replace,
    };
    let reply = transport.call(Errand::Write, request, send).await?;
    Ok(SignedEnrolment::decode(&reply.bundle).map_err(ProtocolError::Bundle)?)
}
