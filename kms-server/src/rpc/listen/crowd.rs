//! Connections before their certificate: few places, which nobody keeps by being slow.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::task::AbortHandle;

use crate::rpc::config::Limits;

/// Connections that have not shown who they are. There are few places, and nobody keeps one by being slow:
/// where an address has its share, its oldest makes room for its newest, and where all are taken, the
/// oldest of all.
pub(super) struct Crowd {
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
pub(super) struct Leaves(Arc<Mutex<VecDeque<Waiting>>>, u64);

impl Drop for Leaves {
    fn drop(&mut self) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = waiting.iter().position(|waiting| waiting.number == self.1) {
            waiting.remove(at);
        }
    }
}

impl Crowd {
    pub(super) fn new(limits: &Limits) -> Self {
        let most = limits.handshakes_max;
        let of_one_address = (most * limits.caller_share_percent as usize / 100).max(1);
        Self { waiting: Arc::default(), next: AtomicU64::new(0), most, of_one_address }
    }

    /// Ends the handshake that has to make room for one more of this address, if one has; where it was.
    pub(super) fn make_room(&self, address: IpAddr) -> Option<SocketAddr> {
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
    pub(super) fn enter(&self, address: SocketAddr, begin: impl FnOnce(Leaves) -> AbortHandle) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let leaves = Leaves(Arc::clone(&self.waiting), number);
        // Held until it stands there: it may be over at once.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(Waiting { number, address, handshake: begin(leaves) });
    }
}

/// The network of an address: of IPv6, whoever has one address has 2^64 of them.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

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
