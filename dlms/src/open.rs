//! Opening a ciphered APDU.

use alloc::vec::Vec;
use core::fmt;

use crate::additional_data::{self, ShortAdditionalData, wipe_from};
use crate::gcm::Gcm;
use crate::{CipheredApdu, GeneralCipheringAad, KeyRole, Keys, SystemTitle, TAG_LEN};

impl CipheredApdu<'_> {
    /// Appends the plaintext to `out` once its 12-byte tag has verified. On failure `out` is exactly
    /// as before, and its spare capacity holds nothing of this APDU or its keys.
    ///
    /// `originator` is whose title starts the nonce: the one on the wire, or where there is none the
    /// association's. If there is one on the wire, it must be the same.
    ///
    /// Refuses encryption-only APDUs: see [`Self::decrypt_without_authentication`].
    ///
    /// `out` is the only memory that is allocated. It grows by at most [`Self::open_capacity`]; with
    /// that much to spare it is not moved, and so leaves no copy of what it held before.
    pub fn open(
        &self,
        keys: &Keys<'_>,
        originator: &SystemTitle,
        gc_aad: GeneralCipheringAad,
        out: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let tag = self.authentication_tag().ok_or(OpenError::NotAuthenticated)?;
        self.check_originator(originator)?;
        let sealed = Sealed {
            gcm: &self.cipher(keys)?,
            nonce: &self.nonce(originator),
            tag,
            authentication_key: keys.authentication,
            header: self.covered_header(gc_aad),
        };
        let start = out.len();
        out.reserve(self.open_capacity(gc_aad));
        let opened = if !self.control.encrypted {
            self.open_plain(&sealed, out)
        } else if sealed.header.is_empty() {
            self.open_ciphertext(&sealed, out)
        } else {
            self.open_ciphertext_with_header(&sealed, out)
        };
        if opened.is_err() {
            wipe_from(out, start);
        }
        opened
    }

    /// The spare capacity that [`Self::open`] uses at most, in bytes; of this the plaintext stays.
    pub const fn open_capacity(&self, gc_aad: GeneralCipheringAad) -> usize {
        let header = self.covered_header(gc_aad).len();
        if self.control.encrypted && header == 0 {
            return self.plaintext_len();
        }
        1 + self.control.suite.key_len() + header + self.plaintext_len()
    }

    /// Appends what counter mode gives, **whoever made it**: nothing is authenticated, a wrong key
    /// gives garbage, and whoever sends may turn any bit.
    ///
    /// For meters that send encryption only (SC `20`, `21`), and for tagged APDUs whose authentication
    /// key is withheld. With authentication only there is nothing to decipher, and the payload comes
    /// back as it is.
    pub fn decrypt_without_authentication(
        &self,
        encryption_key: &[u8],
        originator: &SystemTitle,
        out: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        self.check_originator(originator)?;
        let expected = self.control.suite.key_len();
        if encryption_key.len() != expected {
            let (role, actual) = (KeyRole::Encryption, encryption_key.len());
            return Err(OpenError::KeyLength { role, expected, actual });
        }
        if !self.control.encrypted {
            out.extend_from_slice(self.payload);
            return Ok(());
        }
        let gcm = Gcm::new(encryption_key).map_err(|_| OpenError::NotAuthentic)?;
        let start = out.len();
        out.resize(start + self.plaintext_len(), 0);
        let plaintext = out.get_mut(start..).unwrap_or_default();
        gcm.decrypt_without_authentication(&self.nonce(originator), self.payload, plaintext)
            .map_err(|_| {
                wipe_from(out, start);
                OpenError::NotAuthentic
            })
    }

    fn check_originator(&self, originator: &SystemTitle) -> Result<(), OpenError> {
        match self.system_title() {
            Some(title) if title != *originator => Err(OpenError::OtherOriginator),
            _ => Ok(()),
        }
    }

    fn cipher(&self, keys: &Keys<'_>) -> Result<Gcm, OpenError> {
        let suite = self.control.suite;
        if let Some((role, actual)) = keys.unfit_for(suite) {
            return Err(OpenError::KeyLength { role, expected: suite.key_len(), actual });
        }
        Gcm::new(keys.encryption).map_err(|_| OpenError::NotAuthentic)
    }

    /// Authenticated encryption, ordinary forms: straight from the ciphertext into `out`.
    fn open_ciphertext(&self, sealed: &Sealed<'_>, out: &mut Vec<u8>) -> Result<(), OpenError> {
        let additional = ShortAdditionalData::new(self.control, sealed.authentication_key)
            .ok_or(OpenError::NotAuthentic)?;
        let start = out.len();
        out.resize(start + self.plaintext_len(), 0);
        let plaintext = out.get_mut(start..).unwrap_or_default();
        sealed.verify(additional.as_slice(), self.payload, plaintext)
    }

    /// Authenticated encryption, general-ciphering: the additional data is put together in `out`,
    /// behind the place of the plaintext, and wiped.
    fn open_ciphertext_with_header(
        &self,
        sealed: &Sealed<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let start = out.len();
        let end = start + self.plaintext_len();
        out.resize(end, 0);
        self.append_additional_data(sealed, out);
        let (plaintext, additional) = out
            .get_mut(start..)
            .and_then(|both| both.split_at_mut_checked(self.plaintext_len()))
            .ok_or(OpenError::NotAuthentic)?;
        sealed.verify(additional, self.payload, plaintext)?;
        wipe_from(out, end);
        Ok(())
    }

    /// Authentication only: the additional data, which ends with the plain APDU, is put together in
    /// `out`; then all but the APDU goes.
    fn open_plain(&self, sealed: &Sealed<'_>, out: &mut Vec<u8>) -> Result<(), OpenError> {
        let start = out.len();
        self.append_additional_data(sealed, out);
        sealed.verify(out.get(start..).unwrap_or_default(), &[], &mut [])?;
        let apdu = out.len() - self.plaintext_len();
        out.copy_within(apdu.., start);
        wipe_from(out, start + self.plaintext_len());
        Ok(())
    }

    fn append_additional_data(&self, sealed: &Sealed<'_>, out: &mut Vec<u8>) {
        let Sealed { authentication_key, header, .. } = sealed;
        additional_data::append(self.control, authentication_key, header, self.payload, out);
    }
}

