//! Keys of a sealed import file: the token takes them over, and only their fingerprints and their
//! wrapped form come here.

use std::{collections::HashMap, sync::Arc};

use super::{
    error::KeyringError,
    opening::{Opener, Room},
    resident::{arena::Segment, scrub_stack},
    writing::{Change, KeysOfBlock, WrappedValue},
};
use crate::hsm::{
    ImportKey, KEYS_PER_CALL_MAX, LockedKey, SealedValue, StoreUnder, TakeKeys, TakenKey,
    TokenError,
};
use kms_core::{
    BlockNo, DomainRecord, SealedKek,
    block::keys::{BlockKeys, WRAP_KEY_LEN, fingerprint_label, identify_bytes},
};

/// The most times that the token is asked for keys that it garbles.
const ATTEMPTS_MAX: usize = 3;

/// RFC 3394: by so many bytes a wrapped key is longer than the key.
const WRAP_OVERHEAD: usize = 8;

/// A key of a sealed file, and where it goes.
pub struct SealedKey<'a> {
    /// The block of its meter.
    pub change: &'a Change,
    /// `None`: protection `MEMORY`.
    pub under: Option<SealedKek>,
    /// Under the file's key.
    pub wrapped: &'a [u8],
}

/// Why keys could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// `Refused`: the file's own key does not open.
    #[error(transparent)]
    Token(TokenError),
    /// There was no room for the blocks' keys.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

/// What is needed of a block to store keys in it.
#[derive(Clone, Copy)]
pub struct AtHand<'a> {
    block: BlockNo,
    keys: &'a BlockKeys,
    wrap_key: &'a [u8],
}

impl<'a> From<&'a Change> for AtHand<'a> {
    fn from(change: &'a Change) -> Self {
        Self { block: change.block(), keys: change.keys(), wrap_key: change.wrap_key() }
    }
}

impl<'a> From<&'a KeysOfBlock> for AtHand<'a> {
    fn from(keys: &'a KeysOfBlock) -> Self {
        Self { block: keys.block(), keys: keys.keys(), wrap_key: keys.wrap_key() }
    }
}

/// A block's `wrap` key, copied within the arena for the length of a call.
pub(super) struct WrapKey(Segment);

/// The `wrap` keys of the blocks that a call to the token is about, each once.
#[derive(Default)]
pub(super) struct BlockKeysAtHand {
    places: HashMap<BlockNo, usize>,
    pub(super) wrap_keys: Vec<LockedKey>,
}

impl BlockKeysAtHand {
    /// The key that something is stored under: a sealed KEK, or this block's own, copied within the arena.
    pub(super) fn under(
        &mut self,
        opener: &Opener,
        at_hand: AtHand<'_>,
        kek: Option<SealedKek>,
    ) -> Result<StoreUnder, KeyringError> {
        match kek {
            Some(kek) => Ok(StoreUnder::Kek(kek)),
            None => self.at(opener, at_hand).map(StoreUnder::Block),
        }
    }

    /// The place of this block's own key.
    pub(super) fn at(
        &mut self,
        opener: &Opener,
        AtHand { block, wrap_key, .. }: AtHand<'_>,
    ) -> Result<usize, KeyringError> {
        if let Some(place) = self.places.get(&block) {
            return Ok(*place);
        }
        let mut copy = opener.room(block, WRAP_KEY_LEN, Room::MayCloseOthers)?;
        copy.bytes_mut()[..WRAP_KEY_LEN].copy_from_slice(wrap_key);
        let place = self.wrap_keys.len();
        self.places.insert(block, place);
        self.wrap_keys.push(Arc::new(WrapKey(copy)));
        Ok(place)
    }
}

impl AsRef<[u8]> for WrapKey {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes().get(..WRAP_KEY_LEN).unwrap_or_default()
    }
}

/// Has the token take keys of sealed import files, and make new ones.
pub struct Taker {
    pub(super) opener: Arc<Opener>,
}

