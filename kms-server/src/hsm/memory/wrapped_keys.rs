//! Keys of protection `HSM`, wrapped under a sealed KEK (RFC 3394).

use dlms::key_wrap::{self, KeyWrapError, OVERHEAD_LEN};
use kms_core::{ClearKey, SealedKek};
use zeroize::Zeroizing;

use super::{
    aead::Text,
    token::{MemoryToken, refused},
};
use crate::hsm::{GcmOpen, NotAuthentic, SealedKeys, TokenError, WrappedKey};

impl SealedKeys for MemoryToken {
    fn wrap(&self, under: SealedKek, key: &ClearKey) -> Result<Vec<u8>, TokenError> {
        let wrapped = wrap(&**self.call()?.sealed(under), key.expose_clear_key_bytes());
        wrapped.map_err(|error| refused("wrap a key", error))
    }

    fn open_apdus(
        &self,
        key: &WrappedKey,
        apdus: &[GcmOpen],
    ) -> Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError> {
        let key = unwrap(&**self.call()?.sealed(SealedKek::Use), &key.wrapped);
        let key = key.map_err(|error| refused("unwrap a key", error))?;
        Ok(apdus.iter().map(|apdu| open(&key, apdu)).collect())
    }
}

/// RFC 3394, of 16 or 32 bytes.
pub(super) fn wrap(kek: &[u8], key: &[u8]) -> Result<Vec<u8>, KeyWrapError> {
    let mut wrapped = vec![0; key.len() + OVERHEAD_LEN];
    key_wrap::wrap(kek, key, &mut wrapped).map(|()| wrapped)
}

/// The inverse of [`wrap`].
pub(super) fn unwrap(kek: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyWrapError> {
    let mut key = Zeroizing::new(vec![0; wrapped.len().saturating_sub(OVERHEAD_LEN)]);
    key_wrap::unwrap(kek, wrapped, &mut key).map(|()| key)
}

fn open(key: &[u8], apdu: &GcmOpen) -> Result<Vec<u8>, NotAuthentic> {
    let GcmOpen { nonce, additional_data, ciphertext, tag } = apdu;
    let opened = match tag {
        Some(tag) => {
            let text = &[&ciphertext[..], tag].concat();
            Text { nonce, additional: additional_data, text }.open_apdu(key)
        }
        // The keystream is its own inverse, and the tag of that is dropped.
        None => {
            let mut twice = Text { nonce, additional: &[], text: ciphertext }.encrypt_apdu(key);
            twice.iter_mut().for_each(|twice| twice.truncate(ciphertext.len()));
            twice
        }
    };
    opened.map_err(|_| NotAuthentic)
}
