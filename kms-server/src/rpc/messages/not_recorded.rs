//! The refusal of what can't be recorded, or of what the audit log would have to say first.

use super::status::Refused;
use crate::audit::AuditError;

/// The refusal of a call that can't be recorded. A database that takes no changes is no fault of the log, and
/// to try again does not help.
pub(crate) fn not_recorded(error: AuditError) -> Refused {
    match error {
        AuditError::ReadOnly => Refused::ReadOnly,
        AuditError::ReadOnlyPrimary => Refused::ReadOnlyPrimary,
        AuditError::Unknown(_) => Refused::OutcomeUnknown,
        AuditError::NotWritable(_)
        | AuditError::NotReadable(_)
        | AuditError::NotSigned(_)
        | AuditError::Witness(_) => {
            tracing::error!(%error, "a call was refused: it can't be recorded");
            Refused::AuditNotWritable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::messages::{status::Again, unfit::Unfit};

    #[test]
    fn only_a_log_that_may_come_back_is_to_be_tried_again() {
        for (error, word, again) in [
            (AuditError::ReadOnly, "READ_ONLY", Again::Never),
            (AuditError::ReadOnlyPrimary, "READ_ONLY_PRIMARY", Again::Never),
            (AuditError::NotWritable("full".to_owned()), "AUDIT_NOT_WRITABLE", Again::Later),
            (AuditError::Unknown("late".to_owned()), "OUTCOME_UNKNOWN", Again::Later),
        ] {
            let refused = not_recorded(error);
            assert_eq!((refused.word(), refused.again()), (word, again), "{refused}");
        }
    }

    #[test]
    fn each_approval_that_is_not_believed_has_a_word_of_its_own_and_says_what_to_do() {
        for (unfit, word) in [
            (Unfit::Changed, "APPROVAL_CHANGED"),
            (Unfit::Used, "APPROVAL_USED"),
            (Unfit::Clocks { by_ms: 31_000 }, "CLOCKS_DIFFER"),
        ] {
            let refused = Refused::Unfit(unfit);
            assert_eq!((refused.word(), refused.again()), (word, Again::Never));
        }
        assert!(Unfit::Clocks { by_ms: 31_000 }.to_string().contains("31 s behind"));
    }
}
