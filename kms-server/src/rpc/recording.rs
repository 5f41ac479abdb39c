//! What the audit log is told of a call.

use std::sync::Arc;

use http::HeaderMap;
use tonic::Status;

use super::{
    policy::{CallerName, Permit},
    status::{Refused, word_of_lifecycle},
    verb::Verb,
};
use crate::{
    audit::Audit,
    domain::audit::{AuditEntry, AuditOutcome, AuditText, AuditedCall, Subject},
    lifecycle::LifecycleError,
};

/// The caller's own name for a call; comes back in the audit log.
const REQUEST_ID: &str = "x-request-id";
/// Longer names are cut.
const REQUEST_ID_LEN_MAX: usize = 64;

/// Who asked for what.
pub(super) fn call_of(caller: &CallerName, verb: Verb, headers: &HeaderMap) -> AuditedCall {
    let request_id = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let request_id = request_id.unwrap_or_default();
    let request_id = request_id.get(..REQUEST_ID_LEN_MAX).unwrap_or(request_id);
    AuditedCall {
        request_id: AuditText::new(request_id),
        ..AuditedCall::new(caller.as_str(), verb.name())
    }
}

/// The audit log, for services.
#[derive(Clone)]
pub(super) struct Recorder(pub(super) Arc<Audit>);

impl Recorder {
    /// The call that a request is.
    pub(super) fn call<T>(&self, permit: &Permit, request: &tonic::Request<T>) -> AuditedCall {
        call_of(permit.caller(), permit.verb(), request.metadata().as_ref())
    }

    /// An entry, to be completed.
    pub(super) fn entry(&self, call: &AuditedCall, subject: Subject) -> AuditEntry {
        call.entry(self.0.now_ms(), subject, AuditOutcome::Done)
    }

    /// Records a call that changed nothing. If that fails, so does the call.
    pub(super) async fn record(&self, entry: AuditEntry) -> Result<(), Status> {
        self.0.record(entry).await.map_err(|error| {
            tracing::error!(%error, "a call was refused: it can't be recorded");
            Refused::AuditNotWritable.into()
        })
    }

    /// Records why a call failed, and gives the status for it.
    pub(super) async fn failure(
        &self,
        call: &AuditedCall,
        subject: Subject,
        error: &LifecycleError,
    ) -> Status {
        let (word, is_ours) = word_of_lifecycle(error);
        let outcome =
            if is_ours { AuditOutcome::failed(word) } else { AuditOutcome::refused(word) };
        let recorded = self.record(call.entry(self.0.now_ms(), subject, outcome)).await;
        recorded.err().unwrap_or_else(|| super::status::of_lifecycle(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_cut_and_cannot_break_a_line() {
        let caller = CallerName::new("x").unwrap();
        let id = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, http::HeaderValue::from_bytes(value).unwrap());
            call_of(&caller, Verb::GetMeter, &headers).request_id.to_string()
        };
        assert_eq!(id(b"r-1"), "r-1");
        assert_eq!(id(b"a b"), "a?b");
        assert_eq!(id("\u{e4}".as_bytes()), "");
        assert_eq!(id(&[b'x'; 99]).len(), 64);
        assert_eq!(call_of(&caller, Verb::GetMeter, &HeaderMap::new()).request_id.as_str(), "");
    }
}
