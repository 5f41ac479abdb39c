//! From a listening socket to connections whose certificate was accepted.

use std::{net::SocketAddr, sync::Arc, time::Duration};

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
            tracing::warn!(%address, "refused: connections_max are open");
            continue;
        };
        let (tls, limits, drain, accepted) =
            (Arc::clone(&tls), limits.clone(), drain.clone(), accepted.clone());
        handshakes.spawn(async move {
            let handshake = shake_hands(stream, address, &tls, &limits, drain, place);
            match timeout(limits.handshake_timeout, handshake).await {
                // Fails only if the server is gone.
                Ok(Some(connection)) => drop(accepted.send(Ok(connection)).await),
                Ok(None) => {}
                Err(_) => tracing::info!(%address, "refused: the handshake took too long"),
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
) -> Option<Connection> {
    // Small answers must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let loaded = tls.current();
    let io = match TlsAcceptor::from(Arc::clone(&loaded.config)).accept(stream).await {
        Ok(io) => io,
        Err(error) => {
            tracing::info!(%address, reason = chain(&error), "refused: handshake failed");
            return None;
        }
    };
    let session = io.get_ref().1;
    if session.alpn_protocol() != Some(b"h2") {
        tracing::info!(%address, "refused: the client does not speak HTTP/2");
        return None;
    }
    let peer = Peer::new(
        address,
        session.peer_certificates()?,
        &loaded,
        limits.streams_per_connection_max,
    )?;
    tracing::debug!(?peer, "connected");
    Some(Connection::new(io, peer, end_of_life(limits, drain), place))
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
