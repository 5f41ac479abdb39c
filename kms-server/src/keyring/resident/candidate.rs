//! Keys that an APDU is tried under.

use crate::hsm::WrappedKey;
use kms_core::{KeyId, SecuritySetup};

/// A key to try.
pub enum KeyMaterial<'a> {
    /// Its bytes, in the arena.
    Bytes(&'a [u8]),
    /// It never leaves the token.
    Token(&'a WrappedKey),
}

/// What a live version may be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// It is the preferred one: it protects what is sent.
    pub protects: bool,
    /// It is active: the preferred one, or one that the meter may have fallen back to.
    pub active: bool,
    /// It may carry what brings the meter another key, or finds out which one it holds.
    pub carries: bool,
    /// It is known to others.
    pub compromised: bool,
    /// It was handed out: the meter may hold it, whatever its state.
    pub sent: bool,
    /// It waits for evidence, by this name.
    pub awaits: Option<KeyId>,
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
    /// What it may be used for beside opening.
    pub standing: Standing,
    /// Where it is.
    pub key: KeyMaterial<'a>,
}
