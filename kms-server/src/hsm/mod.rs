//! The token: what this service asks of an HSM, in the service's own words. No PKCS #11 name passes
//! here; `cryptoki` is said only in [`pkcs11`].

pub mod config;
pub mod door;
mod door_keks;
mod enrolling;
mod error;
mod figures;
mod import_key;
mod lengths;
mod making;
#[cfg(any(test, feature = "memory-token"))]
pub mod memory;
pub mod pkcs11;
mod rsa_key;
mod sharing;
mod taking;
mod terms;
mod traits;

pub use config::{BadConfig, Config, OaepHash, Pin};
pub use door::{ApduOpening, Hsm};
pub use enrolling::{CeremonyKey, HandedKek, HandedKeks, NotTrusted};
pub use error::{BoxError, TokenError};
pub use import_key::ImportKey;
pub use making::{KeyLen, MADE_PER_CALL_MAX, Made, MakeKeys, NewKey, NotMade, WantedKey};
pub use rsa_key::{NotAnRsaKey, NotWrapped, RsaKey};
pub use sharing::ShareKey;
pub use taking::{
    KEYS_PER_CALL_MAX, LockedKey, NotAKey, SealedValue, StoreUnder, TakeKeys, Taken, TakenKey,
};
pub use terms::{GcmOpen, NotAuthentic, TokenStatus, WrappedKey};
pub use traits::{
    BlockSeals, Device, Enrols, ImportsKeys, MakesKeys, SealedKeys, Signs, SiteKeks, Token,
};
