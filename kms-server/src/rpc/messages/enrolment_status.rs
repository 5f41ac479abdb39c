//! The status of an enrolment that was refused or failed. No `_` arm over our own errors here either.

use tonic::{Code, Status};

use super::status::{AUDIT_NOT_WRITABLE, Again, Row, status};
use crate::{enrolment::EnrolError, hsm::TokenError, store::StoreError};

/// The reason word of an enrolment that was not done, and whether the fault is ours.
pub(crate) fn word_of_enrolment(error: &EnrolError) -> (&'static str, bool) {
    let is_ours = match error {
        EnrolError::Fingerprint { .. }
        | EnrolError::Paper(_)
        | EnrolError::PublicKey(_)
        | EnrolError::Request(_)
        | EnrolError::NotPrimary
        | EnrolError::NotTrusted(_)
        | EnrolError::Known { .. }
        | EnrolError::Meanwhile(_)
        | EnrolError::Store(StoreError::NotWriter(_) | StoreError::ReadOnly) => false,
        EnrolError::Damaged(_)
        | EnrolError::Token(_)
        | EnrolError::Store(_)
        | EnrolError::NotWrapped(_)
        | EnrolError::Unreadable(_) => true,
    };
    (row_of(error).word, is_ours)
}

/// The status of an enrolment that was not done.
pub(crate) fn of_enrolment(error: &EnrolError) -> Status {
    let row = row_of(error);
    let sentence = match row.word {
        "NOT_REACHABLE" => {
            tracing::warn!(%error, "a site was not enrolled");
            "the token or the database is not reachable; try again".to_owned()
        }
        "AUDIT_NOT_WRITABLE" => AUDIT_NOT_WRITABLE.to_owned(),
        "DAMAGED" => {
            tracing::error!(%error, "stored data is damaged");
            "stored data failed its authentication; `site status` names it, and the server's log"
                .to_owned()
        }
        "FAULT" => {
            tracing::error!(%error, "fault in the server");
            "a fault in the server; nothing was changed; its log says more".to_owned()
        }
        _ => error.to_string(),
    };
    status(row, sentence, Vec::new())
}

fn row_of(error: &EnrolError) -> Row {
    use Again::{Later, Never};
    let (code, word, again) = match error {
        EnrolError::Fingerprint { .. } => (Code::InvalidArgument, "WRONG_FINGERPRINT", Never),
        EnrolError::Paper(_) | EnrolError::PublicKey(_) | EnrolError::Request(_) => {
            (Code::InvalidArgument, "BAD_JOIN_REQUEST", Never)
        }
        EnrolError::NotPrimary | EnrolError::Store(StoreError::NotWriter(_)) => {
            (Code::FailedPrecondition, "NOT_PRIMARY", Never)
        }
        EnrolError::NotTrusted(_) => (Code::FailedPrecondition, "PEER_NOT_TRUSTED", Never),
        EnrolError::Known { .. } | EnrolError::Meanwhile(_) => {
            (Code::AlreadyExists, "PEER_EXISTS", Never)
        }
        EnrolError::Store(error) => return of_store(error),
        EnrolError::Token(
            TokenError::Unreachable { .. } | TokenError::Busy | TokenError::TimedOut { .. },
        ) => (Code::Unavailable, "NOT_REACHABLE", Later),
        EnrolError::Damaged(_) => (Code::DataLoss, "DAMAGED", Never),
        EnrolError::Token(TokenError::Refused { .. } | TokenError::Unfit { .. })
        | EnrolError::NotWrapped(_)
        | EnrolError::Unreadable(_) => (Code::Internal, "FAULT", Never),
    };
    Row { code, word, again }
}

fn of_store(error: &StoreError) -> Row {
    use Again::{Later, Never};
    let (code, word, again) = match error {
        StoreError::ReadOnly => (Code::FailedPrecondition, "READ_ONLY", Never),
        StoreError::ReadOnlyPrimary => (Code::FailedPrecondition, "READ_ONLY_PRIMARY", Never),
        StoreError::NotWriter(_) => (Code::FailedPrecondition, "NOT_PRIMARY", Never),
        StoreError::AuditMoved(_) | StoreError::AuditNotWritten { .. } => {
            (Code::Unavailable, "AUDIT_NOT_WRITABLE", Later)
        }
        StoreError::Unreachable { .. } => (Code::Unavailable, "NOT_REACHABLE", Later),
        StoreError::Unknown { .. } => (Code::Unavailable, "OUTCOME_UNKNOWN", Later),
        StoreError::Damaged(_) => (Code::DataLoss, "DAMAGED", Never),
        StoreError::Conflict(_)
        | StoreError::Taken { .. }
        | StoreError::Rule { .. }
        | StoreError::NotLoaded(_) => (Code::Internal, "FAULT", Never),
    };
    Row { code, word, again }
}
