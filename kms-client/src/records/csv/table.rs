//! The table of a file: its header says which column holds what.

use csv_core::{Reader, ReaderBuilder};

use super::super::lines::Line;
use super::super::place::BadRecord;
use super::cells::{COLUMNS_MAX, Cells};
use super::column::{CSV_COLUMNS, Column};
use super::row::Row;
use super::separator::{SEPARATORS, told};
use crate::digits;
use crate::meter::NewMeter;

/// The columns of one file, in the order of its header.
pub(super) struct Table {
    /// Without a name there is nothing in it.
    columns: Vec<Option<Column>>,
    separator: u8,
    reader: Reader,
}

impl Table {
    /// `separator`: what a line above the header said it is.
    pub(super) fn from_header(line: &Line, separator: Option<u8>) -> Result<Self, BadRecord> {
        let bad = |reason: String| BadRecord { place: line.place(), code: "BAD_HEADER", reason };
        if let Some(cause) = not_text(&line.bytes) {
            return Err(bad(cause.into()));
        }
        let candidates = separator.map_or(SEPARATORS.to_vec(), |separator| vec![separator]);
        let read = candidates.into_iter().filter_map(|separator| {
            let mut reader = ReaderBuilder::new().delimiter(separator).build();
            let cells = Cells::read(&mut reader, line).ok()?;
            let known = cells.fields().flatten().filter(|name| Column::from_name(name).is_some());
            Some((known.count(), cells.len(), separator, reader, cells))
        });
        let best = read.max_by_key(|(known, columns, ..)| (*known, *columns));
        let Some((known, _, separator, reader, cells)) = best else {
            return Err(bad(Cells::UNREADABLE.into()));
        };
        let columns = columns(&cells, known).map_err(bad)?;
        Ok(Self { columns, separator, reader })
    }

    /// `None`: nothing stands in any cell.
    pub(super) fn parse(&mut self, line: &Line) -> Option<Result<NewMeter, BadRecord>> {
        let cells = match Cells::read(&mut self.reader, line) {
            Ok(cells) => cells,
            Err(bad) => return Some(Err(bad)),
        };
        let blank =
            |field: Result<&str, BadRecord>| field.is_ok_and(|text| digits::bare(text).is_empty());
        if cells.fields().all(blank) {
            return None;
        }
        let meter = self.row(&cells);
        Some(meter.map_err(|reason| BadRecord::malformed(line.place(), reason)))
    }

    fn row(&self, cells: &Cells) -> Result<NewMeter, String> {
        let (found, due) = (cells.len(), self.columns.len());
        if found < due {
            return Err(self.too_few(cells, found, due));
        }
        let mut row = Row::default();
        let columns = self.columns.iter().copied().chain(std::iter::repeat(None));
        for (index, (column, text)) in columns.zip(cells.fields()).enumerate() {
            let at = index + 1;
            let text =
                digits::bare(text.map_err(|_| format!("column {at}: {}", Cells::NOT_UTF_8))?);
            match column {
                _ if text.is_empty() => {}
                Some(column) => {
                    let name = column.name();
                    let taken = row.take(column, text);
                    taken.map_err(|reason| format!("column {at} ({name}): {reason}"))?;
                }
                None if at > due => {
                    return Err(format!(
                        "{found} fields, where the header names {due} columns; is there a separator \
                         within a value?"
                    ));
                }
                None => {
                    return Err(format!("column {at} holds a value and has no name in the header"));
                }
            }
        }
        row.into_meter()
    }

    fn too_few(&self, cells: &Cells, found: usize, due: usize) -> String {
        let counted = format!("{found} fields, where the header names {due} columns");
        let other = |separator: &&u8| {
            **separator != self.separator
                && cells.fields().flatten().any(|text| text.as_bytes().contains(separator))
        };
        match SEPARATORS.iter().find(other).filter(|_| found == 1) {
            Some(other) => format!(
                "{counted}: the header's separator is {}, and here stands {}",
                told(self.separator),
                told(*other)
            ),
            None => format!("{counted}; an empty cell needs its separator, too"),
        }
    }
}

/// The reason why the first line is no text, where that can be seen.
fn not_text(line: &[u8]) -> Option<&'static str> {
    if line.starts_with(b"PK\x03\x04") || line.starts_with(&[0xD0, 0xCF, 0x11, 0xE0]) {
        return Some("this is a spreadsheet's own file: save it as \"CSV UTF-8\"");
    }
    if line.contains(&0) {
        return Some("this looks like UTF-16 without a byte order mark: save it as \"CSV UTF-8\"");
    }
    if line.contains(&b'\r') {
        return Some("its lines end with CR alone: save it with LF or CR LF");
    }
    None
}

/// The columns of a header, of which `known` names are known.
fn columns(cells: &Cells, known: usize) -> Result<Vec<Option<Column>>, String> {
    let mut columns = Vec::with_capacity(cells.len());
    for (index, name) in cells.fields().enumerate() {
        let at = index + 1;
        let name = name.map_err(|_| format!("column {at}: {}", Cells::NOT_UTF_8))?;
        if digits::trimmed(name).is_empty() {
            columns.push(None);
            continue;
        }
        // A name is not repeated: the file may lack its header, and this be the first key.
        let column = Column::from_name(name).ok_or_else(|| {
            let first =
                if known == 0 { "the first line names the columns: " } else { "there are " };
            format!("column {at} has a name that is not known; {first}{}", CSV_COLUMNS.join(", "))
        })?;
        if columns.contains(&Some(column)) {
            return Err(format!("column {at}, {}, is there twice", column.name()));
        }
        columns.push(Some(column));
    }
    for column in [Column::MeterId, Column::SystemTitle] {
        if !columns.contains(&Some(column)) {
            return Err(format!("the column {} is missing", column.name()));
        }
    }
    Ok(columns)
}

const _: () = assert!(CSV_COLUMNS.len() < COLUMNS_MAX);
