//! Receive floors at work: what opened is judged against what was seen before, and what was seen is stored.
//!
//! [`shards`] holds the lines in memory, each under a lock that nobody holds while he waits. [`judging`] is what a batch
//! asks, after it has opened: a block's floors are read when its first message is judged. [`keeping`] stores what rose,
//! at an interval, and takes in what other nodes saw; [`peering`] does so with the other site. The rules are `kms_core::floors`.

mod config;
mod judging;
mod keeping;
mod peering;
mod shards;
mod state;

pub use config::FloorsConfig;
pub use judging::Floors;
