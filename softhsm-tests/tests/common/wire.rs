//! Calls below the client library: any method by its path, with any certificate or none.

use std::{fs, io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use kms_client::CallError;
use prost::Message as _;
use softhsm_tests::{Identity, Role, Site};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity},
};
use tonic_types::StatusExt as _;

use super::SOON;

pub fn ca_pem(site: &Site) -> String {
    fs::read_to_string(site.places().certificate("ca")).unwrap()
}

pub fn identity_of(site: &Site, role: Role) -> Identity {
    Identity {
        certificate_pem: fs::read_to_string(site.places().certificate(role.caller())).unwrap(),
        private_key_pem: fs::read_to_string(site.places().private_key(role.caller())).unwrap(),
    }
}

/// A channel that connects when it is first used.
pub fn channel(site: &Site, identity: Option<&Identity>) -> Channel {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca_pem(site)))
        .domain_name("localhost");
    if let Some(Identity { certificate_pem, private_key_pem }) = identity {
        tls = tls.identity(TlsIdentity::from_pem(certificate_pem, private_key_pem));
    }
    Endpoint::from_shared(format!("https://127.0.0.1:{}", site.port()))
        .unwrap()
        .tls_config(tls)
        .unwrap()
        .connect_lazy()
}

/// How a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Tls13,
    Tls12,
    Plain,
}

/// A channel that connects when it is first used, over TLS of one version or none.
pub fn channel_over(site: &Site, line: Line, identity: Option<&Identity>) -> Channel {
    let address = ("127.0.0.1", site.port());
    let tls = match line {
        Line::Tls13 => Some(tls_config(site, identity, &[&TLS13])),
        Line::Tls12 => Some(tls_config(site, identity, &[&TLS12])),
        Line::Plain => None,
    };
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let io: Box<dyn Both> = match tls {
                None => Box::new(stream),
                Some(config) => {
                    let name = ServerName::try_from("localhost").unwrap();
                    let connector = tokio_rustls::TlsConnector::from(config);
                    Box::new(connector.connect(name, stream).await?)
                }
            };
            Ok::<_, io::Error>(TokioIo::new(io))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// Reads and writes.
trait Both: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

pub fn channel_as(site: &Site, role: Role) -> Channel {
    channel(site, Some(&identity_of(site, role)))
}

/// Calls `path` with one empty message, which every message type can be read from.
pub async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(chain(&error)))?;
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    // A stream of one message each way is, on the wire, what a unary call is.
    let request = tonic::Request::new(tokio_stream::iter([()]));
    let call = async {
        let mut answers = client.streaming(request, path.parse().unwrap(), codec).await?;
        answers.get_mut().message().await.map(drop)
    };
    tokio::time::timeout(SOON, call).await.expect("no answer")
}

/// Code and reason word of a refusal; the word is empty where there is none.
pub fn reason(answer: &Result<(), Status>) -> (Code, String) {
    match answer {
        Ok(()) => (Code::Ok, String::new()),
        Err(status) => {
            let details = status.get_error_details();
            let info = details.error_info();
            if let Some(info) = info {
                assert_eq!(info.domain, "ami.kms.v1");
            }
            (status.code(), info.map(|info| info.reason.clone()).unwrap_or_default())
        }
    }
}

/// Every method of the package: (service, method, path).
pub fn methods() -> Vec<(String, String, String)> {
    let set = prost_types::FileDescriptorSet::decode(kms_proto::DESCRIPTORS).unwrap();
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let (service, method) = (service.name().to_owned(), method.name().to_owned());
                let path = format!("/{}.{service}/{method}", file.package());
                methods.push((service, method, path));
            }
        }
    }
    assert!(methods.len() >= 12, "{methods:?}");
    methods
}

/// What a client learns that shakes hands by hand and sends the beginning of HTTP/2: with TLS 1.3 it
/// hears only then whether its certificate was accepted.
pub async fn shake_hands(
    site: &Site,
    identity: Option<&Identity>,
    versions: &[&'static SupportedProtocolVersion],
) -> io::Result<()> {
    let config = tls_config(site, identity, versions);
    let talk = async {
        let stream = TcpStream::connect(("127.0.0.1", site.port())).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let mut stream = connector.connect(name, stream).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        match stream.read(&mut [0; 64]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    };
    tokio::time::timeout(SOON, talk).await.expect("the server neither accepted nor refused")
}

fn tls_config(
    site: &Site,
    identity: Option<&Identity>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem(site).as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(Identity { certificate_pem, private_key_pem }) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate_pem.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(private_key_pem.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// An error with all that caused it.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Whether the service says that it, or what it rests on, cannot be reached.
pub fn is_unavailable(error: &CallError) -> bool {
    matches!(error, CallError::Unavailable { .. })
}

/// Two looks at something that may take a moment.
pub const MOMENT: Duration = Duration::from_millis(50);
