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
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{
    certificate::{Holder, holder_of},
    figures,
    policy::CallerName,
    tls::{Distrust, Loaded},
};

/// Who is at the other end; goes with every request of the connection.
#[derive(Clone)]
pub(super) struct Peer(Arc<PeerInner>);

struct PeerInner {
    address: SocketAddr,
    holder: Holder,
    chain: Vec<CertificateDer<'static>>,
    /// The newest set of authorities that accepted `chain`.
    trusted_by: AtomicU64,
    calls: Arc<Semaphore>,
}

impl Peer {
    /// Who a chain that `loaded` has accepted belongs to. `None` if it can't be read.
    pub(super) fn new(
        address: SocketAddr,
        chain: &[CertificateDer<'_>],
        loaded: &Loaded,
        calls_max: u32,
    ) -> Option<Self> {
        let holder = holder_of(chain.first()?)?;
        Some(Self(Arc::new(PeerInner {
            address,
            holder,
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            trusted_by: AtomicU64::new(loaded.generation),
            calls: Arc::new(Semaphore::new(calls_max as usize)),
        })))
    }

    /// Where it is.
    pub(super) fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// What its certificate calls it.
    pub(super) fn name(&self) -> Option<&CallerName> {
        self.0.holder.name.as_ref()
    }

    /// Whether its certificate is past its end: a connection may outlive it.
    pub(super) fn is_expired(&self, now_ms: u64) -> bool {
        now_ms > self.0.holder.not_after_ms
    }

    /// Whether the authorities and revocation lists in use now accept it too: a connection may outlive
    /// those as well.
    pub(super) fn check_trust(&self, now: &Loaded) -> Result<(), Distrust> {
        if self.0.trusted_by.load(Ordering::Relaxed) < now.generation {
            now.trusts(&self.0.chain)?;
            self.0.trusted_by.fetch_max(now.generation, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A place for one more call; `None` if it has too many open.
    pub(super) fn begin_call(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.calls).try_acquire_owned().ok()
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
pub(super) type EndOfLife = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An accepted connection after its handshake.
pub(super) struct Connection {
    io: TlsStream<TcpStream>,
    peer: Peer,
    end_of_life: EndOfLife,
    ended: bool,
    /// Gives the place among `connections_max` back.
    _place: OwnedSemaphorePermit,
    _counted: figures::Connected,
}

impl Connection {
    pub(super) fn new(
        io: TlsStream<TcpStream>,
        peer: Peer,
        end_of_life: EndOfLife,
        place: OwnedSemaphorePermit,
        counted: figures::Connected,
    ) -> Self {
        Self { io, peer, end_of_life, ended: false, _place: place, _counted: counted }
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
