//! Broadcast groups: meters that share one GBEK, and the GAK that their broadcasts are authenticated with.
//!
//! [`changing`] makes a group and gives it up, [`members`] takes meters in and out, [`rotating`] has one value made and
//! [`bringing`] has it stored for each of the members, [`showing`] says how far they are, [`alone`] refuses what one member's
//! key alone would break. The rules are in `kms_core::fact` and `kms_core::life::grouping`.

mod alone;
mod bringing;
mod changing;
mod leaving;
mod members;
mod rotating;
mod showing;
mod steps;

pub(in crate::lifecycle) use alone::{concerned, group_of, membership_of, still_member};
pub use bringing::Brought;
pub use leaving::Left;
pub use members::Joined;
pub use rotating::Rotated;
pub use showing::{GROUPS_BLOCKS_A_PAGE, GroupMember, GroupView};

/// Meters that one call is about at most, and members at which one call stages a key.
pub const PER_CALL_MAX: usize = 256;
/// Meters of one commit: their blocks are held while the token works.
const AT_ONCE: usize = 16;
