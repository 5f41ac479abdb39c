//! AES-GCM by the token (PKCS #11 v3.0, section 2.12; NIST SP 800-38D), with lengths that we enforce: not
//! every token does (`Quirk::AnyGcmLength`).

use cryptoki::{
    error::Error,
    mechanism::{Mechanism, aead::GcmParams},
    object::ObjectHandle,
    session::Session,
    types::Ulong,
};
use zeroize::Zeroizing;

use crate::hsm::pkcs11::failure::Failure;

/// The only nonce length used: 96 bits (SP 800-38D, 5.2.1.1).
pub(crate) const NONCE_LEN: usize = 12;

/// The two tag lengths used.
#[derive(Clone, Copy)]
pub(crate) enum Tag {
    /// 96 bits, what DLMS has on the wire.
    Dlms = 12,
    /// 128 bits, what our own seals have.
    Full = 16,
}

/// The parameters of one AES-GCM.
#[derive(Clone, Copy)]
pub(crate) struct Gcm<'a> {
    /// Its safety is the caller's: the token accepts one twice.
    pub(crate) nonce: &'a [u8; NONCE_LEN],
    /// Authenticated beside the text, and not part of it.
    pub(crate) additional: &'a [u8],
    /// The tag behind the ciphertext.
    pub(crate) tag: Tag,
}

impl<'a> Gcm<'a> {
    /// C_Encrypt: ciphertext ‖ tag.
    pub(crate) fn encrypt(
        self,
        session: &Session,
        key: ObjectHandle,
        plain: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut nonce = *self.nonce;
        let sealed = session.encrypt(&self.mechanism(&mut nonce)?, key, plain)?;
        of_length(Zeroizing::new(sealed), plain.len() + self.tag as usize)
    }

    /// C_Decrypt of ciphertext ‖ tag.
    pub(crate) fn decrypt(
        self,
        session: &Session,
        key: ObjectHandle,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let too_short = || Failure::Broken("ciphertext shorter than its tag".to_owned());
        let len = sealed.len().checked_sub(self.tag as usize).ok_or_else(too_short)?;
        let mut nonce = *self.nonce;
        let plain = session.decrypt(&self.mechanism(&mut nonce)?, key, sealed)?;
        of_length(Zeroizing::new(plain), len)
    }

    /// The crate wants a nonce that it may write to.
    fn mechanism<'b>(self, nonce: &'b mut [u8; NONCE_LEN]) -> Result<Mechanism<'b>, Error>
    where
        'a: 'b,
    {
        let bits = Ulong::new(self.tag as u64 * 8);
        GcmParams::new(nonce, self.additional, bits).map(Mechanism::AesGcm)
    }
}

fn of_length(bytes: Zeroizing<Vec<u8>>, len: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if bytes.len() == len {
        return Ok(bytes);
    }
    Err(Failure::garbled(&format!("AES-GCM gave {} bytes where {len} are due", bytes.len())))
}
