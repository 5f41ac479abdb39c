//! HDLC frames (IEC 62056-46; ISO/IEC 13239, frame format type 3).

use alloc::vec::Vec;

use super::{
    fault::{FrameError, FrameFault},
    kind::FrameKind,
};
use crate::axdr::Reader;

const FLAG: u8 = 0x7E;
/// Of the frame format: three bits that say its type, one that says that more segments follow, and
/// eleven of length.
const TYPE_3: u16 = 0xA000;
const SEGMENTED: u16 = 0x0800;
const LENGTH: u16 = 0x07FF;

/// One frame that carries information.
struct Frame<'a> {
    /// Destination and source, as they stand there.
    stations: (&'a [u8], &'a [u8]),
    segmented: bool,
    /// N(S) of an I frame; UI frames are not numbered.
    number: Option<u8>,
    information: &'a [u8],
}

/// A message under way.
struct Open {
    bytes: Vec<u8>,
    next: Option<u8>,
}

/// The information of all frames, segments joined.
pub(super) fn messages(bytes: &[u8]) -> Result<Vec<Vec<u8>>, FrameError> {
    let mut messages = Vec::new();
    let mut open: Option<Open> = None;
    let mut stations = None;
    let mut rest = bytes;
    let mut count = 0;
    loop {
        let at_flag = rest;
        while let [FLAG, after @ ..] = rest {
            rest = after;
        }
        if rest.is_empty() && count > 0 {
            break;
        }
        count += 1;
        let wrong = |fault: FrameFault| fault.of(FrameKind::Hdlc, count);
        if at_flag.len() == rest.len() {
            return Err(wrong(FrameFault::Start));
        }
        let (whole, after) = cut(rest).map_err(wrong)?;
        rest = after;
        let Some(frame) = read(whole).map_err(wrong)? else { continue };
        if *stations.get_or_insert(frame.stations) != frame.stations {
            return Err(wrong(FrameFault::OtherStations));
        }
        let mut message = open.take().unwrap_or(Open { bytes: Vec::new(), next: frame.number });
        if message.next != frame.number {
            let [due, found] = [message.next, frame.number].map(|n| n.unwrap_or_default().into());
            return Err(wrong(FrameFault::Order { due, found }));
        }
        message.bytes.extend_from_slice(frame.information);
        if frame.segmented {
            // N(S) counts modulo 8.
            let next = frame.number.map(|number| (number + 1) & 7);
            open = Some(Open { next, ..message });
        } else {
            messages.push(message.bytes);
        }
    }
    match open {
        Some(_) => Err(FrameFault::NotEnded.of(FrameKind::Hdlc, count)),
        None if messages.is_empty() => Err(FrameFault::Empty.of(FrameKind::Hdlc, count)),
        None => Ok(messages),
    }
}

/// One frame, from its format to its FCS, and what follows from the closing flag on.
fn cut(rest: &[u8]) -> Result<(&[u8], &[u8]), FrameFault> {
    let format = rest.first_chunk().map(|format| u16::from_be_bytes(*format));
    let format = format.ok_or(FrameFault::Cut)?;
    if format & 0xF000 != TYPE_3 {
        return Err(FrameFault::Field("frame format"));
    }
    let said = usize::from(format & LENGTH);
    let (frame, after) = rest.split_at_checked(said).ok_or(FrameFault::Cut)?;
    match after.first() {
        Some(&FLAG) => Ok((frame, after)),
        Some(_) => Err(FrameFault::Length { said }),
        None => Err(FrameFault::Cut),
    }
}

/// `None`: a frame that only acknowledges.
//= IEC 62056-46, 6.4.2: frame format, destination, source, control, HCS, information, FCS. The FCS
//# covers all between the flags, the HCS the header; without information there is no HCS.
fn read(frame: &[u8]) -> Result<Option<Frame<'_>>, FrameFault> {
    let (checked, fcs) = frame.split_last_chunk().ok_or(FrameFault::Cut)?;
    check("FCS", checked, *fcs)?;
    let mut reader = Reader::new(checked);
    let short = |_| FrameFault::Cut;
    let [high, _] = *reader.array("frame format").map_err(short)?;
    let stations = (address(&mut reader)?, address(&mut reader)?);
    let control = reader.byte("control").map_err(short)?;
    let header = reader.since(0);
    let information = match reader.rest() {
        [] => &[][..],
        [low, high, information @ ..] => {
            check("HCS", header, [*low, *high])?;
            information
        }
        _ => return Err(FrameFault::Cut),
    };
    let number = match control {
        // I frame: N(R), P/F, N(S), 0.
        _ if control & 1 == 0 => Some(control >> 1 & 7),
        // UI.
        _ if control & 0xEF == 0x03 => None,
        // RR, RNR.
        _ if matches!(control & 0x0F, 0x01 | 0x05) && information.is_empty() => return Ok(None),
        _ => return Err(FrameFault::NoApdu { what: "control", byte: control }),
    };
    let segmented = u16::from_be_bytes([high, 0]) & SEGMENTED != 0;
    Ok(Some(Frame { stations, segmented, number, information }))
}

/// An address: one, two or four bytes, of which the last is odd.
fn address<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], FrameFault> {
    let len = reader.rest().iter().position(|byte| byte & 1 == 1).ok_or(FrameFault::Cut)? + 1;
    match len {
        1 | 2 | 4 => reader.take(len, "address").map_err(|_| FrameFault::Cut),
        _ => Err(FrameFault::Field("address")),
    }
}

fn check(name: &'static str, bytes: &[u8], said: [u8; 2]) -> Result<(), FrameFault> {
    let (said, found) = (u16::from_le_bytes(said), fcs16(bytes));
    if said == found { Ok(()) } else { Err(FrameFault::Checksum { name, said, found }) }
}

/// FCS of 16 bits (ISO/IEC 13239, annex A; RFC 1662, C.2).
pub(super) fn fcs16(bytes: &[u8]) -> u16 {
    let step =
        |fcs: u16, byte: &u8| {
            (0..8).fold(fcs ^ u16::from(*byte), |fcs, _| {
                if fcs & 1 == 1 { fcs >> 1 ^ 0x8408 } else { fcs >> 1 }
            })
        };
    !bytes.iter().fold(0xFFFF, step)
}

#[cfg(test)]
mod tests {
    use super::fcs16;

    #[test]
    fn the_fcs_of_the_nine_digits_is_the_published_one() {
        assert_eq!(fcs16(b"123456789"), 0x906E);
    }
}
