//! Certificates, a server and clients for the tests of `rpc`: real TLS on loopback, a real audit log, no token.

#[path = "../audit/support.rs"]
pub(crate) mod log;

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use kms_core::ports::Clock;
use kms_server::{
    audit::Audit,
    rpc::{
        self, Bound, CallerName, Config, GateParts, Limits, MetricsConfig, Parts, Policy, Role,
        RpcError, TlsConfig,
    },
};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList,
    CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use tonic::{
    Code, Status,
    service::Routes,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

/// Longer than anything here takes, shorter than a developer's patience.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// An authority.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
    /// What a revocation list calls it.
    pub(crate) serial: u64,
}

/// A serial number that no other certificate of this process has.
fn next_serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// How a client's certificate names it.
pub(crate) enum Name<'a> {
    Uri(&'a str),
    Dns(&'a str),
    Common(&'a str),
    Nothing,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // The same for all authorities: a foreign one is told by its key, not by its name.
        params.distinguished_name.push(DnType::CommonName, "Utility CA");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn server(&self) -> Identity {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    pub(crate) fn client(&self, name: &Name<'_>) -> Identity {
        self.sign(client_params(name))
    }

    /// Valid from `from` to `to`, both years.
    pub(crate) fn client_of_years(&self, name: &Name<'_>, from: i32, to: i32) -> Identity {
        let mut params = client_params(name);
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        self.sign(params)
    }

    /// A revocation list that names these certificates and holds from the one year to the other.
    pub(crate) fn crl(
        &self,
        revoked: &[&Identity],
        (from, to): (i32, i32),
    ) -> CertificateRevocationList {
        let revoked = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: identity.serial.into(),
            revocation_time: date_time_ymd(from, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        CertificateRevocationListParams {
            this_update: date_time_ymd(from, 1, 1),
            next_update: date_time_ymd(to, 1, 1),
            crl_number: next_serial().into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.0)
        .unwrap()
    }

    fn sign(&self, mut params: CertificateParams) -> Identity {
        let serial = next_serial();
        params.serial_number = Some(serial.into());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem(), serial }
    }
}

impl Identity {
    pub(crate) fn self_signed(name: &Name<'_>) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = client_params(name).self_signed(&key).unwrap();
        Self { certificate: certificate.pem(), key: key.serialize_pem(), serial: 0 }
    }
}

fn client_params(name: &Name<'_>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    match name {
        Name::Uri(name) => {
            params.subject_alt_names = vec![SanType::URI((*name).try_into().unwrap())];
        }
        Name::Dns(name) => {
            params.subject_alt_names = vec![SanType::DnsName((*name).try_into().unwrap())];
        }
        Name::Common(name) => params.distinguished_name.push(DnType::CommonName, *name),
        Name::Nothing => {}
    }
    params
}

/// 2026-01-01.
pub(crate) const NOW_MS: u64 = 1_767_225_600_000;

/// A clock that stands still until it is moved.
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(NOW_MS)))
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }

    pub(crate) fn advance_years(&self, years: u64) {
        self.0.fetch_add(years * 366 * 24 * 3_600_000, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn now(&self) -> kms_core::moment::Moment {
        kms_core::moment::Moment::from_ms(self.0.load(Ordering::SeqCst))
    }
}

/// The name that the policy of these tests gives one role to.
pub(crate) fn holder_of(role: Role) -> String {
    format!("{role}-1.utility.example")
}

/// One caller a role; `everyone` has all roles.
pub(crate) fn policy() -> Policy {
    let name = |name: &str| CallerName::new(name).unwrap();
    let holders = Role::ALL.map(|role| (name(&holder_of(role)), vec![role]));
    Policy::new(holders.into_iter().chain([
        (name("everyone"), Role::ALL.to_vec()),
        (name("spiffe://utility/hes"), vec![Role::Hes]),
    ]))
}

type Stopped = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
type Serving = JoinHandle<Result<(), RpcError>>;

/// A server and its files.
pub(crate) struct Site {
    pub(crate) ca: Ca,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) bound: Bound,
    pub(crate) files: TempDir,
    /// The home of its audit log, where that is not a part of a whole site.
    log: Option<log::Place>,
    stop: Option<oneshot::Sender<()>>,
    pub(crate) task: Serving,
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::start_with(Limits::default(), Routes::default()).await
    }

    pub(crate) async fn start_with(limits: Limits, services: Routes) -> Self {
        let (home, audit) = audit_log().await;
        let site = Self::serve(limits, |config, clock, stopped, ready| {
            let parts = GateParts { services, audit, clock };
            tokio::spawn(rpc::serve_services(config, parts, stopped, ready))
        })
        .await;
        Self { log: Some(home), ..site }
    }

    /// A server without services whose configuration differs from that of the others.
    pub(crate) async fn start_changed(change: impl FnOnce(&Ca, &mut Config)) -> Self {
        let ca = Ca::new();
        let (home, audit) = audit_log().await;
        let site =
            Self::serve_of(ca, Limits::default(), |ca, mut config, clock, stopped, ready| {
                change(ca, &mut config);
                let parts = GateParts { services: Routes::default(), audit, clock };
                tokio::spawn(rpc::serve_services(config, parts, stopped, ready))
            })
            .await;
        Self { log: Some(home), ..site }
    }

    /// A server with all of its parts.
    pub(crate) async fn start_parts(
        limits: Limits,
        parts: impl FnOnce(Arc<dyn Clock>) -> Parts,
    ) -> Self {
        Self::serve(limits, |config, clock, stopped, ready| {
            tokio::spawn(rpc::serve(config, parts(clock), stopped, ready))
        })
        .await
    }

    async fn serve(
        limits: Limits,
        serve: impl FnOnce(Config, Arc<dyn Clock>, Stopped, oneshot::Sender<Bound>) -> Serving,
    ) -> Self {
        Self::serve_of(Ca::new(), limits, |_, config, clock, stopped, ready| {
            serve(config, clock, stopped, ready)
        })
        .await
    }

    async fn serve_of(
        ca: Ca,
        limits: Limits,
        serve: impl FnOnce(&Ca, Config, Arc<dyn Clock>, Stopped, oneshot::Sender<Bound>) -> Serving,
    ) -> Self {
        let files = TempDir::new().unwrap();
        write_files(files.path(), &ca.server(), &ca.pem());
        let clock = TestClock::new();
        let (stop, stopped) = oneshot::channel();
        let (ready, bound) = oneshot::channel();
        let stopped: Stopped = Box::pin(async { drop(stopped.await) });
        let config = config(files.path(), limits);
        let task = serve(&ca, config, Arc::clone(&clock) as _, stopped, ready);
        let bound = bound.await.unwrap();
        Self { ca, clock, bound, files, log: None, stop: Some(stop), task }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.bound.address
    }

    /// Begins the drain.
    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// A connection of the caller with this DNS name.
    pub(crate) async fn caller(&self, name: &str) -> Channel {
        let identity = self.ca.client(&Name::Dns(name));
        connect(self.address(), &self.ca.pem(), Some(&identity)).await.unwrap()
    }
}

