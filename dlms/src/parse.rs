//! From bytes to a [`CipheredApdu`], or to the reason why not.

use core::fmt;

use crate::apdu::ReadEnvelope;
use crate::axdr::{Fault, Reader};
use crate::key_info::KeyInfo;
use crate::tags::{
    self, GENERAL_BLOCK_TRANSFER, GENERAL_CIPHERING, GENERAL_DED_CIPHERING, GENERAL_GLO_CIPHERING,
    GENERAL_SIGNING,
};
use crate::{CipheredApdu, Form, GeneralCipheringHeader, KeySet, SecurityControl, ServiceTag};
use crate::{SystemTitle, UnknownSuite};

impl<'a> CipheredApdu<'a> {
    /// Reads one whole ciphered APDU, from its tag to its last byte; bytes after it are an error.
    ///
    /// An APDU that the standard knows and this crate does not open is [`ParseError::Unsupported`].
    /// It was read to its end before, unless its tag shows that it is plain, or its SC that the
    /// suite is reserved or nothing protects it. Everything else is [`ParseError::Malformed`].
    pub fn parse(apdu: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(apdu);
        match reader.byte("tag")? {
            GENERAL_GLO_CIPHERING => {
                let envelope = ReadEnvelope::GeneralGlo(title(&mut reader, "system-title")?);
                Ok(Content::read(&mut reader, Form::GeneralGlo)?.under(envelope))
            }
            GENERAL_DED_CIPHERING => {
                let envelope = ReadEnvelope::GeneralDed(title(&mut reader, "system-title")?);
                Ok(Content::read(&mut reader, Form::GeneralDed)?.under(envelope))
            }
            GENERAL_CIPHERING => general_ciphering(&mut reader),
            GENERAL_SIGNING => Err(general_signing(&mut reader)?.into()),
            GENERAL_BLOCK_TRANSFER => Err(general_block_transfer(&mut reader)?.into()),
            other => service_specific(other, &mut reader),
        }
    }
}

fn service_specific<'a>(tag: u8, reader: &mut Reader<'a>) -> Result<CipheredApdu<'a>, ParseError> {
    match ServiceTag::try_from(tag) {
        Ok(tag) => Ok(Content::read(reader, tag.form())?.under(ReadEnvelope::Service(tag))),
        Err(_) if tags::is_plain(tag) => Err(Unsupported::Plain { tag }.into()),
        Err(_) => Err(ParseError::Malformed { what: "tag", offset: 0 }),
    }
}

//= Green Book, COSEMpdu, General-Ciphering
//# transaction-id, originator-system-title, recipient-system-title, date-time, other-information,
//# key-info OPTIONAL, ciphered-content
fn general_ciphering<'a>(reader: &mut Reader<'a>) -> Result<CipheredApdu<'a>, ParseError> {
    let from = reader.at();
    let originator = GeneralCipheringHeader::read(reader, KeySet::Unicast)?.originator;
    let header = reader.since(from);
    let key_info = KeyInfo::read(reader)?;
    let content = Content::read(reader, Form::GeneralCiphering)?;
    let key = match key_info {
        KeyInfo::Identified(key) => key,
        KeyInfo::Wrapped => return Err(Unsupported::WrappedKey.into()),
        KeyInfo::Agreed => return Err(Unsupported::AgreedKey.into()),
        KeyInfo::Absent => return Err(Unsupported::AbsentKeyInfo.into()),
    };
    Ok(content.under(ReadEnvelope::GeneralCiphering { header, originator, key }))
}

impl<'a> GeneralCipheringHeader<'a> {
    /// Reads H. key-info comes after it and is not part of it.
    pub(crate) fn read(reader: &mut Reader<'a>, identified_key: KeySet) -> Result<Self, Fault> {
        Ok(Self {
            transaction_id: reader.octet_string("transaction-id")?,
            originator: title(reader, "originator-system-title")?,
            recipient: title(reader, "recipient-system-title")?,
            date_time: reader.octet_string("date-time")?,
            other_information: reader.octet_string("other-information")?,
            identified_key,
        })
    }
}

/// A system title with its length octet; some meters send an empty one.
fn title(reader: &mut Reader<'_>, what: &'static str) -> Result<Option<SystemTitle>, Fault> {
    let at = *reader;
    match reader.octet_string(what)? {
        [] => Ok(None),
        bytes => SystemTitle::try_from(bytes).map(Some).map_err(|_| at.fault(what)),
    }
}

/// The ciphered content, from LEN to the last byte of the APDU.
struct Content<'a> {
    control: SecurityControl,
    counter: u32,
    payload: &'a [u8],
    tag: Option<&'a [u8; crate::TAG_LEN]>,
}

impl<'a> Content<'a> {
    //= Green Book, security header and ciphered content: SC (1), IC (4, big-endian), body. LEN counts
    //# from SC on.
    fn read(reader: &mut Reader<'a>, form: Form) -> Result<Self, ParseError> {
        const LEN: &str = "length of the ciphered content";
        let at_len = *reader;
        if reader.length(LEN)? != reader.rest().len() {
            return Err(at_len.fault(LEN).into());
        }
        let at_control = *reader;
        let control = reader.byte("security control byte")?;
        let counter = u32::from_be_bytes(*reader.array("invocation counter")?);
        let control = checked_control(control, form, &at_control)?;
        let (payload, tag) = body(reader, control)?;
        if control.compressed {
            return Err(Unsupported::Compression.into());
        }
        Ok(Self { control, counter, payload, tag })
    }

