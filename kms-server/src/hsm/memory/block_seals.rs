//! Block secrets under the site KEK. A seal is nonce (12) ‖ ciphertext (32) ‖ tag (16).

use kms_core::BlockSecret;
use zeroize::Zeroizing;

use super::{
    aead::{NONCE_LEN, Text},
    keys::{Kek, fill},
    token::{MemoryToken, refused},
};
use crate::hsm::{BlockSeals, SiteKeks as _, TokenError};

const SEAL: &str = "seal a block secret";
const OPEN: &str = "open a block secret";

impl BlockSeals for MemoryToken {
    fn seal(&self, place: &[u8], secret: &BlockSecret) -> Result<Vec<u8>, TokenError> {
        self.seal_under(&self.kek_in_use().id, place, secret)
    }

    fn open(&self, place: &[u8], sealed: &[u8]) -> Result<BlockSecret, TokenError> {
        self.open_under(&self.kek_in_use().id, place, sealed)
    }
}

impl MemoryToken {
    pub(super) fn seal_with(
        &self,
        kek: &Kek,
        place: &[u8],
        secret: &BlockSecret,
    ) -> Result<Vec<u8>, TokenError> {
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce)?;
        let text = secret.expose_block_secret_bytes();
        let sealed = Text { nonce: &nonce, additional: place, text }.seal(kek);
        sealed.map(|sealed| [&nonce[..], &sealed].concat()).map_err(|error| refused(SEAL, error))
    }

    pub(super) fn open_with(
        &self,
        kek: &Kek,
        place: &[u8],
        sealed: &[u8],
    ) -> Result<BlockSecret, TokenError> {
        let (nonce, text) =
            sealed.split_first_chunk().ok_or_else(|| refused(OPEN, "it is too short"))?;
        let opened = Text { nonce, additional: place, text }.open(kek);
        let opened = opened.map(Zeroizing::new).map_err(|error| refused(OPEN, error))?;
        BlockSecret::fill_with(|bytes| {
            let opened: &[u8; BlockSecret::LEN] =
                opened.as_slice().try_into().map_err(|_| refused(OPEN, "it is no secret"))?;
            bytes.copy_from_slice(opened);
            Ok(())
        })
    }
}
