//! What a backup is made with, and brought back.

use std::sync::Arc;

use crate::{hsm::Hsm, store::whole::WholeStore};

/// The token, the database, and the time.
#[derive(Clone)]
pub struct Ends {
    /// The token, which alone opens the file.
    pub hsm: Hsm,
    /// The database.
    pub store: Arc<dyn WholeStore>,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}
