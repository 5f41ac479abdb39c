//! Why something that came in is not taken.

use kms_core::RefusalCode;

/// Why a line was refused. `code` is for machines, `reason` says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Its word is the one of `google.rpc.ErrorInfo`.
    pub code: RefusalCode,
    /// One sentence with the way out.
    pub reason: String,
}

/// A refusal with this code and reason.
pub(super) fn refusal(code: RefusalCode, reason: impl Into<String>) -> Refusal {
    Refusal { code, reason: reason.into() }
}