impl Taker {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>) -> Self {
        Self { opener }
    }

    /// The key domain that files are sealed for, and the site of it.
    pub fn domain(&self) -> &DomainRecord {
        &self.opener.domain
    }

    /// The token's key that import files are sealed to.
    pub async fn import_key(&self) -> Result<ImportKey, TokenError> {
        self.opener.hsm.import_key().await
    }

    /// Takes keys over; `None` for each that the file's key does not open. As many calls to the token
    /// as there are groups of [`KEYS_PER_CALL_MAX`]: others get their turn in between.
    pub async fn take_keys(
        &self,
        wrapped_file_key: &[u8],
        sealed: &[SealedKey<'_>],
    ) -> Result<Vec<Option<WrappedValue>>, TakeError> {
        let mut values = Vec::with_capacity(sealed.len());
        for group in sealed.chunks(KEYS_PER_CALL_MAX) {
            values.extend(self.take_group(wrapped_file_key, group).await?);
        }
        Ok(values)
    }

    /// Takes some keys, and opens what is to be stored under a block's key before anybody hears that it
    /// was taken: one answer that the token garbled is an answer that is asked for again.
    async fn take_group(
        &self,
        wrapped_file_key: &[u8],
        group: &[SealedKey<'_>],
    ) -> Result<Vec<Option<WrappedValue>>, TakeError> {
        let mut reason = "";
        for _ in 0..ATTEMPTS_MAX {
            let job = self.job(wrapped_file_key, group)?;
            let taken = self.opener.hsm.take_keys(job).await.map_err(TakeError::Token)?;
            if taken.len() != group.len() {
                reason = "it answered for another number of keys";
                continue;
            }
            let taken: Vec<_> = taken.into_iter().map(|key| key.ok().map(stored)).collect();
            if self.all_open(group, &taken)? {
                return Ok(taken);
            }
            reason = "what it wraps opens as another key";
            tracing::warn!(reason, "the token garbled its answer; it is asked again");
        }
        Err(TakeError::Token(TokenError::Unreachable { reason: reason.to_owned() }))
    }

    /// Whether each key of protection `MEMORY` opens under its block's key as the one that the token
    /// says it is. The keys are in the arena for as long as that takes, where they will be anyway.
    fn all_open(
        &self,
        group: &[SealedKey<'_>],
        taken: &[Option<WrappedValue>],
    ) -> Result<bool, KeyringError> {
        let places = group.iter().map(|key| (AtHand::from(key.change), key.under));
        self.open_as_said(places.zip(taken.iter().map(Option::as_ref)))
    }

    /// The same, of whatever the token wrapped.
    pub(super) fn open_as_said<'v>(
        &self,
        wrapped: impl Iterator<Item = ((AtHand<'v>, Option<SealedKek>), Option<&'v WrappedValue>)>,
    ) -> Result<bool, KeyringError> {
        let mut scratch: Option<Segment> = None;
        let mut open = true;
        for ((AtHand { block, keys, .. }, under), value) in wrapped {
            let (None, Some(value)) = (under, value) else { continue };
            let mut room = match scratch.take() {
                Some(room) => room,
                None => self.opener.room(block, WRAP_KEY_LEN, Room::MayCloseOthers)?,
            };
            let len = value.wrapped.len().saturating_sub(WRAP_OVERHEAD);
            open &= room.bytes_mut().get_mut(..len).is_some_and(|place| {
                keys.unwrap_into(&value.wrapped, place).is_ok()
                    && identify_bytes(&self.opener.domain.domain, place)
                        .is_some_and(|it| it == (value.fingerprint, value.kcv.unwrap_or_default()))
            });
            scratch = Some(room);
        }
        scrub_stack();
        Ok(open)
    }

    fn job(
        &self,
        wrapped_file_key: &[u8],
        sealed: &[SealedKey<'_>],
    ) -> Result<TakeKeys, KeyringError> {
        let mut blocks = BlockKeysAtHand::default();
        let mut values = Vec::with_capacity(sealed.len());
        for SealedKey { change, under, wrapped } in sealed {
            let under = blocks.under(&self.opener, AtHand::from(*change), *under)?;
            values.push(SealedValue { wrapped: wrapped.to_vec(), under });
        }
        Ok(TakeKeys {
            wrapped_file_key: wrapped_file_key.to_vec(),
            fingerprint_label: fingerprint_label(&self.opener.domain.domain),
            wrap_keys: blocks.wrap_keys,
            keys: values,
        })
    }
}

fn stored(taken: TakenKey) -> WrappedValue {
    let TakenKey { fingerprint, kcv, wrapped } = taken;
    WrappedValue { wrapped, kcv: Some(kcv), fingerprint }
}
