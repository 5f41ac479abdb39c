//! The wire: the only place that says tonic, rustls and `ami.kms.v1`.
//!
//! A call comes in at [`listen`] (TLS 1.3, a certificate on both sides), passes the [`gate`] (who is it,
//! may he, is there room), comes to its service in [`services`], which reads it with [`messages`], goes
//! down to [`crate::ciphering`] or [`crate::lifecycle`], and leaves the same way. What went wrong becomes
//! a gRPC status in `messages/status.rs` and nowhere else. [`peer`] is the one way out: calls to the other
//! site and to other nodes of this one. Start reading at `server/serve.rs`.
//!
//! A room names only rooms on lower floors; `tests/architecture.rs` has the table of them.

pub mod access;
mod approvals;
mod config;
mod drain;
mod figures;
mod gate;
mod http;
mod listen;
mod messages;
mod peer;
mod server;
mod services;
mod shares;
mod tls;

pub use access::{
    policy::{BadCallerName, CallerName, Forbidden, Permit, Policy, PolicyError, Role, Second},
    verb::Verb,
};
pub use config::{BadSetting, Config, Limits, MetricsConfig, PeerConfig, TlsConfig};
pub use messages::status::ERROR_DOMAIN;
pub use peer::{NodesClient, PeerClient};
pub use server::{Bound, Control, GateParts, Parts, Replicating, RpcError, serve, serve_services};
pub use services::replication::ReplicationParts;
pub use tls::{
    authorities::{check_ca, check_peer_as_caller},
    checking::check_certificates,
    error::TlsError,
    in_use::Reloaded,
    presented::{check_as_client, check_presented},
};
