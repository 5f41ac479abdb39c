//! `kms.toml` → the checked `Config` of each part. As written: [`sections`], strings and numbers with
//! their unit in the name. As meant: the types below, which can't hold nonsense.

mod error;
mod findings;
mod pin;
mod sections;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

pub use error::ConfigError;
pub use findings::{Finding, check};

use crate::{domain::BlockCount, hsm, keyring, lifecycle, telemetry};

/// All settings, checked. What only the outside can tell (is the module there, does the certificate
/// match its key) is for [`check`] and for the parts themselves.
#[derive(Debug)]
pub struct Config {
    /// This site.
    pub site: Site,
    /// The token.
    pub hsm: hsm::Config,
    /// The database.
    pub store: Store,
    /// Keys in memory.
    pub keyring: keyring::Config,
    /// What may be imported.
    pub import: lifecycle::Config,
    /// The wire.
    pub rpc: Rpc,
    /// What is told, and how.
    pub log: telemetry::Config,
}

impl Config {
    /// Reads and checks the file, and the PIN that it names.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let sections: sections::Sections =
            toml::from_str(&text).map_err(|error| ConfigError::syntax(path, &text, &error))?;
        sections.try_into()
    }
}

/// This site and its place in the key domain.
#[derive(Clone, Debug)]
pub struct Site {
    /// The operator's name for it.
    pub name: String,
    /// Where this service keeps what is its own.
    pub data_dir: PathBuf,
    /// Said in so many words: no second site holds these keys.
    pub single_site: bool,
    /// For `init` only: it can't change afterwards.
    pub blocks: BlockCount,
    /// For `init` only: whether this is the site of even epochs.
    pub even: bool,
}

/// Which database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// One file, in this process.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
}

/// The wire.
#[derive(Clone, Debug)]
pub struct Rpc {
    /// Address and port.
    pub listen: SocketAddr,
    /// Who we are, and who vouches for callers.
    pub tls: Tls,
    /// How often the certificate files are looked at for changes.
    pub reload_poll: Duration,
    /// Bounds on what callers can take up.
    pub limits: Limits,
    /// Who may call: by the name in their certificate.
    pub callers: BTreeMap<String, BTreeSet<Role>>,
    /// Calls of a role, where they are not the usual ones.
    pub grants: BTreeMap<Role, BTreeSet<String>>,
}

/// Certificate files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Our certificate and its chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub private_key: PathBuf,
    /// The authorities that vouch for callers, PEM.
    pub client_ca: PathBuf,
}

/// Bounds of the wire. Whatever grows has a bound with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one message, either way.
    pub message_bytes_max: usize,
    /// Items in a batch.
    pub batch_items_max: usize,
    /// HTTP/2 streams on one connection.
    pub streams_per_connection_max: u32,
    /// Connections at once.
    pub connections_max: usize,
    /// Items of all callers together that are being worked on.
    pub in_flight_items_max: usize,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// For calls that run when the service is to stop.
    pub drain_timeout: Duration,
    /// After which a connection is asked to reconnect, so that load spreads and revoked callers go.
    pub connection_age_max: Duration,
}

/// What a caller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A head-end system: reads what meters send.
    Hes,
    /// An operator: meters and their keys.
    AmiAdmin,
    /// Rotates keys.
    Rotator,
    /// The other site.
    Peer,
    /// Reads the audit log.
    Auditor,
}

#[cfg(test)]
mod tests;
