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
    endpoints: Option<Vec<String>>,
    ca: Option<PathBuf>,
    certificate: PathBuf,
    private_key: PathBuf,
    server_name: Option<String>,
    #[serde(default = "default_deadline_ms")]
    deadline_ms: u64,
    #[serde(default = "default_retries")]
    retries: u32,
    #[serde(default = "default_hedge_after_ms")]
    hedge_after_ms: u64,
    #[serde(default)]
    sites: Vec<SiteSection>,
}

/// One of `[[sites]]`. What it leaves out is as above it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteSection {
    name: String,
    endpoints: Vec<String>,
    ca: Option<PathBuf>,
    server_name: Option<String>,
}

/// Ten seconds: longer than a token needs for a cold block, shorter than a person's patience.
const fn default_deadline_ms() -> u64 {
    10_000
}

const fn default_retries() -> u32 {
    3
}

/// Later than nearly every answer of a healthy site, and three of it are less than a second.
const fn default_hedge_after_ms() -> u64 {
    300
}

/// One site: where its servers are, and how they show that they are its.
#[derive(Clone, Debug)]
pub(crate) struct SiteConfig {
    /// The name by which callers learn who answered.
    pub(crate) name: String,
    /// `https://host:port`, tried in this order.
    pub(crate) endpoints: Vec<String>,
    /// The authority that signed the service's certificate; PEM.
    pub(crate) ca_pem: Vec<u8>,
    /// The name that the service's certificate must carry, where it is not the endpoint's host.
    pub(crate) server_name: Option<String>,
}

/// The settings that the client needs to find the service and to be let in, checked.
pub struct ClientConfig {
    /// In order of preference; never empty.
    pub(crate) sites: Vec<SiteConfig>,
    /// Our certificate; PEM.
    pub(crate) certificate_pem: Vec<u8>,
    /// Its key; PEM.
    pub(crate) private_key_pem: Zeroizing<Vec<u8>>,
    /// The time that a call may take, further tries included.
    pub(crate) deadline: Duration,
    /// The number of times that a call is tried again, where that is safe.
    pub(crate) retries: u32,
    /// The time after which a read that has no answer is asked of another site, too; `None`: never.
    pub(crate) hedge_after: Option<Duration>,
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
    /// Both ways to name where the service is, or none.
    #[error(
        "name either `endpoints`, for one site, or `[[sites]]`, one for each site in order of preference"
    )]
    EndpointsOrSites,
    /// More sites than a domain has.
    #[error("there are {0} `[[sites]]`; at most {max} are known", max = ClientConfig::SITES_MAX)]
    TooManySites(usize),
    /// A name that tells nothing, or that two sites have.
    #[error("site name {0:?} is empty, too long or there twice")]
    SiteName(String),
    /// Nobody to trust.
    #[error("site {0:?} has no `ca`, and none stands above the sites")]
    NoAuthority(String),
    /// Too soon for any answer, or never.
    #[error(
        "`hedge_after_ms` is {0}; it must be between {min} and {max}, or 0: no second site is asked",
        min = ClientConfig::HEDGE_AFTER_MS.0,
        max = ClientConfig::HEDGE_AFTER_MS.1
    )]
    HedgeAfter(u64),
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
    /// Two sites that write, and replicas that only read.
    pub const SITES_MAX: usize = 4;
    /// The bounds of `hedge_after_ms`: a busy machine is no dead one, and a caller waits no longer.
    pub const HEDGE_AFTER_MS: (u64, u64) = (20, 10_000);
    /// Letters in a site's name.
    const SITE_NAME_MAX: usize = 64;
    /// More endpoints of a site than this are a mistake.
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
        let hedge_after = hedge_after(section.hedge_after_ms)?;
        let (deadline_ms, retries) = (section.deadline_ms, section.retries);
        if !(1..=Self::DEADLINE_MS_MAX).contains(&deadline_ms) {
            return Err(ConfigError::Deadline(deadline_ms));
        }
        if retries > Self::RETRIES_MAX {
            return Err(ConfigError::Retries(retries));
        }
        let pem = |what, path: &Path| read(what, &base.join(path));
        Ok(Self {
            sites: sites(&section, base)?,
            certificate_pem: pem("`certificate`", &section.certificate)?,
            private_key_pem: Zeroizing::new(pem("`private_key`", &section.private_key)?),
            deadline: Duration::from_millis(deadline_ms),
            retries,
            hedge_after,
        })
    }

    /// The names of the sites, in order of preference.
    pub fn site_names(&self) -> impl Iterator<Item = &str> {
        self.sites.iter().map(|site| &*site.name)
    }

    /// All endpoints of all sites.
    pub(crate) fn endpoint_count(&self) -> usize {
        self.sites.iter().map(|site| site.endpoints.len()).sum()
    }
}

fn hedge_after(ms: u64) -> Result<Option<Duration>, ConfigError> {
    let (min, max) = ClientConfig::HEDGE_AFTER_MS;
    match ms {
        0 => Ok(None),
        ms if (min..=max).contains(&ms) => Ok(Some(Duration::from_millis(ms))),
        ms => Err(ConfigError::HedgeAfter(ms)),
    }
}

