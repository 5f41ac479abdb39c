//! The life of meters' keys, over the rules of `kms_core::life`: [`staging`] has a key made and stored, [`sending`] says what is
//! sent and under which keys, [`evidence`] takes in what meters show, [`standing`] what people decide, [`due`] what time
//! brings.

mod changing;
mod due;
mod evidence;
mod proved;
mod sending;
mod staging;
mod standing;

pub use changing::Stepped;
pub use evidence::Evidence;
pub(in crate::lifecycle) use proved::ProvedKeys;
pub use sending::{Outgoing, Sending};
pub use staging::StagedKey;
pub(in crate::lifecycle) use staging::{not_made, not_taken};