    fn under(self, envelope: ReadEnvelope<'a>) -> CipheredApdu<'a> {
        let Self { control, counter, payload, tag } = self;
        CipheredApdu { envelope, control, counter, payload, tag }
    }
}

type Body<'a> = (&'a [u8], Option<&'a [u8; crate::TAG_LEN]>);

fn body<'a>(reader: &Reader<'a>, control: SecurityControl) -> Result<Body<'a>, Fault> {
    let body = reader.rest();
    if !control.authenticated {
        return Ok((body, None));
    }
    let (payload, tag) =
        body.split_last_chunk().ok_or_else(|| reader.fault("authentication tag"))?;
    Ok((payload, Some(tag)))
}

/// Reads SC and holds it against what `form` may carry; `at` is where it stands.
//= Green Book, security control byte
//# The key set bit is 0 for ded-*, general-ded-ciphering and general-ciphering, whose key-info names
//# the key. Compression exists in the general forms only. Neither authenticated nor encrypted is
//# legal in general-ciphering only.
fn checked_control(byte: u8, form: Form, at: &Reader<'_>) -> Result<SecurityControl, ParseError> {
    // The upper half means the same in every suite: judge it under one that is known.
    let flags = SecurityControl::from_byte(byte & 0xF0)
        .map_err(|UnknownSuite(suite)| Unsupported::Suite(suite))?;
    let unprotected = !flags.authenticated && !flags.encrypted;
    if flags.key_set == KeySet::Broadcast && !matches!(form, Form::Glo | Form::GeneralGlo) {
        return Err(at.fault("key set bit").into());
    }
    if flags.compressed && matches!(form, Form::Glo | Form::Ded) {
        return Err(at.fault("compression bit").into());
    }
    if unprotected && form != Form::GeneralCiphering {
        return Err(at.fault("protection bits").into());
    }
    match SecurityControl::from_byte(byte) {
        Err(UnknownSuite(suite)) => Err(Unsupported::Suite(suite).into()),
        Ok(_) if unprotected => Err(Unsupported::Unprotected.into()),
        Ok(control) => Ok(control),
    }
}

//= Green Book, COSEMpdu, General-Signing: header as in general-ciphering, content, signature (R ‖ S)
fn general_signing(reader: &mut Reader<'_>) -> Result<Unsupported, Fault> {
    const SIGNATURE: &str = "signature";
    GeneralCipheringHeader::read(reader, KeySet::Unicast)?;
    reader.octet_string("content")?;
    let at = *reader;
    match reader.octet_string(SIGNATURE)?.len() {
        64 | 96 => reader.end("end of general-signing").map(|()| Unsupported::GeneralSigning),
        _ => Err(at.fault(SIGNATURE)),
    }
}

//= Green Book, COSEMpdu, General-Block-Transfer
//# block-control (1), block-number (2), block-number-ack (2), block-data OCTET STRING
fn general_block_transfer(reader: &mut Reader<'_>) -> Result<Unsupported, Fault> {
    reader.array::<5>("block header")?;
    reader.octet_string("block data")?;
    reader.end("end of general-block-transfer").map(|()| Unsupported::GeneralBlockTransfer)
}

/// The reason why bytes are not a ciphered APDU that can be opened here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Not an APDU as the standard lays it out. A second try fails the same way.
    Malformed {
        /// The field that is malformed.
        what: &'static str,
        /// The offset at which it starts, in bytes from the tag.
        offset: usize,
    },
    /// Well-formed as far as its layout is known, but not opened here.
    Unsupported {
        /// The feature that is not opened.
        what: Unsupported,
    },
}

/// A feature that the standard has and this crate does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// A suite number that the standard reserves; what follows SC is not looked at.
    Suite(u8),
    /// Bit 7 of SC: V.44.
    Compression,
    /// general-ciphering whose SC says neither authenticated nor encrypted. Legal there, and
    /// refused: there is nothing to open, and nothing vouches for it.
    Unprotected,
    /// general-ciphering with a wrapped key.
    WrappedKey,
    /// general-ciphering with an agreed key.
    AgreedKey,
    /// general-ciphering without key-info: the key last exchanged.
    AbsentKeyInfo,
    /// A signed APDU; verify and take it apart first.
    GeneralSigning,
    /// One block of an APDU; put it together first.
    GeneralBlockTransfer,
    /// An APDU without ciphering, known by its tag alone.
    Plain {
        /// The tag.
        tag: u8,
    },
}

impl From<Fault> for ParseError {
    fn from(Fault { what, offset }: Fault) -> Self {
        Self::Malformed { what, offset }
    }
}

impl From<Unsupported> for ParseError {
    fn from(what: Unsupported) -> Self {
        Self::Unsupported { what }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { what, offset } => {
                write!(f, "malformed APDU: {what} at byte {offset}")
            }
            Self::Unsupported { what } => write!(f, "unsupported APDU: {what}"),
        }
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Suite(suite) => return write!(f, "security suite {suite}"),
            Self::Plain { tag } => return write!(f, "plain APDU {tag:02X}"),
            Self::Compression => "compression",
            Self::Unprotected => "general-ciphering without protection",
            Self::WrappedKey => "general-ciphering with a wrapped key",
            Self::AgreedKey => "general-ciphering with an agreed key",
            Self::AbsentKeyInfo => "general-ciphering without key-info",
            Self::GeneralSigning => "general-signing",
            Self::GeneralBlockTransfer => "general-block-transfer",
        })
    }
}

impl core::error::Error for ParseError {}
