//! A connection from nothing to its first HTTP/2 frame: TCP, TLS, HTTP/2. All of it has one bound, and what it
//! fails of has a name.
//!
//! The server's first frame is waited for here. In TLS 1.3 a client holds its handshake for done before the
//! server has looked at its certificate, and what the server says of it comes where the first frame is due.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, AlertDescription, ClientConfig};
use tonic::body::Body;

/// Begins each HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for the server's first frame; more comes later.
const FIRST_READ: usize = 256;
/// A name's next address is tried beside one that has been silent for so long.
const HEAD_START: Duration = Duration::from_millis(300);
/// Room for batches in flight, in bytes: HTTP/2's default of 64 KiB would hold back half a batch.
const WINDOW: u32 = 8 << 20;

/// One endpoint, and how it is to be reached.
pub(crate) struct Target {
    /// `host:port`.
    pub(crate) authority: String,
    pub(crate) tls: Arc<ClientConfig>,
    /// The name that its certificate must carry.
    pub(crate) server_name: ServerName<'static>,
    pub(crate) bound: Duration,
    /// The time after which a peer that says nothing is asked whether it is there, and the time
    /// that it may take to answer.
    pub(crate) pings: (Duration, Duration),
}

/// The phase that a connection had got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Tcp,
    Tls,
    Http2,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Http2 => "HTTP/2",
        })
    }
}

/// The reason why there is no connection. No call went out on it.
#[derive(Debug, Error)]
pub(crate) enum SetupError {
    #[error("{at} is silent: no {phase} within {bound:?}")]
    Silent { at: String, phase: Phase, bound: Duration },
    #[error("{at}: no {phase}")]
    Failed { at: String, phase: Phase, source: io::Error },
    #[error("{at} refuses this client's certificate: {}", said_of_us(*alert))]
    OurCertificate { at: String, alert: AlertDescription },
    #[error("the certificate of {at} is not accepted here")]
    TheirCertificate { at: String, source: rustls::Error },
}

/// The meaning of a server's alert about our certificate.
fn said_of_us(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRevoked => "it was revoked",
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet",
        AlertDescription::UnknownCA => "its authority is not one that the server knows",
        AlertDescription::CertificateRequired => "none was presented",
        AlertDescription::UnsupportedCertificate => "it is of a kind that the server does not take",
        AlertDescription::BadCertificate | AlertDescription::DecryptError => "it is damaged",
        _ => "the server's log says why",
    }
}

fn is_about_us(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate
            | Alert::BadCertificate
            | Alert::DecryptError
            | Alert::AccessDenied
    )
}

/// Makes a connection and drives it until its last sender is gone.
pub(crate) async fn set_up(to: Arc<Target>) -> Result<SendRequest<Body>, SetupError> {
    let until = Instant::now() + to.bound;
    let tcp = step(&to, until, Phase::Tcp, connect(&to.authority)).await?;
    // Small questions must not wait for an acknowledgement.
    let _ = tcp.set_nodelay(true);
    let tls = TlsConnector::from(Arc::clone(&to.tls)).connect(to.server_name.clone(), tcp);
    let tls = step(&to, until, Phase::Tls, tls).await?;
    let io = step(&to, until, Phase::Http2, first_frame(tls)).await?;
    let mut http2 = Builder::new(TokioExecutor::new());
    let handshake = http2
        .timer(TokioTimer::new())
        .keep_alive_interval(to.pings.0)
        .keep_alive_timeout(to.pings.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .handshake(TokioIo::new(io));
    let handshake = async { handshake.await.map_err(io::Error::other) };
    let (sender, connection) = step(&to, until, Phase::Http2, handshake).await?;
    // Its errors reach those whose calls it carries.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn step<T>(
    to: &Target,
    until: Instant,
    phase: Phase,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, SetupError> {
    let at = || to.authority.clone();
    match timeout_at(until, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(source)) => Err(named(at(), phase, source)),
        Err(_) => Err(SetupError::Silent { at: at(), phase, bound: to.bound }),
    }
}

fn named(at: String, phase: Phase, source: io::Error) -> SetupError {
    let tls = source.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) if is_about_us(*alert) => {
            SetupError::OurCertificate { at, alert: *alert }
        }
        Some(wrong @ rustls::Error::InvalidCertificate(_)) => {
            SetupError::TheirCertificate { at, source: wrong.clone() }
        }
        _ => SetupError::Failed { at, phase, source },
    }
}

/// The first address of a name that answers.
async fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut addresses = lookup_host(authority).await?.collect::<Vec<SocketAddr>>().into_iter();
    let mut attempts = FuturesUnordered::new();
    attempts.extend(addresses.next().map(TcpStream::connect));
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        tokio::select! {
            answer = attempts.next() => match answer {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => {
                    last = error;
                    attempts.extend(addresses.next().map(TcpStream::connect));
                }
                None => return Err(last),
            },
            () = sleep(HEAD_START), if addresses.len() > 0 => {
                attempts.extend(addresses.next().map(TcpStream::connect));
            }
        }
    }
}

/// Says that HTTP/2 is spoken, and waits for the server to say so too.
async fn first_frame(mut tls: TlsStream<TcpStream>) -> io::Result<Begun> {
    if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the server does not speak HTTP/2"));
    }
    // Whoever refuses us may have hung up before; why, is still there to be read.
    let said = async { tls.write_all(PREFACE).await.and(tls.flush().await) }.await;
    let mut first = vec![0; FIRST_READ];
    let len = tls.read(&mut first).await?;
    if len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    said?;
    first.truncate(len);
    Ok(Begun { inner: tls, first, said: 0 })
}

/// A connection whose preface was said and whose first bytes were read.
struct Begun {
    inner: TlsStream<TcpStream>,
    first: Vec<u8>,
    /// Bytes of the preface that the layer above has said again; they are not sent twice.
    said: usize,
}

impl Begun {
    /// The number of these bytes that were sent before, as part of the preface.
    fn sent_before(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let due = &PREFACE[self.said..];
        let len = bytes.len().min(due.len());
        if bytes[..len] != due[..len] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an HTTP/2 preface"));
        }
        self.said += len;
        Ok(len)
    }
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let len = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..len]);
        self.first.drain(..len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.sent_before(buf)? {
            0 => Pin::new(&mut self.inner).poll_write(cx, buf),
            len => Poll::Ready(Ok(len)),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        match self.sent_before(first)? {
            0 => Pin::new(&mut self.inner).poll_write_vectored(cx, bufs),
            len => Poll::Ready(Ok(len)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(error: rustls::Error) -> SetupError {
        named("kms:1".into(), Phase::Http2, io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn a_refused_certificate_is_told_from_a_broken_connection_and_ours_from_theirs() {
        use rustls::{CertificateError, Error};
        for (alert, words) in [
            (AlertDescription::CertificateRevoked, "revoked"),
            (AlertDescription::CertificateExpired, "expired"),
            (AlertDescription::UnknownCA, "authority"),
        ] {
            let error = failed(Error::AlertReceived(alert));
            assert!(matches!(error, SetupError::OurCertificate { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("this client's certificate") && text.contains(words), "{text}");
        }
        let theirs = failed(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(matches!(theirs, SetupError::TheirCertificate { .. }), "{theirs}");
        for other in [Error::AlertReceived(AlertDescription::InternalError), Error::DecryptError] {
            assert!(matches!(failed(other), SetupError::Failed { .. }));
        }
    }

    #[tokio::test]
    async fn a_name_without_an_address_that_answers_says_what_the_last_one_said() {
        let error = connect("127.0.0.1:1").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
