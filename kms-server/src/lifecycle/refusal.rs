//! Why something that came in is not taken.

/// Why a line was refused. `code` is for machines, `reason` says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// A word as in `google.rpc.ErrorInfo`, such as `TEST_KEY`.
    pub code: &'static str,
    /// One sentence with the way out.
    pub reason: String,
}

/// A refusal with this code and reason.
pub(super) fn refusal(code: &'static str, reason: impl Into<String>) -> Refusal {
    Refusal { code, reason: reason.into() }
}
