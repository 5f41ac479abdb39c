//! The other end of a connection, and the calls that it has open over it.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::rpc::{
    access::policy::CallerName,
    messages::status::Refused,
    shares::{
        accounts::{Account, Shares, Taken},
        writes::Writes,
    },
    tls::{
        certificate::{Holder, holder_of},
        in_use::{Distrust, Loaded},
    },
};

/// The other end of a connection; goes with every request of the connection.
#[derive(Clone)]
pub(crate) struct Peer(Arc<PeerInner>);

struct PeerInner {
    address: SocketAddr,
    holder: Holder,
    chain: Vec<CertificateDer<'static>>,
    /// The newest set of authorities that accepted `chain`.
    trusted_by: AtomicU64,
    calls: Arc<Semaphore>,
    calls_max: u32,
    /// The account of its caller, over all of his connections.
    account: Arc<Account>,
    writes: Writes,
    since: Instant,
}

/// A place for a call: of its connection, and of its caller. Given back on drop.
pub(crate) struct Place {
    _of_connection: OwnedSemaphorePermit,
    _of_caller: Taken,
}

impl Peer {
    /// The holder of a chain that `loaded` has accepted. `None` if it can't be read.
    pub(crate) fn new(
        address: SocketAddr,
        chain: &[CertificateDer<'_>],
        loaded: &Loaded,
        shares: &Shares,
        calls_max: u32,
    ) -> Option<Self> {
        let holder = holder_of(chain.first()?)?;
        let account = shares.account(holder.name.as_ref());
        Some(Self(Arc::new(PeerInner {
            address,
            holder,
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            trusted_by: AtomicU64::new(loaded.generation),
            calls: Arc::new(Semaphore::new(calls_max as usize)),
            calls_max,
            account,
            writes: Writes::default(),
            since: Instant::now(),
        })))
    }

    /// Its address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Its name, out of its certificate.
    pub(crate) fn name(&self) -> Option<&CallerName> {
        self.0.holder.name.as_ref()
    }

    /// Whether its certificate is past its end: a connection may outlive it.
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        now_ms > self.0.holder.not_after_ms
    }

    /// Whether the authorities and revocation lists in use now accept it too: a connection may outlive
    /// those as well.
    pub(crate) fn check_trust(&self, now: &Loaded) -> Result<(), Distrust> {
        if self.0.trusted_by.load(Ordering::Relaxed) < now.generation {
            now.trusts(&self.0.chain)?;
            self.0.trusted_by.fetch_max(now.generation, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A place for one more call, if it and its caller have not too many open.
    pub(crate) fn begin_call(&self) -> Result<Place, Refused> {
        let of_connection = Arc::clone(&self.0.calls).try_acquire_owned();
        let of_connection = of_connection.map_err(|_| Refused::TooManyCalls(self.0.calls_max))?;
        let of_caller = self.0.account.calls.try_take(1);
        let of_caller = of_caller.map_err(|short| Refused::TooManyOfCaller(short.limit()))?;
        Ok(Place { _of_connection: of_connection, _of_caller: of_caller })
    }

    /// The account of its caller.
    pub(crate) fn account(&self) -> &Account {
        &self.0.account
    }

    /// The pieces that are being written to it.
    pub(crate) fn writes(&self) -> &Writes {
        &self.0.writes
    }

    /// The beginning of its connection.
    pub(crate) fn since(&self) -> Instant {
        self.0.since
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("address", &self.0.address)
            .field("name", &self.0.holder.name)
            .finish_non_exhaustive()
    }
}
