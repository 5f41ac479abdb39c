//! The one place where what went wrong becomes a gRPC status. No `_` arm over our own errors: a new
//! variant must be given its code here before the crate compiles. The wire gets a code, a fixed
//! sentence and a reason word; causes go to the log.

use std::{collections::HashMap, time::Duration};

use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    columns::ColumnFault,
    policy::{CallerName, Forbidden},
    request_id::{METADATA_KEY, RequestId},
    verb::Verb,
};
use crate::lifecycle::LifecycleError;

/// The domain of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "ami.kms.v1";

/// When to come back after `RESOURCE_EXHAUSTED`: the work in flight is done in a fraction of this.
const RETRY_SOON: Duration = Duration::from_millis(250);
/// When to come back after `UNAVAILABLE`: a token or database needs a while.
const RETRY_LATER: Duration = Duration::from_secs(1);

/// The sentence of `AUDIT_NOT_WRITABLE`.
const AUDIT_NOT_WRITABLE: &str = "the audit log can't be written, so nothing was done; the server's log and `site status` say why";

/// What `rpc` itself refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("a client certificate is needed")]
    NoCertificate,
    #[error("the client certificate has neither a URI, a DNS name nor one common name to go by")]
    NoName,
    #[error("the client certificate has expired; connect with a new one")]
    Expired,
    #[error("the client certificate's authority is no longer accepted; connect with a new one")]
    NotTrusted,
    #[error("the client certificate was revoked by its authority; connect with a new one")]
    Revoked,
    #[error(
        "this server's revocation list has expired, so it trusts no client; its operator must install \
         the authority's new one"
    )]
    ListExpired,
    #[error("the policy does not know {0}")]
    UnknownCaller(CallerName),
    #[error("no role of {caller} grants {verb}")]
    NotGranted { caller: CallerName, verb: Verb },
    #[error(
        "{verb} needs a second person: let one who may approve {number} at this server (ami-tool \
         approvals approve {number}), then make the same call again, all of it within 15 minutes"
    )]
    SecondPersonNeeded { verb: Verb, number: u64, expires_ms: u64, asked_before: bool },
    #[error("{0} calls wait for a second person already; let some be approved, or wait 15 minutes")]
    TooManyWaiting(usize),
    #[error("this call is your own; another person has to approve it")]
    OwnCall,
    #[error(
        "nothing waits here under this id: it was approved and made, or is older than 15 minutes, or \
         was asked of another server or before a restart; let the call be made again"
    )]
    NothingWaits,
    #[error("there is no such call")]
    UnknownMethod,
    #[error("more than {0} calls are open on this connection; end some first")]
    TooManyCalls(u32),
    #[error("the message is longer than {0} bytes; send less at once")]
    MessageTooLarge(usize),
    #[error(
        "an import in clear that needs two people is read whole before the second is asked: send at most \
         {0} lines, and at once; or seal the file (ami-tool meter seal), which may have any length"
    )]
    ImportTooLong(usize),
    #[error("the batch has {items} items and the limit is {limit}; send smaller ones")]
    BatchTooLarge { items: usize, limit: usize },
    #[error("the server is busy: {0} items are in flight; try again")]
    Busy(usize),
    #[error("the server is busy: {0} bytes of messages are in flight; try again")]
    BytesBusy(usize),
    #[error("the call took longer than {0:?}")]
    TookTooLong(Duration),
    #[error("the server is shutting down; go on at another one")]
    ShuttingDown,
    #[error(transparent)]
    Column(#[from] ColumnFault),
    #[error("{AUDIT_NOT_WRITABLE}")]
    AuditNotWritable,
    #[error(
        "this server's database is a standby: a call that has to be recorded can't be made here; \
         make it at a server of the primary"
    )]
    ReadOnly,
    #[error("the audit log can't be read; the server's log says why")]
    AuditNotReadable,
    #[error("there is no audit chain of this node here")]
    NoAuditChain,
    #[error("{field}: {problem}")]
    Field { field: &'static str, problem: &'static str },
    /// A fault of ours; what it is stands in the log.
    #[error("the server has made a mistake; its log says more")]
    Fault(&'static str),
}

