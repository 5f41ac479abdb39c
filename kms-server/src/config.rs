//! `kms.toml` → the checked `Config` of each part. As written: `sections.rs`, strings and numbers with
//! their unit in the name. As meant: `settings.rs`, types which can't hold nonsense.

mod error;
mod findings;
mod limits_section;
mod nodes_section;
mod peer_section;
mod pin;
mod profiles;
mod rotation_section;
mod schedules_section;
mod sections;
mod settings;
mod store_section;
mod values;

use std::{io::ErrorKind, path::Path};

pub use error::ConfigError;
pub use findings::{Finding, check};
pub(crate) use pin::from_file as pin_from_file;
pub use settings::{Config, Peer, Site, Store};

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

#[cfg(test)]
mod tests;
