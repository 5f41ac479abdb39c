//! Open blocks and resident keys.

/// The keyring.
#[derive(Debug)]
pub struct Keyring;

/// For `GetStatus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyringStatus {
    /// Blocks that exist.
    pub blocks_total: u32,
    /// Blocks that are open.
    pub blocks_open: u32,
    /// Blocks whose last opening failed.
    pub blocks_failed: u32,
    /// Whether the warm-up has been through all blocks once.
    pub warm_up_done: bool,
    /// Since the warm-up began, or how long it took.
    pub warm_up_elapsed_ms: u64,
    /// Meters whose keys are resident.
    pub resident_meters: u64,
    /// Bytes in use.
    pub arena_bytes_used: u64,
    /// Bytes mapped.
    pub arena_bytes_total: u64,
    /// Whether the arena's pages are locked.
    pub memory_locked: bool,
    /// The last fault, while it lasts.
    pub fault: Option<String>,
}

impl Keyring {
    /// Figures for people.
    pub fn status(&self) -> KeyringStatus {
        KeyringStatus::default()
    }
}
