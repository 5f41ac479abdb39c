//! Errors of a call, cut by what the caller can do about it.

use std::time::Duration;

use thiserror::Error;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::config::ConfigError;
use crate::link::LinkError;
use crate::request_id::{METADATA_KEY, RequestId};
use crate::retry::{Safety, retry_after};
use crate::setup::SetupError;

/// The service's reason word for a call that needs two people.
const SECOND_PERSON_NEEDED: &str = "SECOND_PERSON_NEEDED";

/// The reason why a call failed. The outcome of one APDU of a batch is a verdict, not an error.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CallError {
    /// No endpoint answers, or connections break. Try later.
    #[error("the service cannot be reached: {reason}")]
    Unreachable {
        /// The fault that the last attempt met.
        reason: String,
    },
    /// The call was sent and its answer was lost: it may have been carried out, and is not sent twice.
    #[error("the answer was lost, so the call may have been carried out: {reason}")]
    OutcomeUnknown {
        /// The fault by which the answer was lost.
        reason: String,
    },
    /// The service answers that it can't do this now. Try later, or at another server.
    #[error("the service can't do this now ({code}): {reason}")]
    Unavailable {
        /// `ErrorInfo.reason`, or the name of the gRPC code.
        code: String,
        /// The reason.
        reason: String,
    },
    /// The service has no room for the call now. Send less, or try later.
    #[error("the service is busy: {reason}")]
    Busy {
        /// `ErrorInfo.reason`, or the name of the gRPC code.
        code: String,
        /// The limit of the service that was met.
        reason: String,
        /// The time after which to come back, if the service said it. Without it, the same call
        /// would be refused again.
        retry_after: Option<Duration>,
    },
    /// The deadline passed. Of a write see [`CallError::OutcomeUnknown`].
    #[error("no answer within the deadline")]
    DeadlineExceeded,
    /// The service does not accept our certificate.
    #[error("the certificate was refused: {reason}")]
    CertificateRefused {
        /// `ErrorInfo.reason`, or `CERTIFICATE_REFUSED` where TLS refused it.
        code: String,
        /// The reason.
        reason: String,
    },
    /// We don't accept the certificate of whoever answered.
    #[error("{reason}")]
    ServerNotTrusted {
        /// The fault of the certificate.
        reason: String,
    },
    /// The certificate does not grant this call.
    #[error("permission denied: {reason}")]
    PermissionDenied {
        /// `ErrorInfo.reason`, or the name of the gRPC code.
        code: String,
        /// The call that was asked for, and by whom.
        reason: String,
    },
    /// There is no such thing.
    #[error("not found: {reason}")]
    NotFound {
        /// `ErrorInfo.reason`, or the name of the gRPC code.
        code: String,
        /// The thing that was asked for.
        reason: String,
    },
    /// The service will not do this; the same call would be refused again.
    #[error("refused ({code}): {reason}")]
    Refused {
        /// A word for machines: `ErrorInfo.reason`, or the name of the gRPC code.
        code: String,
        /// The reason, and what to do.
        reason: String,
    },
    /// The call needs two people. Once a second one has approved it at the same site, make the same
    /// call again.
    #[error("{reason}")]
    SecondPersonNeeded {
        /// The site where it waits, as it calls itself; empty: a server of an older release.
        site: String,
        /// The number by which the second person approves the call.
        approval_id: String,
        /// The time at which the service forgets the call; milliseconds since 1970.
        expires_ms: u64,
        /// The service's sentence.
        reason: String,
    },
    /// The answer can't be right. Client and service are of versions that don't go together.
    #[error("the answer breaks the protocol")]
    Protocol(#[from] ProtocolError),
    /// The fault is the service's; its log says more.
    #[error("the service failed ({code}): {reason}")]
    Service {
        /// The name of the gRPC code.
        code: String,
        /// The service's sentence.
        reason: String,
    },
}

