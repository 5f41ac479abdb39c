//! A relay between a client and the server of a site that records all that passes: what is on the wire,
//! and, since it ends TLS on both sides with the site's own certificates, what either end sees of it.

use std::{
    collections::BTreeMap,
    fs, io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use softhsm_tests::{AmiTool, Identity, Role, Site};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
        version::TLS13,
    },
};

use super::wire::{ca_pem, identity_of};

/// Begins each HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What went through, each connection by itself.
#[derive(Clone, Default)]
pub struct Recording {
    /// Between the client and the relay, both ways, as it was on the wire.
    pub wire: Vec<Vec<u8>>,
    /// From the client, out of TLS.
    pub up: Vec<Vec<u8>>,
    /// From the server, out of TLS.
    pub down: Vec<Vec<u8>>,
}

impl Recording {
    /// Everything there is: the wire, both directions out of TLS, and the messages of these, put together
    /// from their frames.
    pub fn all(&self) -> Vec<Vec<u8>> {
        let plain = self.up.iter().chain(&self.down);
        let messages = plain.clone().flat_map(|bytes| messages(bytes));
        self.wire.iter().chain(plain).cloned().chain(messages).collect()
    }
}

/// The payloads of DATA frames, of each stream together: a value may lie across frames.
fn messages(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    let mut streams: BTreeMap<[u8; 4], Vec<u8>> = BTreeMap::new();
    while let [a, b, c, kind, _flags, s, t, u, v, after @ ..] = rest {
        let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, next) = after.split_at(len.min(after.len()));
        if *kind == 0 {
            streams.entry([*s, *t, *u, *v]).or_default().extend_from_slice(payload);
        }
        rest = next;
    }
    streams.into_values().collect()
}

/// Listening until it is dropped.
pub struct Relay {
    port: u16,
    seen: Arc<Mutex<Recording>>,
    /// Bytes from the client that may pass on each connection.
    pass: watch::Sender<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Between clients that hold for the server whoever has its certificate, and the server, towards which
    /// it has the certificate of `role`.
    pub async fn start(site: &Site, role: Role) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Recording>>::default();
        let (pass, passing) = watch::channel(usize::MAX);
        let ends = Arc::new(Ends::of(site, role));
        let recording = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (ends, seen) = (Arc::clone(&ends), Arc::clone(&recording));
                let passing = passing.clone();
                // A connection that ends, ends: whoever it served will say so.
                tokio::spawn(async move { drop(ends.join(client, &seen, passing).await) });
            }
        });
        Self { port, seen, pass, task }
    }

    /// From now on only so many bytes of each connection go up; the rest waits.
    pub fn hold_after(&self, bytes: usize) {
        self.pass.send_replace(bytes);
    }

    /// What went through so far.
    pub fn recording(&self) -> Recording {
        self.seen.lock().unwrap().clone()
    }

    /// `ami-tool`, which takes the relay for the server.
    pub fn ami_tool(&self, site: &Site, role: Role) -> AmiTool {
        let text = fs::read_to_string(site.client_toml(role)).unwrap();
        let text = text
            .replace(&format!(":{}", site.port()), &format!(":{}", self.port))
            .replace("deadline_ms = 10000", "deadline_ms = 60000");
        let path = site.places().dir.join("client-relay.toml");
        fs::write(&path, text).unwrap();
        AmiTool::new(&site.programs().ami_tool, &path)
    }
}

/// The server's side of TLS, with the site's own certificate; whoever comes is let in.
pub fn server_side(site: &Site) -> TlsAcceptor {
    Ends::of(site, Role::Dev).acceptor
}

/// Both ends of TLS.
struct Ends {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    server_port: u16,
}

impl Ends {
    fn of(site: &Site, role: Role) -> Self {
        let server = Identity {
            certificate_pem: fs::read_to_string(site.places().certificate("server")).unwrap(),
            private_key_pem: fs::read_to_string(site.places().private_key("server")).unwrap(),
        };
        let (chain, key) = parts_of(&server);
        let mut accepting = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem(site).as_bytes()).unwrap()).unwrap();
        let (chain, key) = parts_of(&identity_of(site, role));
        let mut connecting =
            ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(chain, key)
                .unwrap();
        accepting.alpn_protocols = vec![b"h2".to_vec()];
        connecting.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            acceptor: TlsAcceptor::from(Arc::new(accepting)),
            connector: TlsConnector::from(Arc::new(connecting)),
            server_port: site.port(),
        }
    }

    async fn join(
        &self,
        client: TcpStream,
        seen: &Mutex<Recording>,
        mut passing: watch::Receiver<usize>,
    ) -> io::Result<()> {
        let at = {
            let mut seen = seen.lock().unwrap();
            seen.wire.push(Vec::new());
            seen.up.push(Vec::new());
            seen.down.push(Vec::new());
            seen.wire.len() - 1
        };
        let recorded = Recorded { inner: client, seen, at };
        let client = self.acceptor.accept(recorded).await?;
        let server = TcpStream::connect(("127.0.0.1", self.server_port)).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let server = self.connector.connect(name, server).await?;
        let (mut from_client, mut to_client) = tokio::io::split(client);
        let (mut from_server, mut to_server) = tokio::io::split(server);
        let up = async {
            let (mut buffer, mut passed) = (vec![0; 4 << 10], 0);
            loop {
                let len = from_client.read(&mut buffer).await?;
                if len == 0 {
                    return to_server.shutdown().await;
                }
                seen.lock().unwrap().up[at].extend_from_slice(&buffer[..len]);
                passed += len;
                let may = passing.wait_for(|limit| passed <= *limit).await;
                may.map_err(io::Error::other)?;
                to_server.write_all(&buffer[..len]).await?;
            }
        };
        let down = async {
            let mut buffer = vec![0; 16 << 10];
            loop {
                let len = from_server.read(&mut buffer).await?;
                if len == 0 {
                    return to_client.shutdown().await;
                }
                seen.lock().unwrap().down[at].extend_from_slice(&buffer[..len]);
                to_client.write_all(&buffer[..len]).await?;
            }
        };
        // Whoever hangs up first, ends it.
        tokio::select! { ended = up => ended, ended = down => ended }
    }
}

fn parts_of(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.private_key_pem.as_bytes()).unwrap();
    (vec![chain], key)
}

/// A connection, and a copy of what goes through it.
struct Recorded<'a> {
    inner: TcpStream,
    seen: &'a Mutex<Recording>,
    at: usize,
}

impl Recorded<'_> {
    fn record(&self, bytes: &[u8]) {
        self.seen.lock().unwrap().wire[self.at].extend_from_slice(bytes);
    }
}

impl AsyncRead for Recorded<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.record(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorded<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        self.record(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
