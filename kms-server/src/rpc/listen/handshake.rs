//! From TCP to a connection that has begun HTTP/2: TLS, the client's certificate, and a place among its
//! caller's connections.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::connection::PREFACE;
use crate::rpc::{
    config::Limits,
    figures::Turned,
    gate::peer::Peer,
    shares::accounts::{Shares, Short, Taken},
    tls::in_use::{Tls, chain},
};

/// All that a handshake needs.
pub(super) struct Handshakes {
    pub(super) tls: Arc<Tls>,
    pub(super) shares: Arc<Shares>,
    pub(super) limits: Limits,
}

/// A connection that has come so far.
pub(super) struct Arrived {
    pub(super) io: TlsStream<TcpStream>,
    pub(super) peer: Peer,
    /// Its place among its caller's connections.
    pub(super) place: Taken,
}

/// A connection that is turned away.
pub(super) struct Turning {
    pub(super) why: Turned,
    /// The cause in words, for the log.
    pub(super) reason: String,
}

impl Turning {
    fn new(why: Turned, reason: impl Into<String>) -> Self {
        Self { why, reason: reason.into() }
    }
}

impl Handshakes {
    /// All of it, within the time that there is for it.
    pub(super) async fn arrive(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<Arrived, Turning> {
        let until = Instant::now() + self.limits.handshake_timeout;
        let (mut io, peer) = timeout_at(until, self.shake_hands(stream, address))
            .await
            .map_err(|_| Turning::new(Turned::Timeout, "the handshake took too long"))??;
        if let Some(problem) = read_preface(&mut io, until).await {
            return Err(Turning::new(Turned::NoPreface, format!("{problem}: {peer:?}")));
        }
        let place = place_of(&peer)?;
        Ok(Arrived { io, peer, place })
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<(TlsStream<TcpStream>, Peer), Turning> {
        // Small answers must not wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let loaded = self.tls.current();
        let acceptor = TlsAcceptor::from(Arc::clone(&loaded.config));
        let accepted = acceptor.accept(stream).await;
        let io = accepted.map_err(|error| Turning::new(reason_of(&error), chain(&error)))?;
        let session = io.get_ref().1;
        if session.alpn_protocol() != Some(b"h2") {
            let reason = "the client does not speak HTTP/2";
            return Err(Turning::new(Turned::Incompatible, reason));
        }
        let calls_max = self.limits.streams_per_connection_max;
        let peer = session
            .peer_certificates()
            .and_then(|chain| Peer::new(address, chain, &loaded, &self.shares, calls_max))
            .ok_or_else(|| {
                let reason = "the client's certificate can't be read";
                Turning::new(Turned::BadCertificate, reason)
            })?;
        tracing::debug!(?peer, "connected");
        Ok((io, peer))
    }
}

/// Waits for the beginning of HTTP/2; what was wrong with it.
async fn read_preface(io: &mut TlsStream<TcpStream>, until: Instant) -> Option<&'static str> {
    let mut preface = [0; PREFACE.len()];
    match timeout_at(until, io.read_exact(&mut preface)).await {
        Ok(Ok(_)) if preface == *PREFACE => None,
        Ok(Ok(_)) => Some("the client does not speak HTTP/2"),
        Ok(Err(_)) => Some("the client went away after the handshake"),
        Err(_) => Some("no HTTP/2 came after the handshake"),
    }
}

fn place_of(peer: &Peer) -> Result<Taken, Turning> {
    peer.account().connections.try_take(1).map_err(|short| match short {
        Short::Own(limit) => Turning::new(
            Turned::CallerLimit,
            format!("its caller has {limit} connections: {peer:?}"),
        ),
        Short::All(_) => Turning::new(Turned::Limit, "connections_max are open"),
    })
}

/// The class of a handshake's failure.
fn reason_of(error: &std::io::Error) -> Turned {
    use rustls::{CertificateError, Error};
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return Turned::Io;
    };
    match error {
        Error::NoCertificatesPresented => Turned::NoCertificate,
        Error::InvalidCertificate(CertificateError::Revoked) => Turned::Revoked,
        Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => {
            Turned::BadCertificate
        }
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Turned::Incompatible,
        Error::AlertReceived(_) => Turned::PeerAlert,
        _ => Turned::Tls,
    }
}
