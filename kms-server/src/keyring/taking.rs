//! Keys of a sealed import file: the token takes them over, and only their fingerprints and their
//! wrapped form come here.

use std::sync::Arc;

use super::{
    error::KeyringError,
    opening::Opener,
    wrap_keys::{Check, WrapKeys},
    writing::{Change, WrappedValue},
};
use crate::hsm::{ImportKey, KEYS_PER_CALL_MAX, SealedValue, TakeKeys, TakenKey, TokenError};
use kms_core::{DomainRecord, SealedKek, block::keys};

/// The most times that the token is asked for keys that it garbles.
const ATTEMPTS_MAX: usize = 3;

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

/// Takes keys of sealed import files.
pub struct Taker {
    opener: Arc<Opener>,
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
    /// says it is.
    fn all_open(
        &self,
        group: &[SealedKey<'_>],
        taken: &[Option<WrappedValue>],
    ) -> Result<bool, KeyringError> {
        let mut check = Check::new(&self.opener);
        let mut open = true;
        for (SealedKey { change, under, .. }, value) in group.iter().zip(taken) {
            if let (None, Some(value)) = (under, value) {
                open &= check.opens(change, value)?;
            }
        }
        Ok(open)
    }

    fn job(
        &self,
        wrapped_file_key: &[u8],
        sealed: &[SealedKey<'_>],
    ) -> Result<TakeKeys, KeyringError> {
        let mut wrap_keys = WrapKeys::new(&self.opener);
        let mut values = Vec::with_capacity(sealed.len());
        for SealedKey { change, under, wrapped } in sealed {
            let under = wrap_keys.store_under(change, *under)?;
            values.push(SealedValue { wrapped: wrapped.to_vec(), under });
        }
        Ok(TakeKeys {
            wrapped_file_key: wrapped_file_key.to_vec(),
            fingerprint_label: keys::fingerprint_label(&self.opener.domain.domain),
            wrap_keys: wrap_keys.into_keys(),
            keys: values,
        })
    }
}

fn stored(taken: TakenKey) -> WrappedValue {
    let TakenKey { fingerprint, kcv, wrapped } = taken;
    WrappedValue { wrapped, kcv: Some(kcv), fingerprint }
}
