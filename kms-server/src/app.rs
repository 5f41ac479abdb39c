//! The parts put together: what each verb of the command line does.

mod alone;
mod asking_peer;
mod backup;
mod begin_counters;
mod check;
mod counter_marks;
mod database;
mod fault;
mod founding;
mod ground;
mod handing_on;
mod init;
mod join;
mod join_token;
mod last_backup;
mod migrate;
mod no_commits;
mod node;
mod outside;
mod own_chain;
mod peers_seen;
mod probe;
mod report;
mod rolled_back;
mod runtime;
mod serve;
mod site_keys;
mod site_tokens;
mod timeline;
mod token;
mod trust;
mod two_sites;

pub use backup::{BackupOptions, RestoreOptions, backup, restore};
pub use check::check;
pub use fault::Fault;
pub use init::{InitOptions, init};
pub use join::{JoinOptions, join, request_to_join};
pub use migrate::migrate;
pub use outside::{OperatingSystem, SystemClock};
pub use probe::probe_hsm;
pub use report::Report;
pub use serve::serve;
pub use trust::{TrustOptions, trust_peer};
#[cfg(test)]
pub(crate) use {peers_seen::PeersFile, two_sites::Beside};
