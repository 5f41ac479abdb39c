//! Import files, record by record: one meter each, as JSON Lines or CSV. A bad record does not stop the
//! others. Every buffer that held one is wiped.
//!
//! A format is a reader of records (`ReadRecords`) and a variant of `ImportFormat`; what it is cut
//! into on the way there (lines, cells) is its own.

mod csv;
mod encoding;
mod jsonl;
mod lines;
mod place;
mod record;

use std::io::Read;
use std::path::Path;

pub use csv::CSV_COLUMNS;
pub use encoding::TextReader;
pub use lines::{LINE_LEN_MAX, Line, WipedLines};
pub use place::{BadRecord, Place};
pub use record::MeterRecord;

use csv::Csv;
use jsonl::JsonLines;
use record::ReadRecords;

/// The format of an import file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportFormat {
    /// One JSON object a line.
    JsonLines,
    /// A header row, then one row a meter.
    Csv,
}

impl ImportFormat {
    /// By the file's extension: `.jsonl`, `.ndjson`, `.csv` or `.tsv`.
    pub fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            "csv" | "tsv" => Some(Self::Csv),
            _ => None,
        }
    }
}

/// The records of an import file, one at a time. Blank lines are passed over, and rows of empty cells.
pub struct ImportRecords<R>(Reader<R>);

enum Reader<R> {
    JsonLines(JsonLines<R>),
    Csv(Csv<R>),
}

impl<R: Read> ImportRecords<R> {
    /// Reads nothing yet.
    pub fn new(reader: R, format: ImportFormat) -> Self {
        Self(match format {
            ImportFormat::JsonLines => Reader::JsonLines(JsonLines::new(reader)),
            ImportFormat::Csv => Reader::Csv(Csv::new(reader)),
        })
    }

    /// The number of bytes of the file that the records up to now took.
    pub fn position(&self) -> u64 {
        match &self.0 {
            Reader::JsonLines(reader) => reader.position(),
            Reader::Csv(reader) => reader.position(),
        }
    }
}

impl<R: Read> Iterator for ImportRecords<R> {
    type Item = Result<MeterRecord, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Reader::JsonLines(reader) => reader.next(),
            Reader::Csv(reader) => reader.next(),
        }
    }
}

#[cfg(test)]
mod tests;