impl Refused {
    /// Code and reason word.
    fn code(&self) -> (Code, &'static str) {
        match self {
            Self::NoCertificate => (Code::Unauthenticated, "NO_CERTIFICATE"),
            Self::NoName => (Code::Unauthenticated, "CERTIFICATE_WITHOUT_NAME"),
            Self::Expired => (Code::Unauthenticated, "CERTIFICATE_EXPIRED"),
            Self::NotTrusted => (Code::Unauthenticated, "CERTIFICATE_NOT_TRUSTED"),
            Self::Revoked => (Code::Unauthenticated, "CERTIFICATE_REVOKED"),
            // Not the caller's fault, and another server may have the new list.
            Self::ListExpired => (Code::Unavailable, "REVOCATION_LIST_EXPIRED"),
            Self::UnknownCaller(_) => (Code::PermissionDenied, "UNKNOWN_CALLER"),
            Self::NotGranted { .. } => (Code::PermissionDenied, "NOT_GRANTED"),
            Self::SecondPersonNeeded { .. } => (Code::FailedPrecondition, "SECOND_PERSON_NEEDED"),
            Self::TooManyWaiting(_) => (Code::ResourceExhausted, "TOO_MANY_WAITING"),
            Self::OwnCall => (Code::PermissionDenied, "OWN_CALL"),
            Self::NothingWaits => (Code::NotFound, "NOTHING_WAITS"),
            Self::UnknownMethod => (Code::Unimplemented, "UNKNOWN_METHOD"),
            Self::TooManyCalls(_) => (Code::ResourceExhausted, "TOO_MANY_CALLS"),
            Self::MessageTooLarge(_) => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            Self::ImportTooLong(_) => (Code::InvalidArgument, "IMPORT_TOO_LONG"),
            Self::BatchTooLarge { .. } => (Code::ResourceExhausted, "BATCH_TOO_LARGE"),
            Self::Busy(_) | Self::BytesBusy(_) => (Code::ResourceExhausted, "BUSY"),
            Self::TookTooLong(_) => (Code::DeadlineExceeded, "TOOK_TOO_LONG"),
            Self::ShuttingDown => (Code::Unavailable, "SHUTTING_DOWN"),
            Self::Column(_) => (Code::InvalidArgument, "BAD_COLUMN"),
            Self::AuditNotWritable => (Code::Unavailable, "AUDIT_NOT_WRITABLE"),
            Self::ReadOnly => (Code::FailedPrecondition, "READ_ONLY"),
            Self::AuditNotReadable => (Code::Unavailable, "AUDIT_NOT_READABLE"),
            Self::NoAuditChain => (Code::NotFound, "NO_AUDIT_CHAIN"),
            Self::Field { .. } => (Code::InvalidArgument, "BAD_FIELD"),
            Self::Fault(_) => (Code::Internal, "FAULT"),
        }
    }

    /// The reason word.
    pub(super) fn word(&self) -> &'static str {
        self.code().1
    }

    /// What a program may want to read out of the sentence.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::UnknownCaller(caller) => vec![("caller", caller.to_string())],
            Self::NotGranted { caller, verb } => {
                vec![("caller", caller.to_string()), ("verb", verb.to_string())]
            }
            Self::SecondPersonNeeded { verb, number, expires_ms, asked_before: _ } => vec![
                ("verb", verb.to_string()),
                ("approval_id", number.to_string()),
                ("expires", expires_ms.to_string()),
            ],
            Self::TooManyWaiting(limit) | Self::ImportTooLong(limit) => {
                vec![("limit", limit.to_string())]
            }
            Self::TooManyCalls(limit) => vec![("limit", limit.to_string())],
            Self::MessageTooLarge(limit) | Self::Busy(limit) | Self::BytesBusy(limit) => {
                vec![("limit", limit.to_string())]
            }
            Self::BatchTooLarge { items, limit } => {
                vec![("items", items.to_string()), ("limit", limit.to_string())]
            }
            Self::Column(fault) => vec![("column", fault.column().to_owned())],
            Self::Field { field, .. } => vec![("field", (*field).to_owned())],
            Self::NoCertificate
            | Self::NoName
            | Self::Expired
            | Self::NotTrusted
            | Self::Revoked
            | Self::ListExpired
            | Self::OwnCall
            | Self::NothingWaits
            | Self::UnknownMethod
            | Self::TookTooLong(_)
            | Self::ShuttingDown
            | Self::AuditNotWritable
            | Self::ReadOnly
            | Self::AuditNotReadable
            | Self::NoAuditChain
            | Self::Fault(_) => Vec::new(),
        }
    }
}

