//! Nouns and rules of a key domain: keys and meters, records and blocks, the audit chain. What server,
//! simulator and tools compute with alike.
//!
//! No IO, no clock, no threads, and nothing below that has any (`Cargo.toml`; a test of `kms-server` reads
//! it): time, randomness and what is outside come in through [`ports`].

pub mod audit;
pub mod backup;
pub mod block;
pub mod campaign;
pub mod client_title;
pub mod codec;
pub mod counters;
pub mod date;
pub mod enrolment;
pub mod fact;
pub mod floors;
pub mod following;
pub mod freshness;
pub mod key;
pub mod life;
pub mod meter;
pub mod moment;
pub mod numbered;
pub mod ports;
pub mod profile;
pub mod record;
pub mod refusal;
pub mod replication;
pub mod secret;
pub mod site;
pub mod test_keys;
pub mod triage;
pub mod two_people;
pub mod verdict;
pub mod wire;

pub use block::{BlockCount, BlockNo, Epoch, Head, Position, RecordMac, Sequence};
pub use client_title::{ClientTitle, ClientTitles};
pub use dlms::SystemTitle;
pub use key::{
    AssociationForm, Carrier, Fingerprint, Kcv, KeyEvent, KeyId, KeyKind, KeyLife, KeyRecord,
    KeyState, PastState, Protection, SecuritySetup, StateReason, Transfer, TransferResult,
};
pub use meter::{
    ChangeMark, FilePlace, FormerKey, FormerUse, MeterId, MeterPolicy, MeterRecord,
    MinimumProtection,
};
pub use numbered::Numbered;
pub use profile::ProfileName;
pub use record::{Record, RecordKey, StoredRecord};
pub use refusal::RefusalCode;
pub use secret::{BlockSecret, ClearKey};
pub use site::{DomainId, DomainRecord, SealedKek};
pub use verdict::Verdict;

#[cfg(feature = "serde")]
numbered::serde_by_word!(
    KeyKind,
    KeyState,
    Protection,
    MinimumProtection,
    StateReason,
    AssociationForm,
    TransferResult,
    fact::ValueStage,
    life::grouping::MemberState,
    campaign::Status,
    campaign::row::Phase,
    campaign::row::Outcome,
    campaign::row::Action
);
