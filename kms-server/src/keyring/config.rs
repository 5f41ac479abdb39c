//! The keyring's part of the configuration.

/// The keyring's settings, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Size of the arena. A meter with GUEK and GAK takes 80 bytes.
    pub arena_bytes: usize,
    /// Memory for what is known of blocks that were changed. A meter takes 25 bytes of it.
    pub block_states_bytes: usize,
    /// Go on if the arena can't be locked: development only.
    pub allow_unlocked: bool,
    /// Blocks opened at the same time by the warm-up; 1 to 64.
    pub warm_up_parallelism: usize,
}
