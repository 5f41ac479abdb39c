//! Lengths and octet strings of A-XDR (IEC 61334-6), as the Green Book uses them.

use alloc::vec::Vec;
use core::fmt;

/// Most octets that a length may have after its first. Four say 4 GiB, more than any transport carries.
pub const LENGTH_OCTETS_MAX: usize = 4;

/// Reads one length from the front of `bytes`. Answers with the length and the number of octets it
/// took, 1 to 5.
///
/// The encoding need not be minimal (`82 00 08` is 8): meters send such. `80`, BER's indefinite
/// length, and more than [`LENGTH_OCTETS_MAX`] octets are refused.
//= IEC 61334-6, 6.10: up to 127 one octet; else 80 + the number of octets that follow, big-endian
pub fn read_length(bytes: &[u8]) -> Result<(usize, usize), LengthError> {
    let (&first, rest) = bytes.split_first().ok_or(LengthError::Short)?;
    if first < LONG {
        return Ok((first.into(), 1));
    }
    let count = usize::from(first & !LONG);
    if !(1..=LENGTH_OCTETS_MAX).contains(&count) {
        return Err(LengthError::Octets);
    }
    let octets = rest.get(..count).ok_or(LengthError::Short)?;
    let value = octets.iter().fold(0_u32, |value, octet| value << 8 | u32::from(*octet));
    Ok((usize::try_from(value).map_err(|_| LengthError::Octets)?, 1 + count))
}

/// Appends the shortest encoding of `len`.
pub fn write_length(len: u32, out: &mut Vec<u8>) {
    let octets = len.to_be_bytes();
    match octets {
        [0, 0, 0, short] if short < LONG => out.push(short),
        [0, 0, 0, low] => out.extend_from_slice(&[LONG | 1, low]),
        [0, 0, high, low] => out.extend_from_slice(&[LONG | 2, high, low]),
        [0, rest @ ..] => {
            out.push(LONG | 3);
            out.extend_from_slice(&rest);
        }
        all => {
            out.push(LONG | 4);
            out.extend_from_slice(&all);
        }
    }
}

/// The number of octets that [`write_length`] writes for `len`, 1 to 5.
pub const fn length_len(len: u32) -> usize {
    match len {
        0..=0x7F => 1,
        0x80..=0xFF => 2,
        0x100..=0xFFFF => 3,
        0x1_0000..=0xFF_FFFF => 4,
        _ => 5,
    }
}

/// Set in the first octet when octets with the length follow.
const LONG: u8 = 0x80;

/// The reason why a length can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthError {
    /// The bytes end inside it.
    Short,
    /// Indefinite, or too many octets.
    Octets,
}

impl fmt::Display for LengthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "the bytes end inside a length",
            Self::Octets => "a length has 1 to 4 octets after its first",
        })
    }
}

impl core::error::Error for LengthError {}

/// Reads from the front of bytes that came from outside; knows where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    whole: &'a [u8],
    at: usize,
}

/// The field that can't be read, and its offset.
pub(crate) struct Fault {
    pub(crate) what: &'static str,
    pub(crate) offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(whole: &'a [u8]) -> Self {
        Self { whole, at: 0 }
    }

    /// Bytes consumed so far.
    pub(crate) const fn at(&self) -> usize {
        self.at
    }

    /// All that is left.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.whole.get(self.at..).unwrap_or_default()
    }

    /// The bytes consumed since `from`.
    pub(crate) fn since(&self, from: usize) -> &'a [u8] {
        self.whole.get(from..self.at).unwrap_or_default()
    }

    pub(crate) const fn fault(&self, what: &'static str) -> Fault {
        Fault { what, offset: self.at }
    }

    pub(crate) fn byte(&mut self, what: &'static str) -> Result<u8, Fault> {
        let [byte] = self.array(what)?;
        Ok(*byte)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<&'a [u8; N], Fault> {
        let array = self.rest().first_chunk().ok_or(self.fault(what))?;
        self.at += N;
        Ok(array)
    }

    pub(crate) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Fault> {
        let taken = self.rest().get(..len).ok_or(self.fault(what))?;
        self.at += len;
        Ok(taken)
    }

    pub(crate) fn length(&mut self, what: &'static str) -> Result<usize, Fault> {
        let (len, octets) = read_length(self.rest()).map_err(|_| self.fault(what))?;
        self.at += octets;
        Ok(len)
    }

    pub(crate) fn octet_string(&mut self, what: &'static str) -> Result<&'a [u8], Fault> {
        let len = self.length(what)?;
        self.take(len, what)
    }

    /// Succeeds when nothing is left.
    pub(crate) fn end(&self, what: &'static str) -> Result<(), Fault> {
        if self.rest().is_empty() { Ok(()) } else { Err(self.fault(what)) }
    }
}
