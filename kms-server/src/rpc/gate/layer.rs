//! Every call passes here before its body is read: who is it, may he, is there room. What passes
//! carries a [`Permit`]; a service that finds none refuses. A call that needs two people is read here,
//! too, and goes no further without the second: no service can forget to ask.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument as _;

use super::{
    answer::{Answer, Call},
    recording::{call_of, record_waiting},
};
use crate::{
    audit::Audit,
    rpc::{
        access::{
            policy::{Permit, Policy},
            verb::Verb,
        },
        approvals::{import_call, waiting::Approvals, whole::Asked},
        config::Limits,
        drain::{DrainWatch, Phase},
        figures::{Figures, Strangers},
        listen::connection::Peer,
        messages::{
            request_id::{RequestId, RequestIds},
            shape::Rules,
            status::{Refused, name_request},
        },
        shares::upload::{Conditions, Upload},
        tls::in_use::{Distrust, Tls},
    },
};
use kms_core::ports::Clock;

/// What the gate asks.
pub(crate) struct Gatekeeper {
    pub(crate) policy: Policy,
    pub(crate) tls: Arc<Tls>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) drain: DrainWatch,
    pub(crate) limits: Limits,
    pub(crate) strangers: Strangers,
    pub(crate) figures: Arc<Figures>,
    pub(crate) ids: RequestIds,
    /// `None` in tests of what needs no log.
    pub(crate) audit: Option<Arc<Audit>>,
    pub(crate) approvals: Arc<Approvals>,
}

impl Gatekeeper {
    /// Authenticated first, then the path, then the policy: a stranger learns nothing of what there is.
    fn admit(&self, peer: Option<&Peer>, path: &str) -> Result<Permit, Refused> {
        let peer = peer.ok_or(Refused::NoCertificate)?;
        self.check_standing(peer)?;
        let caller = peer.name().ok_or(Refused::NoName)?;
        self.policy.roles(caller)?;
        let verb = Verb::of_path(path).ok_or(Refused::UnknownMethod)?;
        Ok(self.policy.permit(caller, verb)?)
    }

    /// Puts into the audit log that a known caller asked for what it is not granted.
    async fn record(&self, refused: &Refused, id: &RequestId) {
        if let (Refused::NotGranted { caller, verb }, Some(audit)) = (refused, &self.audit) {
            audit.record_refusal(call_of(caller, *verb, Some(id)), "NOT_GRANTED").await;
        }
    }

    /// Reads a call that needs two people, and lets it pass if the second has approved it.
    async fn ask_for_second(
        &self,
        request: Request<Body>,
        permit: &Permit,
    ) -> Result<Request<Body>, Status> {
        let id: Option<RequestId> = request.extensions().get().cloned();
        let bytes_max = self.limits.message_bytes_max;
        let asked = match permit.verb() {
            Verb::ImportMeters => import_call::read(request, bytes_max).await?,
            verb => Asked::read(verb, request, bytes_max).await?,
        };
        if asked.is_question {
            return Ok(asked.request);
        }
        let second = match self.approvals.pass(permit, &asked) {
            Ok(second) => second,
            Err(refused) => {
                if let Some(audit) = &self.audit {
                    let call = call_of(permit.caller(), permit.verb(), id.as_ref());
                    record_waiting(audit, call, &refused, asked.about).await?;
                }
                return Err(refused.into());
            }
        };
        tracing::info!(approver = %second.approver, number = second.number, "passes with two people");
        let mut request = asked.request;
        request.extensions_mut().insert(Arc::new(permit.approved_by(second)));
        Ok(request)
    }

    /// What the request of a call is held to.
    fn conditions(&self, call: &Call, verb: Verb) -> Conditions {
        Conditions {
            rules: Rules::of(verb, &self.limits),
            memory: call.peer().account().memory.clone(),
            ledger: call.ledger(),
            is_stream: verb.is_stream(),
            message_timeout: self.limits.message_timeout,
            age: self.old_at(call.peer()),
        }
    }

    /// When streams of a connection are ended, in order: a little after it was told to go elsewhere, so
    /// that a client does not come back on it.
    fn old_at(&self, peer: &Peer) -> Option<Instant> {
        const AFTER_GOAWAY: Duration = Duration::from_millis(250);
        let age = self.limits.connection_age_max?;
        peer.since().checked_add(age)?.checked_add(AFTER_GOAWAY)
    }

