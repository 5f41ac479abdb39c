//! The life of a meter's keys: how a new one is staged, sent, proved and preferred, and how an old one goes. Rules over one
//! meter's record, without IO; the record is committed by whoever calls.
//!
//! A meter that accepted a key which the utility lost can't be reached again, and neither can one whose key was given up
//! before its successor was proved. So a key that was made here waits as `PRE_ACTIVE` until the meter shows it
//! ([`evidence`]), its predecessor stays usable through a grace ([`due`]), and what was compromised still carries the
//! transfer of its successor ([`choosing`]).

pub mod choosing;
pub mod due;
pub mod evidence;
pub mod grouping;
mod refusal;
pub mod staging;
pub mod standing;

pub use refusal::NotDone;

/// Versions of one key that are live: as many as are tried on what a meter sends, four of the encryption key times four
/// of the authentication key.
pub const LIVE_MAX: usize = 4;

/// The times of a site's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A predecessor stays usable for so long after its successor was proved: longer than any meter sleeps.
    pub grace_ms: u64,
    /// A deactivated one opens late pushes for so long, before it may make room for another version.
    pub retention_ms: u64,
    /// Between the word that a key is to be destroyed, and its destruction.
    pub destroy_delay_ms: u64,
}

impl Times {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
}

impl Default for Times {
    fn default() -> Self {
        Self {
            grace_ms: 35 * Self::DAY_MS,
            retention_ms: 35 * Self::DAY_MS,
            destroy_delay_ms: 7 * Self::DAY_MS,
        }
    }
}

#[cfg(test)]
mod tests;
