//! A connection to one of the peer's endpoints: TCP and TLS, with one bound over both. Certificates are read for each
//! connection, so that new ones are used without a restart.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, crypto::ring, pki_types::ServerName, sign::SingleCertAndKey};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::rpc::{
    config::{PeerConfig, TlsConfig},
    tls::{
        certificate::{Pem, load_authorities, load_identity},
        error::TlsError,
        in_use::chain,
    },
};

/// There is no connection to the peer: nothing went out.
#[derive(Debug, thiserror::Error)]
#[error("{at}: {why}")]
pub(super) struct NotConnected {
    at: String,
    why: String,
}

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    peer: PeerConfig,
    own: TlsConfig,
    /// The endpoint that answered last.
    current: AtomicUsize,
}

impl Connector {
    pub(super) fn new(peer: PeerConfig, own: TlsConfig) -> Self {
        Self(Arc::new(Inner { peer, own, current: AtomicUsize::new(0) }))
    }

    /// A connection to the first endpoint that answers, beginning with the one that did last.
    pub(super) async fn connect(self) -> Result<TokioIo<TlsStream<TcpStream>>, NotConnected> {
        let Inner { peer, own, current } = &*self.0;
        let tls = tls(peer, own)
            .await
            .map_err(|error| NotConnected { at: "certificates".to_owned(), why: chain(&error) })?;
        let first = current.load(Ordering::Relaxed);
        let count = peer.endpoints.len().max(1);
        // All of them within the bound.
        let bound = peer.connect_timeout / u32::try_from(count).unwrap_or(u32::MAX);
        let mut last = NotConnected { at: "[peer]".to_owned(), why: "no endpoint".to_owned() };
        for turn in 0..peer.endpoints.len() {
            let index = (first + turn) % count;
            let Some(authority) = peer.endpoints.get(index) else { continue };
            match connect_to(peer, authority, Arc::clone(&tls), bound).await {
                Ok(connection) => {
                    current.store(index, Ordering::Relaxed);
                    return Ok(TokioIo::new(connection));
                }
                Err(why) => last = NotConnected { at: authority.clone(), why },
            }
        }
        Err(last)
    }
}

async fn connect_to(
    peer: &PeerConfig,
    authority: &str,
    tls: Arc<ClientConfig>,
    bound: Duration,
) -> Result<TlsStream<TcpStream>, String> {
    let name = peer.server_name.clone().unwrap_or_else(|| host(authority).to_owned());
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let connecting = async {
        let tcp = TcpStream::connect(authority).await?;
        // Small questions must not wait for an acknowledgement.
        let _ = tcp.set_nodelay(true);
        let tls = TlsConnector::from(tls).connect(name, tcp).await?;
        if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
            return Ok(tls);
        }
        Err(io::Error::new(io::ErrorKind::Unsupported, "the peer does not speak HTTP/2"))
    };
    match timeout(bound, connecting).await {
        Ok(connected) => connected.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no connection within {bound:?}")),
    }
}

/// The host of an authority, without the brackets that an IPv6 address has there and not in a certificate.
fn host(authority: &str) -> &str {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

async fn tls(peer: &PeerConfig, own: &TlsConfig) -> Result<Arc<ClientConfig>, TlsError> {
    let read = |path: std::path::PathBuf| async move {
        tokio::fs::read(&path).await.map_err(|source| TlsError::Read { path, source })
    };
    let (certificate, key, ca) = tokio::try_join!(
        read(own.certificate.clone()),
        read(own.private_key.clone()),
        read(peer.ca.clone())
    )?;
    let key = zeroize::Zeroizing::new(key);
    let provider = Arc::new(ring::default_provider());
    let identity = load_identity(
        Pem { path: &own.certificate, content: &certificate },
        Pem { path: &own.private_key, content: &key },
        &provider,
    )?;
    let authorities = load_authorities(&peer.ca, &ca)?;
    let set_up = |error: rustls::Error| TlsError::SetUp(error.into());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(set_up)?
        .with_root_certificates(authorities)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_in_a_certificate_is_the_host_without_port_and_brackets() {
        assert_eq!(host("kms.south.example.org:7443"), "kms.south.example.org");
        assert_eq!(host("[2001:db8::1]:7443"), "2001:db8::1");
        assert_eq!(host("192.0.2.1:7443"), "192.0.2.1");
    }
}
