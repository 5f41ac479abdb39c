//! How long a challenge is.

/// Shortest challenge, in bytes.
pub const CHALLENGE_LEN_MIN: usize = 8;

/// Longest challenge, in bytes.
pub const CHALLENGE_LEN_MAX: usize = 64;
