//! The sockets of a server.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::error::RpcError;
use crate::rpc::config::Config;

/// A socket that is listened on.
pub(super) struct Socket {
    pub(super) listener: TcpListener,
    /// Its address; the port is the real one.
    pub(super) address: SocketAddr,
}

/// All of them.
pub(super) struct Sockets {
    /// For calls.
    pub(super) calls: Socket,
    /// For metrics and probes, if anywhere.
    pub(super) probes: Option<Socket>,
}

impl Sockets {
    /// Listens where the configuration says.
    pub(super) async fn bind(config: &Config) -> Result<Self, RpcError> {
        let calls = Socket::bind(config.listen).await?;
        let probes = match config.metrics {
            Some(metrics) => Some(Socket::bind(metrics.listen()).await?),
            None => None,
        };
        Ok(Self { calls, probes })
    }
}

impl Socket {
    async fn bind(address: SocketAddr) -> Result<Self, RpcError> {
        let failed = |source| RpcError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }
}
