//! The wire: the only place that says tonic, rustls and `ami.kms.v1`.
//!
//! A call comes in at `accept` (TLS 1.3, a certificate on both sides), passes the `gate` (who is it,
//! may he, is there room), is split by `columns` or read by `words`, goes down to
//! [`crate::ciphering`] or [`crate::lifecycle`], and leaves the same way. What went wrong becomes a
//! gRPC status in `status` and nowhere else. Start reading at `server.rs`.

mod accept;
pub mod access;
mod answer;
mod approvals;
mod approving;
mod audit;
mod budget;
mod certificate;
mod ciphering;
mod columns;
mod config;
mod connection;
mod drain;
mod figures;
mod gate;
mod health;
mod import_call;
mod in_order;
mod ledger;
mod looks;
mod meters;
mod newest;
mod numbers;
mod policy;
mod presented;
mod probes;
mod recording;
mod request_id;
mod revocation;
mod sealed;
mod server;
mod shape;
mod shares;
mod site;
mod status;
mod summary;
mod tls;
mod upload;
mod verb;
mod whole;
mod words;
mod writes;

pub use certificate::{TlsError, check_certificates};
pub use config::{BadSetting, Config, Limits, MetricsConfig, TlsConfig};
pub use policy::{BadCallerName, CallerName, Forbidden, Permit, Policy, PolicyError, Role, Second};
pub use presented::check_presented;
pub use server::{Bound, Control, Parts, RpcError, serve, serve_services};
pub use status::ERROR_DOMAIN;
pub use tls::Reloaded;
pub use verb::Verb;
