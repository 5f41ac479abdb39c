//! A header row, then one row a meter; as spreadsheets save it, too.
//!
//! All that is unambiguous is read, however it is written. The rest is refused by line, column and
//! cause, and no message repeats what stood in a cell.

mod cells;
mod column;
mod row;
mod separator;
mod table;

use std::io::Read;

use super::lines::{Line, WipedLines};
use super::place::BadRecord;
use super::record::{MeterRecord, ReadRecords};
pub use column::CSV_COLUMNS;
use table::Table;

/// Reads CSV. A row is a line: no cell goes on in the next one.
pub(super) struct Csv<R> {
    lines: WipedLines<R>,
    state: State,
}

enum State {
    /// The header has not been read yet; a line above it may have named the separator.
    Start(Option<u8>),
    /// The header was read.
    Rows(Box<Table>),
    /// Without a header no row means anything.
    Ended,
}

impl<R: Read> Csv<R> {
    /// Reads nothing yet.
    pub(super) fn new(reader: R) -> Self {
        Self { lines: WipedLines::new(reader), state: State::Start(None) }
    }

    /// `None`: the line holds no record, and none is due.
    fn parse(&mut self, line: &Line) -> Option<Result<MeterRecord, BadRecord>> {
        match &mut self.state {
            State::Ended => None,
            State::Rows(table) => {
                let meter = table.parse(line)?;
                Some(meter.map(|meter| MeterRecord { place: line.place(), meter }))
            }
            State::Start(said) => {
                let said = *said;
                self.start(line, said).map(Err)
            }
        }
    }

    /// Takes a line above the rows: an empty one, one that names the separator, or the header.
    fn start(&mut self, line: &Line, said: Option<u8>) -> Option<BadRecord> {
        if separator::is_empty(line) {
            return None;
        }
        let (state, bad) = match Table::from_header(line, said) {
            Ok(table) => (State::Rows(Box::new(table)), None),
            Err(bad) => match separator::separator_line(line).filter(|_| said.is_none()) {
                named @ Some(_) => (State::Start(named), None),
                None => (State::Ended, Some(bad)),
            },
        };
        self.state = state;
        bad
    }

    /// A line that could not be read. In the place of the header it ends the file.
    fn misread(&mut self, bad: BadRecord) -> BadRecord {
        if matches!(self.state, State::Start(_)) {
            self.state = State::Ended;
        }
        bad
    }
}

impl<R: Read> ReadRecords for Csv<R> {
    fn position(&self) -> u64 {
        self.lines.position()
    }
}

impl<R: Read> Iterator for Csv<R> {
    type Item = Result<MeterRecord, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        while !matches!(self.state, State::Ended) {
            let record = match self.lines.next()? {
                Err(bad) => Some(Err(self.misread(bad))),
                Ok(line) if line.is_blank() => None,
                Ok(line) => self.parse(&line),
            };
            if record.is_some() {
                return record;
            }
        }
        None
    }
}
