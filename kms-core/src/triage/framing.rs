//! The APDU in what was recorded, or why there is none.

use dlms::frame::{FrameError, FrameFault, FrameKind, unframe};
use dlms::{CipheredApdu, ParseError, ServiceTag, Unsupported, axdr::read_length};

use super::Cause;

/// A recording without what carried its APDU.
#[derive(Clone, PartialEq, Eq)]
pub struct Taken {
    /// The APDU, put together.
    pub apdu: Vec<u8>,
    /// What was taken off, outermost first.
    pub layers: Vec<FrameKind>,
}

/// The reason why there is no ciphered APDU that could be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// Its cause.
    pub cause: Cause,
    /// One sentence: which field, which frame.
    pub reason: Box<str>,
}

impl Bad {
    fn new(cause: Cause, reason: impl Into<Box<str>>) -> Self {
        Self { cause, reason: reason.into() }
    }
}

/// Takes off what carries the APDU.
pub fn take_off(recorded: &[u8]) -> Result<Taken, Bad> {
    match unframe(recorded, None) {
        Ok(Some(unframed)) => Ok(Taken { apdu: unframed.apdu, layers: unframed.layers }),
        Ok(None) => Ok(Taken { apdu: recorded.to_vec(), layers: Vec::new() }),
        Err(error) => Err(of_frame(&error)),
    }
}

fn of_frame(error: &FrameError) -> Bad {
    let cause = match error.fault {
        FrameFault::Several(_) => Cause::SeveralApdus,
        FrameFault::Cut | FrameFault::NotEnded => Cause::Truncated,
        FrameFault::Start
        | FrameFault::Length { .. }
        | FrameFault::Checksum { .. }
        | FrameFault::Field(_)
        | FrameFault::NoApdu { .. }
        | FrameFault::Order { .. }
        | FrameFault::BehindTheEnd
        | FrameFault::OtherStations
        | FrameFault::Empty => Cause::FrameDamaged,
    };
    Bad::new(cause, error.to_string())
}

/// Reads one whole ciphered APDU.
pub fn read(apdu: &[u8]) -> Result<CipheredApdu<'_>, Bad> {
    CipheredApdu::parse(apdu).map_err(|error| match error {
        ParseError::Unsupported { what: Unsupported::Plain { .. } } => {
            Bad::new(Cause::NotCiphered, error.to_string())
        }
        ParseError::Unsupported { .. } => Bad::new(Cause::Unsupported, error.to_string()),
        ParseError::Malformed { .. } => malformed(apdu, &error),
    })
}

fn malformed(apdu: &[u8], error: &ParseError) -> Bad {
    // A P1 telegram in clear: `/`, and the maker's letters.
    if matches!(apdu, [b'/', letters @ ..] if letters.get(..3).is_some_and(|l| l.iter().all(u8::is_ascii_alphabetic)))
    {
        return Bad::new(Cause::NotCiphered, "a P1 telegram in clear");
    }
    match extent(apdu) {
        Extent::Unknown => Bad::new(Cause::Malformed, error.to_string()),
        Extent::EndsWithin => {
            Bad::new(Cause::Truncated, format!("the {} bytes end within a length", apdu.len()))
        }
        Extent::Whole(len) if len > apdu.len() => Bad::new(
            Cause::Truncated,
            format!("its lengths say {len} bytes, and there are {}", apdu.len()),
        ),
        Extent::Whole(len) => match count_behind(apdu, len) {
            Some(count) => {
                Bad::new(Cause::SeveralApdus, format!("{count} APDUs stand one after the other"))
            }
            None => Bad::new(Cause::Malformed, error.to_string()),
        },
    }
}

/// The number of ciphered APDUs, if there is more than one and nothing else.
fn count_behind(apdu: &[u8], first: usize) -> Option<usize> {
    let (mut rest, mut len, mut count) = (apdu, first, 0);
    loop {
        let (one, behind) = rest.split_at_checked(len)?;
        CipheredApdu::parse(one).ok()?;
        count += 1;
        if behind.is_empty() {
            return (count > 1).then_some(count);
        }
        rest = behind;
        let Extent::Whole(next) = extent(rest) else { return None };
        len = next;
    }
}

/// The length of an APDU, as its own fields say it.
enum Extent {
    Whole(usize),
    /// The bytes end before it is said.
    EndsWithin,
    Unknown,
}

//= Green Book, COSEMpdu: glo-* and ded-*: tag, content; general-glo- and general-ded-ciphering: tag, title, content;
//# general-ciphering: tag, five octet strings, key-info, content
fn extent(apdu: &[u8]) -> Extent {
    let Some((tag, mut rest)) = apdu.split_first() else { return Extent::EndsWithin };
    let strings = match tag {
        0xDB | 0xDC => 1,
        0xDD => 5,
        tag if ServiceTag::try_from(*tag).is_ok() => 0,
        _ => return Extent::Unknown,
    };
    for _ in 0..strings {
        match octets(rest) {
            Some(behind) => rest = behind,
            None => return Extent::EndsWithin,
        }
    }
    if *tag == 0xDD {
        match rest {
            // key-info, identified: present, choice 0, which key.
            [1, 0, _, behind @ ..] => rest = behind,
            [] | [1] | [1, 0] => return Extent::EndsWithin,
            _ => return Extent::Unknown,
        }
    }
    match read_length(rest) {
        Ok((len, octets)) => Extent::Whole((apdu.len() - rest.len() + octets).saturating_add(len)),
        Err(dlms::axdr::LengthError::Short) => Extent::EndsWithin,
        Err(dlms::axdr::LengthError::Octets) => Extent::Unknown,
    }
}

fn octets(bytes: &[u8]) -> Option<&[u8]> {
    let (len, octets) = read_length(bytes).ok()?;
    bytes.get(octets..)?.get(len..)
}
