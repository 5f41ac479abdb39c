//! `client.toml`: as written, and as meant.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use zeroize::Zeroizing;

/// `client.toml` as it stands in the file: units in the names, nothing checked yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    endpoints: Vec<String>,
    ca: PathBuf,
    certificate: PathBuf,
    private_key: PathBuf,
    server_name: Option<String>,
    #[serde(default = "default_deadline_ms")]
    deadline_ms: u64,
    #[serde(default = "default_retries")]
    retries: u32,
}

/// Ten seconds: longer than a token needs for a cold block, shorter than a person's patience.
const fn default_deadline_ms() -> u64 {
    10_000
}

const fn default_retries() -> u32 {
    3
}

/// The settings that the client needs to find the service and to be let in, checked.
pub struct ClientConfig {
    /// `https://host:port`, tried in this order.
    pub(crate) endpoints: Vec<String>,
    /// The authority that signed the service's certificate; PEM.
    pub(crate) ca_pem: Vec<u8>,
    /// Our certificate; PEM.
    pub(crate) certificate_pem: Vec<u8>,
    /// Its key; PEM.
    pub(crate) private_key_pem: Zeroizing<Vec<u8>>,
    /// The name that the service's certificate must carry, where it is not the endpoint's host.
    pub(crate) server_name: Option<String>,
    /// The time that a call may take, further tries included.
    pub(crate) deadline: Duration,
    /// The number of times that a call is tried again, where that is safe.
    pub(crate) retries: u32,
}

/// The reason why there is no configuration. Each says what to change.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file that can't be read.
    #[error("reading {what} {path}")]
    Read {
        /// The setting that names the file, or the configuration itself.
        what: &'static str,
        /// The path of the file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Not TOML, or settings that don't exist or are missing.
    #[error("{path} is not a client configuration")]
    Parse {
        /// The file.
        path: String,
        /// The fault, and its line.
        source: Box<toml::de::Error>,
    },
    /// An empty list.
    #[error("`endpoints` is empty; name at least one, as in \"https://kms.example:7443\"")]
    NoEndpoints,
    /// Too many of them.
    #[error("`endpoints` names {0}; at most {max} are tried", max = ClientConfig::ENDPOINTS_MAX)]
    TooManyEndpoints(usize),
    /// Not `https://host:port`.
    #[error("endpoint {0:?} is not of the form https://host:port")]
    Endpoint(String),
    /// No time, or all day.
    #[error("`deadline_ms` is {0}; it must be between 1 and {max}", max = ClientConfig::DEADLINE_MS_MAX)]
    Deadline(u64),
    /// Too often.
    #[error("`retries` is {0}; at most {max} are allowed", max = ClientConfig::RETRIES_MAX)]
    Retries(u32),
    /// Certificates or key that TLS won't take.
    #[error(
        "the certificates cannot be used; check that `ca`, `certificate` and `private_key` are PEM and belong together"
    )]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ClientConfig {
    /// More endpoints than this are a mistake.
    pub const ENDPOINTS_MAX: usize = 16;
    /// Ten minutes.
    pub const DEADLINE_MS_MAX: u64 = 600_000;
    /// More retries than this are an attack.
    pub const RETRIES_MAX: u32 = 10;

    /// Reads the file and the certificates it names. Relative paths are relative to the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read("the configuration", path)?;
        let text = String::from_utf8_lossy(&text);
        let section: Section = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.display().to_string(),
            source: Box::new(source),
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::check(section, base)
    }

    fn check(section: Section, base: &Path) -> Result<Self, ConfigError> {
        let Section { endpoints, ca, certificate, private_key, server_name, deadline_ms, retries } =
            section;
        if endpoints.is_empty() {
            return Err(ConfigError::NoEndpoints);
        }
        if endpoints.len() > Self::ENDPOINTS_MAX {
            return Err(ConfigError::TooManyEndpoints(endpoints.len()));
        }
        if let Some(bad) = endpoints.iter().find(|endpoint| !is_https_host_port(endpoint)) {
            return Err(ConfigError::Endpoint(bad.clone()));
        }
        if !(1..=Self::DEADLINE_MS_MAX).contains(&deadline_ms) {
            return Err(ConfigError::Deadline(deadline_ms));
        }
        if retries > Self::RETRIES_MAX {
            return Err(ConfigError::Retries(retries));
        }
        Ok(Self {
            endpoints,
            ca_pem: read("`ca`", &base.join(ca))?,
            certificate_pem: read("`certificate`", &base.join(certificate))?,
            private_key_pem: Zeroizing::new(read("`private_key`", &base.join(private_key))?),
            server_name,
            deadline: Duration::from_millis(deadline_ms),
            retries,
        })
    }
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig")
            .field("endpoints", &self.endpoints)
            .field("server_name", &self.server_name)
            .field("deadline", &self.deadline)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|source| ConfigError::Read {
        what,
        path: path.display().to_string(),
        source,
    })
}

fn is_https_host_port(endpoint: &str) -> bool {
    let Some((host, port)) =
        endpoint.strip_prefix("https://").and_then(|rest| rest.rsplit_once(':'))
    else {
        return false;
    };
    let host_is_plain = !host.is_empty() && !host.contains(['/', '@', ' ', '?', '#']);
    host_is_plain && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        endpoints = ["https://localhost:7443"]
        ca = "ca.pem"
        certificate = "me.pem"
        private_key = "me.key"
    "#;

    fn load(text: &str) -> Result<ClientConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ca.pem", "me.pem", "me.key"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::write(dir.path().join("client.toml"), text).unwrap();
        ClientConfig::load(&dir.path().join("client.toml"))
    }

    fn with(from: &str, to: &str) -> ConfigError {
        assert!(GOOD.contains(from));
        load(&GOOD.replace(from, to)).unwrap_err()
    }

    #[test]
    fn relative_paths_are_relative_to_the_file() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.ca_pem, b"ca.pem");
        assert_eq!(config.deadline, Duration::from_secs(10));
        assert_eq!(config.retries, 3);
    }

    #[test]
    fn an_unknown_setting_is_not_ignored() {
        let error = load(&format!("{GOOD}\nretrys = 3")).unwrap_err();
        assert!(matches!(error, ConfigError::Parse { .. }), "{error}");
    }

    #[test]
    fn an_endpoint_without_tls_or_port_is_not_an_endpoint() {
        for bad in ["http://localhost:7443", "https://localhost", "localhost:7443", "https://:1"] {
            assert!(matches!(with("https://localhost:7443", bad), ConfigError::Endpoint(_)));
        }
        let error = with("\"https://localhost:7443\"", "");
        assert!(matches!(error, ConfigError::NoEndpoints));
    }

    #[test]
    fn a_missing_certificate_is_named_with_its_path() {
        let error = with("me.pem", "you.pem").to_string();
        assert!(error.contains("`certificate`") && error.contains("you.pem"), "{error}");
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let deadline = load(&format!("{GOOD}\ndeadline_ms = 0")).unwrap_err();
        assert!(matches!(deadline, ConfigError::Deadline(0)));
        let retries = load(&format!("{GOOD}\nretries = 11")).unwrap_err();
        assert!(matches!(retries, ConfigError::Retries(11)));
    }

    #[test]
    fn debug_does_not_show_the_private_key() {
        assert!(!format!("{:?}", load(GOOD).unwrap()).contains("me.key"));
    }
}
