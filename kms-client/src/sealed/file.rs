//! The file: a header, then chunks, one JSON object a line. What counts are `header`, `body` and the
//! signatures, in hexadecimal; what else stands there is for people, and is not read.

use std::io::{Read, Write};

use kms_core::RefusalCode;
use kms_proto::v1;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::records::{BadRecord, Place, WipedLines};

/// The version of this form.
const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct HeaderLine {
    sealed_import: u32,
    #[serde(default)]
    signer: String,
    #[serde(default)]
    file_id: String,
    #[serde(default)]
    domain_id: String,
    #[serde(default)]
    import_key_fingerprint: String,
    #[serde(default)]
    meters: u64,
    #[serde(default)]
    sealed_ms: u64,
    header: String,
    signature: String,
}

#[derive(Serialize, Deserialize)]
struct ChunkLine {
    chunk: u32,
    last: bool,
    first_line: u64,
    body: String,
    signature: String,
}

/// One chunk with its file's header: what goes over the wire at once.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedPart {
    pub(super) wire: v1::SealedPart,
    lines: usize,
}

impl SealedPart {
    pub(super) fn of(header: v1::SealedHeader, chunk: v1::SealedChunk, lines: usize) -> Self {
        Self { wire: v1::SealedPart { header: Some(header), chunk: Some(chunk) }, lines }
    }

    /// The number of its lines.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// The number of its first line.
    pub fn first_line(&self) -> u64 {
        self.wire.chunk.as_ref().map_or(0, |chunk| chunk.first_line)
    }

    /// As it goes over the wire: for tests that change it.
    pub fn to_wire(&self) -> v1::SealedPart {
        self.wire.clone()
    }

    /// The approximate number of bytes that it takes on the wire.
    pub(super) fn weight(&self) -> usize {
        self.wire.encoded_len()
    }

    /// Its line of a file.
    pub fn write_to(&self, out: &mut impl Write) -> std::io::Result<()> {
        let Some(chunk) = &self.wire.chunk else { return Ok(()) };
        let line = ChunkLine {
            chunk: chunk.number,
            last: chunk.last,
            first_line: chunk.first_line,
            body: hex::encode(&chunk.body),
            signature: hex::encode(&chunk.signature),
        };
        write_line(out, &line)
    }

    /// Its header's line of a file: the first.
    pub fn write_header_to(&self, out: &mut impl Write) -> std::io::Result<()> {
        let Some(header) = &self.wire.header else { return Ok(()) };
        let said = v1::SealedHeaderBody::decode(header.body.clone()).unwrap_or_default();
        let line = HeaderLine {
            sealed_import: VERSION,
            signer: said.signer,
            file_id: hex::encode(&said.file_id),
            domain_id: hex::encode(&said.domain_id),
            import_key_fingerprint: hex::encode(&said.import_key_fingerprint),
            meters: said.count,
            sealed_ms: said.sealed_ms,
            header: hex::encode(&header.body),
            signature: hex::encode(&header.signature),
        };
        write_line(out, &line)
    }
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    out.write_all(&text)
}

/// Whether a file begins as a sealed one does.
pub fn is_sealed_file(start: impl Read) -> bool {
    let first = WipedLines::new(start).next();
    first
        .and_then(Result::ok)
        .is_some_and(|line| serde_json::from_slice::<HeaderLine>(&line.bytes).is_ok())
}

/// The chunks of a sealed file, in order. Ends after the first that can't be read.
pub struct SealedParts<R> {
    lines: WipedLines<R>,
    header: Option<v1::SealedHeader>,
    /// The last chunk was read; or something could not be.
    ended: bool,
}

impl<R: Read> SealedParts<R> {
    /// Reads nothing yet.
    pub fn new(reader: R) -> Self {
        Self { lines: WipedLines::new(reader), header: None, ended: false }
    }

    /// The number of bytes of the file that the chunks up to now took.
    pub fn position(&self) -> u64 {
        self.lines.position()
    }

    fn read(&mut self) -> Result<SealedPart, BadRecord> {
        loop {
            let Some(line) = self.lines.next() else {
                return Err(bad(
                    0,
                    RefusalCode::FileCut.word(),
                    "the file ends before its last chunk",
                ));
            };
            let line = line?;
            if line.is_blank() {
                continue;
            }
            let malformed = || bad(line.number, "MALFORMED_LINE", "not a line of a sealed file");
            let Some(header) = &self.header else {
                let read: HeaderLine =
                    serde_json::from_slice(&line.bytes).map_err(|_| malformed())?;
                if read.sealed_import != VERSION {
                    let reason = if read.sealed_import < VERSION {
                        "the file was sealed by an older release, whose files say neither when they were \
                         sealed nor that their signer knows the keys: seal it again with this one"
                    } else {
                        "a sealed file of a version that this tool does not know"
                    };
                    return Err(bad(line.number, RefusalCode::FileVersion.word(), reason));
                }
                self.header = Some(v1::SealedHeader {
                    body: unhex(&read.header).ok_or_else(malformed)?,
                    signature: unhex(&read.signature).ok_or_else(malformed)?,
                });
                continue;
            };
            let read: ChunkLine = serde_json::from_slice(&line.bytes).map_err(|_| malformed())?;
            let body = unhex(&read.body).ok_or_else(malformed)?;
            let lines = v1::SealedBody::decode(body.clone()).map_err(|_| malformed())?.lines.len();
            self.ended = read.last;
            let chunk = v1::SealedChunk {
                number: read.chunk,
                last: read.last,
                first_line: read.first_line,
                body,
                signature: unhex(&read.signature).ok_or_else(malformed)?,
            };
            return Ok(SealedPart::of(header.clone(), chunk, lines));
        }
    }
}

impl<R: Read> Iterator for SealedParts<R> {
    type Item = Result<SealedPart, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read();
        self.ended |= read.is_err();
        Some(read)
    }
}

fn bad(line: u64, code: &'static str, reason: &str) -> BadRecord {
    BadRecord { place: Place::Line(line), code, reason: reason.to_owned() }
}

fn unhex(digits: &str) -> Option<bytes::Bytes> {
    hex::decode(digits).ok().map(Into::into)
}
