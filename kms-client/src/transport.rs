//! Endpoints, TLS, deadlines: one call from its first try to its last.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig as TlsConfig, RootCertStore};
use tonic::{Request, Response, Status};

use crate::call::{CallError, ConnectError};
use crate::config::{ClientConfig, ConfigError};
use crate::link::{Link, LinkError};
use crate::request_id::{HEADER, RequestId};
use crate::retry::{Safety, Step, is_about_a_certificate, step, wait};
use crate::setup::Target;

/// The time that a connection may take, TLS and HTTP/2 included: at most, and at least.
const SETUP: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(1));
/// A peer that says nothing is asked after so long whether it is there, and may take so long to answer. With
/// a short deadline both are shorter, so that there is time left for another endpoint.
const PINGS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));
/// Streams that the server ends because of their connection's age go on at once so often; then with waits.
const ANEW_MAX: u32 = 3;
/// No shorter than this: a busy machine is not a dead one.
const PING_MIN: Duration = Duration::from_millis(500);
/// No answer is longer than this, in bytes: a full batch of the longest plaintexts is shorter.
pub(crate) const ANSWER_LEN_MAX: usize = kms_core::wire::MESSAGE_BYTES_MAX;

/// The endpoints, and which of them serves at the moment.
pub(crate) struct Transport {
    endpoints: Vec<Link>,
    current: Arc<AtomicUsize>,
    deadline: Duration,
    retries: u32,
    /// Of all calls; `None`: each gets its own.
    request_id: Option<RequestId>,
}

impl Transport {
    /// Checks the certificates and names; opens no connection yet.
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, ConfigError> {
        let tls = Arc::new(tls(config)?);
        let links = config.endpoints.iter().map(|url| link(config, url, &tls));
        Ok(Self {
            endpoints: links.collect::<Result<_, _>>()?,
            current: Arc::default(),
            deadline: config.deadline,
            retries: config.retries,
            request_id: None,
        })
    }

    /// As [`Transport::new`], and connects to the first endpoint that answers.
    pub(crate) async fn connect(config: &ClientConfig) -> Result<Self, ConnectError> {
        let transport = Self::new(config)?;
        let until = Instant::now() + config.deadline.max(SETUP.1);
        let mut worst: Option<Status> = None;
        for (index, endpoint) in transport.endpoints.iter().enumerate() {
            match connected(until, endpoint).await {
                Ok(()) => {
                    transport.current.store(index, Ordering::Relaxed);
                    return Ok(transport);
                }
                // A failure that somebody has to mend is told before one that may pass.
                Err(status)
                    if worst.as_ref().is_none_or(|worst| !is_about_a_certificate(worst)) =>
                {
                    worst = Some(status);
                }
                Err(_) => {}
            }
        }
        let worst = worst.unwrap_or_else(|| Status::unavailable("no endpoint"));
        Err(CallError::from_status(&worst).into())
    }

    /// The same connections, with all calls under this name.
    pub(crate) fn with_request_id(&self, id: RequestId) -> Self {
        Self {
            endpoints: self.endpoints.clone(),
            current: Arc::clone(&self.current),
            request_id: Some(id),
            ..*self
        }
    }

    /// The time that a call may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Carries out one call: `send` is asked once for each try.
    pub(crate) async fn call<M, R, F>(
        &self,
        safety: Safety,
        message: M,
        send: impl Fn(Link, Request<M>) -> F,
    ) -> Result<R, CallError>
    where
        M: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let until = Instant::now() + self.deadline;
        let mut tries = self.tries(safety, Some(until));
        loop {
            let status = match self.one_try(&tries, until, &message, &send).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            tries.after(&status).await?;
        }
    }

    async fn one_try<M, R, F>(
        &self,
        tries: &Tries<'_>,
        until: Instant,
        message: &M,
        send: &impl Fn(Link, Request<M>) -> F,
    ) -> Result<Response<R>, Status>
    where
        M: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let link = tries.link();
        // First the connection: what fails here was certainly not carried out.
        connected(until, &link).await?;
        let mut request = tries.request(message.clone());
        request.set_timeout(until.saturating_duration_since(Instant::now()));
        within(until, send(link, request)).await
    }

    /// Starts counting tries. Without `until` only their number ends them.
    pub(crate) fn tries(&self, safety: Safety, until: Option<Instant>) -> Tries<'_> {
        let endpoint = self.current.load(Ordering::Relaxed);
        // One name for all tries: the service's log then shows that they belong together.
        let id = self.request_id.clone().unwrap_or_else(RequestId::random);
        Tries {
            transport: self,
            id,
            safety,
            until,
            endpoint,
            waits: 0,
            unavailable: 0,
            refused: 0,
            anew: 0,
            failing_since: None,
        }
    }
}

/// The tries of one call.
pub(crate) struct Tries<'a> {
    transport: &'a Transport,
    id: RequestId,
    safety: Safety,
    until: Option<Instant>,
    endpoint: usize,
    waits: u32,
    /// Endpoints found unavailable since the last wait.
    unavailable: usize,
    /// Endpoints among them where a certificate was refused: waiting mends none.
    refused: usize,
    /// New connections that were taken at once since anything succeeded.
    anew: u32,
    /// The time since which nothing succeeds.
    failing_since: Option<Instant>,
}

