//! A header row, then one row a meter; as spreadsheets save it, too.
//!
//! What is unambiguous is read, however it is written. The rest is refused by line, column and cause,
//! and no message repeats what stood in a cell.

mod column;
mod record;

use csv_core::{Reader, ReaderBuilder};
use dlms::SystemTitle;
use kms_core::Numbered;
use kms_core::numbered::Expected;

use super::{BadLine, Line};
use crate::digits::{self, BadDigits};
use crate::meter::{KeyKind, MeterPolicy, NewKey, NewMeter, Protection};
use crate::names::MeterId;
use crate::secret::KeyBytes;
pub use column::CSV_COLUMNS;
use column::Column;
use record::{COLUMNS_MAX, Record};

/// What may stand between two cells. Under one of them only is a header one.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// What a number in place of a text means.
const NUMBER: &str = "a spreadsheet turned this into a number (such as 1.2E+31) and its digits are lost: \
                      format the column as text, and enter the values again";
const ROUNDED: &str = "a spreadsheet turned this into a number, of which it keeps 15 digits, and put zeros \
                       in the place of the others: format the column as text, and enter the values again";

/// `sep=;`: what some spreadsheets write above the header, and read there.
pub(super) fn separator_line(line: &Line) -> Option<u8> {
    let text = line.bytes.trim_ascii_start();
    let (word, rest) = text.split_first_chunk::<4>()?;
    match rest.trim_ascii_end() {
        _ if !word.eq_ignore_ascii_case(b"sep=") => None,
        // A tab is white space, too.
        [] if rest.first() == Some(&b'\t') => Some(b'\t'),
        [separator] if SEPARATORS.contains(separator) => Some(*separator),
        _ => None,
    }
}

/// Whether nothing but separators stands in a line.
pub(super) fn is_empty(line: &Line) -> bool {
    line.bytes.iter().all(|byte| byte.is_ascii_whitespace() || SEPARATORS.contains(byte))
}

/// The columns of one file, in the order of its header.
pub(super) struct Table {
    /// Without a name there is nothing in it.
    columns: Vec<Option<Column>>,
    separator: u8,
    reader: Reader,
}

impl Table {
    /// `separator`: what a line above the header said it is.
    pub(super) fn from_header(line: &Line, separator: Option<u8>) -> Result<Self, BadLine> {
        let bad = |reason: String| BadLine { line: line.number, code: "BAD_HEADER", reason };
        if let Some(cause) = not_text(&line.bytes) {
            return Err(bad(cause.into()));
        }
        let candidates = separator.map_or(SEPARATORS.to_vec(), |separator| vec![separator]);
        let read = candidates.into_iter().filter_map(|separator| {
            let mut reader = ReaderBuilder::new().delimiter(separator).build();
            let record = Record::read(&mut reader, line).ok()?;
            let known = record.fields().flatten().filter(|name| Column::from_name(name).is_some());
            Some((known.count(), record.len(), separator, reader, record))
        });
        let best = read.max_by_key(|(known, columns, ..)| (*known, *columns));
        let Some((known, _, separator, reader, record)) = best else {
            return Err(bad(Record::UNREADABLE.into()));
        };
        let columns = columns(&record, known).map_err(bad)?;
        Ok(Self { columns, separator, reader })
    }

    /// `None`: nothing stands in any cell.
    pub(super) fn parse(&mut self, line: &Line) -> Option<Result<NewMeter, BadLine>> {
        let record = match Record::read(&mut self.reader, line) {
            Ok(record) => record,
            Err(bad) => return Some(Err(bad)),
        };
        let blank =
            |field: Result<&str, BadLine>| field.is_ok_and(|text| digits::bare(text).is_empty());
        if record.fields().all(blank) {
            return None;
        }
        let meter = self.row(&record);
        Some(meter.map_err(|reason| BadLine::malformed(line.number, reason)))
    }

