//! Device profiles: how meters of one make differ from those of another, as data.

mod device;
mod name;
mod profiles;

pub use device::{CountersOnNewKey, DeviceProfile, FloorRule, HlsMechanism2};
pub use name::{BadProfileName, ProfileName};
pub use profiles::{BadProfiles, Profiles};
