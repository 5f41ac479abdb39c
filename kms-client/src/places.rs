//! Places: the sites' servers as the configuration names them, each with its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig as TlsConfig, RootCertStore};

use crate::config::{ClientConfig, ConfigError, SiteConfig};
use crate::link::Link;
use crate::setup::Target;

/// The time that a connection may take, TLS and HTTP/2 included: at most, and at least.
pub(crate) const SETUP: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(1));
/// A peer that says nothing is asked after so long whether it is there, and may take so long to answer. With
/// a short deadline both are shorter, so that there is time left for another endpoint.
const PINGS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));
/// No shorter than this: a busy machine is not a dead one.
const PING_MIN: Duration = Duration::from_millis(500);

/// One server of one site, both by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) site: usize,
    pub(crate) server: usize,
}

/// The servers of one site, and which of them serves at the moment.
pub(crate) struct Servers {
    pub(crate) name: Arc<str>,
    links: Vec<Link>,
    current: AtomicUsize,
}

impl Servers {
    pub(crate) fn count(&self) -> usize {
        self.links.len()
    }

    /// The server where calls begin.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Has calls begin at this server.
    pub(crate) fn begin_at(&self, server: usize) {
        self.current.store(server, Ordering::Relaxed);
    }

    /// Lets later calls, too, begin at the server after `left`; which that is.
    pub(crate) fn leave(&self, left: usize) -> usize {
        let next = (left + 1) % self.links.len();
        // Another call may have moved on already; then its choice stands.
        let moved = Ordering::Relaxed;
        let _ = self.current.compare_exchange(left, next, moved, moved);
        next
    }

    pub(crate) fn link(&self, server: usize) -> Link {
        self.links[server % self.links.len()].clone()
    }
}

/// The servers of each site, in order of preference. Opens no connection.
pub(crate) fn places(config: &ClientConfig) -> Result<Vec<Servers>, ConfigError> {
    let of_site = |site: &SiteConfig| {
        let tls = Arc::new(tls(config, site)?);
        let links = site.endpoints.iter().map(|url| link(config, site, url, &tls));
        Ok(Servers {
            name: site.name.as_str().into(),
            links: links.collect::<Result<_, ConfigError>>()?,
            current: AtomicUsize::default(),
        })
    };
    config.sites.iter().map(of_site).collect()
}

fn link(
    config: &ClientConfig,
    site: &SiteConfig,
    url: &str,
    tls: &Arc<TlsConfig>,
) -> Result<Link, ConfigError> {
    let bad = || ConfigError::Endpoint(url.to_owned());
    let authority = url.strip_prefix("https://").ok_or_else(bad)?;
    let parsed: tonic::codegen::http::uri::Authority = authority.parse().map_err(|_| bad())?;
    let name = site.server_name.as_deref().unwrap_or(parsed.host());
    // An IPv6 address stands in brackets there and without them in a certificate.
    let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
    let server_name = ServerName::try_from(name).map_err(|error| ConfigError::Tls(error.into()))?;
    let shares = u32::try_from(config.endpoint_count() + 1).unwrap_or(u32::MAX);
    let target = Target {
        authority: authority.to_owned(),
        tls: Arc::clone(tls),
        server_name,
        bound: (config.deadline / shares).clamp(SETUP.1, SETUP.0),
        pings: (
            (config.deadline / 5).clamp(PING_MIN, PINGS.0),
            (config.deadline * 3 / 10).clamp(2 * PING_MIN, PINGS.1),
        ),
    };
    Ok(Link::new(target, parsed))
}

fn tls(config: &ClientConfig, site: &SiteConfig) -> Result<TlsConfig, ConfigError> {
    fn bad(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConfigError {
        ConfigError::Tls(error.into())
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&site.ca_pem) {
        roots.add(certificate.map_err(bad)?).map_err(bad)?;
    }
    let chain = CertificateDer::pem_slice_iter(&config.certificate_pem);
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let key = PrivateKeyDer::from_pem_slice(&config.private_key_pem).map_err(bad)?;
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(ring::default_provider()));
    let mut tls = TlsConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(bad)?;
    tls.alpn_protocols.push(b"h2".to_vec());
    Ok(tls)
}
