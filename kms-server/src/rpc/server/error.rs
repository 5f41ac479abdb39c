//! Why the server did not start, or stopped.

use std::{io, net::SocketAddr};

use crate::rpc::{config::BadSetting, tls::error::TlsError};

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
        /// The address.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
    /// The descriptors of the package can't be served: a fault of the build.
    #[error("the reflection service can't be made")]
    Reflection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The transport has failed.
    #[error("the server has stopped")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
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