impl From<Forbidden> for Refused {
    fn from(forbidden: Forbidden) -> Self {
        match forbidden {
            Forbidden::UnknownCaller(caller) => Self::UnknownCaller(caller),
            Forbidden::NotGranted { caller, verb } => Self::NotGranted { caller, verb },
        }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        if let Refused::Fault(what) = refused {
            tracing::error!(what, "fault in the server");
        }
        let (code, reason) = refused.code();
        status(code, reason, refused.to_string(), refused.metadata())
    }
}

impl From<ColumnFault> for Status {
    fn from(fault: ColumnFault) -> Self {
        Refused::from(fault).into()
    }
}

/// The reason word of a failed call about meters, and whether the fault is ours.
pub(super) fn word_of_lifecycle(error: &LifecycleError) -> (&'static str, bool) {
    match error {
        LifecycleError::NotFound(_) => ("METER_NOT_FOUND", false),
        LifecycleError::AlreadyExists(_) => ("METER_EXISTS", false),
        LifecycleError::Refused(refusal) => (refusal.code, false),
        LifecycleError::Busy => ("BLOCK_BUSY", true),
        LifecycleError::ReadOnly => ("READ_ONLY", false),
        LifecycleError::Unavailable { .. } => ("NOT_REACHABLE", true),
        LifecycleError::AuditNotWritable { .. } => ("AUDIT_NOT_WRITABLE", true),
        LifecycleError::Damaged { .. } => ("DAMAGED", true),
    }
}

/// What became of a call about meters.
pub(super) fn of_lifecycle(error: &LifecycleError) -> Status {
    let (reason, _) = word_of_lifecycle(error);
    let (code, sentence) = match error {
        LifecycleError::NotFound(_) => (Code::NotFound, error.to_string()),
        LifecycleError::AlreadyExists(_) => (Code::AlreadyExists, error.to_string()),
        LifecycleError::Refused(refusal) => (Code::InvalidArgument, refusal.reason.clone()),
        LifecycleError::Busy => (Code::Unavailable, error.to_string()),
        LifecycleError::ReadOnly => (Code::FailedPrecondition, error.to_string()),
        LifecycleError::Unavailable { reason: cause } => {
            tracing::warn!(cause, "a call about meters failed");
            let sentence = "the token or the database is not reachable; try again";
            (Code::Unavailable, sentence.to_owned())
        }
        LifecycleError::AuditNotWritable { reason: cause } => {
            tracing::error!(cause, "a call was refused: the audit log can't be written");
            (Code::Unavailable, AUDIT_NOT_WRITABLE.to_owned())
        }
        LifecycleError::Damaged { reason: cause } => {
            tracing::error!(cause, "stored data is damaged");
            let sentence = "stored data failed its authentication; the server's log says where";
            (Code::DataLoss, sentence.to_owned())
        }
    };
    status(code, reason, sentence, Vec::new())
}

