//! Every call passes here before its body is read: who is it, may he, is there room. What passes
//! carries a [`Permit`]; a service that finds none refuses. A call that needs two people is read here,
//! too, and goes no further without the second: no service can forget to ask.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{Request, Response};
use tokio::time::{sleep_until, timeout};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument as _;

use super::{
    answer::Answer,
    call::Call,
    keeper::Gatekeeper,
    peer::{Peer, Place},
};
use crate::rpc::{
    access::{policy::Permit, verb::Verb},
    drain::Phase,
    messages::{
        request_id::RequestId,
        status::Refused,
        trailers::{code_of, name_request},
    },
    shares::upload::Upload,
};

/// Puts the gate around all services.
#[derive(Clone)]
pub(crate) struct Gate(pub(crate) Arc<Gatekeeper>);

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { keeper: Arc::clone(&self.0), inner }
    }
}

/// Services behind the gate.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    keeper: Arc<Gatekeeper>,
    inner: S,
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answering {
        let keeper = Arc::clone(&self.keeper);
        let id = keeper.ids.of(request.headers());
        match enter(&keeper, &request) {
            Ok(entered) => self.answer(request, entered, id),
            Err(refused) => refuse(keeper, &request, refused, id),
        }
    }
}

/// A call that may go on.
struct Entered {
    permit: Permit,
    peer: Peer,
    place: Place,
}

/// Asks for a request's permit and its place.
fn enter(keeper: &Gatekeeper, request: &Request<Body>) -> Result<Entered, Refused> {
    let peer = request.extensions().get::<Peer>();
    let permit = keeper.admit(peer, request.uri().path())?;
    let peer = peer.cloned().ok_or(Refused::NoCertificate)?;
    let place = peer.begin_call()?;
    Ok(Entered { permit, peer, place })
}

/// Answers a call that goes no further.
fn refuse(
    keeper: Arc<Gatekeeper>,
    request: &Request<Body>,
    refused: Refused,
    id: RequestId,
) -> Answering {
    let peer = request.extensions().get::<Peer>();
    // The path is a stranger's text: it is logged escaped, and at a level that he can't fill.
    let path = request.uri().path();
    tracing::debug!(?peer, ?path, request_id = %id, %refused, "call refused");
    keeper.strangers.note(peer, &refused);
    let verb = Verb::of_path(path);
    keeper.tell_turned_away(peer, verb, &refused);
    Box::pin(async move {
        keeper.record(&refused, &id).await;
        let status = Status::from(refused);
        keeper.figures.ended(verb, status.code());
        let mut response = status.into_http();
        name_request(response.headers_mut(), &id);
        Ok(response)
    })
}

impl<S> Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    /// Lets a call go on to its service, and its answer out.
    fn answer(&mut self, mut request: Request<Body>, entered: Entered, id: RequestId) -> Answering {
        let keeper = Arc::clone(&self.keeper);
        request.extensions_mut().insert(id.clone());
        let Entered { permit, peer, place } = entered;
        let call = Call::begin(&permit, peer, place, id, Arc::clone(&keeper.figures));
        let (ends_at, is_waited_for) = match permit.verb() {
            verb if verb.is_open() => (Phase::Draining, false),
            verb if verb.is_endless() => (Phase::Idle, false),
            _ => (Phase::Closing, true),
        };
        let call = call.waited_for(is_waited_for.then(|| keeper.drain.work()));
        let span = call.span();
        let permit = Arc::new(permit);
        request.extensions_mut().insert(Arc::clone(&permit));
        let conditions = keeper.conditions(&call, permit.verb());
        let request = request.map(|body| Body::new(Upload::new(body, conditions)));
        let answering = self.serve(request, permit);
        let answer = async move {
            let patience = keeper.limits.call_timeout;
            let response = match timeout(patience, answering).await {
                Ok(Ok(response)) => response,
                Err(_) => Status::from(Refused::TookTooLong(patience)).into_http(),
            };
            Ok(let_out(response, call, keeper, ends_at))
        };
        Box::pin(answer.instrument(span))
    }

    /// Has the service answer, once a second person has agreed where one has to.
    fn serve(
        &mut self,
        request: Request<Body>,
        permit: Arc<Permit>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<S> {
        if !self.keeper.approvals.needs().concern(permit.verb()) {
            return Either::Right(self.inner.call(request));
        }
        // The one that is ready answers; its clone takes its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let keeper = Arc::clone(&self.keeper);
        Either::Left(async move {
            match keeper.ask_for_second(request, &permit).await {
                Ok(request) => inner.call(request).await,
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// Puts an answer under the conditions that hold until its end.
fn let_out(
    mut response: Response<Body>,
    mut call: Call,
    keeper: Arc<Gatekeeper>,
    ends_at: Phase,
) -> Response<Body> {
    // tonic says OUT_OF_RANGE to a message over its limit; all limits here are RESOURCE_EXHAUSTED.
    if code_of(response.headers()) == Some(Code::OutOfRange) {
        response =
            Status::from(Refused::MessageTooLarge(keeper.limits.message_bytes_max)).into_http();
    }
    name_request(response.headers_mut(), call.id());
    if let Some(code) = code_of(response.headers()) {
        call.ends_with(code);
    }
    let end = Box::pin(keeper.drain.clone().reached(ends_at));
    let old = keeper.old_at(call.peer()).filter(|_| call.verb().is_stream());
    let old = old.map(|at| Box::pin(sleep_until(at)) as _);
    response.map(|body| Body::new(Answer::new(body, call, keeper, end, old)))
}
