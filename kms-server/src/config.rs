//! `kms.toml` → the checked `Config` of each part. As written: `sections.rs`, strings and numbers with
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
pub use pin::Pin;

use crate::{domain::BlockCount, telemetry};

/// All settings, checked. What only the outside can tell (is the module there, does the certificate
/// match its key) is for [`check`] and for the parts themselves.
#[derive(Clone, Debug)]
pub struct Config {
    /// This site.
    pub site: Site,
    /// The token.
    pub hsm: Hsm,
    /// The database.
    pub store: Store,
    /// Keys in memory.
    pub keyring: Keyring,
    /// What may be imported.
    pub import: Import,
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

/// The token and how it is called.
#[derive(Clone, Debug)]
pub struct Hsm {
    /// The maker's PKCS #11 library.
    pub module: PathBuf,
    /// Label of the token.
    pub token_label: String,
    /// The user's PIN.
    pub pin: Pin,
    /// Sessions open at once; 1 to 64.
    pub sessions_max: usize,
    /// How long one call may take before its session is given up.
    pub call_timeout: Duration,
    /// How long a caller waits for a session before it is told that the token is busy.
    pub patience: Duration,
    /// Keys of protection `HSM` that stay unwrapped in the token.
    pub unwrapped_keys_max: usize,
    /// Hash of RSA-OAEP.
    pub oaep_hash: OaepHash,
    /// A software token's directory, synced after a key is made.
    pub token_dir: Option<PathBuf>,
}

/// Hash and MGF1 hash of RSA-OAEP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OaepHash {
    /// All that SoftHSM knows.
    Sha1,
    /// For every other token.
    #[default]
    Sha256,
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

/// Keys in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    /// Size of the locked arena.
    pub arena_bytes: usize,
    /// For development: start although the memory can't be locked.
    pub allow_unlocked: bool,
    /// Blocks opened at once after start.
    pub warm_up_parallelism: usize,
}

/// What may be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Whether keys may come in clear; never a meter's KEK.
    pub allow_clear: bool,
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
