//! AES-GCM by the token, with lengths that we enforce: SoftHSM takes tags of no bits and cuts long
//! nonces without a word (PKCS #11 v3.0, section 2.12; NIST SP 800-38D).

use cryptoki::{
    error::Error,
    mechanism::{Mechanism, aead::GcmParams},
    object::ObjectHandle,
    session::Session,
    types::Ulong,
};
use zeroize::Zeroizing;

use crate::hsm::pkcs11::fault::Fault;

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

fn mechanism<'a>(
    nonce: &'a mut [u8; NONCE_LEN],
    additional: &'a [u8],
    tag: Tag,
) -> Result<Mechanism<'a>, Error> {
    GcmParams::new(nonce, additional, Ulong::new(tag as u64 * 8)).map(Mechanism::AesGcm)
}

/// C_Encrypt: ciphertext ‖ tag. Nonce safety is the caller's: the token accepts one twice.
pub(crate) fn encrypt(
    session: &Session,
    key: ObjectHandle,
    nonce: &[u8; NONCE_LEN],
    additional: &[u8],
    plain: &[u8],
    tag: Tag,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let mut nonce = *nonce;
    let sealed = session.encrypt(&mechanism(&mut nonce, additional, tag)?, key, plain)?;
    of_length(Zeroizing::new(sealed), plain.len() + tag as usize)
}

/// C_Decrypt of ciphertext ‖ tag.
pub(crate) fn decrypt(
    session: &Session,
    key: ObjectHandle,
    nonce: &[u8; NONCE_LEN],
    additional: &[u8],
    sealed: &[u8],
    tag: Tag,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let too_short = || Fault::Broken("ciphertext shorter than its tag".to_owned());
    let len = sealed.len().checked_sub(tag as usize).ok_or_else(too_short)?;
    let mut nonce = *nonce;
    let plain = session.decrypt(&mechanism(&mut nonce, additional, tag)?, key, sealed)?;
    of_length(Zeroizing::new(plain), len)
}

fn of_length(bytes: Zeroizing<Vec<u8>>, len: usize) -> Result<Zeroizing<Vec<u8>>, Fault> {
    if bytes.len() == len {
        return Ok(bytes);
    }
    Err(Fault::garbled(&format!("AES-GCM gave {} bytes where {len} are due", bytes.len())))
}
