//! Blocks' `wrap` keys for the token, which wraps under them what nobody here sees; and the check of what it wrapped.

use std::{collections::HashMap, sync::Arc};

use super::{
    error::KeyringError,
    opening::{Opener, Room},
    resident::{arena::Segment, scrub_stack},
    writing::{Change, WrappedValue},
};
use crate::hsm::{LockedKey, StoreUnder};
use kms_core::{
    BlockNo, SealedKek,
    block::keys::{self, WRAP_KEY_LEN},
};

/// RFC 3394: by so many bytes a wrapped key is longer than the key.
const WRAP_OVERHEAD: usize = 8;

/// A block's `wrap` key, copied within the arena for the length of a call.
struct WrapKey(Segment);

impl AsRef<[u8]> for WrapKey {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes().get(..WRAP_KEY_LEN).unwrap_or_default()
    }
}

/// The `wrap` keys of the blocks that one call is about, each once.
pub(super) struct WrapKeys<'a> {
    opener: &'a Opener,
    places: HashMap<BlockNo, usize>,
    keys: Vec<LockedKey>,
}

impl<'a> WrapKeys<'a> {
    /// None yet.
    pub(super) fn new(opener: &'a Opener) -> Self {
        Self { opener, places: HashMap::new(), keys: Vec::new() }
    }

    /// What a key of this block goes under: a sealed KEK, or the block's key with its place among them.
    pub(super) fn store_under(
        &mut self,
        change: &Change,
        kek: Option<SealedKek>,
    ) -> Result<StoreUnder, KeyringError> {
        if let Some(kek) = kek {
            return Ok(StoreUnder::Kek(kek));
        }
        if let Some(place) = self.places.get(&change.block()) {
            return Ok(StoreUnder::Block(*place));
        }
        let mut copy = self.opener.room(change.block(), WRAP_KEY_LEN, Room::MayCloseOthers)?;
        copy.bytes_mut()[..WRAP_KEY_LEN].copy_from_slice(change.wrap_key());
        let place = self.keys.len();
        self.places.insert(change.block(), place);
        self.keys.push(Arc::new(WrapKey(copy)));
        Ok(StoreUnder::Block(place))
    }

    /// All of them, by their places.
    pub(super) fn into_keys(self) -> Vec<LockedKey> {
        self.keys
    }
}

/// Opens what a token wrapped under blocks' keys, in the arena: the keys are there for as long as that takes, where
/// they will be anyway.
pub(super) struct Check<'a> {
    opener: &'a Opener,
    scratch: Option<Segment>,
}

impl<'a> Check<'a> {
    /// Takes its room when it first needs it.
    pub(super) fn new(opener: &'a Opener) -> Self {
        Self { opener, scratch: None }
    }

    /// Whether a value opens under its block's key as the one that the token says it is.
    pub(super) fn opens(
        &mut self,
        change: &Change,
        value: &WrappedValue,
    ) -> Result<bool, KeyringError> {
        let mut room = match self.scratch.take() {
            Some(room) => room,
            None => self.opener.room(change.block(), WRAP_KEY_LEN, Room::MayCloseOthers)?,
        };
        let len = value.wrapped.len().saturating_sub(WRAP_OVERHEAD);
        let domain = &self.opener.domain.domain;
        let opens = room.bytes_mut().get_mut(..len).is_some_and(|place| {
            change.keys().unwrap_into(&value.wrapped, place).is_ok()
                && keys::identify_bytes(domain, place)
                    .is_some_and(|it| it == (value.fingerprint, value.kcv.unwrap_or_default()))
        });
        self.scratch = Some(room);
        Ok(opens)
    }
}

impl Drop for Check<'_> {
    fn drop(&mut self) {
        scrub_stack();
    }
}
