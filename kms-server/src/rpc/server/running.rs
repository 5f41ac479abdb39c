//! A server from its sockets to the end of its drain.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{service::Routes, transport::Error as TransportError};

use super::{
    control::{Bound, Control},
    error::RpcError,
    sockets::{Socket, Sockets},
    transport::transport,
};
use crate::{
    audit::Audit,
    replication,
    rpc::{
        approvals::waiting::Approvals,
        config::Config,
        drain::{Drain, Phase},
        figures::Figures,
        gate::{keeper::Gatekeeper, layer::Gate, strangers::Strangers},
        http::probes::{Probes, Readiness},
        listen::accept::{ACCEPTED_MAX, Acceptor},
        messages::request_id::RequestIds,
        services::health::Health,
        shares::accounts::Shares,
        tls::in_use::Tls,
    },
    site_health::Looks,
    telemetry::metrics::Source,
};
use kms_core::ports::Clock;

/// The longest time for connections to notice that they were cut.
const CUT_PATIENCE: Duration = Duration::from_secs(1);

/// A server that was put together, and does not run yet.
pub(super) struct Server {
    pub(super) config: Config,
    pub(super) routes: Routes,
    pub(super) tls: Arc<Tls>,
    pub(super) approvals: Arc<Approvals>,
    pub(super) shares: Arc<Shares>,
    pub(super) figures: Arc<Figures>,
    pub(super) audit: Arc<Audit>,
    pub(super) clock: Arc<dyn Clock>,
    /// All that has something to tell `/metrics`.
    pub(super) sources: Vec<Arc<dyn Source>>,
    /// The parts that `/readyz` asks; `None`: it knows of the drain alone.
    pub(super) looks: Option<Looks>,
    /// How replication stands; `None`: there is no other site.
    pub(super) replication: Option<Arc<replication::Status>>,
}

impl Server {
    /// Serves until `shutdown` ends, then drains.
    pub(super) async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send,
        ready: oneshot::Sender<Bound>,
    ) -> Result<(), RpcError> {
        let Sockets { calls, probes } = Sockets::bind(&self.config).await?;
        let (health, health_service) = Health::new().await;
        let drain = Drain::new();
        let (accepted, connections) = mpsc::channel(ACCEPTED_MAX);
        tokio::spawn(self.acceptor(&drain).accept(calls.listener, accepted));
        let mut serving = std::pin::pin!(
            transport(&self.config.limits)
                .layer(self.gate(&drain))
                .add_routes(self.routes.clone().add_service(health_service))
                .serve_with_incoming_shutdown(
                    ReceiverStream::new(connections),
                    drain.watch().reached(Phase::Draining),
                )
        );
        let metrics = probes.as_ref().map(|socket| socket.address);
        // Answered to the end of the drain.
        let _answering = probes.map(|socket| self.answer_probes(socket, &drain));
        tracing::info!(address = %calls.address, "listening");
        let control = self.control(&health, &drain);
        // Whoever asked may have gone; the server is wanted all the same.
        let _ = ready.send(Bound { address: calls.address, metrics, control });
        self.until_told(serving.as_mut(), shutdown).await?;
        tracing::info!("shutting down: no new calls");
        // Before the drain begins, so that whoever watches is told before his stream ends.
        health.set_serving(false).await;
        end(serving, &drain, self.config.limits.drain_timeout).await
    }

    fn acceptor(&self, drain: &Drain) -> Acceptor {
        Acceptor {
            tls: Arc::clone(&self.tls),
            limits: self.config.limits.clone(),
            shares: Arc::clone(&self.shares),
            figures: Arc::clone(&self.figures),
            drain: drain.watch(),
        }
    }

    fn gate(&self, drain: &Drain) -> Gate {
        Gate(Arc::new(Gatekeeper {
            policy: self.config.policy.clone(),
            tls: Arc::clone(&self.tls),
            clock: Arc::clone(&self.clock),
            drain: drain.watch(),
            limits: self.config.limits.clone(),
            strangers: Strangers::new(Arc::clone(&self.figures)),
            figures: Arc::clone(&self.figures),
            ids: RequestIds::new(),
            audit: Arc::clone(&self.audit),
            approvals: Arc::clone(&self.approvals),
            replication: self.replication.clone(),
        }))
    }

    /// Answers metrics and probes until what is returned is dropped.
    fn answer_probes(&self, socket: Socket, drain: &Drain) -> JoinSet<()> {
        let readiness = Readiness { looks: self.looks.clone(), drain: drain.watch() };
        let mut answering = JoinSet::new();
        answering.spawn(Probes::new(self.sources.clone(), readiness).serve(socket.listener));
        tracing::info!(address = %socket.address, "metrics and probes are answered");
        answering
    }

    fn control(&self, health: &Health, drain: &Drain) -> Control {
        Control { tls: Arc::clone(&self.tls), health: health.clone(), drain: drain.watch() }
    }

    /// Looks at the certificates' files until somebody asks for the shutdown. An end that nobody asked for
    /// is an error, even one without an error of its own.
    async fn until_told(
        &self,
        serving: Pin<&mut impl Serving>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), RpcError> {
        tokio::select! {
            ended = serving => {
                let reason =
                    ended.map_or_else(Into::into, |()| "no more connections are accepted".into());
                Err(RpcError::Transport(reason))
            }
            () = self.tls.watch(self.clock.as_ref()) => Ok(()),
            () = shutdown => Ok(()),
        }
    }
}

/// The transport at work.
trait Serving: Future<Output = Result<(), TransportError>> + Send {}

impl<F: Future<Output = Result<(), TransportError>> + Send> Serving for F {}

/// Drains: the first half of the time is for calls to end by themselves, the second for streams that were told
/// to; those without an end of their own are told as soon as nothing else runs. What is left then is cut.
async fn end(
    mut serving: Pin<&mut impl Serving>,
    drain: &Drain,
    drain_timeout: Duration,
) -> Result<(), RpcError> {
    let (calls, begun, half) = (drain.working(), Instant::now(), drain_timeout / 2);
    if calls > 0 {
        let at_most_ms = drain_timeout.as_millis() as u64;
        tracing::info!(calls, at_most_ms, "waiting for calls that run to end");
    }
    drain.enter(Phase::Draining);
    tokio::select! {
        ended = serving.as_mut() => return all_ended(ended, Phase::Draining),
        _ = timeout(half, drain.idle()) => {}
    }
    let patience = half.saturating_sub(begun.elapsed());
    let phases = [(Phase::Idle, patience), (Phase::Closing, half), (Phase::Cut, CUT_PATIENCE)];
    for (phase, patience) in phases {
        drain.enter(phase);
        if let Ok(ended) = timeout(patience, serving.as_mut()).await {
            return all_ended(ended, phase);
        }
        let calls = drain.working();
        tracing::info!(?phase, calls, "connections are still open");
    }
    tracing::warn!("shut down with connections that did not end");
    Ok(())
}

fn all_ended(ended: Result<(), TransportError>, phase: Phase) -> Result<(), RpcError> {
    tracing::info!(?phase, "all connections have ended");
    ended.map_err(|error| RpcError::Transport(error.into()))
}
