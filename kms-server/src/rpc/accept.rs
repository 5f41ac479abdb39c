//! From a listening socket to connections whose certificate was accepted.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    config::Limits,
    connection::{Connection, EndOfLife, Peer},
    drain::{DrainWatch, Phase},
    figures::{Figures, Turned},
    tls::{Tls, chain},
};

/// How long to wait after the system refused to accept: it has no descriptors left, most likely, and
/// asking again at once would only take the processor from those who could give one back.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Strangers may fill a log; this is how often they get a line of it.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// How many connections may lie between handshake and HTTP.
pub(super) const ACCEPTED_MAX: usize = 16;

/// Accepts until the drain begins; then the socket is closed and unfinished handshakes are dropped.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Arc<Tls>,
    limits: Limits,
    (drain, figures): (DrainWatch, Arc<Figures>),
    accepted: mpsc::Sender<std::io::Result<Connection>>,
) {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let refusals = Arc::new(Refusals { figures: Arc::clone(&figures), logged: Mutex::default() });
    let mut handshakes = JoinSet::new();
    let mut draining = std::pin::pin!(drain.clone().reached(Phase::Draining));
    loop {
        let (stream, address) = tokio::select! {
            biased;
            () = &mut draining => return,
            // Reaps; the set itself is bounded by the places.
            Some(_) = handshakes.join_next(), if !handshakes.is_empty() => continue,
            next = listener.accept() => match next {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    continue;
                }
            },
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refusals.note(address, Turned::Limit, "connections_max are open");
            continue;
        };
        let (tls, limits, drain, accepted) =
            (Arc::clone(&tls), limits.clone(), drain.clone(), accepted.clone());
        let (refusals, figures) = (Arc::clone(&refusals), Arc::clone(&figures));
        handshakes.spawn(async move {
            let handshake = shake_hands(stream, address, &tls, &limits);
            match timeout(limits.handshake_timeout, handshake).await {
                Ok(Ok((io, peer))) => {
                    let (end, counted) = (end_of_life(&limits, drain), figures.connected());
                    let connection = Connection::new(io, peer, end, place, counted);
                    // Fails only if the server is gone.
                    drop(accepted.send(Ok(connection)).await);
                }
                Ok(Err((why, reason))) => refusals.note(address, why, &reason),
                Err(_) => refusals.note(address, Turned::Timeout, "the handshake took too long"),
            }
        });
    }
}

async fn shake_hands(
    stream: TcpStream,
    address: SocketAddr,
    tls: &Tls,
    limits: &Limits,
) -> Result<(TlsStream<TcpStream>, Peer), (Turned, String)> {
    // Small answers must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let loaded = tls.current();
    let acceptor = TlsAcceptor::from(Arc::clone(&loaded.config));
    let io = acceptor.accept(stream).await.map_err(|error| (reason_of(&error), chain(&error)))?;
    let session = io.get_ref().1;
    if session.alpn_protocol() != Some(b"h2") {
        return Err((Turned::Incompatible, "the client does not speak HTTP/2".to_owned()));
    }
    let peer = session
        .peer_certificates()
        .and_then(|chain| Peer::new(address, chain, &loaded, limits.streams_per_connection_max))
        .ok_or_else(|| {
            (Turned::BadCertificate, "the client's certificate can't be read".to_owned())
        })?;
    tracing::debug!(?peer, "connected");
    Ok((io, peer))
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

/// Who was refused, and how often since the last line of the log.
struct Refusals {
    figures: Arc<Figures>,
    logged: Mutex<(Option<Instant>, u64)>,
}

impl Refusals {
    fn note(&self, address: SocketAddr, why: Turned, reason: &str) {
        self.figures.turned_away(why);
        let mut state = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unlogged) = &mut *state;
        if last.is_some_and(|last| last.elapsed() < REFUSALS_LOGGED_EVERY) {
            *unlogged += 1;
            return;
        }
        tracing::warn!(%address, reason, unlogged_since_last = *unlogged, "connection refused");
        *state = (Some(Instant::now()), 0);
    }
}

/// The cut at the end of a drain, and that of a connection which was asked to end and did not.
fn end_of_life(limits: &Limits, drain: DrainWatch) -> EndOfLife {
    let life = limits.connection_age_max.map(|age| age.saturating_add(limits.drain_timeout));
    Box::pin(async move {
        let cut = drain.reached(Phase::Cut);
        match life {
            Some(life) => drop(timeout(life, cut).await),
            None => cut.await,
        }
    })
}
