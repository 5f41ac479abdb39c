//! Import files: one meter a line, as JSON Lines or CSV. Lines are numbered from 1; a bad one does
//! not stop the others. Every buffer that held a line is wiped.

mod csv;
mod encoding;
mod jsonl;
mod wiped;

use std::io::Read;
use std::path::Path;

use thiserror::Error;

use crate::meter::NewMeter;
use crate::secret::KeyBytes;
pub use csv::CSV_COLUMNS;
pub use encoding::TextReader;
pub use wiped::{LINE_LEN_MAX, Line, WipedLines};

/// One line that could be read.
#[derive(Debug)]
pub struct ImportLine {
    /// Its number, from 1.
    pub line: u64,
    /// What it says.
    pub meter: NewMeter,
}

impl ImportLine {
    /// About how many bytes it takes on the wire.
    pub(crate) fn weight(&self) -> usize {
        const MEMBERS: usize = 160;
        let NewMeter { meter_id, logical_device_name, keys, .. } = &self.meter;
        let a_key = KeyBytes::LEN_MAX + 16;
        MEMBERS + meter_id.as_str().len() + logical_device_name.len() + keys.len() * a_key
    }
}

/// One line that could not be read. Says where and what, never what stood in it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {reason}")]
pub struct BadLine {
    /// Its number, from 1.
    pub line: u64,
    /// A word for machines: `MALFORMED_LINE`, `LINE_TOO_LONG`, `BAD_HEADER` or `READ_FAILED`.
    pub code: &'static str,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl BadLine {
    fn malformed(line: u64, reason: impl Into<String>) -> Self {
        Self { line, code: "MALFORMED_LINE", reason: reason.into() }
    }
}

/// How an import file is written.
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

/// The lines of an import file, one at a time. Blank lines are passed over, and rows of empty cells.
pub struct ImportLines<R> {
    lines: WipedLines<R>,
    syntax: Syntax,
}

enum Syntax {
    JsonLines,
    /// The header has not been read yet; a line above it may have named the separator.
    CsvStart(Option<u8>),
    Csv(Box<csv::Table>),
    /// Without a header no row means anything.
    Ended,
}

impl<R: Read> ImportLines<R> {
    /// Reads nothing yet.
    pub fn new(reader: R, format: ImportFormat) -> Self {
        let syntax = match format {
            ImportFormat::JsonLines => Syntax::JsonLines,
            ImportFormat::Csv => Syntax::CsvStart(None),
        };
        Self { lines: WipedLines::new(reader), syntax }
    }

    /// How many bytes of the file the lines up to now took.
    pub fn position(&self) -> u64 {
        self.lines.position()
    }

    fn parse(&mut self, line: &Line) -> Option<Result<ImportLine, BadLine>> {
        let meter = match &mut self.syntax {
            Syntax::Ended => return None,
            Syntax::JsonLines => jsonl::parse(line),
            Syntax::Csv(table) => table.parse(line)?,
            Syntax::CsvStart(_) if csv::is_empty(line) => return None,
            Syntax::CsvStart(said) => match csv::Table::from_header(line, *said) {
                Err(_) if said.is_none() && csv::separator_line(line).is_some() => {
                    *said = csv::separator_line(line);
                    return None;
                }
                Ok(table) => {
                    self.syntax = Syntax::Csv(Box::new(table));
                    return None;
                }
                Err(bad) => {
                    self.syntax = Syntax::Ended;
                    Err(bad)
                }
            },
        };
        Some(meter.map(|meter| ImportLine { line: line.number, meter }))
    }
}

impl<R: Read> Iterator for ImportLines<R> {
    type Item = Result<ImportLine, BadLine>;

    fn next(&mut self) -> Option<Self::Item> {
        while !matches!(self.syntax, Syntax::Ended) {
            let line = match self.lines.next()? {
                Ok(line) => line,
                Err(bad) => {
                    if matches!(self.syntax, Syntax::CsvStart(_)) {
                        self.syntax = Syntax::Ended;
                    }
                    return Some(Err(bad));
                }
            };
            if line.is_blank() {
                continue;
            }
            if let Some(parsed) = self.parse(&line) {
                return Some(parsed);
            }
        }
        None
    }
}

impl NewMeter {
    /// Reads one import line's JSON, in one line or many.
    pub fn from_json(text: &[u8]) -> Result<Self, BadLine> {
        jsonl::parse_json(text, 1)
    }
}

#[cfg(test)]
mod tests;