/// The reason why there is no client.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The settings or the files they name.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No endpoint could be reached.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Faults of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A bundle that can't be read.
    #[error("the enrolment bundle: {0}")]
    Bundle(kms_core::enrolment::BadPaper),
    /// A column with another number of entries than the batch has items.
    #[error("column `{column}` has {found} entries for {items} items")]
    ColumnLength {
        /// The column.
        column: &'static str,
        /// Its entries.
        found: usize,
        /// The items of the batch.
        items: usize,
    },
    /// Lengths that don't add up to the bytes that came.
    #[error("the lengths add up to {sum} bytes, {found} came")]
    LengthSum {
        /// Of the lengths.
        sum: u64,
        /// Bytes in the column.
        found: usize,
    },
    /// Plaintext, flags and verdict of an item that contradict each other.
    #[error("item {index}: {what} does not go with the verdict {verdict}")]
    Contradiction {
        /// Position in the batch, from 0.
        index: usize,
        /// The part that does not fit.
        what: &'static str,
        /// The verdict that came.
        verdict: &'static str,
    },
    /// A reason for an item that the batch does not have.
    #[error("a reason for item {index} of {items}")]
    ReasonIndex {
        /// The position named.
        index: u32,
        /// The items of the batch.
        items: usize,
    },
    /// An answer to something that was not asked, or out of order.
    #[error("an answer to {found}, where one to {expected} was due")]
    OutOfOrder {
        /// The tag or line due.
        expected: u64,
        /// The tag or line that came.
        found: u64,
    },
    /// An answer although nothing was asked.
    #[error("an answer to nothing")]
    Unasked,
    /// A system title that is not eight bytes.
    #[error("a system title of {0} bytes")]
    TitleLength(usize),
    /// A number that has no name in this version of the client.
    #[error("{what} has the unknown number {number}")]
    UnknownNumber {
        /// The field.
        what: &'static str,
        /// The number that it held.
        number: i32,
    },
    /// A value that its field can't have.
    #[error("{what} has a value that it can't have")]
    OutOfRange {
        /// The field.
        what: &'static str,
    },
    /// A message without a part that it must have.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A page that points at itself.
    #[error("the list does not go on after {0:?}")]
    EndlessList(String),
}

impl CallError {
    /// The error of a call that may be made again.
    pub(crate) fn from_status(status: &Status) -> Self {
        Self::of(Safety::Repeatable, status)
    }

    /// The one place where a status becomes an error of ours: whose it is, then which.
    pub(crate) fn of(safety: Safety, status: &Status) -> Self {
        match LinkError::below(status) {
            Some(broken) => Self::of_transport(safety, broken),
            None => Self::of_answer(status),
        }
    }

    fn of_transport(safety: Safety, broken: &LinkError) -> Self {
        let reason = chain(broken);
        match broken {
            LinkError::Setup(setup) => {
                let reason = chain(&**setup);
                match **setup {
                    SetupError::OurCertificate { .. } => {
                        Self::CertificateRefused { code: "CERTIFICATE_REFUSED".into(), reason }
                    }
                    SetupError::TheirCertificate { .. } => Self::ServerNotTrusted { reason },
                    SetupError::Silent { .. } | SetupError::Failed { .. } => {
                        Self::Unreachable { reason }
                    }
                }
            }
            LinkError::Unsent(_) | LinkError::NoTime => Self::Unreachable { reason },
            _ if safety == Safety::Once => Self::OutcomeUnknown { reason },
            LinkError::Late => Self::DeadlineExceeded,
            LinkError::Broken(_) | LinkError::Cut(_) => Self::Unreachable { reason },
        }
    }

    fn of_answer(status: &Status) -> Self {
        let (code, reason) = (word(status), describe(status));
        if let Some((site, approval_id, expires_ms)) = waits_for_second(status) {
            return Self::SecondPersonNeeded { site, approval_id, expires_ms, reason };
        }
        match status.code() {
            Code::Unavailable => Self::Unavailable { code, reason },
            Code::ResourceExhausted => {
                Self::Busy { code, reason, retry_after: retry_after(status) }
            }
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::Unauthenticated => Self::CertificateRefused { code, reason },
            Code::PermissionDenied => Self::PermissionDenied { code, reason },
            Code::NotFound => Self::NotFound { code, reason },
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented => Self::Refused { code, reason },
            Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
                Self::Service { code, reason }
            }
        }
    }
}

