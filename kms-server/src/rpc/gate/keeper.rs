//! The gate's questions about a call: who is it, may he, has a second person agreed; and the bounds that its
//! request and its answer are held to.

use std::{sync::Arc, time::Duration};

use http::Request;
use tokio::time::Instant;
use tonic::{Status, body::Body};

use super::{
    call::Call,
    peer::Peer,
    recording::{Recorder, call_of},
    seconds::Seconds,
    strangers::Strangers,
};
use crate::{
    audit::Audit,
    replication,
    rpc::{
        access::{
            policy::{Permit, Policy},
            verb::Verb,
        },
        approvals::{import_call, waiting::Approvals, whole::Asked},
        config::Limits,
        drain::DrainWatch,
        figures::Figures,
        messages::{
            request_id::{RequestId, RequestIds},
            shape::Rules,
            status::Refused,
        },
        shares::upload::Conditions,
        tls::in_use::{Distrust, Tls},
    },
};
use kms_core::ports::Clock;

/// Answers what the gate asks.
pub(crate) struct Gatekeeper {
    pub(crate) policy: Policy,
    pub(crate) tls: Arc<Tls>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) drain: DrainWatch,
    pub(crate) limits: Limits,
    pub(crate) strangers: Strangers,
    pub(crate) figures: Arc<Figures>,
    pub(crate) ids: RequestIds,
    pub(crate) audit: Arc<Audit>,
    pub(crate) approvals: Arc<Approvals>,
    /// Where it is told that a site which asked to follow was turned away; `None`: there is no other site.
    pub(crate) replication: Option<Arc<replication::Status>>,
}

impl Gatekeeper {
    /// Authenticated first, then the path, then the policy: a stranger learns nothing of what there is.
    pub(super) fn admit(&self, peer: Option<&Peer>, path: &str) -> Result<Permit, Refused> {
        let peer = peer.ok_or(Refused::NoCertificate)?;
        self.check_standing(peer)?;
        let caller = peer.name().ok_or(Refused::NoName)?;
        self.policy.roles(caller)?;
        let verb = Verb::of_path(path).ok_or(Refused::UnknownMethod)?;
        Ok(self.policy.permit(caller, verb)?)
    }

    /// Puts into the audit log that a known caller asked for what it is not granted.
    pub(super) async fn record(&self, refused: &Refused, id: &RequestId) {
        if let Refused::NotGranted { caller, verb } = refused {
            self.audit.record_refusal(call_of(caller, *verb, Some(id)), "NOT_GRANTED").await;
        }
    }

    /// Tells why a caller does not come to follow, whoever he is: the other site would be turned away so.
    pub(super) fn tell_turned_away(
        &self,
        peer: Option<&Peer>,
        verb: Option<Verb>,
        refused: &Refused,
    ) {
        let replication = self.replication.as_ref().filter(|_| verb == Some(Verb::FollowChanges));
        let Some(replication) = replication else { return };
        let who = peer.map_or_else(String::new, |peer| match peer.name() {
            Some(name) => name.to_string(),
            None => peer.address().to_string(),
        });
        replication.turned_away(&who, format!("{refused} ({})", refused.word()));
    }

    /// Reads a call that needs two people, and lets it pass if the second has approved it.
    pub(super) async fn ask_for_second(
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
        let Asked { asking, mut request } = asked;
        if asking.is_question || self.approvals.needs().take_one(permit.verb(), &asking) {
            return Ok(request);
        }
        let call = call_of(permit.caller(), permit.verb(), id.as_ref());
        let recorder = Recorder(Arc::clone(&self.audit));
        let seconds = Seconds { approvals: Arc::clone(&self.approvals), recorder };
        let second = seconds.pass(permit, &asking, &call).await?;
        tracing::info!(approver = %second.approver, number = second.number, "passes with two people");
        request.extensions_mut().insert(Arc::new(permit.approved_by(second)));
        Ok(request)
    }

    /// The conditions that the request of a call is held to.
    pub(super) fn conditions(&self, call: &Call, verb: Verb) -> Conditions {
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
    pub(super) fn old_at(&self, peer: &Peer) -> Option<Instant> {
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
