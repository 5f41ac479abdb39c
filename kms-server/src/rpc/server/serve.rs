//! The server, put together from its parts and served.

use std::sync::Arc;

use kms_proto::v1::PromoteRequest;
use tokio::sync::oneshot;
use tonic::service::Routes;

use super::{
    control::Bound,
    error::RpcError,
    lists::Lists,
    parts::{GateParts, Parts},
    routes,
    running::Server,
};
use crate::{
    audit::Audit,
    keyring::Roles,
    rpc::{
        approvals::{
            need::{Needs, Promotable, PutBack, SiteBehind, Writes},
            waiting::Approvals,
        },
        config::Config,
        figures::Figures,
        gate::{recording::Recorder, seconds::Seconds},
        messages::plan::wish,
        services::approvals::ApprovalsService,
        shares::{accounts::Shares, budget::Budget},
        tls::{
            checking::check_certificates, error::TlsError, in_use::Tls, presented::check_presented,
        },
    },
    telemetry::metrics::Source,
};
use kms_core::ports::Clock;

/// Serves until `shutdown` ends, then drains: health says `NOT_SERVING`, nothing new is accepted, what
/// runs may go on for `drain_timeout`, and what is then left is cut. `ready` is told the address once
/// clients may come.
pub async fn serve(
    config: Config,
    parts: Parts,
    shutdown: impl Future<Output = ()> + Send,
    ready: oneshot::Sender<Bound>,
) -> Result<(), RpcError> {
    let own = Own::new(&config, &parts.clock).await?;
    check_files(&config, parts.clock.unix_ms())?;
    let services = routes::of_parts(&config, &parts, &own.tls, &own.figures, &own.budget);
    let looks = Some(parts.looks());
    if let Some(replicating) = &parts.replication {
        let (policy, tls) = (config.policy.digest(), Arc::clone(&own.tls));
        replicating.makeup.trust_by(Box::new(move || tls.trust(policy)));
    }
    let behind = behind(&parts);
    let lists = Lists { tls: Arc::clone(&own.tls), lifecycle: Arc::clone(&parts.lifecycle) };
    lists.look_first().await?;
    // Until the server ends.
    let _keeping = lists.keep(config.tls.reload_poll);
    let Parts { ciphering, transmitting, keyring, clock, audit, replication, mut sources, .. } =
        parts;
    let replication = replication.map(|it| it.status);
    sources.extend(replication.clone().map(|it| it as Arc<dyn Source>));
    sources.extend([ciphering as Arc<dyn Source>, transmitting, keyring, audit.clone()]);
    let server = own.server(config, GateParts { services, audit, clock }, Some(behind))?;
    let sources = sources.into_iter().chain(server.sources).collect();
    Server { sources, looks, replication, ..server }.run(shutdown, ready).await
}

/// Serves services that are made elsewhere behind the same TLS, gate and limits as [`serve`], with approvals,
/// health and reflection added: for tests of all that does not need a token. A path that is no verb stays
/// unreachable.
pub async fn serve_services(
    config: Config,
    parts: GateParts,
    shutdown: impl Future<Output = ()> + Send,
    ready: oneshot::Sender<Bound>,
) -> Result<(), RpcError> {
    let own = Own::new(&config, &parts.clock).await?;
    own.server(config, parts, None)?.run(shutdown, ready).await
}

/// Refuses to begin with certificates that are of no use; one that expires later is reported by `GetStatus`.
fn check_files(config: &Config, now_ms: u64) -> Result<(), TlsError> {
    for (key, error) in check_presented(&config.tls, now_ms) {
        tracing::warn!(key, "{error}");
    }
    let wrong = check_certificates(&config.tls, now_ms);
    wrong.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// The parts that a server makes for itself.
struct Own {
    tls: Arc<Tls>,
    figures: Arc<Figures>,
    shares: Arc<Shares>,
    budget: Budget,
}

impl Own {
    async fn new(config: &Config, clock: &Arc<dyn Clock>) -> Result<Self, RpcError> {
        config.check()?;
        let tls = Arc::new(Tls::load(config.tls.clone(), Arc::clone(clock)).await?);
        let (figures, shares) = (Figures::new(), Arc::new(Shares::new(&config.limits)));
        let budget = Budget::new(&config.limits, Arc::clone(&shares), Arc::clone(&figures));
        Ok(Self { tls, figures, shares, budget })
    }

    /// A server over these parts, which tells nothing but the wire's own figures.
    fn server(
        self,
        config: Config,
        parts: GateParts,
        site: Option<SiteBehind>,
    ) -> Result<Server, RpcError> {
        let Self { tls, figures, shares, budget } = self;
        let GateParts { services, audit, clock } = parts;
        let verbs = config.policy.dual_control().clone();
        let needs = Needs { verbs, site };
        let approvals = Arc::new(Approvals::new(needs, Arc::clone(&audit), Arc::clone(&clock)));
        let routes = standing(services, &config, &approvals, &audit)?;
        let sources: Vec<Arc<dyn Source>> = vec![figures.clone(), Arc::new(budget), tls.clone()];
        Ok(Server {
            config,
            routes,
            tls,
            approvals,
            shares,
            figures,
            audit,
            clock,
            sources,
            looks: None,
            replication: None,
        })
    }
}

/// What approvals have to know of the site.
fn behind(parts: &Parts) -> SiteBehind {
    SiteBehind {
        name: parts.domain.site.clone(),
        put_back: put_back(Arc::clone(&parts.roles)),
        writes: writes(parts),
        promotable: promotable(parts),
    }
}

/// Whether the site writes: as its database says now, since another one of its servers may have changed that.
fn writes(parts: &Parts) -> Writes {
    let (roles, lifecycle) = (Arc::clone(&parts.roles), Arc::clone(&parts.lifecycle));
    Box::new(move || {
        let (roles, lifecycle) = (Arc::clone(&roles), Arc::clone(&lifecycle));
        Box::pin(async move {
            // What can't be read now leaves what is known, and a role that does not hold closes the site.
            let _ = roles.look().await;
            lifecycle.check_writes()
        })
    })
}

/// Whether a promotion would be refused, by what refuses it when it is made.
fn promotable(parts: &Parts) -> Promotable {
    let roles = Arc::clone(&parts.roles);
    let planning = parts.replication.as_ref().map(|it| Arc::clone(&it.planning));
    Box::new(move |request: PromoteRequest| {
        let (roles, planning) = (Arc::clone(&roles), planning.clone());
        Box::pin(async move {
            if let Some(planning) = planning.filter(|_| !request.although_unproved) {
                planning.ready().await?;
            }
            roles.check_promotion(wish(&request)).await
        })
    })
}

/// Whether the site was put back, the highest epoch that its records say, and how often it was promoted above one, as its
/// roles know it.
fn put_back(roles: Arc<Roles>) -> PutBack {
    Box::new(move || {
        let is_put_back = roles.known_mark().is_some() || roles.rolled_back().is_some();
        (is_put_back, roles.standing().epoch, roles.promotions_above())
    })
}

fn standing(
    services: Routes,
    config: &Config,
    approvals: &Arc<Approvals>,
    audit: &Arc<Audit>,
) -> Result<Routes, RpcError> {
    let (approvals, recorder) = (Arc::clone(approvals), Recorder(Arc::clone(audit)));
    let (seconds, policy) = (Seconds { approvals, recorder }, Arc::new(config.policy.clone()));
    routes::with_standing(services, ApprovalsService { seconds, policy }, &config.limits)
}