/// An audit log over a database of its own, which goes with its home.
pub(crate) async fn audit_log() -> (log::Place, Arc<Audit>) {
    let home = log::Place::new();
    let (_, audit) = home.start().await;
    (home, audit)
}

pub(crate) fn config(files: &Path, limits: Limits) -> Config {
    let tls = TlsConfig {
        reload_poll: Duration::from_millis(20),
        ..TlsConfig::new(files.join("server.pem"), files.join("server.key"), files.join("ca.pem"))
    };
    let local = ([127, 0, 0, 1], 0).into();
    let config = Config::new(local, tls, limits, policy()).unwrap();
    Config { metrics: Some(MetricsConfig::new(local, false).unwrap()), ..config }
}

pub(crate) fn write_files(files: &Path, server: &Identity, ca: &str) {
    fs::write(files.join("ca.pem"), ca).unwrap();
    fs::write(files.join("server.pem"), &server.certificate).unwrap();
    fs::write(files.join("server.key"), &server.key).unwrap();
}

/// A client's side of TLS.
pub(crate) fn client_config(
    server_ca: &str,
    identity: Option<&Identity>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server_ca.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(identity) => config
            .with_client_auth_cert(
                CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
                    .collect::<Result<_, _>>()
                    .unwrap(),
                PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Shakes hands, begins HTTP/2 and waits for the server's first byte: with TLS 1.3 a client learns only then
/// whether its certificate was accepted.
pub(crate) async fn shake_hands(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let talk = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        match stream.read(&mut [0; 1]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(stream),
        }
    };
    tokio::time::timeout(SOON, talk).await.expect("the server neither accepted nor refused")
}

/// A gRPC channel over exactly one connection.
pub(crate) async fn connect(
    address: SocketAddr,
    server_ca: &str,
    identity: Option<&Identity>,
) -> Result<Channel, tonic::transport::Error> {
    let config = client_config(server_ca, identity, &[&rustls::version::TLS13]);
    let connector = tower::service_fn(move |_| {
        let config = Arc::clone(&config);
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

/// Asks the listener for metrics and probes; status and body.
pub(crate) async fn watch(site: &Site, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    http(site, &request).await
}

/// Sends the listener for metrics and probes these bytes; status and body of its answer.
pub(crate) async fn http(site: &Site, request: &str) -> (u16, String) {
    let talk = async {
        let mut stream = TcpStream::connect(site.bound.metrics.unwrap()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // It may cut us off while we still have something to say.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    let answer = tokio::time::timeout(SOON, talk).await.expect("no answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or(0), body.to_owned())
}

/// Calls `path` with an empty message.
pub(crate) async fn call(channel: &Channel, path: &str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let call = client.unary(tonic::Request::new(()), path.parse().unwrap(), codec);
    tokio::time::timeout(SOON, call).await.expect("no answer").map(|_| ())
}

/// Code and reason word of a refusal; the word is empty where there is none.
pub(crate) fn reason<T>(answer: &Result<T, Status>) -> (Code, String) {
    match answer {
        Ok(_) => (Code::Ok, String::new()),
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

/// Every method of the package, as an HTTP path.
pub(crate) fn paths() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(kms_proto::DESCRIPTORS).unwrap();
    let mut paths = Vec::new();
    for file in set.file {
        for service in &file.service {
            for method in &service.method {
                paths.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    assert!(paths.len() >= 12, "{paths:?}");
    paths
}

/// Asks `condition` until it holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, wait).await.is_ok(), "{what}");
}

/// The path of a call that every known caller may make.
pub(crate) const HEALTH: &str = "/grpc.health.v1.Health/Check";
