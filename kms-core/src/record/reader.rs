//! Fields of a record's body, one after the other.

use dlms::SystemTitle;

use super::BadRecord;
use crate::MeterId;

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
