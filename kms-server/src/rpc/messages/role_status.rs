//! The status of a promotion or a demotion that was refused. No `_` arm here either.

use tonic::{Code, Status};

use super::{
    lifecycle_status::{of_lifecycle, word_of_lifecycle},
    status::{Again, Row, status},
};
use crate::{keyring::NotChanged, lifecycle::LifecycleError, replication::NotFenced};
use kms_core::site::changing;

/// The reason word of a role that was not changed, and whether the fault is ours.
pub(crate) fn word_of_role(error: &NotChanged) -> (&'static str, bool) {
    match row_of(error) {
        Some(row) => (row.word, false),
        None => {
            lifecycle_of(error).map_or(("NOT_REACHABLE", true), |said| word_of_lifecycle(&said))
        }
    }
}

/// The status of a role that was not changed.
pub(crate) fn of_role(error: &NotChanged) -> Status {
    if let Some(row) = row_of(error) {
        return status(row, error.to_string(), Vec::new());
    }
    let unavailable = || LifecycleError::Unavailable { reason: error.to_string() };
    of_lifecycle(&lifecycle_of(error).unwrap_or_else(unavailable))
}

/// The reason word of an epoch that was not taken in.
pub(crate) fn word_of_fencing(error: &NotFenced) -> &'static str {
    match error {
        NotFenced::NoRecord { .. } | NotFenced::NotLearnt { .. } => "EPOCH_NOT_PROVED",
        NotFenced::KnownAlready { .. } => "ROLE_UNFIT",
        NotFenced::Records(why) => word_of_role(why).0,
        NotFenced::Peer(_) | NotFenced::Store(_) => "NOT_REACHABLE",
    }
}

/// The status of an epoch that was not taken in.
pub(crate) fn of_fencing(error: &NotFenced) -> Status {
    let word = word_of_fencing(error);
    match error {
        NotFenced::NoRecord { .. }
        | NotFenced::NotLearnt { .. }
        | NotFenced::KnownAlready { .. } => {
            let row = Row { code: Code::FailedPrecondition, word, again: Again::Never };
            status(row, error.to_string(), Vec::new())
        }
        NotFenced::Records(why) => of_role(why),
        NotFenced::Peer(_) | NotFenced::Store(_) => {
            let row = Row { code: Code::Unavailable, word, again: Again::Later };
            status(row, error.to_string(), Vec::new())
        }
    }
}

/// The row of a refusal of its own; `None`: the token, the database or a block failed.
fn row_of(error: &NotChanged) -> Option<Row> {
    let (code, word) = match error {
        NotChanged::Epoch { .. } => (Code::Aborted, "EPOCH_MOVED"),
        NotChanged::PrimaryWrites(_) => (Code::FailedPrecondition, "PRIMARY_WRITES"),
        NotChanged::RolledBack { .. } => (Code::FailedPrecondition, "ROLLED_BACK"),
        NotChanged::Row(_) | NotChanged::Domain | NotChanged::OldPeer(_) => {
            (Code::DataLoss, "ROLE_DAMAGED")
        }
        NotChanged::Standing(changing::NotChanged::Replica) => {
            (Code::FailedPrecondition, "READ_ONLY_REPLICA")
        }
        NotChanged::Standing(_) => (Code::FailedPrecondition, "ROLE_UNFIT"),
        NotChanged::NotInStep { .. } => (Code::FailedPrecondition, "NOT_IN_STEP"),
        NotChanged::NotReady(_) => (Code::FailedPrecondition, "NOT_READY"),
        NotChanged::UnknownRecords { .. } => (Code::FailedPrecondition, "UNKNOWN_RECORDS"),
        NotChanged::Block { .. } => (Code::FailedPrecondition, "BLOCK_UNKNOWN"),
        NotChanged::BehindPeer(_) => (Code::FailedPrecondition, "ROLLED_BACK"),
        NotChanged::NotAdmitted(_) => (Code::FailedPrecondition, "ROLE_RECORD_REFUSED"),
        NotChanged::Token(_) | NotChanged::Store(_) | NotChanged::Keyring(_) => return None,
    };
    Some(Row { code, word, again: Again::Never })
}

fn lifecycle_of(error: &NotChanged) -> Option<LifecycleError> {
    let reason = error.to_string();
    match error {
        NotChanged::Token(_) => Some(LifecycleError::Unavailable { reason }),
        NotChanged::Store(error) => Some(LifecycleError::of_store(error, reason)),
        NotChanged::Keyring(error) => Some(LifecycleError::of_keyring(error, reason)),
        NotChanged::Epoch { .. }
        | NotChanged::Standing(_)
        | NotChanged::PrimaryWrites(_)
        | NotChanged::Row(_)
        | NotChanged::BehindPeer(_)
        | NotChanged::Domain
        | NotChanged::OldPeer(_)
        | NotChanged::RolledBack { .. }
        | NotChanged::NotInStep { .. }
        | NotChanged::UnknownRecords { .. }
        | NotChanged::NotReady(_)
        | NotChanged::Block { .. }
        | NotChanged::NotAdmitted(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{StoreError, sites::RoleRow};
    use kms_core::{BlockNo, Epoch};

    #[test]
    fn every_reason_has_its_code_and_its_word() {
        let epoch = NotChanged::Epoch { expected: Epoch(2), found: Epoch(3) };
        let step = NotChanged::NotInStep { differing: 2 };
        let moved = StoreError::NotWriter(RoleRow { epoch: Epoch(3), writes: false });
        let lost = StoreError::Unreachable { reason: "x".to_owned() };
        for (error, code, word, ours) in [
            (epoch, Code::Aborted, "EPOCH_MOVED", false),
            (step, Code::FailedPrecondition, "NOT_IN_STEP", false),
            (moved.into(), Code::FailedPrecondition, "NOT_PRIMARY", false),
            (lost.into(), Code::Unavailable, "NOT_REACHABLE", true),
            (
                NotChanged::Block { block: BlockNo(1), why: "x".to_owned() },
                Code::FailedPrecondition,
                "BLOCK_UNKNOWN",
                false,
            ),
        ] {
            assert_eq!(
                (of_role(&error).code(), word_of_role(&error)),
                (code, (word, ours)),
                "{error}"
            );
        }
    }
}
