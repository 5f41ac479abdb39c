//! One accepted connection: its bytes, and who is at the other end.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::rpc::{
    access::policy::CallerName,
    figures,
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

/// What every HTTP/2 connection begins with.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Who is at the other end; goes with every request of the connection.
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
    /// What its caller has, over all of his connections.
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
    /// Who a chain that `loaded` has accepted belongs to. `None` if it can't be read.
    pub(crate) fn new(
        address: SocketAddr,
        chain: &[CertificateDer<'_>],
        loaded: &Loaded,
        (shares, calls_max): (&Shares, u32),
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

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// What its certificate calls it.
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

    /// What its caller has.
    pub(crate) fn account(&self) -> &Account {
        &self.0.account
    }

    /// What is being written to it.
    pub(crate) fn writes(&self) -> &Writes {
        &self.0.writes
    }

    /// When it began.
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

/// Ends when the connection has to be cut.
pub(crate) type EndOfLife = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An accepted connection after its handshake.
pub(crate) struct Connection {
    io: TlsStream<TcpStream>,
    peer: Peer,
    end_of_life: EndOfLife,
    ended: bool,
    /// Of the preface, which was read already: what HTTP/2 has not seen yet.
    preface: &'static [u8],
    /// Gives the place among `connections_max` back.
    _place: Taken,
    _counted: figures::Connected,
}

impl Connection {
    pub(crate) fn new(
        io: TlsStream<TcpStream>,
        peer: Peer,
        end_of_life: EndOfLife,
        place: Taken,
        counted: figures::Connected,
    ) -> Self {
        Self {
            io,
            peer,
            end_of_life,
            ended: false,
            preface: PREFACE,
            _place: place,
            _counted: counted,
        }
    }

    fn check_life(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.ended = self.ended || self.end_of_life.as_mut().poll(cx).is_ready();
        if self.ended { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // An HTTP/2 connection always waits to read, so this is where the end is noticed.
        this.check_life(cx)?;
        if !this.preface.is_empty() {
            let (now, later) = this.preface.split_at(this.preface.len().min(buf.remaining()));
            buf.put_slice(now);
            this.preface = later;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_life(cx)?;
        Pin::new(&mut this.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_life(cx)?;
        Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_life(cx)?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_life(cx)?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
