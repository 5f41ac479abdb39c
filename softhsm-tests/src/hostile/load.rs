//! Connections and messages of an attacker: TCP, TLS, and HTTP/2 frame by frame.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::Request;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
        version::TLS13,
    },
};

use super::peers::Peer;
use crate::{Role, Site};

/// The outcome of a step of an attack: an error when the server defends itself.
pub(super) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The server, and what the attacker has.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    /// Of roles `hes` and `ami_admin`, but not the honest caller's; or the other site's.
    certified: Arc<ClientConfig>,
    stranger: Arc<ClientConfig>,
    /// One that opens.
    pub(super) telegram: Bytes,
    /// The other site, where the server has one.
    pub(super) peer: Option<Peer>,
}

/// The flow-control windows of HTTP/2 that a client gives the server: for one stream, for the connection.
pub(super) type Windows = (u32, u32);

/// A client's usual windows.
pub(super) const USUAL: Windows = (65_535, 65_535);

impl Target {
    /// The server of `site`; `by` is the other one, if that is who attacks.
    pub(super) fn of(site: &Site, by: Option<&Site>, telegram: Vec<u8>) -> Outcome<Self> {
        let read = |path: std::path::PathBuf| std::fs::read(path);
        let ca = read(site.places().certificate("ca"))?;
        let identity = |site: &Site, name| -> Outcome<_> {
            let certificate = read(site.places().certificate(name))?;
            let key = read(site.places().private_key(name))?;
            Ok((
                CertificateDer::from_pem_slice(&certificate)?,
                PrivateKeyDer::from_pem_slice(&key)?,
            ))
        };
        let config = || -> Outcome<_> {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(&ca)?)?;
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_protocol_versions(&[&TLS13])?;
            Ok(config.with_root_certificates(roots))
        };
        let (certificate, key) = match by {
            Some(other) => identity(other, "server")?,
            None => identity(site, Role::Dev.caller())?,
        };
        let mut certified = config()?.with_client_auth_cert(vec![certificate], key)?;
        let mut stranger = config()?.with_no_client_auth();
        certified.alpn_protocols = vec![b"h2".to_vec()];
        stranger.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            address: SocketAddr::from(([127, 0, 0, 1], site.port())),
            certified: Arc::new(certified),
            stranger: Arc::new(stranger),
            telegram: telegram.into(),
            peer: None,
        })
    }

    pub(super) async fn tcp(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.address).await
    }

    /// TLS, and nothing after it.
    pub(super) async fn tls(&self, with_certificate: bool) -> Outcome<TlsStream<TcpStream>> {
        let config = if with_certificate { &self.certified } else { &self.stranger };
        let connector = TlsConnector::from(Arc::clone(config));
        let name = ServerName::try_from("localhost")?;
        let connecting = connector.connect(name, self.tcp().await?);
        Ok(tokio::time::timeout(Duration::from_secs(5), connecting).await??)
    }

    /// HTTP/2, driven by a task of its own.
    pub(super) async fn http2(&self, (stream, connection): Windows) -> Outcome<Line> {
        let tls = self.tls(true).await?;
        let (requests, driver) = h2::client::Builder::new()
            .initial_window_size(stream)
            .initial_connection_window_size(connection)
            .initial_max_send_streams(10_000)
            .max_concurrent_reset_streams(10_000)
            .handshake::<_, Bytes>(tls)
            .await?;
        let driver = tokio::spawn(async move { drop(driver.await) });
        Ok(Line { requests, driver })
    }
}

/// An HTTP/2 connection; cut when it is dropped.
pub(super) struct Line {
    requests: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A call that was begun.
pub(super) struct Begun {
    answer: h2::client::ResponseFuture,
    body: SendStream<Bytes>,
}

impl Line {
    /// Opens a call.
    pub(super) async fn begin(&self, call: &str, padding: usize) -> Outcome<Begun> {
        let mut requests = self.requests.clone().ready().await?;
        let mut request = Request::post(format!("https://localhost/ami.kms.v1.{call}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        // Many fields, none long.
        for number in 0..padding.div_ceil(1_000) {
            request = request.header(format!("x-padding-{number}"), "x".repeat(1_000));
        }
        let (answer, body) = requests.send_request(request.body(())?, false)?;
        Ok(Begun { answer, body })
    }

    /// Whether the server is still there.
    pub(super) fn is_up(&self) -> bool {
        !self.driver.is_finished()
    }
}

impl Begun {
    /// Sends all of it as the server takes it.
    pub(super) async fn send(&mut self, mut bytes: Bytes, ends: bool) -> Outcome<()> {
        while !bytes.is_empty() {
            self.body.reserve_capacity(bytes.len().min(64 << 10));
            let capacity = std::future::poll_fn(|cx| self.body.poll_capacity(cx)).await;
            let part = bytes.split_to(capacity.ok_or("the stream has ended")??.min(bytes.len()));
            if !part.is_empty() {
                self.body.send_data(part, ends && bytes.is_empty())?;
            }
        }
        Ok(())
    }

    pub(super) fn reset(mut self) {
        self.body.send_reset(h2::Reason::CANCEL);
    }

    /// Reads what is answered, to its end.
    pub(super) async fn read(self) -> Outcome<usize> {
        let mut body: RecvStream = self.answer.await?.into_body();
        let mut read = 0;
        while let Some(data) = body.data().await {
            let data = data?;
            read += data.len();
            body.flow_control().release_capacity(data.len())?;
        }
        Ok(read)
    }
}

/// Five bytes before a message.
pub(super) fn prefix(length: usize) -> [u8; 5] {
    let [a, b, c, d] = (length as u32).to_be_bytes();
    [0, a, b, c, d]
}

/// A message with its prefix.
pub(super) fn framed(message: &[u8]) -> Bytes {
    [&prefix(message.len()), message].concat().into()
}

/// Field `number` of bytes.
pub(super) fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    varint(&mut field, value.len());
    field.extend_from_slice(value);
    field
}

/// Field `number` of a number.
pub(super) fn number(number: u8, value: usize) -> Vec<u8> {
    let mut field = vec![number << 3];
    varint(&mut field, value);
    field
}

pub(super) fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// An `ApduBatch` of one telegram many times over.
pub(super) fn batch(telegram: &[u8], times: usize) -> Bytes {
    let mut lengths = Vec::new();
    for _ in 0..times {
        varint(&mut lengths, telegram.len());
    }
    framed(&[field(1, &telegram.repeat(times)), field(2, &lengths)].concat())
}
