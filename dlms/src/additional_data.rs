//! The additional authenticated data (AAD): all that the tag covers besides the ciphertext.

use alloc::vec::Vec;

use zeroize::Zeroize;

use crate::{CipheredApdu, SecurityControl};

/// The content of the additional authenticated data of general-ciphering.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GeneralCipheringAad {
    /// The standard's text: the header H stands between authentication key and content.
    #[default]
    Spec,
    /// Without H, as the widespread Gurux implementation makes and expects it. A setting of a device
    /// profile, never to be guessed.
    OmitHeader,
}

impl CipheredApdu<'_> {
    /// Appends the additional authenticated data to `out`, for a device that opens elsewhere. It
    /// contains the authentication key, so wipe it. Nothing is appended when there is no tag.
    ///
    /// The key's length is taken as it is; `open` is stricter.
    pub fn additional_data(
        &self,
        authentication_key: &[u8],
        gc_aad: GeneralCipheringAad,
        out: &mut Vec<u8>,
    ) {
        if self.control.authenticated {
            append(
                self.control,
                authentication_key,
                self.covered_header(gc_aad),
                self.payload,
                out,
            );
        }
    }

    /// The part of H that the tag covers.
    pub(crate) const fn covered_header(&self, gc_aad: GeneralCipheringAad) -> &[u8] {
        match gc_aad {
            GeneralCipheringAad::Spec => self.header(),
            GeneralCipheringAad::OmitHeader => &[],
        }
    }
}

/// Appends the additional data; `payload` is part of it only if it is not encrypted. SC is the byte
/// on the wire, bits 6 and 7 included.
//= Green Book, "Additional Authenticated Data"
//# authentication only: SC ‖ AK ‖ (H) ‖ I; authenticated encryption: SC ‖ AK ‖ (H)
pub(crate) fn append(
    control: SecurityControl,
    authentication_key: &[u8],
    header: &[u8],
    payload: &[u8],
    out: &mut Vec<u8>,
) {
    let plain = if control.encrypted { &[] } else { payload };
    // At once, so that `out` is not moved while the authentication key stands in it.
    out.reserve(1 + authentication_key.len() + header.len() + plain.len());
    out.push(control.to_byte());
    for part in [authentication_key, header, plain] {
        out.extend_from_slice(part);
    }
}

/// SC ‖ AK, the whole additional data of an encrypted APDU of the ordinary forms. On the stack, wiped.
pub(crate) struct ShortAdditionalData {
    bytes: [u8; Self::LEN_MAX],
    len: usize,
}

impl ShortAdditionalData {
    /// SC, and the longest authentication key, suite 2's.
    const LEN_MAX: usize = 1 + 32;

    /// `None` if the key is longer than any suite's.
    pub(crate) fn new(control: SecurityControl, authentication_key: &[u8]) -> Option<Self> {
        let mut data = Self { bytes: [0; Self::LEN_MAX], len: 1 + authentication_key.len() };
        let (first, rest) = data.bytes.split_first_mut()?;
        *first = control.to_byte();
        rest.get_mut(..authentication_key.len())?.copy_from_slice(authentication_key);
        Some(data)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Drop for ShortAdditionalData {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// Shortens `out` to `len` and leaves nothing of what stood behind.
pub(crate) fn wipe_from(out: &mut Vec<u8>, len: usize) {
    if let Some(tail) = out.get_mut(len..) {
        tail.zeroize();
    }
    out.truncate(len);
}
