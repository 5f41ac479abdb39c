//! Receive floors: below which invocation counter a meter's message was seen before.
//!
//! Of each counter line of a meter's own transmissions one [`Floor`] is kept: the highest counter that an authenticated
//! message carried, and which of the 64 counters from there down were seen. Two floors of one line merge by maximum, in
//! any order: so nodes, sites and restarts can't lower one another's.

mod floor;
mod line;

pub use floor::{BadFloor, Floor, FloorPlace, FloorRow};
pub use line::{Judged, Line, Message};
