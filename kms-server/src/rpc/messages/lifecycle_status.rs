//! The status of a call about meters that failed. No `_` arm here either.

use tonic::{Code, Status};

use super::status::{AUDIT_NOT_WRITABLE, Again, Row, status};
use crate::lifecycle::LifecycleError;

/// The reason word of a failed call about meters, and whether the fault is ours.
pub(crate) fn word_of_lifecycle(error: &LifecycleError) -> (&'static str, bool) {
    let is_ours = match error {
        LifecycleError::NotFound(_)
        | LifecycleError::AlreadyExists(_)
        | LifecycleError::NotDamaged { .. }
        | LifecycleError::Refused(_)
        | LifecycleError::NotPrimary { .. }
        | LifecycleError::RolledBack { .. }
        | LifecycleError::ReadOnly => false,
        LifecycleError::Busy
        | LifecycleError::ReadOnlyPrimary
        | LifecycleError::NotNewest { .. }
        | LifecycleError::ArenaFull { .. }
        | LifecycleError::NotAllOpen { .. }
        | LifecycleError::Unavailable { .. }
        | LifecycleError::OutcomeUnknown { .. }
        | LifecycleError::AuditNotWritable { .. }
        | LifecycleError::Damaged { .. }
        | LifecycleError::NotSealedForUs { .. }
        | LifecycleError::OurFault { .. } => true,
    };
    (row_of(error).word, is_ours)
}

/// The status of a call about meters that failed.
pub(crate) fn of_lifecycle(error: &LifecycleError) -> Status {
    status(row_of(error), sentence_of(error), Vec::new())
}

fn row_of(error: &LifecycleError) -> Row {
    use Again::{Later, Never};
    let (code, word, again) = match error {
        LifecycleError::NotFound(_) => (Code::NotFound, "METER_NOT_FOUND", Never),
        LifecycleError::AlreadyExists(_) => (Code::AlreadyExists, "METER_EXISTS", Never),
        LifecycleError::NotDamaged { .. } => (Code::FailedPrecondition, "METER_NOT_DAMAGED", Never),
        LifecycleError::Refused(refusal) => (Code::InvalidArgument, refusal.code.word(), Never),
        LifecycleError::Busy => (Code::Unavailable, "BLOCK_BUSY", Later),
        LifecycleError::ReadOnly => (Code::FailedPrecondition, "READ_ONLY", Never),
        LifecycleError::ReadOnlyPrimary => (Code::FailedPrecondition, "READ_ONLY_PRIMARY", Never),
        LifecycleError::NotPrimary { .. } => (Code::FailedPrecondition, "NOT_PRIMARY", Never),
        LifecycleError::RolledBack { .. } => (Code::FailedPrecondition, "ROLLED_BACK", Never),
        LifecycleError::NotNewest { .. } => (Code::Unavailable, "NOT_NEWEST", Later),
        LifecycleError::ArenaFull { .. } => (Code::ResourceExhausted, "ARENA_FULL", Never),
        LifecycleError::NotAllOpen { .. } => (Code::Unavailable, "NOT_ALL_OPEN", Later),
        LifecycleError::Unavailable { .. } => (Code::Unavailable, "NOT_REACHABLE", Later),
        LifecycleError::OutcomeUnknown { .. } => (Code::Unavailable, "OUTCOME_UNKNOWN", Later),
        LifecycleError::AuditNotWritable { .. } => (Code::Unavailable, "AUDIT_NOT_WRITABLE", Later),
        LifecycleError::Damaged { .. } => (Code::DataLoss, "DAMAGED", Never),
        LifecycleError::NotSealedForUs { .. } => (Code::DataLoss, "NOT_SEALED_FOR_TOKEN", Never),
        LifecycleError::OurFault { .. } => (Code::Internal, "FAULT", Never),
    };
    Row { code, word, again }
}

