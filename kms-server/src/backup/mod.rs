//! Backups of the database: written while the service runs, read back into an empty one, and tried.
//!
//! The file's format is `kms_core::backup`; how all of a database is read and written is the store's
//! (`store::whole`). Here the token seals and opens the file's key, signs the summary, and a database that came out of
//! a backup is gone through, block by block and event by event.

mod drill;
mod ends;
mod error;
mod loading;
mod reading;
mod writing;

pub use drill::{Drill, Drilled};
pub use ends::Ends;
pub use error::BackupError;
pub use loading::{Loaded, load, roll_back};
pub use reading::{header_of, verify};
pub use writing::{Written, write};
