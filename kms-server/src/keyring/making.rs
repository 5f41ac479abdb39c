//! Keys that the token makes for meters: only their identities and their wrapped forms come here.

use std::{collections::HashMap, sync::Arc};

use super::{
    error::KeyringError,
    opening::Opener,
    taking::TakeError,
    wrap_keys::{Check, WrapKeys},
    writing::{Change, WrappedValue},
};
use crate::hsm::{KeyLen, MADE_PER_CALL_MAX, MakeKeys, NewKey, NotMade, TokenError, WantedKey};
use kms_core::{SealedKek, block::keys};

/// The most times that the token is asked for keys that it garbles.
const ATTEMPTS_MAX: usize = 3;

/// A key to make: for a meter, and where it goes.
#[derive(Clone, Copy)]
pub struct KeyToMake<'a> {
    /// The block of its meter.
    pub change: &'a Change,
    /// `None`: protection `MEMORY`.
    pub under: Option<SealedKek>,
    /// As the meter's security suite has it.
    pub len: KeyLen,
    /// The KEK that it travels under, as the meter's record has it.
    pub kek: &'a [u8],
}

/// A key that was made.
#[derive(Clone, Debug)]
pub struct MadeValue {
    /// As its record will have it.
    pub stored: WrappedValue,
    /// Under the meter's KEK, RFC 3394: what the meter is sent, however often.
    pub meter_blob: Vec<u8>,
}

type MadeValues = Vec<Result<MadeValue, NotMade>>;

/// Has the token make keys for meters.
pub struct Maker {
    opener: Arc<Opener>,
}

impl Maker {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>) -> Self {
        Self { opener }
    }

    /// Makes keys; for each whose KEK does not open, that. As many calls to the token as there are groups of
    /// [`MADE_PER_CALL_MAX`]: others get their turn in between.
    pub async fn make_keys(&self, wanted: &[KeyToMake<'_>]) -> Result<MadeValues, TakeError> {
        let mut values = Vec::with_capacity(wanted.len());
        for group in wanted.chunks(MADE_PER_CALL_MAX) {
            values.extend(self.make_group(group).await?);
        }
        Ok(values)
    }

    /// Makes some keys, and opens what is to be stored under a block's key before anybody hears of it, though the token
    /// did so, too: what lies between it and us could answer for it.
    async fn make_group(&self, group: &[KeyToMake<'_>]) -> Result<MadeValues, TakeError> {
        let mut reason = "";
        for _ in 0..ATTEMPTS_MAX {
            let job = self.job(group)?;
            let made = self.opener.hsm.make_keys(job).await.map_err(TakeError::Token)?;
            if made.len() != group.len() {
                reason = "it answered for another number of keys";
                continue;
            }
            let made: MadeValues = made.into_iter().map(|key| key.map(value)).collect();
            if self.all_open(group, &made)? {
                return Ok(made);
            }
            reason = "a key that it made opens as another";
            tracing::warn!(reason, "the token garbled its answer; it is asked again");
        }
        Err(TakeError::Token(TokenError::Unreachable { reason: reason.to_owned() }))
    }

    fn all_open(&self, group: &[KeyToMake<'_>], made: &MadeValues) -> Result<bool, KeyringError> {
        let mut check = Check::new(&self.opener);
        let mut open = true;
        for (KeyToMake { change, under, .. }, made) in group.iter().zip(made) {
            if let (None, Ok(made)) = (under, made) {
                open &= check.opens(change, &made.stored)?;
            }
        }
        Ok(open)
    }

    fn job(&self, group: &[KeyToMake<'_>]) -> Result<MakeKeys, KeyringError> {
        let mut wrap_keys = WrapKeys::new(&self.opener);
        let (mut places, mut keks) = (HashMap::new(), Vec::new());
        let mut keys = Vec::with_capacity(group.len());
        for KeyToMake { change, under, len, kek } in group {
            let under = wrap_keys.store_under(change, *under)?;
            let kek = *places.entry(*kek).or_insert_with(|| {
                keks.push(kek.to_vec());
                keks.len() - 1
            });
            keys.push(WantedKey { len: *len, under, kek });
        }
        Ok(MakeKeys {
            fingerprint_label: keys::fingerprint_label(&self.opener.domain.domain),
            wrap_keys: wrap_keys.into_keys(),
            keks,
            keys,
        })
    }
}

fn value(made: NewKey) -> MadeValue {
    let NewKey { meter_blob, storage_blob, fingerprint, kcv } = made;
    MadeValue {
        stored: WrappedValue { wrapped: storage_blob, kcv: Some(kcv), fingerprint },
        meter_blob,
    }
}
