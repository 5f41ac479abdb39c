//! The audit log's entries about a call.

use std::sync::Arc;

use tonic::Status;

use crate::{
    audit::{Audit, AuditError},
    lifecycle::LifecycleError,
    rpc::{
        access::{
            policy::{CallerName, Permit},
            verb::Verb,
        },
        approvals::summary::About,
        messages::{
            lifecycle_status::{of_lifecycle, word_of_lifecycle},
            request_id::RequestId,
            status::{OUTCOME_UNKNOWN, Refused},
        },
    },
};
use kms_core::audit::{AuditEntry, AuditOutcome, AuditText, AuditedCall, Detail, Subject};

/// The call of a caller, as the audit log names it.
pub(crate) fn call_of(caller: &CallerName, verb: Verb, id: Option<&RequestId>) -> AuditedCall {
    let request_id = AuditText::new(id.map_or("", RequestId::as_str));
    AuditedCall { request_id, ..AuditedCall::new(caller.as_str(), verb.name()) }
}

/// Records that a call has to wait for its second person, once for each call; whoever goes on asking
/// is counted like one who asks for what he is not granted.
pub(crate) async fn record_waiting(
    audit: &Arc<Audit>,
    call: AuditedCall,
    refused: &Refused,
    about: About,
) -> Result<(), Status> {
    let word = refused.word();
    match refused {
        Refused::SecondPersonNeeded { number, asked_before: false, .. } => {
            let recorder = Recorder(Arc::clone(audit));
            let outcome = AuditOutcome::refused(word);
            let entry = call.entry(audit.now_ms(), about.subject, outcome);
            recorder.record(entry.with(Detail::Approval, *number)).await
        }
        _ => {
            audit.record_refusal(call, word).await;
            Ok(())
        }
    }
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
        self.0.record(entry).await.map_err(|error| {
            let refused = refusal_of(&error);
            if matches!(refused, Refused::AuditNotWritable) {
                tracing::error!(%error, "a call was refused: it can't be recorded");
            }
            refused.into()
        })
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

/// The refusal of a call that can't be recorded. A database that takes no changes is no fault of the log, and
/// to try again does not help.
fn refusal_of(error: &AuditError) -> Refused {
    match error {
        AuditError::ReadOnly => Refused::ReadOnly,
        AuditError::ReadOnlyPrimary => Refused::ReadOnlyPrimary,
        AuditError::Unknown(_) => Refused::OutcomeUnknown,
        AuditError::NotWritable(_)
        | AuditError::NotReadable(_)
        | AuditError::NotSigned(_)
        | AuditError::Witness(_) => Refused::AuditNotWritable,
    }
}

/// The outcome of a call about meters that failed.
pub(crate) fn outcome_of(error: &LifecycleError) -> AuditOutcome {
    let (word, is_ours) = word_of_lifecycle(error);
    if is_ours { AuditOutcome::failed(word) } else { AuditOutcome::refused(word) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::messages::status::Again;

    #[test]
    fn only_a_log_that_may_come_back_is_to_be_tried_again() {
        for (error, word, again) in [
            (AuditError::ReadOnly, "READ_ONLY", Again::Never),
            (AuditError::ReadOnlyPrimary, "READ_ONLY_PRIMARY", Again::Never),
            (AuditError::NotWritable("full".to_owned()), "AUDIT_NOT_WRITABLE", Again::Later),
            (AuditError::Unknown("late".to_owned()), "OUTCOME_UNKNOWN", Again::Later),
        ] {
            let refused = refusal_of(&error);
            assert_eq!((refused.word(), refused.again()), (word, again), "{error}");
        }
    }
}
