//! `kms.toml` → the checked `Config` of each part. As written: `sections.rs`, strings and numbers with
//! their unit in the name. As meant: the types below, which can't hold nonsense.

mod error;
mod findings;
mod limits_section;
mod pin;
mod sections;
mod store_section;

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

pub use error::ConfigError;
pub use findings::{Finding, check};
pub(crate) use pin::from_file as pin_from_file;

use crate::{audit, hsm, keyring, lifecycle, rpc, store, telemetry};
use kms_core::BlockCount;

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
    /// Whose sealed import files are taken.
    pub import_signers: lifecycle::Signers,
    /// The record of what is done.
    pub audit: audit::Config,
    /// The wire.
    pub rpc: rpc::Config,
    /// What is told, and how.
    pub log: telemetry::Config,
}

impl Config {
    /// Reads and checks the file, and the PIN and password that it names.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            ErrorKind::InvalidData => ConfigError::NotText { path: path.to_owned() },
            _ => ConfigError::Unreadable { path: path.to_owned(), source },
        })?;
        // Some editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text);
        let sections: sections::Sections =
            toml::from_str(text).map_err(|error| ConfigError::syntax(path, text, &error))?;
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
    /// A server, which several of these processes may share.
    Postgresql(store::postgres::Config),
}

#[cfg(test)]
mod tests;
