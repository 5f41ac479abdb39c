//! One ciphered APDU, as it stands on the wire.

use core::fmt;

use crate::axdr::Reader;
use crate::tags::{GENERAL_CIPHERING, GENERAL_DED_CIPHERING, GENERAL_GLO_CIPHERING};
use crate::{EncryptionKey, Form, KeySet, NONCE_LEN, SecurityControl, ServiceTag, Side};
use crate::{SystemTitle, TAG_LEN};

/// A view of one whole ciphered APDU; borrows the bytes it was parsed from.
///
/// Invariant: it is well-formed and of a kind that can be opened here. Nothing in it is
/// authenticated until `open` says so.
///
/// ```text
/// glo-*, ded-*      tag ‖ LEN ‖ SC ‖ IC ‖ body
/// general-glo, -ded tag ‖ 08 ‖ system title ‖ LEN ‖ SC ‖ IC ‖ body
/// general-ciphering tag ‖ header H ‖ key-info ‖ LEN ‖ SC ‖ IC ‖ body
/// body              payload, then the authentication tag if SC says so
/// ```
#[derive(Clone, Copy)]
pub struct CipheredApdu<'a> {
    pub(crate) envelope: ReadEnvelope<'a>,
    pub(crate) control: SecurityControl,
    pub(crate) counter: u32,
    pub(crate) payload: &'a [u8],
    pub(crate) tag: Option<&'a [u8; TAG_LEN]>,
}

/// The part of a ciphered APDU before LEN.
#[derive(Clone, Copy)]
pub(crate) enum ReadEnvelope<'a> {
    Service(ServiceTag),
    GeneralGlo(Option<SystemTitle>),
    GeneralDed(Option<SystemTitle>),
    GeneralCiphering {
        /// H as it was received, length octets included: that is what the tag covers.
        header: &'a [u8],
        originator: Option<SystemTitle>,
        key: KeySet,
    },
}

/// The fields that only general-ciphering has.
///
/// The standard's transaction-id and other-information are of free length; date-time is empty or a
/// COSEM date-time of 12 bytes, which is not checked here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralCipheringHeader<'a> {
    /// transaction-id: names the exchange; a response echoes it.
    pub transaction_id: &'a [u8],
    /// originator-system-title: the title of whoever protected it; may be left out.
    pub originator: Option<SystemTitle>,
    /// recipient-system-title: the title of whoever it is for; may be left out.
    pub recipient: Option<SystemTitle>,
    /// date-time: the time at which it was made; usually empty.
    pub date_time: &'a [u8],
    /// other-information: reserved; usually empty.
    pub other_information: &'a [u8],
    /// key-info, identified key: GUEK or GBEK.
    pub identified_key: KeySet,
}

impl<'a> CipheredApdu<'a> {
    /// The form that it has.
    pub const fn form(&self) -> Form {
        match self.envelope {
            ReadEnvelope::Service(tag) => tag.form(),
            ReadEnvelope::GeneralGlo(_) => Form::GeneralGlo,
            ReadEnvelope::GeneralDed(_) => Form::GeneralDed,
            ReadEnvelope::GeneralCiphering { .. } => Form::GeneralCiphering,
        }
    }

    /// Its first byte.
    pub const fn tag(&self) -> u8 {
        match self.envelope {
            ReadEnvelope::Service(tag) => tag.to_byte(),
            ReadEnvelope::GeneralGlo(_) => GENERAL_GLO_CIPHERING,
            ReadEnvelope::GeneralDed(_) => GENERAL_DED_CIPHERING,
            ReadEnvelope::GeneralCiphering { .. } => GENERAL_CIPHERING,
        }
    }

    /// Its first byte, if the form is service-specific.
    pub const fn service_tag(&self) -> Option<ServiceTag> {
        match self.envelope {
            ReadEnvelope::Service(tag) => Some(tag),
            _ => None,
        }
    }

    /// The security control byte.
    pub const fn security_control(&self) -> SecurityControl {
        self.control
    }

    /// The invocation counter. The sender's claim: compare it with a floor before opening, raise the
    /// floor only after.
    pub const fn invocation_counter(&self) -> u32 {
        self.counter
    }

    /// The originator's system title on the wire. `None` when the form has none or it is empty: it
    /// is then known from the association or the configuration.
    pub const fn system_title(&self) -> Option<SystemTitle> {
        match self.envelope {
            ReadEnvelope::Service(_) => None,
            ReadEnvelope::GeneralGlo(title) | ReadEnvelope::GeneralDed(title) => title,
            ReadEnvelope::GeneralCiphering { originator, .. } => originator,
        }
    }

    /// The side that originates a service-specific APDU. `None` for the general forms, which name a
    /// title.
    pub fn originating_side(&self) -> Option<Side> {
        self.service_tag().map(ServiceTag::side)
    }

    /// The key set that key-info of general-ciphering identifies. `None` for the other forms.
    pub const fn identified_key(&self) -> Option<KeySet> {
        match self.envelope {
            ReadEnvelope::GeneralCiphering { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Unicast or broadcast, wherever the form says so: key-info in general-ciphering, bit 6 of SC
    /// in the others.
    pub fn key_set(&self) -> KeySet {
        self.identified_key().unwrap_or(self.control.key_set)
    }

    /// The unicast key that protects it; look at [`Self::key_set`] first.
    pub const fn encryption_key(&self) -> EncryptionKey {
        self.form().encryption_key()
    }

    /// The ciphertext, or with authentication only the plain APDU; without the authentication tag.
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The authentication tag, if SC says there is one.
    pub const fn authentication_tag(&self) -> Option<&'a [u8; TAG_LEN]> {
        self.tag
    }

    /// The initialization vector, if `originator` protected it.
    pub fn nonce(&self, originator: &SystemTitle) -> [u8; NONCE_LEN] {
        originator.nonce(self.counter)
    }

    /// Length of the plaintext in bytes: counter mode does not change it.
    pub const fn plaintext_len(&self) -> usize {
        self.payload.len()
    }

    /// The header of general-ciphering. `None` for the other forms.
    pub fn general_ciphering_header(&self) -> Option<GeneralCipheringHeader<'a>> {
        match self.envelope {
            ReadEnvelope::GeneralCiphering { header, key, .. } => {
                // It was read once already; it reads again.
                GeneralCipheringHeader::read(&mut Reader::new(header), key).ok()
            }
            _ => None,
        }
    }

    /// H, as it was received; empty for the other forms.
    pub(crate) const fn header(&self) -> &'a [u8] {
        match self.envelope {
            ReadEnvelope::GeneralCiphering { header, .. } => header,
            _ => &[],
        }
    }
}

impl fmt::Debug for CipheredApdu<'_> {
    /// The security header, and how much of a payload: with authentication only it is plain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CipheredApdu")
            .field("tag", &format_args!("{:02X}", self.tag()))
            .field("system_title", &self.system_title())
            .field("security_control", &format_args!("{:02X}", self.control.to_byte()))
            .field("invocation_counter", &self.counter)
            .field("payload_len", &self.payload.len())
            .finish_non_exhaustive()
    }
}