/// The sites, or the one that the older form means.
fn sites(section: &Section, base: &Path) -> Result<Vec<SiteConfig>, ConfigError> {
    if section.endpoints.is_some() != section.sites.is_empty() {
        return Err(ConfigError::EndpointsOrSites);
    }
    if let Some(endpoints) = &section.endpoints {
        check_endpoints(endpoints)?;
        let name = endpoints[0].trim_start_matches("https://").to_owned();
        let (ca, server_name) = (&section.ca, &section.server_name);
        return Ok(vec![site(base, name, endpoints, ca.as_ref(), server_name.as_ref())?]);
    }
    if section.sites.len() > ClientConfig::SITES_MAX {
        return Err(ConfigError::TooManySites(section.sites.len()));
    }
    let mut sites: Vec<SiteConfig> = Vec::new();
    for SiteSection { name, endpoints, ca, server_name } in &section.sites {
        let is_twice = sites.iter().any(|site| site.name == *name);
        if name.trim().is_empty() || name.len() > ClientConfig::SITE_NAME_MAX || is_twice {
            return Err(ConfigError::SiteName(name.clone()));
        }
        check_endpoints(endpoints)?;
        let ca = ca.as_ref().or(section.ca.as_ref());
        let server_name = server_name.as_ref().or(section.server_name.as_ref());
        sites.push(site(base, name.clone(), endpoints, ca, server_name)?);
    }
    Ok(sites)
}

fn site(
    base: &Path,
    name: String,
    endpoints: &[String],
    ca: Option<&PathBuf>,
    server_name: Option<&String>,
) -> Result<SiteConfig, ConfigError> {
    let ca = ca.ok_or_else(|| ConfigError::NoAuthority(name.clone()))?;
    let ca_pem = read("`ca`", &base.join(ca))?;
    let (endpoints, server_name) = (endpoints.to_vec(), server_name.cloned());
    Ok(SiteConfig { name, endpoints, ca_pem, server_name })
}

fn check_endpoints(endpoints: &[String]) -> Result<(), ConfigError> {
    if endpoints.is_empty() {
        return Err(ConfigError::NoEndpoints);
    }
    if endpoints.len() > ClientConfig::ENDPOINTS_MAX {
        return Err(ConfigError::TooManyEndpoints(endpoints.len()));
    }
    match endpoints.iter().find(|endpoint| !is_https_host_port(endpoint)) {
        Some(bad) => Err(ConfigError::Endpoint(bad.clone())),
        None => Ok(()),
    }
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig")
            .field("sites", &self.site_names().collect::<Vec<_>>())
            .field("deadline", &self.deadline)
            .field("retries", &self.retries)
            .field("hedge_after", &self.hedge_after)
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
        assert_eq!(config.sites[0].ca_pem, b"ca.pem");
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

    const TWO: &str = r#"
        certificate = "me.pem"
        private_key = "me.key"
        ca = "ca.pem"
        [[sites]]
        name = "north"
        endpoints = ["https://n1:7443", "https://n2:7443"]
        [[sites]]
        name = "south"
        endpoints = ["https://s1:7443"]
        ca = "me.pem"
        server_name = "kms.south"
    "#;

    #[test]
    fn two_sites_stand_in_order_of_preference_and_differ_where_they_say_so() {
        let config = load(TWO).unwrap();
        assert_eq!(config.site_names().collect::<Vec<_>>(), ["north", "south"]);
        assert_eq!(config.endpoint_count(), 3);
        assert_eq!(config.hedge_after, Some(Duration::from_millis(300)));
        let [north, south] = &config.sites[..] else { panic!("{config:?}") };
        assert_eq!((&*north.ca_pem, &*south.ca_pem), (&b"ca.pem"[..], &b"me.pem"[..]));
        assert_eq!((&north.server_name, south.server_name.as_deref()), (&None, Some("kms.south")));
    }

    #[test]
    fn the_form_for_one_site_still_means_one_site() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.site_names().collect::<Vec<_>>(), ["localhost:7443"]);
    }

    #[test]
    fn sites_that_nobody_could_tell_apart_reach_or_trust_are_refused() {
        let refused = |from: &str, to: &str| {
            assert!(TWO.contains(from));
            load(&TWO.replacen(from, to, 1)).unwrap_err()
        };
        let both = refused("ca = \"ca.pem\"", "ca = \"ca.pem\"\nendpoints = [\"https://x:1\"]");
        assert!(matches!(both, ConfigError::EndpointsOrSites), "{both}");
        let none = load("certificate = \"me.pem\"\nprivate_key = \"me.key\"").unwrap_err();
        assert!(matches!(none, ConfigError::EndpointsOrSites), "{none}");
        assert!(matches!(refused("south", "north"), ConfigError::SiteName(_)));
        assert!(matches!(refused("\"south\"", "\" \""), ConfigError::SiteName(_)));
        assert!(matches!(refused("https://s1:7443", "s1"), ConfigError::Endpoint(_)));
        assert!(matches!(refused("ca = \"ca.pem\"", ""), ConfigError::NoAuthority(_)));
        let late = refused("ca = \"ca.pem\"", "ca = \"ca.pem\"\nhedge_after_ms = 5");
        assert!(matches!(late, ConfigError::HedgeAfter(5)), "{late}");
    }

    #[test]
    fn debug_does_not_show_the_private_key() {
        assert!(!format!("{:?}", load(GOOD).unwrap()).contains("me.key"));
    }
}
