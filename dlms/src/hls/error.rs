//! Why an answer is not computed or not accepted.

use core::fmt;

use super::lengths::{CHALLENGE_LEN_MAX, CHALLENGE_LEN_MIN};
use crate::KeyRole;

/// The reason why an answer was not computed or not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HlsError {
    /// The challenge is not 8 to 64 bytes.
    ChallengeLength {
        /// Its length.
        actual: usize,
    },
    /// The challenge could be read as an APDU: the answer to it would be that APDU's tag.
    ChallengeIsApdu,
    /// Both sides gave one challenge: one's answer would be the other's.
    SameChallenge,
    /// The answer has another length than the mechanism's.
    AnswerLength {
        /// The mechanism's.
        expected: usize,
        /// The length it has, in bytes.
        actual: usize,
    },
    /// A key has not the length of the suite.
    KeyLength {
        /// The key that has another length.
        role: KeyRole,
        /// The suite's key length, in bytes.
        expected: usize,
        /// The length it has, in bytes.
        actual: usize,
    },
    /// The mechanism takes no secret of this length.
    SecretLength {
        /// The longest, in bytes.
        most: usize,
        /// Its length.
        actual: usize,
    },
    /// The answer is not the one that a holder of the keys gives.
    NotAuthentic,
}

impl fmt::Display for HlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChallengeLength { actual } => {
                write!(
                    f,
                    "a challenge of {CHALLENGE_LEN_MIN} to {CHALLENGE_LEN_MAX} bytes, not {actual}"
                )
            }
            Self::ChallengeIsApdu => f.write_str(
                "the challenge can be read as an APDU, and the answer as its authentication tag",
            ),
            Self::SameChallenge => f.write_str("both sides gave the same challenge"),
            Self::AnswerLength { expected, actual } => {
                write!(f, "an answer of {expected} bytes, not {actual}")
            }
            Self::KeyLength { role, expected, actual } => {
                write!(f, "the suite's {role} has {expected} bytes, not {actual}")
            }
            Self::SecretLength { most, actual } => {
                write!(f, "a secret of 1 to {most} bytes, not {actual}")
            }
            Self::NotAuthentic => f.write_str("the answer does not verify"),
        }
    }
}

impl core::error::Error for HlsError {}