/// Writes the request's id into the headers or trailers of an answer, and, where they refuse it, into
/// the `ErrorInfo` of the refusal.
pub(super) fn name_request(headers: &mut HeaderMap, id: &RequestId) {
    let refusal = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok);
    if let Some(status) = refusal {
        let mut details = status.get_error_details();
        if let Some(info) = details.error_info().cloned() {
            let mut metadata = info.metadata;
            metadata.insert(METADATA_KEY.to_owned(), id.as_str().to_owned());
            details.set_error_info(info.reason, info.domain, metadata);
            let named = Status::with_error_details(status.code(), status.message(), details);
            // Replaces code, sentence and details; what else stands there stays.
            if named.add_header(headers).is_err() {
                tracing::warn!(request_id = %id, "a refusal could not be given its request id");
            }
        }
    }
    id.stamp(headers);
}

/// What tonic says of a message that it could not read: too long, cut off, not protobuf.
pub(super) fn of_incoming(status: Status, message_bytes_max: usize) -> Status {
    match status.code() {
        Code::OutOfRange => Refused::MessageTooLarge(message_bytes_max).into(),
        _ => status,
    }
}

fn status(
    code: Code,
    reason: &str,
    sentence: String,
    metadata: Vec<(&'static str, String)>,
) -> Status {
    let metadata: HashMap<String, String> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, metadata);
    match code {
        Code::ResourceExhausted => details.set_retry_info(Some(RETRY_SOON)),
        Code::Unavailable => details.set_retry_info(Some(RETRY_LATER)),
        _ => &mut details,
    };
    Status::with_error_details(code, sentence, details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Refusal;

    fn reason(status: &Status) -> (Code, String, bool) {
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(info.domain, "ami.kms.v1");
        (status.code(), info.reason.clone(), details.retry_info().is_some())
    }

    #[test]
    fn every_lifecycle_error_has_its_code() {
        let refusal = Refusal { code: "TEST_KEY", reason: "a published key".into() };
        for (error, code, word, retry) in [
            (LifecycleError::NotFound("m".into()), Code::NotFound, "METER_NOT_FOUND", false),
            (LifecycleError::AlreadyExists("m".into()), Code::AlreadyExists, "METER_EXISTS", false),
            (LifecycleError::Refused(refusal), Code::InvalidArgument, "TEST_KEY", false),
            (LifecycleError::Busy, Code::Unavailable, "BLOCK_BUSY", true),
            (LifecycleError::ReadOnly, Code::FailedPrecondition, "READ_ONLY", false),
            (
                LifecycleError::Unavailable { reason: "x".into() },
                Code::Unavailable,
                "NOT_REACHABLE",
                true,
            ),
            (
                LifecycleError::AuditNotWritable { reason: "x".into() },
                Code::Unavailable,
                "AUDIT_NOT_WRITABLE",
                true,
            ),
            (LifecycleError::Damaged { reason: "x".into() }, Code::DataLoss, "DAMAGED", false),
        ] {
            assert_eq!(reason(&of_lifecycle(&error)), (code, word.to_owned(), retry), "{error:?}");
        }
    }

    #[test]
    fn causes_stay_off_the_wire() {
        for error in [
            LifecycleError::Unavailable { reason: "SECRET-PATH".into() },
            LifecycleError::Damaged { reason: "SECRET-PATH".into() },
        ] {
            assert!(!format!("{:?}", of_lifecycle(&error)).contains("SECRET-PATH"));
        }
        let fault = Status::from(Refused::Fault("SECRET-PATH"));
        assert!(!format!("{fault:?}").contains("SECRET-PATH"));
    }

    #[test]
    fn what_is_exhausted_says_when_to_come_back() {
        for refused in [
            Refused::TooManyCalls(1),
            Refused::MessageTooLarge(1),
            Refused::BatchTooLarge { items: 2, limit: 1 },
            Refused::Busy(1),
            Refused::BytesBusy(1),
        ] {
            let (code, _, retry) = reason(&refused.into());
            assert_eq!((code, retry), (Code::ResourceExhausted, true));
        }
    }

    #[test]
    fn a_limit_is_named() {
        let status = Status::from(Refused::BatchTooLarge { items: 9, limit: 8 });
        let details = status.get_error_details();
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!(metadata["items"], "9");
        assert_eq!(metadata["limit"], "8");
    }
}