impl Tries<'_> {
    /// `message` under the name of these tries.
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(HEADER, self.id.metadata());
        request
    }

    /// The endpoint for the next try.
    pub(crate) fn link(&self) -> Link {
        self.transport.endpoints[self.endpoint % self.transport.endpoints.len()].clone()
    }

    /// A try has succeeded: later failures are new ones.
    pub(crate) fn succeeded(&mut self) {
        self.waits = 0;
        self.unavailable = 0;
        self.refused = 0;
        self.anew = 0;
        self.failing_since = None;
    }

    /// As [`Tries::after`], for what flows: where anything is tried again at all, it goes on for as long as a
    /// call may take, but not beyond `until`, when the oldest item is due.
    pub(crate) async fn after_break(
        &mut self,
        status: &Status,
        until: Instant,
    ) -> Result<(), CallError> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        self.until = Some(until.min(since + self.transport.deadline));
        self.after(status).await
    }

    /// Gets ready for the next try, or says why there is none. Only a full round of endpoints that
    /// are all unavailable costs a wait.
    pub(crate) async fn after(&mut self, status: &Status) -> Result<(), CallError> {
        let failed = || CallError::of(self.safety, status);
        let at_least = match step(self.safety, status) {
            Step::GiveUp => {
                let error = failed();
                self.leave_if_unavailable(status);
                return Err(error);
            }
            Step::Anew if self.anew < ANEW_MAX => {
                self.anew += 1;
                return Ok(());
            }
            Step::Anew => Duration::ZERO,
            Step::Here { at_least } => at_least,
            Step::Elsewhere { at_least } => {
                let error = failed();
                self.leave_if_unavailable(status);
                self.unavailable += 1;
                self.refused += usize::from(is_about_a_certificate(status));
                let endpoints = self.transport.endpoints.len();
                if self.refused >= endpoints {
                    return Err(error);
                }
                if self.unavailable < endpoints {
                    return Ok(());
                }
                at_least
            }
        };
        let pause = wait(self.waits, at_least, random());
        let retries = match (self.failing_since, self.transport.retries) {
            (Some(_), 1..) => u32::MAX,
            (_, retries) => retries,
        };
        let ends_in_time = self.until.is_none_or(|until| Instant::now() + pause < until);
        if self.waits >= retries || !ends_in_time {
            return Err(CallError::of(self.safety, status));
        }
        sleep(pause).await;
        self.waits += 1;
        self.unavailable = 0;
        self.refused = 0;
        Ok(())
    }

    /// Lets later calls, too, start at the next endpoint.
    fn leave_if_unavailable(&mut self, status: &Status) {
        if status.code() != tonic::Code::Unavailable && LinkError::below(status).is_none() {
            return;
        }
        let (from, to) = (self.endpoint, (self.endpoint + 1) % self.transport.endpoints.len());
        // Another call may have moved on already; then its choice stands.
        let moved = Ordering::Relaxed;
        let _ = self.transport.current.compare_exchange(from, to, moved, moved);
        self.endpoint = to;
    }
}

/// Waits for `future`, but not beyond `until`.
pub(crate) async fn within<T>(
    until: Instant,
    future: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match timeout_at(until, future).await {
        Ok(result) => result,
        Err(_) => Err(LinkError::Late.into_status()),
    }
}

/// Waits for a connection, but not beyond `until`.
pub(crate) async fn connected(until: Instant, link: &Link) -> Result<(), Status> {
    let opened = timeout_at(until, link.opened()).await;
    opened.unwrap_or(Err(LinkError::NoTime)).map_err(LinkError::into_status)
}

fn link(config: &ClientConfig, url: &str, tls: &Arc<TlsConfig>) -> Result<Link, ConfigError> {
    let bad = || ConfigError::Endpoint(url.to_owned());
    let authority = url.strip_prefix("https://").ok_or_else(bad)?;
    let parsed: tonic::codegen::http::uri::Authority = authority.parse().map_err(|_| bad())?;
    let name = config.server_name.as_deref().unwrap_or(parsed.host());
    // An IPv6 address stands in brackets there and without them in a certificate.
    let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
    let server_name = ServerName::try_from(name).map_err(|error| ConfigError::Tls(error.into()))?;
    let shares = u32::try_from(config.endpoints.len() + 1).unwrap_or(u32::MAX);
    let target = Target {
        authority: authority.to_owned(),
        tls: Arc::clone(tls),
        server_name,
        bound: (config.deadline / shares).clamp(SETUP.1, SETUP.0),
        pings: (
            (config.deadline / 5).clamp(PING_MIN, PINGS.0),
            (config.deadline * 3 / 10).clamp(2 * PING_MIN, PINGS.1),
        ),
    };
    Ok(Link::new(target, parsed))
}

fn tls(config: &ClientConfig) -> Result<TlsConfig, ConfigError> {
    fn bad(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConfigError {
        ConfigError::Tls(error.into())
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&config.ca_pem) {
        roots.add(certificate.map_err(bad)?).map_err(bad)?;
    }
    let chain = CertificateDer::pem_slice_iter(&config.certificate_pem);
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let key = PrivateKeyDer::from_pem_slice(&config.private_key_pem).map_err(bad)?;
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.unwrap_or_else(|| Arc::new(ring::default_provider()));
    let mut tls = TlsConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(bad)?;
    tls.alpn_protocols.push(b"h2".to_vec());
    Ok(tls)
}

/// Enough randomness to spread clients in time: the standard library's hasher is seeded from the
/// operating system.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}