/// The sentence for people. Causes that may name what is inside go to the log.
fn sentence_of(error: &LifecycleError) -> String {
    let sentence = match error {
        LifecycleError::NotFound(_)
        | LifecycleError::AlreadyExists(_)
        | LifecycleError::NotDamaged { .. }
        | LifecycleError::NotNewest { .. }
        | LifecycleError::ArenaFull { .. }
        | LifecycleError::Refused(_)
        | LifecycleError::Busy
        | LifecycleError::NotAllOpen { .. }
        | LifecycleError::NotPrimary { .. }
        | LifecycleError::RolledBack { .. }
        | LifecycleError::ReadOnly
        | LifecycleError::ReadOnlyPrimary => return error.to_string(),
        LifecycleError::OutcomeUnknown { reason: cause } => {
            tracing::warn!(cause, "whether a change is in the database is not known");
            "the change was handed to the database, which did not say in time whether it is there: it may become true \
             later; look, or do the same again, which changes nothing twice"
        }
        LifecycleError::Unavailable { reason: cause } => {
            tracing::warn!(cause, "a call about meters failed");
            "the token or the database is not reachable; try again"
        }
        LifecycleError::AuditNotWritable { reason: cause } => {
            tracing::error!(cause, "a call was refused: the audit log can't be written");
            AUDIT_NOT_WRITABLE
        }
        LifecycleError::Damaged { reason: cause } => {
            tracing::error!(cause, "stored data is damaged");
            "stored data failed its authentication; `site status` names it, and the server's log"
        }
        LifecycleError::NotSealedForUs { reason: cause } => {
            tracing::error!(cause, "a block is not sealed for this site's token");
            "the meter's block has no seal for this site's token; `site status` names it: restore the \
             database from a backup"
        }
        LifecycleError::OurFault { reason: cause } => {
            tracing::error!(cause, "fault in the server");
            "a fault in the server; nothing was changed; its log says more"
        }
    };
    sentence.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Refusal;
    use kms_core::RefusalCode;
    use tonic_types::StatusExt as _;

    fn reason(status: &Status) -> (Code, String, bool) {
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(info.domain, "ami.kms.v1");
        (status.code(), info.reason.clone(), details.retry_info().is_some())
    }

    #[test]
    fn every_lifecycle_error_has_its_code() {
        let refusal = Refusal { code: RefusalCode::TestKey, reason: "a published key".into() };
        for (error, code, word, retry) in [
            (LifecycleError::NotFound("m".into()), Code::NotFound, "METER_NOT_FOUND", false),
            (LifecycleError::AlreadyExists("m".into()), Code::AlreadyExists, "METER_EXISTS", false),
            (LifecycleError::Refused(refusal), Code::InvalidArgument, "TEST_KEY", false),
            (LifecycleError::Busy, Code::Unavailable, "BLOCK_BUSY", true),
            (LifecycleError::ReadOnly, Code::FailedPrecondition, "READ_ONLY", false),
            (
                LifecycleError::NotAllOpen { reason: "x".into() },
                Code::Unavailable,
                "NOT_ALL_OPEN",
                true,
            ),
            // A replica may only be late.
            (
                LifecycleError::NotNewest { reason: "x".into() },
                Code::Unavailable,
                "NOT_NEWEST",
                true,
            ),
            (
                LifecycleError::Unavailable { reason: "x".into() },
                Code::Unavailable,
                "NOT_REACHABLE",
                true,
            ),
            (
                LifecycleError::OutcomeUnknown { reason: "x".into() },
                Code::Unavailable,
                "OUTCOME_UNKNOWN",
                true,
            ),
            (
                LifecycleError::AuditNotWritable { reason: "x".into() },
                Code::Unavailable,
                "AUDIT_NOT_WRITABLE",
                true,
            ),
            (LifecycleError::Damaged { reason: "x".into() }, Code::DataLoss, "DAMAGED", false),
            (
                LifecycleError::NotPrimary { reason: "x".into() },
                Code::FailedPrecondition,
                "NOT_PRIMARY",
                false,
            ),
            (LifecycleError::ReadOnlyPrimary, Code::FailedPrecondition, "READ_ONLY_PRIMARY", false),
            (
                LifecycleError::RolledBack { reason: "x".into() },
                Code::FailedPrecondition,
                "ROLLED_BACK",
                false,
            ),
            (
                LifecycleError::NotSealedForUs { reason: "x".into() },
                Code::DataLoss,
                "NOT_SEALED_FOR_TOKEN",
                false,
            ),
            (LifecycleError::OurFault { reason: "x".into() }, Code::Internal, "FAULT", false),
        ] {
            assert_eq!(reason(&of_lifecycle(&error)), (code, word.to_owned(), retry), "{error:?}");
        }
    }

    #[test]
    fn causes_stay_off_the_wire() {
        for error in [
            LifecycleError::Unavailable { reason: "SECRET-PATH".into() },
            LifecycleError::Damaged { reason: "SECRET-PATH".into() },
            LifecycleError::NotSealedForUs { reason: "SECRET-PATH".into() },
            LifecycleError::OurFault { reason: "SECRET-PATH".into() },
        ] {
            assert!(!format!("{:?}", of_lifecycle(&error)).contains("SECRET-PATH"));
        }
    }
}
