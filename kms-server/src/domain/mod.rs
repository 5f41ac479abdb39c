//! Nouns and rules. No IO, no clock, no threads; the ports that the floors above meet at.

pub mod audit;
pub mod block;
pub mod freshness;
pub mod key;
pub mod meter;
pub mod ports;
pub mod record;
pub mod secret;
pub mod site;
pub mod test_keys;
pub mod verdict;

pub use block::{BlockCount, BlockNo, Epoch, Head, Position, RecordMac, Sequence};
pub use dlms::SystemTitle;
pub use key::{
    Fingerprint, Kcv, KeyEvent, KeyId, KeyKind, KeyRecord, KeyState, Protection, SecuritySetup,
};
pub use meter::{
    ChangeMark, FilePlace, FormerKey, FormerUse, MeterId, MeterPolicy, MeterRecord,
    MinimumProtection,
};
pub use record::{Record, RecordKey, StoredRecord};
pub use secret::{BlockSecret, ClearKey};
pub use site::{DomainId, DomainRecord, SealedKek};
pub use verdict::Verdict;
