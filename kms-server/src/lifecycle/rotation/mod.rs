//! The life of meters' keys, over the rules of `kms_core::life`: [`staging`] has a key made, [`staging_many`] those of many meters,
//! [`storing`] stores them; [`sending`] says what is sent and under which keys, [`evidence`] takes in what meters show,
//! [`standing`] what people decide, [`due`] what time brings.

mod changing;
mod due;
mod evidence;
mod proved;
mod sending;
mod staging;
mod staging_many;
mod standing;
mod storing;

pub use changing::Stepped;
pub use evidence::Evidence;
pub(in crate::lifecycle) use proved::ProvedKeys;
pub(in crate::lifecycle) use sending::check_title;
pub use sending::{Outgoing, Sending};
pub use staging::StagedKey;
pub(in crate::lifecycle) use staging::{not_made, not_taken};
