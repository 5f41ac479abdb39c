//! Long frames of the wired M-Bus (EN 13757-2), with the transport layer for DLMS (EN 13757-3).

use alloc::vec::Vec;

use super::{
    fault::{FrameError, FrameFault},
    kind::FrameKind,
};

const START: u8 = 0x68;
const STOP: u8 = 0x16;
/// Of CI: set in the last segment of a message.
const FIN: u8 = 0x10;
/// Of CI: the number of the segment, modulo 16.
const NUMBER: u8 = 0x0F;

/// The messages of all frames, segments joined.
pub(super) fn messages(bytes: &[u8]) -> Result<Vec<Vec<u8>>, FrameError> {
    let mut messages = Vec::new();
    let mut open: Option<(Vec<u8>, u8)> = None;
    let mut stations = None;
    let mut rest = bytes;
    let mut count = 0;
    while !rest.is_empty() || count == 0 {
        count += 1;
        let wrong = |fault: FrameFault| fault.of(FrameKind::MBus, count);
        let (body, after) = cut(rest).map_err(wrong)?;
        rest = after;
        let segment = Segment::read(body).map_err(wrong)?;
        if *stations.get_or_insert(segment.stations) != segment.stations {
            return Err(wrong(FrameFault::OtherStations));
        }
        let (mut message, due) = open.take().unwrap_or_default();
        if segment.number != due {
            let (due, found) = (due.into(), segment.number.into());
            return Err(wrong(FrameFault::Order { due, found }));
        }
        message.extend_from_slice(segment.data);
        if segment.last {
            messages.push(message);
        } else {
            open = Some((message, (due + 1) & NUMBER));
        }
    }
    match open {
        Some(_) => Err(FrameFault::NotEnded.of(FrameKind::MBus, count)),
        None => Ok(messages),
    }
}

/// The body of one frame, which its length counts, checked; and the bytes behind the frame.
//= EN 13757-2: 68, L, L, 68, then L bytes from C on, checksum (their sum), 16
fn cut(rest: &[u8]) -> Result<(&[u8], &[u8]), FrameFault> {
    let (head, rest) = rest.split_first_chunk().ok_or(FrameFault::Cut)?;
    let [START, length, again, START] = *head else { return Err(FrameFault::Start) };
    let said = usize::from(length);
    if length != again {
        return Err(FrameFault::Length { said });
    }
    let (body, rest) = rest.split_at_checked(said).ok_or(FrameFault::Cut)?;
    let ([checksum, stop], rest) = rest.split_first_chunk().ok_or(FrameFault::Cut)?;
    if *stop != STOP {
        return Err(FrameFault::Length { said });
    }
    let found = body.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if found != *checksum {
        let (said, found) = ((*checksum).into(), found.into());
        return Err(FrameFault::Checksum { name: "checksum", said, found });
    }
    Ok((body, rest))
}

struct Segment<'a> {
    number: u8,
    last: bool,
    /// Address, and the two service access points.
    stations: [u8; 3],
    data: &'a [u8],
}

impl<'a> Segment<'a> {
    //= EN 13757-3, CI 00 to 1F: FIN in bit 4, segment number in bits 3 to 0; STSAP, DTSAP, data
    fn read(body: &'a [u8]) -> Result<Self, FrameFault> {
        let &[_control, address, control_information, ref rest @ ..] = body else {
            return Err(FrameFault::Cut);
        };
        if control_information & !(FIN | NUMBER) != 0 {
            return Err(FrameFault::NoApdu { what: "CI", byte: control_information });
        }
        let &[source, destination, ref data @ ..] = rest else { return Err(FrameFault::Cut) };
        Ok(Self {
            number: control_information & NUMBER,
            last: control_information & FIN != 0,
            stations: [address, source, destination],
            data,
        })
    }
}
