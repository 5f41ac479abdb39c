//! One endpoint and the connection to it, made when it is needed and made anew when it has ended. Whatever
//! fails here says how far the request had got: that decides what may be sent again.

use std::error::Error as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use thiserror::Error;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::uri::{Authority, Scheme};
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response, Uri, header::USER_AGENT};
use tonic::codegen::{Body as HttpBody, Bytes, Service};

use crate::setup::{SetupError, Target, set_up};

/// The header or trailer that carries the outcome of a call.
const GRPC_STATUS: &str = "grpc-status";
/// The name that we give ourselves.
const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("ami-kms-client/", env!("CARGO_PKG_VERSION")));
/// A request that did not go out on an ended connection is given to a new one so often.
const SENDS_MAX: usize = 3;

/// A failure of the transport, as opposed to an answer of the service.
#[derive(Debug, Error)]
pub(crate) enum LinkError {
    /// There was no connection to send it on.
    #[error("no connection")]
    Setup(#[source] Arc<SetupError>),
    /// The connection ended first.
    #[error("the connection ended before the request went out")]
    Unsent(#[source] hyper::Error),
    /// It was sent, and the answer did not come, or not whole.
    #[error("the connection broke before the answer was complete")]
    Broken(#[source] hyper::Error),
    /// The answer ended without saying how the call went.
    #[error("the answer ended without a status (HTTP {0})")]
    Cut(u16),
    /// Our own timer ended it.
    #[error("no answer within the deadline")]
    Late,
    /// The same, while there was no connection.
    #[error("no connection within the deadline")]
    NoTime,
}

impl LinkError {
    /// The failure below a status; `None`: the service answered.
    pub(crate) fn below(status: &Status) -> Option<&Self> {
        std::iter::successors(status.source(), |cause| (*cause).source())
            .find_map(|cause| cause.downcast_ref())
    }

    /// The one of ours as a status, with itself as its source.
    pub(crate) fn into_status(self) -> Status {
        Status::from_error(Box::new(self))
    }
}

/// One endpoint. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    target: Arc<Target>,
    authority: Authority,
    state: Mutex<State>,
}

type Opening = Shared<BoxFuture<'static, Result<SendRequest<Body>, Arc<SetupError>>>>;

#[derive(Default)]
struct State {
    /// Counts the connections, so that nobody gives up one that he did not have.
    number: u64,
    current: Option<(Opening, Instant)>,
}

impl Link {
    pub(crate) fn new(target: Target, authority: Authority) -> Self {
        Self(Arc::new(Inner { target: Arc::new(target), authority, state: Mutex::default() }))
    }

    /// Makes sure that there is a connection.
    pub(crate) async fn opened(&self) -> Result<(), LinkError> {
        self.sender().await.map(drop)
    }

    /// A connection that is open as far as is known, and its number.
    async fn sender(&self) -> Result<(u64, SendRequest<Body>), LinkError> {
        loop {
            let (number, opening, begun, is_new) = self.opening();
            match opening.await {
                Ok(sender) => return Ok((number, sender)),
                // Nobody had waited for that one to the end.
                Err(_) if !is_new && begun.elapsed() > self.0.target.bound => self.forget(number),
                Err(error) => return Err(LinkError::Setup(error)),
            }
        }
    }

    /// The connection there is or that is being made; what has ended or failed is made anew. A task makes it:
    /// whoever waits may stop waiting without harm to others.
    fn opening(&self) -> (u64, Opening, Instant, bool) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((opening, begun)) = &state.current
            && opening.peek().is_none_or(|made| made.as_ref().is_ok_and(|made| !made.is_closed()))
        {
            return (state.number, opening.clone(), *begun, false);
        }
        let target = Arc::clone(&self.0.target);
        let making = tokio::spawn(set_up(target));
        let opening = async move {
            match making.await {
                Ok(made) => made.map_err(Arc::new),
                // The runtime is going down.
                Err(_) => std::future::pending().await,
            }
        };
        let (opening, begun) = (opening.boxed().shared(), Instant::now());
        state.number += 1;
        state.current = Some((opening.clone(), begun));
        (state.number, opening, begun, true)
    }

    /// The next call gets a new connection.
    fn forget(&self, number: u64) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.number == number {
            state.current = None;
        }
    }

    async fn send(self, mut request: Request<Body>) -> Result<Response<Reply>, LinkError> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(Scheme::HTTPS);
        uri.authority = Some(self.0.authority.clone());
        // Never fails: a path, and what a checked endpoint consists of.
        *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
        request.headers_mut().insert(USER_AGENT, AGENT);
        let mut sends = 1;
        loop {
            let (number, mut sender) = self.sender().await?;
            let mut error = match sender.try_send_request(request).await {
                Ok(response) => return Ok(Reply::of(response)),
                Err(error) => error,
            };
            // A message that comes back did not go out.
            let Some(unsent) = error.take_message() else {
                return Err(LinkError::Broken(error.into_error()));
            };
            self.forget(number);
            if sends == SENDS_MAX {
                return Err(LinkError::Unsent(error.into_error()));
            }
            sends += 1;
            request = unsent;
        }
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Reply>;
    type Error = LinkError;
    type Future = BoxFuture<'static, Result<Response<Reply>, LinkError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

/// The body of an answer. One that ends without `grpc-status` is a broken one.
pub(crate) struct Reply {
    inner: Incoming,
    http_status: u16,
    /// The service has said how the call went.
    said: bool,
}

impl Reply {
    fn of(response: Response<Incoming>) -> Response<Self> {
        let http_status = response.status().as_u16();
        let said = says(response.headers());
        response.map(|inner| Self { inner, http_status, said })
    }
}

fn says(headers: &HeaderMap) -> bool {
    headers.contains_key(GRPC_STATUS)
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = LinkError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                self.said = self.said || frame.trailers_ref().is_some_and(says);
                Some(Ok(frame))
            }
            Some(Err(error)) => Some(Err(LinkError::Broken(error))),
            None if self.said => None,
            None => {
                self.said = true;
                Some(Err(LinkError::Cut(self.http_status)))
            }
        })
    }
}
