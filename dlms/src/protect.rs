//! Making a ciphered APDU.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::additional_data::wipe_from;
use crate::axdr::{length_len, write_length};
use crate::gcm::Gcm;
use crate::tags::{GENERAL_CIPHERING, GENERAL_DED_CIPHERING, GENERAL_GLO_CIPHERING};
use crate::{Form, FreshCounter, GeneralCipheringAad, GeneralCipheringHeader, KeyRole, KeySet};
use crate::{Keys, SecurityControl, ServiceTag, SystemTitle, TAG_LEN};

/// The envelope that the ciphered content travels in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope<'a> {
    /// glo-* or ded-*, by its tag.
    Service(ServiceTag),
    /// general-glo-ciphering, with the originator's title or without.
    GeneralGlo(Option<SystemTitle>),
    /// general-ded-ciphering, with the originator's title or without.
    GeneralDed(Option<SystemTitle>),
    /// general-ciphering with an identified key.
    GeneralCiphering(GeneralCipheringHeader<'a>),
}

impl Envelope<'_> {
    /// The form it makes.
    pub const fn form(&self) -> Form {
        match self {
            Self::Service(tag) => tag.form(),
            Self::GeneralGlo(_) => Form::GeneralGlo,
            Self::GeneralDed(_) => Form::GeneralDed,
            Self::GeneralCiphering(_) => Form::GeneralCiphering,
        }
    }

    const fn title(&self) -> Option<SystemTitle> {
        match self {
            Self::Service(_) => None,
            Self::GeneralGlo(title) | Self::GeneralDed(title) => *title,
            Self::GeneralCiphering(header) => header.originator,
        }
    }
}

/// The protection that an APDU is to get.
#[derive(Clone, Copy, Debug)]
pub struct Protection<'a> {
    /// The envelope that it travels in.
    pub envelope: Envelope<'a>,
    /// Suite, key set, and whether to authenticate, encrypt or both.
    pub security_control: SecurityControl,
    /// The system title that starts the nonce. A title in the envelope must be this one.
    pub originator: SystemTitle,
    /// The key that `envelope` and `security_control` select, and the authentication key.
    pub keys: Keys<'a>,
    /// The additional authenticated data that the receiver of general-ciphering expects.
    pub gc_aad: GeneralCipheringAad,
}

/// Protects `apdu` and appends the ciphered APDU to `out`, every length in its shortest form.
///
/// The counter is spent, whatever comes of it. On failure `out` is as before.
pub fn protect(
    protection: &Protection<'_>,
    counter: FreshCounter,
    apdu: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), ProtectError> {
    protection.check()?;
    let content_len = content_len(protection.security_control, apdu)?;
    let counter = counter.spend();
    let gcm = Gcm::new(protection.keys.encryption).map_err(|_| ProtectError::TooLong)?;
    let start = out.len();
    // At once, so that `out` is not moved while the authentication key stands in it.
    out.reserve(protection.capacity(apdu));
    let header = match protection.write_envelope(out) {
        Ok(header) => header,
        Err(error) => {
            wipe_from(out, start);
            return Err(error);
        }
    };
    write_length(content_len, out);
    out.push(protection.security_control.to_byte());
    out.extend_from_slice(&counter.to_be_bytes());
    let sealed = protection.write_body(&gcm, counter, header, apdu, out);
    if sealed.is_err() {
        wipe_from(out, start);
    }
    sealed
}

/// LEN: from SC on.
fn content_len(control: SecurityControl, apdu: &[u8]) -> Result<u32, ProtectError> {
    let tag = if control.authenticated { TAG_LEN } else { 0 };
    apdu.len()
        .checked_add(SECURITY_HEADER_LEN + tag)
        .and_then(|len| u32::try_from(len).ok())
        .ok_or(ProtectError::TooLong)
}

/// SC (1), IC (4).
const SECURITY_HEADER_LEN: usize = 5;

