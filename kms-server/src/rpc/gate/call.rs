//! One call: counted, and logged once when it is over.

use std::{sync::Arc, time::Instant};

use tonic::Code;
use tracing::Span;

use super::peer::{Peer, Place};
use crate::rpc::{
    access::{policy::Permit, verb::Verb},
    drain::Work,
    figures::Figures,
    messages::request_id::RequestId,
    shares::ledger::Ledger,
};

/// One call, from its permit to its last byte. Counted and logged on drop, however it ended.
pub(super) struct Call {
    id: RequestId,
    verb: Verb,
    figures: Arc<Figures>,
    span: Span,
    peer: Peer,
    begun: Instant,
    code: Option<Code>,
    /// The cost of its messages.
    ledger: Ledger,
    _place: Place,
    _work: Option<Work>,
}

impl Call {
    pub(super) fn begin(
        permit: &Permit,
        peer: Peer,
        place: Place,
        id: RequestId,
        figures: Arc<Figures>,
    ) -> Self {
        // As high as events get: whatever is logged below says which request it belongs to.
        let span = tracing::error_span!(
            "call",
            request_id = id.as_str(),
            verb = permit.verb().name(),
            caller = permit.caller().as_str(),
            address = %peer.address(),
        );
        let (verb, begun) = (permit.verb(), Instant::now());
        let ledger = Ledger::default();
        Self {
            id,
            verb,
            figures,
            span,
            peer,
            begun,
            code: None,
            ledger,
            _place: place,
            _work: None,
        }
    }

    /// The same, and the server's end waits for it.
    pub(super) fn waited_for(mut self, work: Option<Work>) -> Self {
        self._work = work;
        self
    }

    pub(super) fn verb(&self) -> Verb {
        self.verb
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(super) fn id(&self) -> &RequestId {
        &self.id
    }

    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The account of its messages and their answers.
    pub(super) fn ledger(&self) -> Ledger {
        self.ledger.clone()
    }

    pub(super) fn ends_with(&mut self, code: Code) {
        self.code = Some(code);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // No code: the caller went away first. If he had all answers by then, the call has ended well.
        let code = self.code.unwrap_or_else(|| match self.ledger.is_settled() {
            true => Code::Ok,
            false => Code::Cancelled,
        });
        self.figures.ended(Some(self.verb), code);
        let duration_us = self.begun.elapsed().as_micros() as u64;
        // Entered, not named as parent: the JSON lines list the spans that are entered.
        self.span.in_scope(|| match self.verb.is_privileged() {
            true => tracing::info!(?code, duration_us, "answered"),
            false => tracing::debug!(?code, duration_us, "answered"),
        });
    }
}
