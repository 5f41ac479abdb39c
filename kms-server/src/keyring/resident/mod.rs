//! Keys in memory: the tables of open blocks in their locked arena, and the ids of their meters.

pub mod arena;
mod candidate;
mod directory;
mod extra;
mod floored;
mod hls;
mod ids;
mod meter;
mod policy;
mod scrub;
mod secrets;
mod table;
mod tables;

pub use candidate::{Candidate, KeyMaterial, Standing};
pub use directory::Directory;
pub use policy::PolicyBits;
pub use scrub::scrub_stack;
pub use secrets::SealedHlsSecret;
pub use table::{BlockTable, ResidentMeter};
pub(super) use table::{Row, piece_len};
pub(super) use tables::Resident;
pub use tables::Snapshot;
