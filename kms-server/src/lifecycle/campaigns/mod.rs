//! Campaigns, over the rules of `kms_core::campaign`: [`table`] is what this node drives, [`storing`] commits it, [`starting`]
//! brings members in, [`taking`] gives work out under leases, [`reporting`] takes in what came of it, [`deciding`] is what
//! people say, [`viewing`] what they see, [`keeping`] what goes on by itself.

mod deciding;
mod free;
mod keeping;
mod reporting;
mod schedule;
mod selecting;
mod selection;
mod starting;
mod storing;
mod table;
mod taking;
mod viewing;

pub use reporting::{OpenedFrame, Reported, WorkVerdict};
pub use selecting::LeftOut;
pub use selection::{Schedule, Selection};
pub use starting::{Started, Starting};
pub(in crate::lifecycle) use table::Campaigns;
pub use taking::{Taken, Work};
pub use viewing::{CampaignView, MemberView, Members, MeterRotation, Wanted};
