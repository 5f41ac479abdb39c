//! The first byte of an APDU: what it is, who sends it, what form of ciphering it has.

use core::fmt;

use crate::EncryptionKey;

/// The layout of a ciphered APDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// glo-*: service-specific, global key.
    Glo,
    /// ded-*: service-specific, dedicated key.
    Ded,
    /// general-glo-ciphering.
    GeneralGlo,
    /// general-ded-ciphering.
    GeneralDed,
    /// general-ciphering.
    GeneralCiphering,
}

impl Form {
    /// The unicast key that protects an APDU of this form.
    pub const fn encryption_key(self) -> EncryptionKey {
        match self {
            Self::Glo | Self::GeneralGlo | Self::GeneralCiphering => EncryptionKey::Global,
            Self::Ded | Self::GeneralDed => EncryptionKey::Dedicated,
        }
    }
}

/// An end of an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The head-end's.
    Client,
    /// The meter's.
    Server,
}

//= Green Book, "xDLMS APDUs", COSEMpdu: the tags of the general forms
pub(crate) const GENERAL_GLO_CIPHERING: u8 = 0xDB;
pub(crate) const GENERAL_DED_CIPHERING: u8 = 0xDC;
pub(crate) const GENERAL_CIPHERING: u8 = 0xDD;
pub(crate) const GENERAL_SIGNING: u8 = 0xDF;
pub(crate) const GENERAL_BLOCK_TRANSFER: u8 = 0xE0;

/// The tag of a service-specific ciphered APDU (glo-* or ded-*); no other byte has a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceTag {
    tag: u8,
    form: Form,
    side: Side,
}

impl ServiceTag {
    /// The byte on the wire.
    pub const fn to_byte(self) -> u8 {
        self.tag
    }

    /// [`Form::Glo`] or [`Form::Ded`].
    pub const fn form(self) -> Form {
        self.form
    }

    /// The side that sends such an APDU: requests and unconfirmed writes come from the client;
    /// responses, errors, notifications and reports from the server.
    pub const fn side(self) -> Side {
        self.side
    }

    /// The tag that the plain APDU `plain` (its first byte, e.g. `C0` get-request) is sent under when
    /// it is ciphered with `key`. `None` for those that have no ciphered form of their own.
    pub fn for_plain(plain: u8, key: EncryptionKey) -> Option<Self> {
        let (old, new) = match key {
            EncryptionKey::Global => (0x20, 0x08),
            EncryptionKey::Dedicated => (0x40, 0x10),
        };
        match plain {
            0x01 | 0x05 | 0x06 | 0x08 | 0x0C | 0x0D | 0x0E | 0x16 | 0x18 => Some(plain + old),
            0xC0..=0xC5 | 0xC7 => Some(plain + new),
            _ => None,
        }
        .and_then(|tag| Self::try_from(tag).ok())
    }
}

impl TryFrom<u8> for ServiceTag {
    type Error = NotAServiceTag;

    //= Green Book, COSEMpdu, "ciphered APDUs": with global ciphering, with dedicated ciphering
    //# initiate 21/28 41/48; read 25/2C 45/4C; write 26/2D 46/4D; confirmedServiceError 2E 4E;
    //# unconfirmedWrite 36 56; informationReport 38 58; get C8/CC D0/D4; set C9/CD D1/D5;
    //# event-notification CA D2; action CB/CF D3/D7
    fn try_from(tag: u8) -> Result<Self, NotAServiceTag> {
        let (form, side) = match tag {
            0x21 | 0x25 | 0x26 | 0x36 | 0xC8 | 0xC9 | 0xCB => (Form::Glo, Side::Client),
            0x28 | 0x2C | 0x2D | 0x2E | 0x38 | 0xCA | 0xCC | 0xCD | 0xCF => {
                (Form::Glo, Side::Server)
            }
            0x41 | 0x45 | 0x46 | 0x56 | 0xD0 | 0xD1 | 0xD3 => (Form::Ded, Side::Client),
            0x48 | 0x4C | 0x4D | 0x4E | 0x58 | 0xD2 | 0xD4 | 0xD5 | 0xD7 => {
                (Form::Ded, Side::Server)
            }
            other => return Err(NotAServiceTag(other)),
        };
        Ok(Self { tag, form, side })
    }
}

impl fmt::Debug for ServiceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceTag({:02X})", self.tag)
    }
}

/// Not the tag of a glo-* or ded-* APDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAServiceTag(
    /// The byte.
    pub u8,
);

impl fmt::Display for NotAServiceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02X} is not the tag of a service-specific ciphered APDU", self.0)
    }
}

impl core::error::Error for NotAServiceTag {}

/// Whether `tag` starts an APDU of DLMS/COSEM or its association (ACSE) that carries no ciphering of
/// its own.
//= Green Book, COSEMpdu: xDLMS APDUs without protection; ISO/IEC 15954: AARQ, AARE, RLRQ, RLRE
pub(crate) const fn is_plain(tag: u8) -> bool {
    matches!(
        tag,
        0x01 | 0x05 | 0x06 | 0x08 | 0x0C..=0x0F | 0x16 | 0x18 | 0x60..=0x63
            | 0xC0..=0xC5 | 0xC7 | 0xD8..=0xDA
    )
}