    /// Whether the certificate that the connection began with would still be accepted. Asked again for
    /// every answer of a stream.
    pub(crate) fn check_standing(&self, peer: &Peer) -> Result<(), Refused> {
        let now_ms = self.clock.unix_ms();
        if peer.is_expired(now_ms) {
            return Err(Refused::Expired);
        }
        let loaded = self.tls.current();
        // No handshake would succeed now, and an open connection is no better than a new one.
        if loaded.lists_due.is_some_and(|due| now_ms >= due.ends_ms) {
            return Err(Refused::ListExpired);
        }
        peer.check_trust(&loaded).map_err(|distrust| match distrust {
            Distrust::Revoked => Refused::Revoked,
            Distrust::NotTrusted => Refused::NotTrusted,
        })
    }
}

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

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let keeper = Arc::clone(&self.keeper);
        let id = keeper.ids.of(request.headers());
        let peer = request.extensions().get::<Peer>().cloned();
        let admitted = keeper.admit(peer.as_ref(), request.uri().path()).and_then(|permit| {
            let peer = peer.clone().ok_or(Refused::NoCertificate)?;
            let place = peer.begin_call()?;
            Ok((permit, peer, place))
        });
        let (permit, peer, place) = match admitted {
            Ok(admitted) => admitted,
            Err(refused) => {
                // The path is a stranger's text: it is logged escaped, and at a level that he can't fill.
                let path = request.uri().path();
                tracing::debug!(?peer, ?path, request_id = %id, %refused, "call refused");
                keeper.strangers.note(peer.as_ref(), &refused);
                let verb = Verb::of_path(path);
                return Box::pin(async move {
                    keeper.record(&refused, &id).await;
                    let status = Status::from(refused);
                    keeper.figures.ended(verb, status.code());
                    let mut response = status.into_http();
                    name_request(response.headers_mut(), &id);
                    Ok(response)
                });
            }
        };
        request.extensions_mut().insert(id.clone());
        let call = Call::begin(&permit, peer, place, id, Arc::clone(&keeper.figures));
        let ends_at = if permit.verb().is_open() { Phase::Draining } else { Phase::Closing };
        let span = call.span();
        let needs_two = keeper.approvals.concern(permit.verb());
        let permit = Arc::new(permit);
        request.extensions_mut().insert(Arc::clone(&permit));
        let conditions = keeper.conditions(&call, permit.verb());
        let request = request.map(|body| Body::new(Upload::new(body, conditions)));
        let answering = if needs_two {
            // The one that is ready answers; its clone takes its place.
            let clone = self.inner.clone();
            let mut inner = std::mem::replace(&mut self.inner, clone);
            let keeper = Arc::clone(&keeper);
            Either::Left(async move {
                match keeper.ask_for_second(request, &permit).await {
                    Ok(request) => inner.call(request).await,
                    Err(status) => Ok(status.into_http()),
                }
            })
        } else {
            Either::Right(self.inner.call(request))
        };
        let answer = async move {
            let response = match timeout(keeper.limits.call_timeout, answering).await {
                Ok(Ok(response)) => response,
                Err(_) => {
                    Status::from(Refused::TookTooLong(keeper.limits.call_timeout)).into_http()
                }
            };
            Ok(answer(response, call, keeper, ends_at))
        };
        Box::pin(answer.instrument(span))
    }
}

fn answer(
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

/// The code that stands in headers or trailers.
pub(crate) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

impl Permit {
    /// The permit that a request came with, if it is one for `verb`. A request without one has not
    /// been through the gate.
    pub(crate) fn of<T>(request: &tonic::Request<T>, verb: Verb) -> Result<Arc<Self>, Status> {
        request
            .extensions()
            .get::<Arc<Self>>()
            .filter(|permit| permit.verb() == verb)
            .map(Arc::clone)
            .ok_or_else(|| Refused::Fault("a call came to its service without a permit").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::access::policy::{CallerName, Role};

    fn request_with(verb: Verb) -> tonic::Request<()> {
        let name = CallerName::new("x").unwrap();
        let policy = Policy::new([(name.clone(), Role::ALL.to_vec())]);
        let mut request = tonic::Request::new(());
        request.extensions_mut().insert(Arc::new(policy.permit(&name, verb).unwrap()));
        request
    }

    #[test]
    fn a_service_does_nothing_without_a_permit_for_its_verb() {
        assert!(Permit::of(&request_with(Verb::Decrypt), Verb::Decrypt).is_ok());
        for request in [request_with(Verb::VerifyMic), tonic::Request::new(())] {
            let refused = Permit::of(&request, Verb::Decrypt).unwrap_err();
            assert_eq!(refused.code(), Code::Internal);
        }
    }
}
