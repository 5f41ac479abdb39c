//! Faults of frames: which frame, and what is wrong with it.

use core::fmt;

use super::kind::FrameKind;

/// A frame that was not taken off, and its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// The kind of the frame.
    pub kind: FrameKind,
    /// The number of the frame or block, from 1.
    pub frame: usize,
    /// Its fault.
    pub fault: FrameFault,
}

/// A fault of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// It does not begin as it should.
    Start,
    /// The bytes end inside it.
    Cut,
    /// A length and what it counts disagree.
    Length {
        /// As the frame says.
        said: usize,
    },
    /// A checksum does not fit its bytes.
    Checksum {
        /// The name of the checksum: FCS, HCS or checksum.
        name: &'static str,
        /// As the frame says.
        said: u16,
        /// As its bytes give it.
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
