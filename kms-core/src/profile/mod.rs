//! Device profiles: how meters of one make differ from those of another, as data.

mod name;

pub use name::{BadProfileName, ProfileName};
