//! The server: its parts put together, served, and drained.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use kms_proto::v1::{
    approvals_server::ApprovalsServer, audit_server::AuditServer,
    ciphering_server::CipheringServer, meters_server::MetersServer, site_server::SiteServer,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{service::Routes, transport};

use super::{
    approvals::waiting::Approvals,
    config::{BadSetting, Config, Limits},
    drain::{Drain, DrainWatch, Phase},
    figures::{Figures, Strangers, Wire},
    gate::{
        layer::{Gate, Gatekeeper},
        recording::Recorder,
    },
    http::probes::{Probes, Readiness},
    listen::accept::{ACCEPTED_MAX, accept},
    messages::request_id::RequestIds,
    services::{
        approvals::ApprovalsService, audit::AuditService, ciphering::CipheringService,
        health::Health, meters::MetersService, site::SiteService,
    },
    shares::{accounts::Shares, budget::Budget},
    tls::{
        certificate::{TlsError, check_certificates},
        in_use::{Reloaded, Tls},
        presented::check_presented,
    },
};
use crate::{
    audit::Audit,
    ciphering::Ciphering,
    keyring::Keyring,
    lifecycle::Lifecycle,
    site_health::{Looks, TokenStatusSource},
    store::ReadStore,
    telemetry::metrics::Source,
};
use kms_core::{DomainRecord, ports::Clock};

/// How often a silent client is asked whether it is still there, and how long it may take to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// All headers of one call. Ours need a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 8 << 10;
/// Streams that a client may reset before they were accepted, per connection ("rapid reset").
const PENDING_RESETS_MAX: usize = 20;
/// Streams beyond `streams_per_connection_max` that HTTP/2 lets in, so that they can be told
/// `RESOURCE_EXHAUSTED`; a client that opens even more has to wait.
const STREAMS_TO_REFUSE: u32 = 64;
/// What a client may send before we have taken it up: for one stream, for one connection. It lies in
/// memory that nobody has taken account of, so it is small.
const WINDOWS: (u32, u32) = (256 << 10, 256 << 10);
/// How long connections may take to notice that they were cut.
const CUT_PATIENCE: Duration = Duration::from_secs(1);

/// What the services stand on.
pub struct Parts {
    /// The HES's verbs.
    pub ciphering: Arc<Ciphering>,
    /// Meters' verbs.
    pub lifecycle: Arc<Lifecycle>,
    /// For its status.
    pub keyring: Arc<Keyring>,
    /// For its status.
    pub token_status: TokenStatusSource,
    /// For its status.
    pub store: Arc<dyn ReadStore>,
    /// The record of what is done.
    pub audit: Arc<Audit>,
    /// Which domain, and which site of it.
    pub domain: DomainRecord,
    /// This site is the only one of its domain, by configuration.
    pub single_site: bool,
    /// Uptime, and whether certificates have expired.
    pub clock: Arc<dyn Clock>,
    /// Figures of the parts that are not named above: the token, the store, and whoever else counts.
    pub sources: Vec<Arc<dyn Source>>,
}

impl Parts {
    fn looks(&self) -> Looks {
        Looks {
            token: Arc::clone(&self.token_status),
            store: Arc::clone(&self.store),
            keyring: Arc::clone(&self.keyring),
            audit: Arc::clone(&self.audit),
        }
    }
}

/// What is told once the server listens.
#[derive(Clone)]
pub struct Bound {
    /// Where; the port is the real one.
    pub address: SocketAddr,
    /// Where figures and readiness can be asked for, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// To steer it.
    pub control: Control,
}

/// Steers a running server.
#[derive(Clone)]
pub struct Control {
    tls: Arc<Tls>,
    health: Health,
    drain: DrainWatch,
}

impl Control {
    /// Reads the certificates again, as SIGHUP asks for. On an error those in use stay.
    pub async fn reload(&self) -> Result<Reloaded, TlsError> {
        self.tls.reload().await
    }

    /// Why the certificates that lie there are not in use; `None` if they are.
    pub fn tls_fault(&self) -> Option<String> {
        self.tls.fault()
    }

    /// Sets what the health service answers. A server that is shutting down stays `NOT_SERVING`.
    pub async fn set_serving(&self, serving: bool) {
        self.health.set_serving(serving && !self.drain.is(Phase::Draining)).await;
    }
}

impl RpcError {
    /// Whether it may pass by itself: an address that is in use or not there yet, a clock that was not set.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Listen { source, .. } => {
                matches!(source.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
            }
            Self::Tls(error) => matches!(error, TlsError::NotYetValid { .. }),
            _ => false,
        }
    }
}

