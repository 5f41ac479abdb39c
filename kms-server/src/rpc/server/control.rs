//! The addresses of a server that listens, and the hold by which it is steered while it runs.

use std::{net::SocketAddr, sync::Arc};

use crate::rpc::{
    drain::{DrainWatch, Phase},
    services::health::Health,
    tls::{
        error::TlsError,
        in_use::{Reloaded, Tls},
    },
};

/// The addresses of a server that listens, and the hold on it.
#[derive(Clone)]
pub struct Bound {
    /// The address for calls; the port is the real one.
    pub address: SocketAddr,
    /// The address for figures and readiness, if they can be asked for.
    pub metrics: Option<SocketAddr>,
    /// To steer it.
    pub control: Control,
}

/// Steers a running server.
#[derive(Clone)]
pub struct Control {
    pub(super) tls: Arc<Tls>,
    pub(super) health: Health,
    pub(super) drain: DrainWatch,
}

impl Control {
    /// Reads the certificates again, as SIGHUP asks for. On an error those in use stay.
    pub async fn reload(&self) -> Result<Reloaded, TlsError> {
        self.tls.reload().await
    }

    /// The reason why the certificates that lie there are not in use; `None` if they are.
    pub fn tls_fault(&self) -> Option<String> {
        self.tls.fault()
    }

    /// Sets what the health service answers. A server that is shutting down stays `NOT_SERVING`.
    pub async fn set_serving(&self, serving: bool) {
        self.health.set_serving(serving && !self.drain.is(Phase::Draining)).await;
    }
}
