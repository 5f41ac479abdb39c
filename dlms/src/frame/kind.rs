//! The kinds of frames there are, and how each begins.

use core::fmt;

use crate::tags::GENERAL_BLOCK_TRANSFER;

/// A way of carrying an APDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// HDLC of IEC 62056-46: `7E … 7E`.
    Hdlc,
    /// Long frames of the wired M-Bus (EN 13757-2, -3): `68 L L 68 … 16`.
    MBus,
    /// The wrapper of IEC 62056-47: `0001`, source, destination, length.
    Wrapper,
    /// The LLC header of IEC 62056-46: `E6E700` or `E6E600`.
    Llc,
    /// general-block-transfer: `E0 …`.
    BlockTransfer,
}

impl FrameKind {
    /// The kind that `bytes` begin as; `None`: they begin as an APDU, or as nothing that is known here.
    pub fn of_start(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x7E, ..] => Some(Self::Hdlc),
            [0x68, length, again, 0x68, ..] if length == again => Some(Self::MBus),
            [0x00, 0x01, _, _, _, _, _, _, ..] => Some(Self::Wrapper),
            [0xE6, 0xE6 | 0xE7, 0x00, ..] => Some(Self::Llc),
            [GENERAL_BLOCK_TRANSFER, ..] => Some(Self::BlockTransfer),
            _ => None,
        }
    }

    /// Its name, as people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hdlc => "HDLC",
            Self::MBus => "M-Bus",
            Self::Wrapper => "wrapper",
            Self::Llc => "LLC",
            Self::BlockTransfer => "general-block-transfer",
        }
    }
}

impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
