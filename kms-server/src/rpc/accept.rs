//! From a listening socket to connections whose certificate was accepted.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    config::Limits,
    connection::{Connection, EndOfLife, Peer},
    drain::{DrainWatch, Phase},
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
    drain: DrainWatch,
    accepted: mpsc::Sender<std::io::Result<Connection>>,
) {
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let refusals = Arc::new(Refusals::default());
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
            refusals.log(address, "connections_max are open");
            continue;
        };
        let (tls, limits, drain, accepted) =
            (Arc::clone(&tls), limits.clone(), drain.clone(), accepted.clone());
        let refusals = Arc::clone(&refusals);
        handshakes.spawn(async move {
            let handshake = shake_hands(stream, address, &tls, &limits, drain, place);
            match timeout(limits.handshake_timeout, handshake).await {
                // Fails only if the server is gone.
                Ok(Ok(connection)) => drop(accepted.send(Ok(connection)).await),
                Ok(Err(reason)) => refusals.log(address, &reason),
                Err(_) => refusals.log(address, "the handshake took too long"),
            }
        });
    }
}

async fn shake_hands(
    stream: TcpStream,
    address: SocketAddr,
    tls: &Tls,
    limits: &Limits,
    drain: DrainWatch,
    place: OwnedSemaphorePermit,
) -> Result<Connection, String> {
    // Small answers must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let loaded = tls.current();
    let acceptor = TlsAcceptor::from(Arc::clone(&loaded.config));
    let io = acceptor.accept(stream).await.map_err(|error| chain(&error))?;
    let session = io.get_ref().1;
    if session.alpn_protocol() != Some(b"h2") {
        return Err("the client does not speak HTTP/2".to_owned());
    }
    let peer = session
        .peer_certificates()
        .and_then(|chain| Peer::new(address, chain, &loaded, limits.streams_per_connection_max))
        .ok_or("the client's certificate can't be read")?;
    tracing::debug!(?peer, "connected");
    Ok(Connection::new(io, peer, end_of_life(limits, drain), place))
}

/// Who was refused since the last line of the log.
#[derive(Default)]
struct Refusals(Mutex<(Option<Instant>, u64)>);

impl Refusals {
    fn log(&self, address: SocketAddr, reason: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
