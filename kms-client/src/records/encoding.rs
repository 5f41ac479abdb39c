//! Text as editors and spreadsheets save it: UTF-8 with or without a byte order mark, and UTF-16 with
//! one. What is kept in between is wiped.

use std::io::{ErrorKind, Read, Result};

use zeroize::Zeroizing;

const UTF_8: &[u8] = &[0xEF, 0xBB, 0xBF];
const UTF_16_LE: &[u8] = &[0xFF, 0xFE];
const UTF_16_BE: &[u8] = &[0xFE, 0xFF];

/// Bytes of UTF-16 read at once.
const CHUNK: usize = 16 << 10;
/// Of a character in UTF-8.
const CHARACTER: usize = 4;

/// Reads text as UTF-8, without a byte order mark. What has no mark is passed on as it is.
pub struct TextReader<R> {
    reader: R,
    encoding: Encoding,
}

enum Encoding {
    /// Nothing was read yet.
    Unknown,
    /// First what was read to find out.
    Bytes {
        first: [u8; UTF_8.len()],
        start: usize,
        end: usize,
    },
    Utf16(Utf16),
}

impl<R: Read> TextReader<R> {
    /// Reads nothing yet.
    pub fn new(reader: R) -> Self {
        Self { reader, encoding: Encoding::Unknown }
    }

    /// The number of bytes of the source that `text`, which came from here, took.
    pub(super) fn taken(&self, text: &[u8]) -> u64 {
        match &self.encoding {
            Encoding::Utf16(_) => {
                let units = text.iter().map(|byte| match byte {
                    0x80..=0xBF => 0,
                    0xF0.. => 2,
                    _ => 1,
                });
                2 * units.sum::<u64>()
            }
            _ => text.len() as u64,
        }
    }

    /// The number of bytes that the byte order mark took.
    pub(super) fn mark(&self) -> u64 {
        match &self.encoding {
            Encoding::Unknown => 0,
            Encoding::Bytes { first, .. } if first == UTF_8 => UTF_8.len() as u64,
            Encoding::Bytes { .. } => 0,
            Encoding::Utf16(_) => UTF_16_LE.len() as u64,
        }
    }

    fn find_out(&mut self) -> Result<()> {
        let mut first = [0; UTF_8.len()];
        let mut end = 0;
        // A terminal is not kept waiting for more than it takes to tell.
        while end < first.len() && UTF_8.starts_with(&first[..end])
            || end < 2
                && (UTF_16_LE.starts_with(&first[..end]) || UTF_16_BE.starts_with(&first[..end]))
        {
            let read = read_some(&mut self.reader, &mut first[end..])?;
            if read == 0 {
                break;
            }
            end += read;
        }
        let utf16 = |big_endian| Encoding::Utf16(Utf16::new(big_endian, &first[2..end]));
        self.encoding = match &first[..end] {
            start if start.starts_with(UTF_16_LE) => utf16(false),
            start if start.starts_with(UTF_16_BE) => utf16(true),
            UTF_8 => Encoding::Bytes { first, start: end, end },
            _ => Encoding::Bytes { first, start: 0, end },
        };
        Ok(())
    }
}

impl<R: Read> Read for TextReader<R> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        if matches!(self.encoding, Encoding::Unknown) {
            self.find_out()?;
        }
        match &mut self.encoding {
            Encoding::Utf16(text) => text.read(&mut self.reader, out),
            Encoding::Bytes { first, start, end } if *start != *end => {
                let read = (&first[*start..*end]).read(out)?;
                *start += read;
                Ok(read)
            }
            Encoding::Bytes { .. } | Encoding::Unknown => self.reader.read(out),
        }
    }
}

fn read_some(reader: &mut impl Read, out: &mut [u8]) -> Result<usize> {
    loop {
        match reader.read(out) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// UTF-16 on its way to UTF-8.
struct Utf16 {
    big_endian: bool,
    raw: Box<Zeroizing<[u8; CHUNK]>>,
    start: usize,
    end: usize,
    ended: bool,
    /// Of a character that did not fit into what was to be filled, last byte first.
    left: Vec<u8>,
}

impl Utf16 {
    fn new(big_endian: bool, rest: &[u8]) -> Self {
        let mut raw = Box::new(Zeroizing::new([0; CHUNK]));
        raw[..rest.len()].copy_from_slice(rest);
        Self { big_endian, raw, start: 0, end: rest.len(), ended: false, left: Vec::new() }
    }

    fn read(&mut self, reader: &mut impl Read, out: &mut [u8]) -> Result<usize> {
        let mut written = 0;
        while written < out.len() {
            if let Some(byte) = self.left.pop() {
                out[written] = byte;
                written += 1;
                continue;
            }
            let Some(character) = self.next() else {
                if written > 0 || self.ended {
                    break;
                }
                self.fill(reader)?;
                continue;
            };
            let mut bytes = [0; CHARACTER];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            match out.get_mut(written..written + bytes.len()) {
                Some(room) => {
                    room.copy_from_slice(bytes);
                    written += bytes.len();
                }
                // Of a character that takes more than one byte: no hex digit.
                None => self.left.extend(bytes.iter().rev()),
            }
        }
        Ok(written)
    }

    fn fill(&mut self, reader: &mut impl Read) -> Result<()> {
        self.raw.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let read = read_some(reader, &mut self.raw[self.end..])?;
        self.ended = read == 0;
        self.end += read;
        Ok(())
    }

    fn unit(&self, at: usize) -> Option<u16> {
        let pair: [u8; 2] = self.raw[self.start..self.end].get(at..at + 2)?.try_into().ok()?;
        Some(if self.big_endian { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) })
    }

    /// `None`: more must be read. What is no character becomes U+FFFD.
    fn next(&mut self) -> Option<char> {
        let Some(first) = self.unit(0) else {
            let half = self.ended && self.start < self.end;
            self.start += usize::from(half);
            return half.then_some(char::REPLACEMENT_CHARACTER);
        };
        let second = self.unit(2);
        let high = (0xD800..0xDC00).contains(&first);
        if high && second.is_none() && !self.ended {
            return None;
        }
        let pair = second.filter(|second| high && (0xDC00..0xE000).contains(second));
        self.start += if pair.is_some() { 4 } else { 2 };
        let decoded = char::decode_utf16([first].into_iter().chain(pair)).next();
        Some(decoded.and_then(std::result::Result::ok).unwrap_or(char::REPLACEMENT_CHARACTER))
    }
}
