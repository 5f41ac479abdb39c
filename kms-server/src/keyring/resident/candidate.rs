//! Keys that an APDU is tried under.

use crate::hsm::WrappedKey;
use kms_core::SecuritySetup;

/// A key to try.
pub enum KeyMaterial<'a> {
    /// Its bytes, in the arena.
    Bytes(&'a [u8]),
    /// It never leaves the token.
    Token(&'a WrappedKey),
}

impl<'a> KeyMaterial<'a> {
    /// Its bytes; `None`: it is in the token.
    pub const fn bytes(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Token(_) => None,
        }
    }
}

/// A key version to try.
pub struct Candidate<'a> {
    /// The security setup.
    pub setup: SecuritySetup,
    /// Display order.
    pub version: u16,
    /// Whether it protects what is sent, and does not only open.
    pub protects: bool,
    /// Where it is.
    pub key: KeyMaterial<'a>,
}
