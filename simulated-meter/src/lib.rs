//! A DLMS meter for tests: takes one APDU at a time and answers or keeps silent.
//!
//! What it is for: the service changes keys of meters that nobody can visit, and meters differ in how they take a key
//! change. [`Dialect`] names the ways, [`Meter`] behaves by them, [`Ledger`] reads the wire and says when a nonce was
//! used twice, [`Link`] loses and doubles messages, and [`cuts`] goes through every dialect with every single cut.
//!
//! None of it is the service's code: layouts were written from the reference of DLMS security, GCM is `ring`'s, AES key
//! wrap stands on an AES of its own. A mistake that the service makes in both directions alike is seen here.
#![forbid(unsafe_code)]

// Floor 1: bytes and primitives.
mod aes;
mod chance;
mod gcm;
mod octets;
pub mod wrap;

// Floor 2: what is said.
pub mod acse;
pub mod frame;
pub mod hls;
mod keys;
pub mod service;
mod value;

// Floor 3: who says it.
mod dialect;
mod head_end;
mod meter;

// Floor 4: what lies between, and what is checked.
pub mod cuts;
mod link;
mod nonces;

pub use chance::Chance;
pub use dialect::{
    AfterTransfer, Answer, Applies, Arrays, ClassVersion, CounterOnNewKey, Dialect, Lock, Policy,
    PowerLoss, ResultWord,
};
pub use head_end::HeadEnd;
pub use keys::{KeyId, Keys, Title};
pub use link::{Direction, Link, Losses};
pub use meter::{Association, Mechanism, Meter, Ordered, SetupOf};
pub use nonces::{Finding, Ledger, Use};
pub use value::Value;
