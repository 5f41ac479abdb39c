//! From a listening socket to connections whose certificate was accepted.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    connection::Connection,
    crowd::{Crowd, Leaves},
    end_of_life::end_of_life,
    handshake::{Arrived, Handshakes},
    refusals::Refusals,
};
use crate::rpc::{
    config::Limits,
    drain::{DrainWatch, Phase},
    figures::{Figures, Turned},
    shares::accounts::Shares,
    tls::in_use::Tls,
};

/// The pause after the system refused to accept: it has no descriptors left, most likely, and
/// asking again at once would only take the processor from those who could give one back.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// The most connections between handshake and HTTP.
pub(crate) const ACCEPTED_MAX: usize = 16;

/// All that accepting connections needs.
pub(crate) struct Acceptor {
    pub(crate) tls: Arc<Tls>,
    pub(crate) limits: Limits,
    pub(crate) shares: Arc<Shares>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) drain: DrainWatch,
}

/// The way on for connections whose certificate was accepted.
pub(crate) type Accepted = mpsc::Sender<io::Result<Connection>>;

impl Acceptor {
    /// Accepts until the drain begins; then the socket is closed and unfinished handshakes are dropped.
    pub(crate) async fn accept(self, listener: TcpListener, accepted: Accepted) {
        let crowd = Crowd::new(&self.limits);
        let reception = Arc::new(self.reception(accepted));
        let mut handshakes = JoinSet::new();
        let mut draining = std::pin::pin!(self.drain.reached(Phase::Draining));
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
                let reason = "others came while it shook no hands";
                reception.refusals.note(crowded_out, Turned::Crowded, reason);
            }
            let reception = Arc::clone(&reception);
            crowd.enter(address, |leaves| {
                handshakes.spawn(reception.receive(stream, address, leaves))
            });
        }
    }

    fn reception(&self, accepted: Accepted) -> Reception {
        Reception {
            handshakes: Handshakes {
                tls: Arc::clone(&self.tls),
                shares: Arc::clone(&self.shares),
                limits: self.limits.clone(),
            },
            refusals: Refusals::new(Arc::clone(&self.figures)),
            figures: Arc::clone(&self.figures),
            drain: self.drain.clone(),
            accepted,
        }
    }
}

/// All that receiving one connection needs, in a task of its own.
struct Reception {
    handshakes: Handshakes,
    refusals: Refusals,
    figures: Arc<Figures>,
    drain: DrainWatch,
    accepted: Accepted,
}

impl Reception {
    /// Hands a connection on once its certificate was accepted, or turns it away.
    async fn receive(self: Arc<Self>, stream: TcpStream, address: SocketAddr, leaves: Leaves) {
        let arrived = self.handshakes.arrive(stream, address).await;
        drop(leaves);
        match arrived {
            Ok(arrived) => {
                // Fails only if the server is gone.
                drop(self.accepted.send(Ok(self.connection(arrived))).await);
            }
            Err(turning) => self.refusals.note(address, turning.why, &turning.reason),
        }
    }

    fn connection(&self, Arrived { io, peer, place }: Arrived) -> Connection {
        let (limits, drain) = (&self.handshakes.limits, self.drain.clone());
        let end = end_of_life(limits, drain, peer.clone(), Arc::clone(&self.figures));
        Connection::new(io, peer, end, place, self.figures.connected())
    }
}
