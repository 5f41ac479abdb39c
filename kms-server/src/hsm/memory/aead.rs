//! AES-GCM with the two lengths of keys and of tags that are used.

use aes_gcm::{
    AeadCore, AesGcm, Error, KeyInit,
    aead::{
        Aead, Payload,
        consts::{U12, U16},
    },
    aes::{Aes128, Aes256},
};

/// The length of every nonce.
pub(super) const NONCE_LEN: usize = 12;

/// A text that is sealed or opened under a nonce.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    /// Used once a key.
    pub(super) nonce: &'a [u8; NONCE_LEN],
    /// Authenticated beside the text.
    pub(super) additional: &'a [u8],
    /// The plaintext, or ciphertext ‖ tag.
    pub(super) text: &'a [u8],
}

impl Text<'_> {
    /// Seals under a KEK, with a tag of 16 bytes.
    pub(super) fn seal(self, kek: &[u8; 32]) -> Result<Vec<u8>, Error> {
        self.encrypt::<AesGcm<Aes256, U12, U16>>(kek)
    }

    /// Opens what [`Text::seal`] made.
    pub(super) fn open(self, kek: &[u8; 32]) -> Result<Vec<u8>, Error> {
        self.decrypt::<AesGcm<Aes256, U12, U16>>(kek)
    }

    /// Encrypts under a meter's key, with a tag of 12 bytes.
    pub(super) fn encrypt_apdu(self, key: &[u8]) -> Result<Vec<u8>, Error> {
        match key.len() {
            16 => self.encrypt::<AesGcm<Aes128, U12, U12>>(key),
            _ => self.encrypt::<AesGcm<Aes256, U12, U12>>(key),
        }
    }

    /// Opens ciphertext ‖ tag of a meter.
    pub(super) fn open_apdu(self, key: &[u8]) -> Result<Vec<u8>, Error> {
        match key.len() {
            16 => self.decrypt::<AesGcm<Aes128, U12, U12>>(key),
            _ => self.decrypt::<AesGcm<Aes256, U12, U12>>(key),
        }
    }

    fn encrypt<A: Aead + AeadCore<NonceSize = U12> + KeyInit>(
        self,
        key: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let payload = Payload { msg: self.text, aad: self.additional };
        A::new_from_slice(key).map_err(|_| Error)?.encrypt(&(*self.nonce).into(), payload)
    }

    fn decrypt<A: Aead + AeadCore<NonceSize = U12> + KeyInit>(
        self,
        key: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let payload = Payload { msg: self.text, aad: self.additional };
        A::new_from_slice(key).map_err(|_| Error)?.decrypt(&(*self.nonce).into(), payload)
    }
}
