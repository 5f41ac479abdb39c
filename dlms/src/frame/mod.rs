//! What carries an APDU on its line: HDLC, the wired M-Bus, the wrapper of TCP and UDP, LLC, and the
//! blocks of general-block-transfer. Takes them off what was recorded there, and puts together what
//! was sent in pieces; makes none.
//!
//! None of these begins with a byte that an APDU begins with, general-block-transfer apart, which is an
//! APDU of its own and carries another: so whether there is a frame is never a guess.

mod blocks;
mod hdlc;
mod mbus;
mod wrapper;

use alloc::vec::Vec;
use core::fmt;

use crate::tags::GENERAL_BLOCK_TRANSFER;

/// What carries an APDU.
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
    /// What `bytes` begin as; `None`: as an APDU, or as nothing that is known here.
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

    /// As people write it.
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

/// An APDU without what carried it.
#[derive(Clone, PartialEq, Eq)]
pub struct Unframed {
    /// The APDU, put together.
    pub apdu: Vec<u8>,
    /// What was taken off, outermost first.
    pub layers: Vec<FrameKind>,
}

impl fmt::Debug for Unframed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { apdu, layers } = self;
        f.debug_struct("Unframed").field("len", &apdu.len()).field("layers", layers).finish()
    }
}

/// Takes off what carries the one APDU of `bytes`: all of a recording, from its first byte to its last.
/// `Ok(None)`: nothing does.
///
/// `outermost` says what there must be; without it, what `bytes` begin as is taken. Lengths, checksums,
/// and the order of pieces must all be right: a frame that is damaged is refused, never repaired.
pub fn unframe(bytes: &[u8], outermost: Option<FrameKind>) -> Result<Option<Unframed>, FrameError> {
    let Some(kind) = outermost.or_else(|| FrameKind::of_start(bytes)) else { return Ok(None) };
    let mut layers = Vec::from([kind]);
    let mut pieces = match kind {
        FrameKind::Hdlc => hdlc::messages(bytes)?,
        FrameKind::MBus => mbus::messages(bytes)?,
        FrameKind::Wrapper => wrapper::messages(bytes)?,
        FrameKind::Llc => {
            let apdu = without_llc(bytes).ok_or(FrameFault::Start.of(kind, 1))?;
            Vec::from([apdu.to_vec()])
        }
        FrameKind::BlockTransfer => Vec::from([bytes.to_vec()]),
    };
    if kind == FrameKind::Hdlc {
        let mut any = false;
        for piece in &mut pieces {
            if let Some(apdu) = without_llc(piece) {
                *piece = apdu.to_vec();
                any = true;
            }
        }
        if any {
            layers.push(FrameKind::Llc);
        }
    }
    let in_blocks =
        pieces.first().is_some_and(|piece| piece.first() == Some(&GENERAL_BLOCK_TRANSFER));
    if in_blocks || kind == FrameKind::BlockTransfer {
        if kind != FrameKind::BlockTransfer {
            layers.push(FrameKind::BlockTransfer);
        }
        pieces = Vec::from([blocks::joined(&pieces)?]);
    }
    let several = FrameFault::Several(pieces.len()).of(kind, 1);
    match <[Vec<u8>; 1]>::try_from(pieces) {
        Ok([apdu]) if apdu.is_empty() => Err(FrameFault::Empty.of(kind, 1)),
        Ok([apdu]) => Ok(Some(Unframed { apdu, layers })),
        Err(_) => Err(several),
    }
}

//= IEC 62056-46, 5.4.2: E6, then E6 (command) or E7 (response), then 00
fn without_llc(bytes: &[u8]) -> Option<&[u8]> {
    match bytes {
        [0xE6, 0xE6 | 0xE7, 0x00, apdu @ ..] => Some(apdu),
        _ => None,
    }
}

/// Why a frame was not taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// Of what.
    pub kind: FrameKind,
    /// Which frame or block, from 1.
    pub frame: usize,
    /// What is wrong with it.
    pub fault: FrameFault,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// It does not begin as it should.
    Start,
    /// The bytes end inside it.
    Cut,
    /// A length and what it counts disagree.
    Length {
        /// What the frame says.
        said: usize,
    },
    /// A checksum does not fit its bytes.
    Checksum {
        /// Which: FCS, HCS or checksum.
        name: &'static str,
        /// What the frame says.
        said: u16,
        /// What its bytes give.
        found: u16,
    },
    /// A field that may not be so.
    Field(&'static str),
    /// It is there to run the line, or carries something else.
    NoApdu {
        /// The byte that says so.
        what: &'static str,
        /// Its value.
        byte: u8,
    },
    /// A piece is missing, or comes in another's place.
    Order {
        /// The number that was due.
        due: u16,
        /// The number that is there.
        found: u16,
    },
    /// The last piece is missing.
    NotEnded,
    /// Something follows the last piece.
    BehindTheEnd,
    /// It goes between other stations than the frames before.
    OtherStations,
    /// It carries nothing.
    Empty,
    /// There are so many APDUs.
    Several(usize),
}

impl FrameFault {
    pub(crate) const fn of(self, kind: FrameKind, frame: usize) -> FrameError {
        FrameError { kind, frame, fault: self }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, frame, fault } = self;
        let piece = if *kind == FrameKind::BlockTransfer { "block" } else { "frame" };
        if let FrameFault::Several(count) = fault {
            return write!(f, "{kind}: there are {count} APDUs in it; one at a time");
        }
        write!(f, "{kind}, {piece} {frame}: ")?;
        match fault {
            FrameFault::Start => write!(f, "it does not begin as a {kind} {piece} does"),
            FrameFault::Cut => write!(f, "the bytes end inside it"),
            FrameFault::Length { said } => {
                write!(f, "its length says {said} bytes, and it does not end there")
            }
            FrameFault::Checksum { name, said, found } => {
                write!(
                    f,
                    "its {name} is {said:X} where its bytes give {found:X}: it was damaged or cut"
                )
            }
            FrameFault::Field(what) => write!(f, "its {what} is none"),
            FrameFault::NoApdu { what, byte } => {
                write!(f, "it carries no APDU of DLMS ({what} {byte:02X})")
            }
            FrameFault::Order { due, found } => {
                write!(f, "it is piece {found} of its message where piece {due} is due")
            }
            FrameFault::NotEnded => {
                write!(f, "the message goes on behind it: the last piece is missing")
            }
            FrameFault::BehindTheEnd => write!(f, "the message ended before it"),
            FrameFault::OtherStations => {
                write!(f, "it goes between other stations, or in the other direction")
            }
            FrameFault::Empty => write!(f, "it carries nothing"),
            FrameFault::Several(_) => Ok(()),
        }
    }
}

impl core::error::Error for FrameError {}
