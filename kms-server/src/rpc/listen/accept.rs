//! From a listening socket to connections whose certificate was accepted.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::connection::{Connection, EndOfLife, PREFACE, Peer};
use crate::rpc::{
    config::Limits,
    drain::{DrainWatch, Phase},
    figures::{Figures, Turned},
    shares::accounts::{Shares, Short, Taken},
    tls::in_use::{Tls, chain},
};
use kms_core::Numbered as _;

/// How long to wait after the system refused to accept: it has no descriptors left, most likely, and
/// asking again at once would only take the processor from those who could give one back.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Strangers may fill a log; this is how often each cause gets a line of it.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);

/// How many connections may lie between handshake and HTTP.
pub(crate) const ACCEPTED_MAX: usize = 16;

/// Accepts until the drain begins; then the socket is closed and unfinished handshakes are dropped.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Arc<Tls>,
    limits: Limits,
    (drain, figures, shares): (DrainWatch, Arc<Figures>, Arc<Shares>),
    accepted: mpsc::Sender<std::io::Result<Connection>>,
) {
    let refusals = Arc::new(Refusals { figures: Arc::clone(&figures), logged: Mutex::default() });
    let crowd = Crowd::new(&limits);
    let mut handshakes = JoinSet::new();
    let mut draining = std::pin::pin!(drain.clone().reached(Phase::Draining));
    loop {
        let (stream, address) = tokio::select! {
            biased;
            () = &mut draining => return,
            // Reaps; the set itself is bounded by the crowd.
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
        if let Some(crowded_out) = crowd.make_room(address.ip()) {
            refusals.note(crowded_out, Turned::Crowded, "others came while it shook no hands");
        }
        let (tls, limits, drain, accepted, shares) = (
            Arc::clone(&tls),
            limits.clone(),
            drain.clone(),
            accepted.clone(),
            Arc::clone(&shares),
        );
        let (refusals, figures) = (Arc::clone(&refusals), Arc::clone(&figures));
        let arriving = |leaves: Leaves| async move {
            let arrived = arrive(stream, address, &tls, (&limits, &shares)).await;
            drop(leaves);
            match arrived {
                Ok((io, peer, place)) => {
                    let end = end_of_life(&limits, drain, (peer.clone(), Arc::clone(&figures)));
                    let connection = Connection::new(io, peer, end, place, figures.connected());
                    // Fails only if the server is gone.
                    drop(accepted.send(Ok(connection)).await);
                }
                Err((why, reason)) => refusals.note(address, why, &reason),
            }
        };
        crowd.enter(address, |leaves| handshakes.spawn(arriving(leaves)));
    }
}

type Turning = (Turned, String);

/// From TCP to a connection that has begun HTTP/2, with its place among its caller's.
async fn arrive(
    stream: TcpStream,
    address: SocketAddr,
    tls: &Tls,
    (limits, shares): (&Limits, &Shares),
) -> Result<(TlsStream<TcpStream>, Peer, Taken), Turning> {
    let until = tokio::time::Instant::now() + limits.handshake_timeout;
    let (mut io, peer) = timeout_at(until, shake_hands(stream, address, tls, (limits, shares)))
        .await
        .map_err(|_| (Turned::Timeout, "the handshake took too long".to_owned()))??;
    let mut preface = [0; PREFACE.len()];
    let problem = match timeout_at(until, io.read_exact(&mut preface)).await {
        Ok(Ok(_)) if preface == *PREFACE => None,
        Ok(Ok(_)) => Some("the client does not speak HTTP/2"),
        Ok(Err(_)) => Some("the client went away after the handshake"),
        Err(_) => Some("no HTTP/2 came after the handshake"),
    };
    if let Some(problem) = problem {
        return Err((Turned::NoPreface, format!("{problem}: {peer:?}")));
    }
    let place = peer.account().connections.try_take(1).map_err(|short| match short {
        Short::Own(limit) => {
            (Turned::CallerLimit, format!("its caller has {limit} connections: {peer:?}"))
        }
        Short::All(_) => (Turned::Limit, "connections_max are open".to_owned()),
    })?;
    Ok((io, peer, place))
}

async fn shake_hands(
    stream: TcpStream,
    address: SocketAddr,
    tls: &Tls,
    (limits, shares): (&Limits, &Shares),
) -> Result<(TlsStream<TcpStream>, Peer), Turning> {
    // Small answers must not wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let loaded = tls.current();
    let acceptor = TlsAcceptor::from(Arc::clone(&loaded.config));
    let io = acceptor.accept(stream).await.map_err(|error| (reason_of(&error), chain(&error)))?;
    let session = io.get_ref().1;
    if session.alpn_protocol() != Some(b"h2") {
        return Err((Turned::Incompatible, "the client does not speak HTTP/2".to_owned()));
    }
    let calls_max = limits.streams_per_connection_max;
    let peer = session
        .peer_certificates()
        .and_then(|chain| Peer::new(address, chain, &loaded, (shares, calls_max)))
        .ok_or_else(|| {
            (Turned::BadCertificate, "the client's certificate can't be read".to_owned())
        })?;
    tracing::debug!(?peer, "connected");
    Ok((io, peer))
}

/// Connections that have not shown who they are. There are few places, and nobody keeps one by being slow:
/// where an address has its share, its oldest makes room for its newest, and where all are taken, the
/// oldest of all.
struct Crowd {
    waiting: Arc<Mutex<VecDeque<Waiting>>>,
    next: AtomicU64,
    most: usize,
    of_one_address: usize,
}

struct Waiting {
    number: u64,
    address: SocketAddr,
    handshake: AbortHandle,
}

/// Takes a connection out of the crowd when its handshake is over.
struct Leaves(Arc<Mutex<VecDeque<Waiting>>>, u64);

impl Drop for Leaves {
    fn drop(&mut self) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = waiting.iter().position(|waiting| waiting.number == self.1) {
            waiting.remove(at);
        }
    }
}

