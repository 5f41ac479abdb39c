//! DLMS/COSEM message security: parse, open, protect, wrap. Bytes and keys in, bytes out.
//!
//! The symmetric part of security suites 0, 1 and 2 (Green Book, "Cryptographic protection of xDLMS
//! APDUs"; Blue Book, class 64). Pure: no clock, no randomness, no IO, and nothing is allocated but
//! in the output buffer that the caller hands in.
//!
//! A ciphered APDU comes in as [`CipheredApdu::parse`], names its key and its originator, and leaves
//! through [`CipheredApdu::open`]. One goes out through [`protect`]. Start reading at `apdu.rs`. What was
//! recorded with the frame that carried it goes through [`frame::unframe`] first.
//!
//! Invariants, by the names that the tests give them:
//!
//! - *No plaintext before its tag*: `open` appends only what a 12-byte tag vouches for.
//! - *A failure leaves no trace*: the output buffer is then as it was, its spare capacity wiped.
//! - *Bytes from outside do not panic*: whatever comes in, the answer is a value or an error.
//! - *A counter is spent once*: [`FreshCounter`] is moved into whatever uses it.
#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
extern crate alloc;

// Floor 1: nouns and the encoding.
pub mod axdr;
mod key_info;
mod keys;
mod security_control;
mod system_title;
mod tags;

// Floor 2: the primitives. Each takes every length from outside and refuses what the suites do not use.
pub mod cmac;
pub mod gcm;
pub mod key_wrap;

// Floor 3: the layout of a ciphered APDU, and what its tag covers.
mod additional_data;
mod apdu;
mod parse;

// Floor 4: the verbs.
pub mod class64;
pub mod frame;
pub mod hls;
mod open;
pub mod plain;
pub mod probe;
mod protect;

pub use additional_data::GeneralCipheringAad;
pub use apdu::{CipheredApdu, GeneralCipheringHeader};
pub use keys::{EncryptionKey, FreshCounter, KeyRole, Keys};
pub use open::OpenError;
pub use parse::{ParseError, Unsupported};
pub use protect::{Envelope, ProtectError, Protection, protect};
pub use security_control::{KeySet, SecurityControl, Suite, UnknownSuite};
pub use system_title::{NotASystemTitle, SystemTitle};
pub use tags::{Form, NotAServiceTag, ServiceTag, Side};

/// Length of the authentication tag on the wire, in bytes: the first 12 of GCM's 16
/// (Green Book, security suites; SP 800-38D, 5.2.1.2).
pub const TAG_LEN: usize = 12;

/// Length of the initialization vector, in bytes: system title (8), invocation counter (4).
pub const NONCE_LEN: usize = 12;