/// The inputs that every way of opening needs.
struct Sealed<'a> {
    gcm: &'a Gcm,
    nonce: &'a [u8; crate::NONCE_LEN],
    tag: &'a [u8; TAG_LEN],
    authentication_key: &'a [u8],
    header: &'a [u8],
}

impl Sealed<'_> {
    fn verify(
        &self,
        additional: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        self.gcm
            .open(self.nonce, additional, ciphertext, self.tag, out)
            .map_err(|_| OpenError::NotAuthentic)
    }
}

/// The reason why an APDU was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The tag does not verify: forged, damaged, or under other keys.
    NotAuthentic,
    /// There is no tag: nothing can vouch for it.
    NotAuthenticated,
    /// The title on the wire is not the originator's that the caller named.
    OtherOriginator,
    /// A key has not the length of the suite that SC names.
    KeyLength {
        /// The key that has another length.
        role: KeyRole,
        /// The suite's key length, in bytes.
        expected: usize,
        /// The length it has, in bytes.
        actual: usize,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthentic => f.write_str("the authentication tag does not verify"),
            Self::NotAuthenticated => f.write_str("the APDU carries no authentication tag"),
            Self::OtherOriginator => f.write_str("the APDU names another originator"),
            Self::KeyLength { role, expected, actual } => {
                write!(f, "the suite's {role} has {expected} bytes, not {actual}")
            }
        }
    }
}

impl core::error::Error for OpenError {}