impl Crowd {
    fn new(limits: &Limits) -> Self {
        let most = limits.handshakes_max;
        let of_one_address = (most * limits.caller_share_percent as usize / 100).max(1);
        Self { waiting: Arc::default(), next: AtomicU64::new(0), most, of_one_address }
    }

    /// Ends the handshake that has to make room for one more of this address, if one has; where it was.
    fn make_room(&self, address: IpAddr) -> Option<SocketAddr> {
        let network = network_of(address);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = |waiting: &Waiting| network_of(waiting.address.ip()) == network;
        let at = if waiting.iter().filter(|waiting| of_address(waiting)).count()
            >= self.of_one_address
        {
            waiting.iter().position(of_address)
        } else {
            (waiting.len() >= self.most).then_some(0)
        };
        let ended = waiting.remove(at?)?;
        ended.handshake.abort();
        Some(ended.address)
    }

    /// Begins a handshake, which drops what it is given when it is over.
    fn enter(&self, address: SocketAddr, begin: impl FnOnce(Leaves) -> AbortHandle) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let leaves = Leaves(Arc::clone(&self.waiting), number);
        // Held until it stands there: it may be over at once.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(Waiting { number, address, handshake: begin(leaves) });
    }
}

/// Of IPv6, whoever has one address has 2^64 of them.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
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

/// Who was refused, and for each cause how often since its last line of the log: what one cause fills must
/// not hide another.
struct Refusals {
    figures: Arc<Figures>,
    logged: Mutex<[(Option<Instant>, u64); Turned::COUNT]>,
}

impl Refusals {
    fn note(&self, address: SocketAddr, why: Turned, reason: &str) {
        self.figures.turned_away(why);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unlogged) = &mut logged[why.index()];
        if last.is_some_and(|last| last.elapsed() < REFUSALS_LOGGED_EVERY) {
            *unlogged += 1;
            return;
        }
        tracing::warn!(
            %address,
            cause = why.word(),
            reason,
            unlogged_since_last = *unlogged,
            "connection refused"
        );
        (*last, *unlogged) = (Some(Instant::now()), 0);
    }
}

/// The cut at the end of a drain, that of a connection which was asked to end and did not, and that of one
/// whose answers nobody reads.
fn end_of_life(
    limits: &Limits,
    drain: DrainWatch,
    (peer, figures): (Peer, Arc<Figures>),
) -> EndOfLife {
    let life = limits.connection_age_max.map(|age| age.saturating_add(limits.drain_timeout));
    let patience = limits.answer_timeout;
    Box::pin(async move {
        let cut = async {
            tokio::select! {
                () = drain.reached(Phase::Cut) => {}
                () = unread(&peer, patience) => {
                    figures.cut_unread();
                    tracing::warn!(?peer, ?patience, "its answers are not read: connection cut");
                }
            }
        };
        match life {
            Some(life) => drop(timeout(life, cut).await),
            None => cut.await,
        }
    })
}

/// Ends when something has waited for its reader for too long.
async fn unread(peer: &Peer, patience: Duration) {
    while peer.writes().waited() < patience {
        // Late by a quarter, at most.
        tokio::time::sleep(patience / 4).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, port: u16) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), port)
    }

    #[tokio::test]
    async fn an_address_makes_room_for_itself_and_the_oldest_for_all() {
        let limits = Limits { handshakes_max: 4, caller_share_percent: 50, ..Limits::default() };
        let crowd = Crowd::new(&limits);
        let mut tasks = JoinSet::new();
        let mut enter = |address: SocketAddr| {
            let made = crowd.make_room(address.ip());
            crowd.enter(address, |leaves| {
                tasks.spawn(async move {
                    std::future::pending::<()>().await;
                    drop(leaves);
                })
            });
            made
        };
        assert_eq!(enter(at("10.0.0.1", 1)), None);
        assert_eq!(enter(at("10.0.0.1", 2)), None);
        // It has its share: its own oldest goes.
        assert_eq!(enter(at("10.0.0.1", 3)), Some(at("10.0.0.1", 1)));
        assert_eq!(enter(at("2001:db8::1", 4)), None);
        assert_eq!(enter(at("2001:db8::2", 5)), None);
        assert_eq!(enter(at("2001:db8::ffff:3", 6)), Some(at("2001:db8::1", 4)));
        // All places are taken.
        assert_eq!(enter(at("10.0.0.2", 7)), Some(at("10.0.0.1", 2)));
        tasks.shutdown().await;
        assert_eq!(crowd.waiting.lock().unwrap().len(), 0);
    }
}
