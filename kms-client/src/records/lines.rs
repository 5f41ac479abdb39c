//! Lines of a file that may hold keys: bounded, and wiped after use.

use std::io::{ErrorKind, Read};

use zeroize::{Zeroize as _, Zeroizing};

use super::encoding::TextReader;
use super::place::{BadRecord, Place};

/// No line is longer, in bytes: the hex digits of the longest APDU and as much again.
pub const LINE_LEN_MAX: usize = 256 << 10;
/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// One line, without its end. Wiped on drop.
pub struct Line {
    /// From 1.
    pub number: u64,
    /// Its text.
    pub bytes: Zeroizing<Vec<u8>>,
}

impl Line {
    pub(super) fn place(&self) -> Place {
        Place::Line(self.number)
    }

    /// Whether nothing stands in it.
    pub fn is_blank(&self) -> bool {
        self.bytes.iter().all(u8::is_ascii_whitespace)
    }
}

/// Cuts a reader into lines of UTF-8. Ends after the first failure to read.
pub struct WipedLines<R> {
    reader: TextReader<R>,
    chunk: Box<Zeroizing<[u8; CHUNK]>>,
    /// The part of `chunk` that is not handed out yet.
    start: usize,
    end: usize,
    number: u64,
    position: u64,
    ended: bool,
}

impl<R: Read> WipedLines<R> {
    /// Reads nothing yet.
    pub fn new(reader: R) -> Self {
        let chunk = Box::new(Zeroizing::new([0; CHUNK]));
        let reader = TextReader::new(reader);
        Self { reader, chunk, start: 0, end: 0, number: 0, position: 0, ended: false }
    }

    /// The number of bytes that the lines up to now took, their ends included.
    pub fn position(&self) -> u64 {
        self.reader.mark() + self.position
    }

    /// Makes sure that there is something in `chunk`. False: the reader is at its end.
    fn fill(&mut self) -> std::io::Result<bool> {
        while self.start == self.end {
            match self.reader.read(&mut self.chunk[..]) {
                Ok(0) => return Ok(false),
                Ok(read) => (self.start, self.end) = (0, read.min(CHUNK)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl<R: Read> Iterator for WipedLines<R> {
    type Item = Result<Line, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let number = self.number + 1;
        let mut bytes = Zeroizing::new(Vec::new());
        let (mut any, mut too_long) = (false, false);
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => {
                    self.ended = true;
                    break;
                }
                Err(error) => {
                    self.ended = true;
                    let reason = format!("the file cannot be read on: {error}");
                    let place = Place::Line(number);
                    return Some(Err(BadRecord { place, code: "READ_FAILED", reason }));
                }
            }
            any = true;
            let rest = &self.chunk[self.start..self.end];
            let newline = rest.iter().position(|byte| *byte == b'\n');
            let part = &rest[..newline.unwrap_or(rest.len())];
            too_long |= bytes.len() + part.len() > LINE_LEN_MAX;
            if too_long {
                bytes.zeroize();
            } else {
                append(&mut bytes, part);
            }
            let taken = part.len() + usize::from(newline.is_some());
            self.position += self.reader.taken(&rest[..taken]);
            self.start += taken;
            if newline.is_some() {
                break;
            }
        }
        if !any {
            return None;
        }
        self.number = number;
        if too_long {
            let reason = format!("the line is longer than {LINE_LEN_MAX} bytes");
            let place = Place::Line(number);
            return Some(Err(BadRecord { place, code: "LINE_TOO_LONG", reason }));
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        Some(Ok(Line { number, bytes }))
    }
}

/// Appends without leaving a copy behind, as a growing vector would.
fn append(bytes: &mut Zeroizing<Vec<u8>>, part: &[u8]) {
    if bytes.capacity() - bytes.len() < part.len() {
        let capacity = (bytes.len() + part.len()).max(2 * bytes.capacity());
        let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(part);
}
