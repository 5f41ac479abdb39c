//! Of a resident meter: what most of them do not have.

use crate::hsm::WrappedKey;
use kms_core::{ClientTitles, KeyKind, SecuritySetup, SystemTitle};

use super::{candidate::Standing, floored::Floored, secrets::SealedHlsSecret};

/// The attributes that most meters don't have.
#[derive(Clone, Default)]
pub(super) struct Extra {
    pub(super) default_title: Option<SystemTitle>,
    pub(super) client_title: Option<SystemTitle>,
    pub(super) client_titles: ClientTitles,
    pub(super) floors: Option<Box<Floored>>,
    /// Something of its keys is due then.
    pub(super) due_ms: Option<u64>,
    /// HLS secrets, sealed as they are stored.
    pub(super) secrets: Box<[SealedHlsSecret]>,
    /// Ordered: by setup, then as they are to be tried.
    pub(super) keys: Box<[SlotInfo]>,
}

impl Extra {
    /// The number of its keys that are in the arena.
    pub(super) fn slots(&self) -> usize {
        self.keys.iter().filter(|key| matches!(key.held, Held::Arena { .. })).count()
    }
}

/// A key that does not fit an entry.
#[derive(Clone)]
pub(super) struct SlotInfo {
    pub(super) kind: KeyKind,
    pub(super) setup: SecuritySetup,
    pub(super) version: u16,
    pub(super) standing: Standing,
    pub(super) held: Held,
}

/// The way in which a key of a slot is held.
#[derive(Clone)]
pub(super) enum Held {
    /// At this offset of the piece, this many bytes.
    Arena { at: u32, len: u8 },
    /// Only in the token.
    Token(WrappedKey),
}
