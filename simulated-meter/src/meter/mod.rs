//! The meter itself: bytes in, bytes or silence out.

mod association;
mod line;
mod objects;
mod protection;
mod setup;
mod state;
mod talk;
mod transfer;

pub use setup::SetupOf;
pub use state::{Association, Mechanism, Meter, Ordered};
