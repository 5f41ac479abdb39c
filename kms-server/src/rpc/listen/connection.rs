//! One accepted connection: its bytes, and when it ends.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::rpc::{figures, gate::peer::Peer, shares::accounts::Taken};

/// The beginning of every HTTP/2 connection.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Ends when the connection has to be cut.
pub(crate) type EndOfLife = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An accepted connection after its handshake.
pub(crate) struct Connection {
    io: TlsStream<TcpStream>,
    peer: Peer,
    end_of_life: EndOfLife,
    ended: bool,
    /// The part of the preface, which was read already, that HTTP/2 has not seen yet.
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