/// Why the server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// A setting that can't be.
    #[error(transparent)]
    Setting(#[from] BadSetting),
    /// Certificates that can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address can't be listened on.
    #[error("can't listen on {address}: choose another address, or end what holds it")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptors of the package can't be served: a fault of the build.
    #[error("the reflection service can't be made")]
    Reflection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The transport has failed.
    #[error("the server has stopped")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Serves until `shutdown` ends, then drains: health says `NOT_SERVING`, nothing new is accepted, what
/// runs may go on for `drain_timeout`, and what is then left is cut. `ready` is told the address once
/// clients may come.
pub async fn serve(
    config: Config,
    parts: Parts,
    shutdown: impl Future<Output = ()> + Send,
    ready: oneshot::Sender<Bound>,
) -> Result<(), RpcError> {
    config.check()?;
    let tls = Arc::new(Tls::load(config.tls.clone(), Arc::clone(&parts.clock)).await?);
    // One that expires later is reported by `GetStatus`; to begin with one would help nobody.
    let now_ms = parts.clock.unix_ms();
    for (key, error) in check_presented(&config.tls, now_ms) {
        tracing::warn!(key, "{error}");
    }
    let wrong = check_certificates(&config.tls, now_ms);
    if let Some((_, error)) = wrong.into_iter().next() {
        return Err(error.into());
    }
    let figures = Figures::new();
    let budget = budget(&config.limits, &figures);
    let approvals = approvals(&config, &parts.clock);
    let services = services(&config.limits, &parts, (&tls, &figures), &budget);
    let recorder = Some(Recorder(Arc::clone(&parts.audit)));
    let routes = with_standing(services, (&approvals, recorder), &config.limits)?;
    let looks = Some(parts.looks());
    let Parts { ciphering, keyring, clock, audit, mut sources, .. } = parts;
    sources.extend([ciphering as Arc<dyn Source>, keyring.clone(), audit.clone()]);
    let watched = Watched { sources, looks };
    run(
        config,
        tls,
        Insides { routes, approvals, budget, figures, watched, clock, audit: Some(audit) },
        shutdown,
        ready,
    )
    .await
}

/// Serves `services` behind the same TLS, gate and limits as [`serve`], with approvals, health and
/// reflection added: for tests of all that does not need a token. A path that is no verb stays unreachable.
pub async fn serve_services(
    config: Config,
    services: Routes,
    clock: Arc<dyn Clock>,
    shutdown: impl Future<Output = ()> + Send,
    ready: oneshot::Sender<Bound>,
) -> Result<(), RpcError> {
    config.check()?;
    let tls = Arc::new(Tls::load(config.tls.clone(), Arc::clone(&clock)).await?);
    let figures = Figures::new();
    let budget = budget(&config.limits, &figures);
    let approvals = approvals(&config, &clock);
    let routes = with_standing(services, (&approvals, None), &config.limits)?;
    let watched = Watched { sources: Vec::new(), looks: None };
    run(
        config,
        tls,
        Insides { routes, approvals, budget, figures, watched, clock, audit: None },
        shutdown,
        ready,
    )
    .await
}

/// What is served, and what is told of it.
struct Insides {
    routes: Routes,
    approvals: Arc<Approvals>,
    budget: Budget,
    figures: Arc<Figures>,
    watched: Watched,
    clock: Arc<dyn Clock>,
    /// `None` in tests of what needs no log.
    audit: Option<Arc<Audit>>,
}

/// What `/metrics` and `/readyz` answer from, the wire itself aside.
struct Watched {
    sources: Vec<Arc<dyn Source>>,
    looks: Option<Looks>,
}

fn services(
    limits: &Limits,
    parts: &Parts,
    (tls, figures): (&Arc<Tls>, &Arc<Figures>),
    budget: &Budget,
) -> Routes {
    let message_bytes_max = limits.message_bytes_max;
    let ciphering = CipheringService {
        ciphering: Arc::clone(&parts.ciphering),
        audit: Arc::clone(&parts.audit),
        budget: budget.clone(),
        message_bytes_max,
        looks: Arc::default(),
    };
    let meters = MetersService {
        lifecycle: Arc::clone(&parts.lifecycle),
        audit: Recorder(Arc::clone(&parts.audit)),
        budget: budget.clone(),
        message_bytes_max,
    };
    let site = SiteService {
        looks: parts.looks(),
        domain: parts.domain.clone(),
        single_site: parts.single_site,
        clock: Arc::clone(&parts.clock),
        started_ms: parts.clock.monotonic_ms(),
        tls: Arc::clone(tls),
        figures: Arc::clone(figures),
    };
    let audit = AuditService { audit: Arc::clone(&parts.audit) };
    // Answers are as long as their questions made them; only what comes in has a limit.
    Routes::new(CipheringServer::new(ciphering).max_decoding_message_size(message_bytes_max))
        .add_service(MetersServer::new(meters).max_decoding_message_size(message_bytes_max))
        .add_service(SiteServer::new(site).max_decoding_message_size(message_bytes_max))
        .add_service(AuditServer::new(audit).max_decoding_message_size(message_bytes_max))
}

fn budget(limits: &Limits, figures: &Arc<Figures>) -> Budget {
    Budget::new(limits, Arc::new(Shares::new(limits)), Arc::clone(figures))
}

fn approvals(config: &Config, clock: &Arc<dyn Clock>) -> Arc<Approvals> {
    Arc::new(Approvals::new(config.policy.dual_control().clone(), Arc::clone(clock)))
}

/// Adds what stands on no part: approvals and reflection.
fn with_standing(
    services: Routes,
    (approvals, recorder): (&Arc<Approvals>, Option<Recorder>),
    limits: &Limits,
) -> Result<Routes, RpcError> {
    let approvals = ApprovalsService { approvals: Arc::clone(approvals), recorder };
    let approvals =
        ApprovalsServer::new(approvals).max_decoding_message_size(limits.message_bytes_max);
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(kms_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| RpcError::Reflection(error.into());
    // Tools that are some years old, and Python's, ask by the old name.
    let (new, old) =
        (described().build_v1().map_err(failed)?, described().build_v1alpha().map_err(failed)?);
    Ok(services.add_service(approvals).add_service(new).add_service(old))
}

async fn run(
    config: Config,
    tls: Arc<Tls>,
    insides: Insides,
    shutdown: impl Future<Output = ()> + Send,
    ready: oneshot::Sender<Bound>,
) -> Result<(), RpcError> {
    let Config { listen, tls: _, limits, policy, metrics } = config;
    let Insides { routes, approvals, budget, figures, watched, clock, audit } = insides;
    let Watched { mut sources, looks } = watched;
    let (listener, address) = bind(listen).await?;
    let metrics = match metrics {
        Some(metrics) => Some(bind(metrics.listen()).await?),
        None => None,
    };
    let (health, health_service) = Health::new().await;
    let drain = Drain::new();
    let gate = Gate(Arc::new(Gatekeeper {
        policy,
        tls: Arc::clone(&tls),
        clock: Arc::clone(&clock),
        drain: drain.watch(),
        limits: limits.clone(),
        strangers: Strangers::new(Arc::clone(&figures)),
        figures: Arc::clone(&figures),
        ids: RequestIds::new(),
        audit,
        approvals,
    }));
    let (accepted, connections) = mpsc::channel(ACCEPTED_MAX);
    let wire = (drain.watch(), Arc::clone(&figures), budget.shares());
    tokio::spawn(accept(listener, Arc::clone(&tls), limits.clone(), wire, accepted));
    let mut serving = std::pin::pin!(
        transport(&limits)
            .layer(gate)
            .add_routes(routes.add_service(health_service))
            .serve_with_incoming_shutdown(
                ReceiverStream::new(connections),
                drain.watch().reached(Phase::Draining),
            )
    );
    // Answers to the end of the drain; ended when it is dropped.
    let mut probes = JoinSet::new();
    let metrics = metrics.map(|(listener, address)| {
        let clock = Arc::clone(&clock);
        sources.push(Arc::new(Wire { figures, budget, tls: Arc::clone(&tls), clock }));
        let readiness = Readiness { looks, drain: drain.watch() };
        probes.spawn(Probes::new(sources, readiness).serve(listener));
        tracing::info!(%address, "metrics and probes are answered");
        address
    });
    tracing::info!(%address, "listening");
    let control = Control { tls: Arc::clone(&tls), health: health.clone(), drain: drain.watch() };
    // Whoever asked may have gone; the server is wanted all the same.
    let _ = ready.send(Bound { address, metrics, control });
    tokio::select! {
        // Nobody asked for it: even an end without an error is one.
        ended = &mut serving => {
            let reason = ended.map_or_else(Into::into, |()| "no more connections are accepted".into());
            return Err(RpcError::Transport(reason));
        }
        () = tls.watch(clock.as_ref()) => {}
        () = shutdown => {}
    }
    tracing::info!("shutting down: no new calls");
    // Before the drain begins, so that whoever watches is told before his stream ends.
    health.set_serving(false).await;
    // The first half for calls to end by themselves, the second for streams that were told to.
    let half = limits.drain_timeout / 2;
    for (phase, patience) in
        [(Phase::Draining, half), (Phase::Closing, half), (Phase::Cut, CUT_PATIENCE)]
    {
        drain.enter(phase);
        if let Ok(ended) = timeout(patience, &mut serving).await {
            tracing::info!(?phase, "all connections have ended");
            return ended.map_err(|error| RpcError::Transport(error.into()));
        }
    }
    tracing::warn!("shut down with connections that did not end");
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), RpcError> {
    let failed = |source| RpcError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn transport(limits: &Limits) -> transport::Server {
    let server = transport::Server::builder()
        .max_concurrent_streams(limits.streams_per_connection_max.saturating_add(STREAMS_TO_REFUSE))
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
    match limits.connection_age_max {
        Some(age) => server.max_connection_age(age),
        None => server,
    }
}
