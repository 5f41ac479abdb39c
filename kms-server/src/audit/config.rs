//! Settings of the audit log.

use std::time::Duration;

/// Intervals and bounds of the audit log, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The time for which crypto traffic is counted before it is written.
    pub traffic_interval: Duration,
    /// Blocks that get a row of their own in one interval's record of a caller, a call and a verdict;
    /// the rest is counted together.
    pub traffic_blocks_max: usize,
    /// Events after which the end of the chain is signed.
    pub checkpoint_events: u64,
    /// The longest wait of an event for a signature behind it.
    pub checkpoint_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            traffic_interval: Duration::from_secs(60),
            traffic_blocks_max: 256,
            checkpoint_events: 1_000,
            checkpoint_interval: Duration::from_secs(60),
        }
    }
}
