//! The audit log's entries about a call.

use std::sync::Arc;

use tonic::Status;

use crate::{
    audit::Audit,
    lifecycle::LifecycleError,
    rpc::{
        access::{
            policy::{CallerName, Permit},
            verb::Verb,
        },
        messages::{
            lifecycle_status::{of_lifecycle, word_of_lifecycle},
            not_recorded::not_recorded,
            request_id::RequestId,
            status::OUTCOME_UNKNOWN,
        },
    },
};
use kms_core::audit::{AuditEntry, AuditOutcome, AuditText, AuditedCall, Subject};

/// The call of a caller, as the audit log names it.
pub(crate) fn call_of(caller: &CallerName, verb: Verb, id: Option<&RequestId>) -> AuditedCall {
    let request_id = AuditText::new(id.map_or("", RequestId::as_str));
    AuditedCall { request_id, ..AuditedCall::new(caller.as_str(), verb.name()) }
}

/// The audit log, for services.
#[derive(Clone)]
pub(crate) struct Recorder(pub(crate) Arc<Audit>);

impl Recorder {
    /// The call that a request is. The gate has named it.
    pub(crate) fn call<T>(&self, permit: &Permit, request: &tonic::Request<T>) -> AuditedCall {
        let call = call_of(permit.caller(), permit.verb(), request.extensions().get());
        AuditedCall { approval: permit.second().map(|second| second.number), ..call }
    }

    /// An entry, to be completed.
    pub(crate) fn entry(&self, call: &AuditedCall, subject: Subject) -> AuditEntry {
        call.entry(self.0.now_ms(), subject, AuditOutcome::Done)
    }

    /// Records a call that changed nothing. If that fails, so does the call.
    pub(crate) async fn record(&self, entry: AuditEntry) -> Result<(), Status> {
        self.0.record(entry).await.map_err(|error| not_recorded(error).into())
    }

    /// Records by its word why a call was refused, or that it failed by a fault of ours.
    pub(crate) async fn not_done(
        &self,
        call: &AuditedCall,
        word: &str,
        is_ours: bool,
    ) -> Result<(), Status> {
        // Whether it was done nobody knows: see `failure`.
        if word == OUTCOME_UNKNOWN {
            return Ok(());
        }
        let outcome =
            if is_ours { AuditOutcome::failed(word) } else { AuditOutcome::refused(word) };
        self.record(call.entry(self.0.now_ms(), Subject::NONE, outcome)).await
    }

    /// Records why a call failed, and gives the status for it.
    pub(crate) async fn failure(
        &self,
        call: &AuditedCall,
        subject: Subject,
        error: &LifecycleError,
    ) -> Status {
        if let LifecycleError::OutcomeUnknown { .. } = error {
            // If it becomes true, its own event is there. Another one would wait for the same now, and that nothing was
            // done is what nobody knows.
            return of_lifecycle(error);
        }
        let entry = call.entry(self.0.now_ms(), subject, outcome_of(error));
        let recorded = self.record(entry).await;
        recorded.err().unwrap_or_else(|| of_lifecycle(error))
    }
}

/// The outcome of a call about meters that failed.
pub(crate) fn outcome_of(error: &LifecycleError) -> AuditOutcome {
    let (word, is_ours) = word_of_lifecycle(error);
    if is_ours { AuditOutcome::failed(word) } else { AuditOutcome::refused(word) }
}