    fn row(&self, record: &Record) -> Result<NewMeter, String> {
        let (found, due) = (record.len(), self.columns.len());
        if found < due {
            return Err(self.too_few(record, found, due));
        }
        let mut row = Row::default();
        let columns = self.columns.iter().copied().chain(std::iter::repeat(None));
        for (index, (column, text)) in columns.zip(record.fields()).enumerate() {
            let at = index + 1;
            let text =
                digits::bare(text.map_err(|_| format!("column {at}: {}", Record::NOT_UTF_8))?);
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

    fn too_few(&self, record: &Record, found: usize, due: usize) -> String {
        let counted = format!("{found} fields, where the header names {due} columns");
        let other = |separator: &&u8| {
            **separator != self.separator
                && record.fields().flatten().any(|text| text.as_bytes().contains(separator))
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

fn told(separator: u8) -> &'static str {
    match separator {
        b',' => "a comma",
        b';' => "a semicolon",
        _ => "a tab",
    }
}

/// Why the first line is no text, where that can be seen.
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
fn columns(record: &Record, known: usize) -> Result<Vec<Option<Column>>, String> {
    let mut columns = Vec::with_capacity(record.len());
    for (index, name) in record.fields().enumerate() {
        let at = index + 1;
        let name = name.map_err(|_| format!("column {at}: {}", Record::NOT_UTF_8))?;
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

/// One row under way.
#[derive(Default)]
struct Row {
    meter_id: Option<MeterId>,
    system_title: Option<SystemTitle>,
    logical_device_name: String,
    keys: Vec<(KeyKind, KeyBytes)>,
    protection: Option<Protection>,
    security_setup: u8,
    policy: Option<MeterPolicy>,
}

impl Row {
    /// Takes one cell that is not empty.
    fn take(&mut self, column: Column, text: &str) -> Result<(), String> {
        match column {
            Column::MeterId => self.meter_id = Some(meter_id(text)?),
            Column::SystemTitle => self.system_title = Some(title(text)?),
            Column::LogicalDeviceName => self.logical_device_name = text.to_owned(),
            Column::Key(kind) => self.keys.push((kind, key(kind, text)?)),
            Column::Protection => {
                self.protection = Some(item(text)?);
            }
            Column::SecuritySetup => {
                let expected = "security_setup is a number from 0 to 255";
                self.security_setup = text.parse().map_err(|_| expected)?;
            }
            Column::MinimumProtection => {
                self.policy().minimum_protection = Some(item(text)?);
            }
            Column::AllowEncryptionOnly => self.policy().allow_encryption_only = yes(text)?,
            Column::AllowWithheldAuthenticationKey => {
                self.policy().allow_withheld_authentication_key = yes(text)?;
            }
            Column::DefaultSystemTitle => self.policy().default_system_title = Some(title(text)?),
            Column::ClientTitle => self.policy().client_title = Some(title(text)?),
            Column::GeneralCipheringOmitHeader => {
                self.policy().general_ciphering_omit_header = yes(text)?;
            }
        }
        Ok(())
    }

    fn policy(&mut self) -> &mut MeterPolicy {
        self.policy.get_or_insert_default()
    }

    fn into_meter(self) -> Result<NewMeter, String> {
        let Self { security_setup, protection, .. } = self;
        let key = |(kind, value)| NewKey {
            kind,
            value,
            security_setup,
            // Only these two have a choice.
            protection: protection.filter(|_| matches!(kind, KeyKind::Guek | KeyKind::Gbek)),
        };
        Ok(NewMeter {
            meter_id: self.meter_id.ok_or("meter_id is empty")?,
            system_title: self.system_title.ok_or("system_title is empty")?,
            logical_device_name: self.logical_device_name,
            keys: self.keys.into_iter().map(key).collect(),
            policy: self.policy,
        })
    }
}

fn meter_id(text: &str) -> Result<MeterId, String> {
    if digits::is_number(text) {
        return Err(NUMBER.into());
    }
    MeterId::new(text).map_err(|error| error.to_string())
}

fn title(text: &str) -> Result<SystemTitle, String> {
    const DIGITS: usize = 16;
    let fits = |found| {
        let lost = if found < DIGITS { LEADING_ZEROS } else { "" };
        format!("{found} hex digits, where a system title has {DIGITS}{lost}")
    };
    match digits::read(text, DIGITS / 2) {
        Ok(read) => SystemTitle::try_from(&read.bytes[..]).map_err(|_| fits(2 * read.bytes.len())),
        Err(BadDigits::Number) => Err(NUMBER.into()),
        Err(BadDigits::Odd(found)) => Err(fits(found)),
        Err(_) => Err("a system title is 8 bytes: 16 hex digits".into()),
    }
}

const LEADING_ZEROS: &str =
    "; a spreadsheet drops leading zeros: format the column as text, and enter the values again";

fn key(kind: KeyKind, text: &str) -> Result<KeyBytes, String> {
    if digits::is_rounded(text) {
        return Err(ROUNDED.into());
    }
    let value = KeyBytes::from_hex(text).map_err(|error| error.to_string())?;
    let found = 2 * value.expose_key_bytes().len();
    match kind {
        KeyKind::HlsSecret | KeyKind::LlsPassword => Ok(value),
        _ if matches!(found, 32 | 64) => Ok(value),
        _ => {
            let lost = if found < 32 { LEADING_ZEROS } else { "" };
            Err(format!("{found} hex digits, where a {kind} has 32, or 64 in suite 2{lost}"))
        }
    }
}

/// The item of this word, in either case, with blanks or dashes where the wire has underscores.
fn item<T: Numbered>(text: &str) -> Result<T, String> {
    let word = text.to_ascii_uppercase().replace([' ', '-'], "_");
    T::from_word(&word).ok_or_else(|| Expected::<T>::new().to_string())
}

fn yes(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

const _: () = assert!(CSV_COLUMNS.len() < COLUMNS_MAX);
