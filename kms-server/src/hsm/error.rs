//! The errors of a call to the token.

use std::error::Error as StdError;

use kms_core::site::keks::KekId;

/// Boxed cause of an error.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The failures of a token, cut by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The input is at fault: a second try would fail the same way, and the token is well.
    #[error("the token refused to {operation}")]
    Refused {
        /// The operation that it was asked for.
        operation: &'static str,
        /// The library's word.
        #[source]
        source: BoxError,
    },
    /// The device, its connection or one of its keys is not there; it may come back.
    #[error("the token is not reachable: {reason}")]
    Unreachable {
        /// One sentence for people.
        reason: String,
    },
    /// It is there, and is not the one, or does not let us in: no second try changes that. Said when
    /// connecting for the first time only; later it is unreachable as others are.
    #[error("the token can't be used: {reason}")]
    Unfit {
        /// One sentence for people.
        reason: String,
    },
    /// No session came free in time; come back later.
    #[error("the token is busy")]
    Busy,
    /// The call was given up at its deadline; whether the device did it is unknown.
    #[error("the token did not answer within {deadline_ms} ms")]
    TimedOut {
        /// The deadline that passed.
        deadline_ms: u64,
    },
}

impl TokenError {
    /// No site KEK of this name is in use.
    pub(super) fn unknown_kek(id: &KekId) -> Self {
        let source = format!("it uses no site KEK with id {}", hex::encode(id)).into();
        Self::Refused { operation: "use a site KEK", source }
    }
}