/// Site, number and end of a call that waits for its second person.
fn waits_for_second(status: &Status) -> Option<(String, String, u64)> {
    let info = status.get_details_error_info()?;
    let waits = status.code() == Code::FailedPrecondition && info.reason == SECOND_PERSON_NEEDED;
    let metadata = waits.then_some(&info.metadata)?;
    let site = metadata.get("site").cloned().unwrap_or_default();
    Some((site, metadata.get("approval_id")?.clone(), metadata.get("expires")?.parse().ok()?))
}

/// An error and what caused it, each said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| (*cause).source()) {
        let said = cause.to_string();
        if !said.is_empty() && !text.contains(&said) {
            text = format!("{text}: {said}");
        }
    }
    text
}

/// The service's sentence.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    if text.is_empty() {
        text = status.code().description().to_owned();
    }
    match request_id(status) {
        Some(id) => format!("{text} (request {id})"),
        None => text,
    }
}

/// The service's name for the request that it refused, if it said one.
fn request_id(status: &Status) -> Option<RequestId> {
    let info = status.get_details_error_info()?;
    RequestId::new(info.metadata.get(METADATA_KEY)?).ok()
}

/// `ErrorInfo.reason`, else the name of the code.
fn word(status: &Status) -> String {
    let info = status.get_details_error_info().map(|info| info.reason);
    info.filter(|reason| !reason.is_empty()).unwrap_or_else(|| {
        let camel = format!("{:?}", status.code());
        let mut word = String::new();
        for letter in camel.chars() {
            if letter.is_ascii_uppercase() && !word.is_empty() {
                word.push('_');
            }
            word.push(letter.to_ascii_uppercase());
        }
        word
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn error_info_is_the_code_of_a_refusal() {
        let details = ErrorDetails::with_error_info("TEST_KEY", "ami.kms.v1", []);
        let status = Status::with_error_details(Code::InvalidArgument, "a test key", details);
        let refused = CallError::Refused { code: "TEST_KEY".into(), reason: "a test key".into() };
        assert_eq!(CallError::from_status(&status), refused);
    }

    #[test]
    fn a_refusal_says_what_the_service_calls_the_request() {
        let metadata = [("request_id".to_owned(), "spring-7".to_owned())];
        let details = ErrorDetails::with_error_info("BUSY", "ami.kms.v1", metadata);
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let text = CallError::from_status(&status).to_string();
        assert_eq!(text, "the service is busy: full (request spring-7)");
    }

    #[test]
    fn without_error_info_the_name_of_the_code_stands_in() {
        let error = CallError::from_status(&Status::failed_precondition("fenced"));
        assert!(matches!(error, CallError::Refused { code, .. } if code == "FAILED_PRECONDITION"));
    }

    #[test]
    fn a_denied_call_a_refused_certificate_and_a_broken_service_are_told_apart() {
        let denied = CallError::from_status(&Status::permission_denied("x"));
        assert!(matches!(denied, CallError::PermissionDenied { .. }), "{denied}");
        let refused = CallError::from_status(&Status::unauthenticated("x"));
        assert!(matches!(refused, CallError::CertificateRefused { .. }), "{refused}");
        let broken = CallError::from_status(&Status::internal("x"));
        assert!(matches!(broken, CallError::Service { .. }), "{broken}");
    }

    #[test]
    fn what_the_service_says_is_not_taken_for_a_service_that_is_not_there() {
        let details = ErrorDetails::with_error_info("AUDIT_NOT_WRITABLE", "ami.kms.v1", []);
        let status = Status::with_error_details(Code::Unavailable, "the log is away", details);
        let text = CallError::from_status(&status).to_string();
        assert_eq!(text, "the service can't do this now (AUDIT_NOT_WRITABLE): the log is away");
    }

    #[test]
    fn of_a_write_whose_answer_was_lost_the_outcome_is_unknown() {
        for lost in [|| LinkError::Cut(200), || LinkError::Late] {
            let error = CallError::of(Safety::Once, &lost().into_status());
            assert!(matches!(error, CallError::OutcomeUnknown { .. }), "{error}");
        }
        let error = CallError::of(Safety::Once, &LinkError::NoTime.into_status());
        assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
        let read = CallError::of(Safety::Repeatable, &LinkError::Late.into_status());
        assert_eq!(read, CallError::DeadlineExceeded);
    }
}
