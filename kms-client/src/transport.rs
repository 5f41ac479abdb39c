//! Endpoints, TLS, deadlines: one call from its first try to its last.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status};

use crate::call::{CallError, ConnectError};
use crate::config::{ClientConfig, ConfigError};
use crate::request_id::{HEADER, RequestId};
use crate::retry::{Safety, Step, step, wait};

/// How long a connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that is gone without a word is noticed after about two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Room for batches in flight, in bytes: HTTP/2's default of 64 KiB would hold back half a batch.
const WINDOW: u32 = 8 << 20;
/// No answer is longer than this, in bytes: a full batch of the longest plaintexts is shorter.
pub(crate) const ANSWER_LEN_MAX: usize = 16 << 20;

/// The endpoints, and which of them serves at the moment.
pub(crate) struct Transport {
    endpoints: Vec<Channel>,
    current: Arc<AtomicUsize>,
    deadline: Duration,
    retries: u32,
    /// Of all calls; `None`: each gets its own.
    request_id: Option<RequestId>,
}

impl Transport {
    /// Checks the certificates and names; opens no connection yet.
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, ConfigError> {
        let endpoints = endpoints(config)?;
        Ok(Self {
            endpoints: endpoints.iter().map(Endpoint::connect_lazy).collect(),
            current: Arc::default(),
            deadline: config.deadline,
            retries: config.retries,
            request_id: None,
        })
    }

    /// As [`Transport::new`], and connects to the first endpoint that answers.
    pub(crate) async fn connect(config: &ClientConfig) -> Result<Self, ConnectError> {
        let mut transport = Self::new(config)?;
        let mut last = Status::unavailable("no endpoint");
        for (index, endpoint) in endpoints(config)?.into_iter().enumerate() {
            match endpoint.connect().await {
                Ok(channel) => {
                    transport.endpoints[index] = channel;
                    transport.current = Arc::new(AtomicUsize::new(index));
                    return Ok(transport);
                }
                Err(error) => last = unreachable(endpoint.uri(), error),
            }
        }
        Err(CallError::from_status(&last).into())
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

    /// How long a call may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Carries out one call: `send` is asked once for each try.
    pub(crate) async fn call<M, R, F>(
        &self,
        safety: Safety,
        message: M,
        send: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<R, CallError>
    where
        M: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut tries = self.tries(safety, Some(Instant::now() + self.deadline));
        loop {
            let mut request = tries.request(message.clone());
            request.set_timeout(tries.remaining());
            let sent = send(tries.channel(), request);
            let status = match timeout(tries.remaining(), sent).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(CallError::DeadlineExceeded),
            };
            tries.after(&status).await?;
        }
    }

    /// Starts counting tries. Without `until` only their number ends them.
    pub(crate) fn tries(&self, safety: Safety, until: Option<Instant>) -> Tries<'_> {
        let endpoint = self.current.load(Ordering::Relaxed);
        // One name for all tries: the service's log then shows that they belong together.
        let id = self.request_id.clone().unwrap_or_else(RequestId::random);
        Tries { transport: self, id, safety, until, endpoint, waits: 0, unavailable: 0 }
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
}

impl Tries<'_> {
    /// `message` under the name of these tries.
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(HEADER, self.id.metadata());
        request
    }

    /// The endpoint for the next try.
    pub(crate) fn channel(&self) -> Channel {
        self.transport.endpoints[self.endpoint % self.transport.endpoints.len()].clone()
    }

    /// A try has succeeded: later failures are new ones.
    pub(crate) fn succeeded(&mut self) {
        self.waits = 0;
        self.unavailable = 0;
    }

    /// Gets ready for the next try, or says why there is none. Only a full round of endpoints that
    /// are all unavailable costs a wait.
    pub(crate) async fn after(&mut self, status: &Status) -> Result<(), CallError> {
        let at_least = match step(self.safety, status) {
            Step::GiveUp => {
                self.leave_if_unavailable(status);
                return Err(CallError::from_status(status));
            }
            Step::Here { at_least } => at_least,
            Step::Elsewhere { at_least } => {
                self.leave_if_unavailable(status);
                self.unavailable += 1;
                if self.unavailable < self.transport.endpoints.len() {
                    return Ok(());
                }
                at_least
            }
        };
        let pause = wait(self.waits, at_least, random());
        let ends_in_time = self.until.is_none_or(|until| Instant::now() + pause < until);
        if self.waits >= self.transport.retries || !ends_in_time {
            return Err(CallError::from_status(status));
        }
        sleep(pause).await;
        self.waits += 1;
        self.unavailable = 0;
        Ok(())
    }

    fn remaining(&self) -> Duration {
        let until = self.until.unwrap_or_else(|| Instant::now() + self.transport.deadline);
        until.saturating_duration_since(Instant::now())
    }

    /// Lets later calls, too, start at the next endpoint.
    fn leave_if_unavailable(&mut self, status: &Status) {
        if status.code() != tonic::Code::Unavailable {
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
        Err(_) => Err(Status::deadline_exceeded("no answer within the deadline")),
    }
}

/// A connection that could not be made, with its chain of causes.
fn unreachable(uri: &tonic::codegen::http::Uri, error: tonic::transport::Error) -> Status {
    let mut status = Status::unavailable(uri.to_string());
    status.set_source(Arc::new(error));
    status
}

fn endpoints(config: &ClientConfig) -> Result<Vec<Endpoint>, ConfigError> {
    config.endpoints.iter().map(|url| endpoint(config, url)).collect()
}

fn endpoint(config: &ClientConfig, url: &str) -> Result<Endpoint, ConfigError> {
    let bad = |source: tonic::transport::Error| ConfigError::Tls(Box::new(source));
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&config.ca_pem))
        .identity(Identity::from_pem(&config.certificate_pem, &*config.private_key_pem));
    if let Some(name) = &config.server_name {
        tls = tls.domain_name(name);
    }
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|_| ConfigError::Endpoint(url.to_owned()))?
        .tls_config(tls)
        .map_err(bad)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW);
    Ok(endpoint)
}

/// Enough randomness to spread clients in time: the standard library's hasher is seeded from the
/// operating system.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}
