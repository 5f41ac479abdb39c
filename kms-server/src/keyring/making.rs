//! Keys that the token makes for meters: only their fingerprints and their wrapped forms come here.

use super::{
    error::KeyringError,
    taking::{AtHand, BlockKeysAtHand, TakeError, Taker},
    writing::WrappedValue,
};
use crate::hsm::{KeyLen, MADE_PER_CALL_MAX, MakeKeys, NewKey, NotMade, TokenError, WantedKey};
use kms_core::{SealedKek, block::keys};

/// The most times that the token is asked for keys that it garbles.
const ATTEMPTS_MAX: usize = 3;

/// A key to make.
pub struct KeyToMake<'a> {
    /// Of its meter's block.
    pub block: AtHand<'a>,
    /// Where it is stored; `None`: protection `MEMORY`.
    pub under: Option<SealedKek>,
    /// As the meter's security suite has it.
    pub len: KeyLen,
    /// The meter's KEK as its record has it.
    pub kek: &'a [u8],
}

/// A key that was made.
#[derive(Clone, Debug)]
pub struct MadeValue {
    /// As it is stored.
    pub stored: WrappedValue,
    /// Under the meter's KEK.
    pub for_meter: Vec<u8>,
}

impl Taker {
    /// Has the token make these keys, in as many calls as there are groups of [`MADE_PER_CALL_MAX`].
    pub async fn make_keys(
        &self,
        wanted: &[KeyToMake<'_>],
    ) -> Result<Vec<Result<MadeValue, NotMade>>, TakeError> {
        let mut made = Vec::with_capacity(wanted.len());
        for group in wanted.chunks(MADE_PER_CALL_MAX) {
            made.extend(self.make_group(group).await?);
        }
        Ok(made)
    }

    /// Opens what is to be stored under a block's key before anybody hears of it, as of keys that are taken.
    async fn make_group(
        &self,
        group: &[KeyToMake<'_>],
    ) -> Result<Vec<Result<MadeValue, NotMade>>, TakeError> {
        let mut reason = "";
        for _ in 0..ATTEMPTS_MAX {
            let job = self.making(group)?;
            let made = self.opener.hsm.make_keys(job).await.map_err(TakeError::Token)?;
            if made.len() != group.len() {
                reason = "it answered for another number of keys";
                continue;
            }
            let made: Vec<_> = made.into_iter().map(|key| key.map(value)).collect();
            let places = group.iter().map(|key| (key.block, key.under));
            let values = made.iter().map(|key| key.as_ref().ok().map(|made| &made.stored));
            if self.open_as_said(places.zip(values))? {
                return Ok(made);
            }
            reason = "what it wraps opens as another key";
            tracing::warn!(reason, "the token garbled its answer; it is asked again");
        }
        Err(TakeError::Token(TokenError::Unreachable { reason: reason.to_owned() }))
    }

    fn making(&self, group: &[KeyToMake<'_>]) -> Result<MakeKeys, KeyringError> {
        let mut blocks = BlockKeysAtHand::default();
        let mut keks: Vec<Vec<u8>> = Vec::new();
        let mut wanted = Vec::with_capacity(group.len());
        for KeyToMake { block, under, len, kek } in group {
            let under = blocks.under(&self.opener, *block, *under)?;
            let place = keks.iter().position(|known| known == kek).unwrap_or(keks.len());
            if place == keks.len() {
                keks.push(kek.to_vec());
            }
            wanted.push(WantedKey { len: *len, under, kek: place });
        }
        Ok(MakeKeys {
            fingerprint_label: keys::fingerprint_label(&self.opener.domain.domain),
            wrap_keys: blocks.wrap_keys,
            keks,
            keys: wanted,
        })
    }
}

pub(super) fn value(key: NewKey) -> MadeValue {
    let NewKey { meter_blob, storage_blob, fingerprint, kcv } = key;
    let stored = WrappedValue { wrapped: storage_blob, kcv: Some(kcv), fingerprint };
    MadeValue { stored, for_meter: meter_blob }
}
