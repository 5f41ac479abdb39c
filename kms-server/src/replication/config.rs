//! Replication's part of the configuration.

use std::time::Duration;

/// The settings of a site that has a peer, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The peer's name: the name under which it was enrolled.
    pub peer: String,
    /// For a site that follows for ever: the other one of the two that may write.
    pub second: Option<String>,
    /// The interval at which a site that is followed says that it is there.
    pub heartbeat: Duration,
    /// The longest wait of a write's answer for the peer's word that it has it. Zero: nobody waits.
    pub write_wait: Duration,
    /// The interval at which all blocks are compared with the peer's.
    pub compare_interval: Duration,
    /// The interval at which the peer is asked to prove all blocks.
    pub prove_interval: Duration,
    /// A proof that is older is none.
    pub proof_age_max: Duration,
}

impl Config {
    /// Whether this site is a peer of ours: the one, or the other one of the two that a replica follows.
    pub fn is_peer(&self, site: &str) -> bool {
        self.peers().any(|peer| peer == site)
    }

    /// The names of our peers.
    pub fn peers(&self) -> impl Iterator<Item = &str> {
        [self.peer.as_str()].into_iter().chain(self.second.as_deref())
    }
}
