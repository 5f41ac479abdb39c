//! The settings of receive floors.

use std::time::Duration;

/// The settings of receive floors, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloorsConfig {
    /// How often what rose is stored: what a crash forgets, and what two nodes of a site don't know of each other.
    pub flush_interval: Duration,
}

impl Default for FloorsConfig {
    fn default() -> Self {
        Self { flush_interval: Duration::from_secs(10) }
    }
}
