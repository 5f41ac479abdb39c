//! Fields of a record's body, one after the other: written, and taken apart.

use dlms::SystemTitle;

use crate::{MeterId, Numbered};

/// Raised when the layout below changes: the lives of keys came with it. Records of the schemas before stand as they
/// are.
pub const SCHEMA: u8 = 4;

/// Bytes that are no record of a schema that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a record of schema {SCHEMA} or before")]
pub struct BadRecord;

/// A record that has no encoding: one of its parts is longer than the layout can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its {what} do not fit into its record: {len}, and {most} are the most")]
pub struct RecordTooLong {
    /// The part that is too long.
    pub what: &'static str,
    /// The length that it has, in bytes or in entries of a list.
    pub len: usize,
    /// The length that it may have at most.
    pub most: usize,
}

/// The length of a field or a list.
pub(super) fn put_len(
    out: &mut Vec<u8>,
    what: &'static str,
    len: usize,
) -> Result<(), RecordTooLong> {
    let most = usize::from(u16::MAX);
    let short = u16::try_from(len).map_err(|_| RecordTooLong { what, len, most })?;
    out.extend_from_slice(&short.to_be_bytes());
    Ok(())
}

pub(super) fn put_bytes(
    out: &mut Vec<u8>,
    what: &'static str,
    bytes: &[u8],
) -> Result<(), RecordTooLong> {
    put_len(out, what, bytes.len())?;
    out.extend_from_slice(bytes);
    Ok(())
}

pub(super) fn numbered<T: Numbered>(number: u8) -> Result<T, BadRecord> {
    T::from_number(number).ok_or(BadRecord)
}

/// Takes a body apart, from its front.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], BadRecord> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(BadRecord)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, BadRecord> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, BadRecord> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, BadRecord> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, BadRecord> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadRecord),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], BadRecord> {
        let len = usize::from(self.u16()?);
        let (head, rest) = self.0.split_at_checked(len).ok_or(BadRecord)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, BadRecord> {
        std::str::from_utf8(self.bytes()?).map_err(|_| BadRecord)
    }

    pub(super) fn title(&mut self) -> Result<SystemTitle, BadRecord> {
        self.array().map(SystemTitle::new)
    }

    pub(super) fn optional_title(&mut self) -> Result<Option<SystemTitle>, BadRecord> {
        self.flag()?.then(|| self.title()).transpose()
    }

    pub(super) fn meter_id(&mut self) -> Result<MeterId, BadRecord> {
        MeterId::new(self.text()?).map_err(|_| BadRecord)
    }
}
