//! Open blocks and resident keys: the way from a system title to the keys that open its APDUs.
//!
//! A hit takes no lock and allocates nothing: a [`Snapshot`] of the directory, one cache line of the
//! block's table. A miss opens the block once, however many ask. There is no one object that can do
//! everything: [`Reader`] is what decryption gets, [`Records`] reads what is stored, [`Writer`] changes
//! it on top of what was verified, [`Adopter`] takes a peer's blocks over as they are, [`Prover`] shows a peer that
//! blocks open here, [`Counting`] reads counter lines and MACs marks, [`Refresher`] keeps memory at what is stored. They share an opener,
//! which reads, verifies and publishes, and can write nothing to the database.

mod adopting;
mod config;
mod counting;
mod damage;
mod dates;
mod entering;
mod error;
mod faults;
mod following;
pub mod founding;
mod identities;
mod known_states;
mod local;
mod making;
mod mending;
mod opening;
mod overview;
mod own_seals;
mod owners;
mod patrol;
mod peer_tokens;
mod proving;
mod publishing;
mod put_back;

mod reader;
mod records;
mod renewing;
mod resident;
mod role;
mod roles;
mod rotator;
mod secrets;
mod seen_epochs;
mod seen_peers;
mod sharing;
mod site_keks;
mod stepping;
mod taking;
mod turns;
mod unknown;
mod unused;
mod warm_up;
mod writing;

pub use adopting::{Adopter, Arrived, Outcome, Taken};
pub use config::Config;
pub use counting::{Counting, Lines, MarkChanged, MarkError};
pub use damage::{DamageStatus, DamagedRecord, IndexLie};
pub use dates::Dates;
pub use error::{KeyringError, SharedError};
pub use identities::Identities;
pub use kms_core::following::NotFollowing;
pub use local::LocalKeys;
pub use making::{KeyToMake, MadeValue};
pub use opening::Below;
pub use overview::{KeyringStatus, Overview};
pub use owners::{Keyring, Refresher};
pub use peer_tokens::KnownToken;
pub use proving::{Confirmed, Prover};
pub use reader::Reader;
pub use records::{Doubt, Found, Records};
pub use resident::{
    BlockTable, Candidate, Directory, KeyMaterial, PolicyBits, ResidentMeter, SealedHlsSecret,
    Snapshot, Standing, arena, scrub_stack,
};
pub use role::SiteRole;
pub use roles::{NotChanged, Promotion, Roles, Wish};
pub use rotator::{SecretRotator, SecretsOfBlock};
pub use seen_epochs::EpochMemory;
pub use seen_peers::{PeerMemory, SeenPeer};
pub use sharing::KeyToShare;
pub use site_keks::{KeksError, SiteKekKeeper, ours, take_up};
pub use taking::{AtHand, SealedKey, TakeError, Taker};
pub use unused::{UnusedKey, UnusedKeys, Whence};
pub use writing::{Change, KeyToWrap, KeysOfBlock, WrappedValue, Writer};