impl Protection<'_> {
    fn check(&self) -> Result<(), ProtectError> {
        let Self { envelope, security_control: control, originator, keys, gc_aad: _ } = self;
        let form = envelope.form();
        if !control.authenticated && !control.encrypted {
            return Err(ProtectError::Unprotected);
        }
        if control.compressed {
            return Err(ProtectError::Compression);
        }
        if control.key_set == KeySet::Broadcast && !matches!(form, Form::Glo | Form::GeneralGlo) {
            return Err(ProtectError::KeySet);
        }
        if envelope.title().is_some_and(|title| title != *originator) {
            return Err(ProtectError::OtherOriginator);
        }
        match keys.unfit_for(control.suite) {
            Some((role, actual)) => {
                Err(ProtectError::KeyLength { role, expected: control.suite.key_len(), actual })
            }
            None => Ok(()),
        }
    }

    /// At least what is written for `apdu`, in bytes, additional data included.
    fn capacity(&self, apdu: &[u8]) -> usize {
        let header = match self.envelope {
            Envelope::GeneralCiphering(header) => header.len_max(),
            _ => 1 + SystemTitle::LEN,
        };
        let key_info = KEY_INFO_LEN + length_len(u32::MAX) + SECURITY_HEADER_LEN;
        let wire = 1 + header + key_info + apdu.len() + TAG_LEN;
        let plain = if self.security_control.encrypted { 0 } else { apdu.len() };
        wire + 1 + self.keys.authentication.len() + header + plain
    }

    /// Writes what stands before LEN. Answers with the place of the header that the tag covers.
    fn write_envelope(&self, out: &mut Vec<u8>) -> Result<Range<usize>, ProtectError> {
        match &self.envelope {
            Envelope::Service(tag) => out.push(tag.to_byte()),
            Envelope::GeneralGlo(title) => {
                out.push(GENERAL_GLO_CIPHERING);
                write_title(title.as_ref(), out);
            }
            Envelope::GeneralDed(title) => {
                out.push(GENERAL_DED_CIPHERING);
                write_title(title.as_ref(), out);
            }
            Envelope::GeneralCiphering(header) => {
                out.push(GENERAL_CIPHERING);
                let from = out.len();
                header.write(out)?;
                let covered = from..out.len();
                out.extend_from_slice(&key_info(header.identified_key));
                if self.gc_aad == GeneralCipheringAad::Spec {
                    return Ok(covered);
                }
            }
        }
        Ok(0..0)
    }

    /// Writes the body. The additional data is put together behind it and wiped.
    fn write_body(
        &self,
        gcm: &Gcm,
        counter: u32,
        header: Range<usize>,
        apdu: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ProtectError> {
        let control = self.security_control;
        let start = out.len();
        let end = start + apdu.len();
        // Enciphered into its place below, unless it goes as it is.
        out.extend_from_slice(apdu);
        if control.authenticated {
            out.push(control.to_byte());
            out.extend_from_slice(self.keys.authentication);
            out.extend_from_within(header);
        }
        let (plaintext, covered) =
            if control.encrypted { (apdu, 0) } else { (&[][..], apdu.len()) };
        out.extend_from_within(start..start + covered);
        let (body, additional) = out
            .get_mut(start..)
            .and_then(|both| both.split_at_mut_checked(apdu.len()))
            .ok_or(ProtectError::TooLong)?;
        let body = body.get_mut(..plaintext.len()).unwrap_or_default();
        let tag = gcm
            .seal(&self.originator.nonce(counter), additional, plaintext, body)
            .map_err(|_| ProtectError::TooLong)?;
        wipe_from(out, end);
        if control.authenticated {
            out.extend_from_slice(&tag);
        }
        Ok(())
    }
}

impl GeneralCipheringHeader<'_> {
    fn write(&self, out: &mut Vec<u8>) -> Result<(), ProtectError> {
        write_octet_string(self.transaction_id, out)?;
        write_title(self.originator.as_ref(), out);
        write_title(self.recipient.as_ref(), out);
        write_octet_string(self.date_time, out)?;
        write_octet_string(self.other_information, out)
    }

    fn len_max(&self) -> usize {
        let octets =
            self.transaction_id.len() + self.date_time.len() + self.other_information.len();
        3 * length_len(u32::MAX) + octets + 2 * (1 + SystemTitle::LEN)
    }
}

//= Green Book, COSEMpdu, Key-Info: present, identified-key, key-id
const fn key_info(key: KeySet) -> [u8; KEY_INFO_LEN] {
    match key {
        KeySet::Unicast => [0x01, 0x00, 0x00],
        KeySet::Broadcast => [0x01, 0x00, 0x01],
    }
}

const KEY_INFO_LEN: usize = 3;

fn write_title(title: Option<&SystemTitle>, out: &mut Vec<u8>) {
    match title {
        Some(title) => {
            write_length(SystemTitle::LEN as u32, out);
            out.extend_from_slice(title.as_bytes());
        }
        None => write_length(0, out),
    }
}

fn write_octet_string(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ProtectError> {
    write_length(u32::try_from(bytes.len()).map_err(|_| ProtectError::TooLong)?, out);
    out.extend_from_slice(bytes);
    Ok(())
}

/// The reason why an APDU was not protected. All but `TooLong` say that the caller's settings
/// contradict the standard or each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectError {
    /// Neither authentication nor encryption was asked for.
    Unprotected,
    /// Compression was asked for.
    Compression,
    /// The broadcast bit was asked for in a form whose key set bit is 0: ded-*, general-ded-ciphering,
    /// general-ciphering (there key-info names the broadcast key).
    KeySet,
    /// The title in the envelope is not the originator's.
    OtherOriginator,
    /// A field is longer than a length can say: 2^32 - 1 bytes.
    TooLong,
    /// A key has not the length of the suite.
    KeyLength {
        /// The key that has another length.
        role: KeyRole,
        /// The suite's key length, in bytes.
        expected: usize,
        /// The length it has, in bytes.
        actual: usize,
    },
}

impl fmt::Display for ProtectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unprotected => "neither authentication nor encryption",
            Self::Compression => "compression is not supported",
            Self::KeySet => "this form has no broadcast bit",
            Self::OtherOriginator => "the envelope names another originator",
            Self::TooLong => "a field is longer than its length can say",
            Self::KeyLength { role, expected, actual } => {
                return write!(f, "the suite's {role} has {expected} bytes, not {actual}");
            }
        })
    }
}

impl core::error::Error for ProtectError {}
