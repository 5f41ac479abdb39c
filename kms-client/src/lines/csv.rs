//! A header row, then one row a meter.

use std::str;

use csv_core::{ReadRecordResult, Reader};
use dlms::SystemTitle;
use zeroize::Zeroizing;

use super::{BadLine, Line};
use crate::meter::{KeyKind, MeterPolicy, MinimumProtection, NewKey, NewMeter, Protection};
use crate::names::{MeterId, parse_system_title};
use crate::secret::KeyBytes;

/// More columns than any header may have.
const COLUMNS_MAX: usize = 32;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    MeterId,
    SystemTitle,
    LogicalDeviceName,
    Key(KeyKind),
    Protection,
    SecuritySetup,
    MinimumProtection,
    AllowEncryptionOnly,
    AllowWithheldAuthenticationKey,
    DefaultSystemTitle,
    ClientTitle,
    GeneralCipheringOmitHeader,
}

impl Column {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "meter_id" => Self::MeterId,
            "system_title" => Self::SystemTitle,
            "logical_device_name" => Self::LogicalDeviceName,
            "protection" => Self::Protection,
            "security_setup" => Self::SecuritySetup,
            "minimum_protection" => Self::MinimumProtection,
            "allow_encryption_only" => Self::AllowEncryptionOnly,
            "allow_withheld_authentication_key" => Self::AllowWithheldAuthenticationKey,
            "default_system_title" => Self::DefaultSystemTitle,
            "client_title" => Self::ClientTitle,
            "general_ciphering_omit_header" => Self::GeneralCipheringOmitHeader,
            word => Self::Key(KeyKind::from_word(word)?),
        })
    }
}

/// The columns of one file, in the order of its header.
pub(super) struct Table {
    columns: Vec<Column>,
    reader: Reader,
}

impl Table {
    pub(super) fn from_header(line: &Line) -> Result<Self, BadLine> {
        let bad = |reason: String| BadLine { line: line.number, code: "BAD_HEADER", reason };
        let mut reader = Reader::new();
        let record = Record::read(&mut reader, line)?;
        let mut columns = Vec::with_capacity(record.len());
        for (index, name) in record.fields().enumerate() {
            let name = name?;
            // A name is not repeated: the file may lack its header, and this be the first key.
            let column = Column::from_name(name).ok_or_else(|| {
                bad(format!("column {} has a name that is not known; the first line names the columns: meter_id, system_title, GUEK, GAK, …", index + 1))
            })?;
            if columns.contains(&column) {
                return Err(bad(format!("column {}, {name}, is there twice", index + 1)));
            }
            columns.push(column);
        }
        for (column, name) in [(Column::MeterId, "meter_id"), (Column::SystemTitle, "system_title")]
        {
            if !columns.contains(&column) {
                return Err(bad(format!("the column {name} is missing")));
            }
        }
        Ok(Self { columns, reader })
    }

    pub(super) fn parse(&mut self, line: &Line) -> Result<NewMeter, BadLine> {
        let bad = |reason: String| BadLine::malformed(line.number, reason);
        let record = Record::read(&mut self.reader, line)?;
        if record.len() != self.columns.len() {
            let (found, due) = (record.len(), self.columns.len());
            return Err(bad(format!("{found} fields, where the header names {due} columns")));
        }
        let mut row = Row::default();
        for (index, (column, text)) in self.columns.iter().zip(record.fields()).enumerate() {
            row.take(*column, text?)
                .map_err(|reason| bad(format!("column {}: {reason}", index + 1)))?;
        }
        row.into_meter().map_err(bad)
    }
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
    /// Takes one field. An empty one says nothing.
    fn take(&mut self, column: Column, text: &str) -> Result<(), String> {
        let text = text.trim_matches([' ', '\t']);
        if text.is_empty() {
            return Ok(());
        }
        match column {
            Column::MeterId => self.meter_id = Some(MeterId::new(text).map_err(said)?),
            Column::SystemTitle => self.system_title = Some(title(text)?),
            Column::LogicalDeviceName => self.logical_device_name = text.to_owned(),
            Column::Key(kind) => {
                let value = KeyBytes::from_hex(text).map_err(|error| format!("{kind}: {error}"))?;
                self.keys.push((kind, value));
            }
            Column::Protection => {
                self.protection = Some(Protection::from_word(text).ok_or(Protection::EXPECTED)?);
            }
            Column::SecuritySetup => {
                let expected = "security_setup is a number from 0 to 255";
                self.security_setup = text.parse().map_err(|_| expected)?;
            }
            Column::MinimumProtection => {
                let word = MinimumProtection::from_word(text).ok_or(MinimumProtection::EXPECTED)?;
                self.policy().minimum_protection = Some(word);
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

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn title(text: &str) -> Result<SystemTitle, String> {
    parse_system_title(text).map_err(said)
}

fn yes(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// The fields of one line, unquoted, in buffers that are wiped.
struct Record {
    line: u64,
    text: Zeroizing<Vec<u8>>,
    ends: Vec<usize>,
}

impl Record {
    fn read(reader: &mut Reader, line: &Line) -> Result<Self, BadLine> {
        // Takes a byte order mark off the first line, too.
        reader.reset();
        let mut text = Zeroizing::new(vec![0; line.bytes.len() + 1]);
        let mut ends = vec![0; COLUMNS_MAX];
        let (result, read, written, fields) = reader.read_record(&line.bytes, &mut text, &mut ends);
        let left = line.bytes.len() - read;
        let fields = match result {
            ReadRecordResult::InputEmpty if left == 0 => {
                let (ended, _, _, more) =
                    reader.read_record(b"\n", &mut text[written..], &mut ends[fields..]);
                (ended == ReadRecordResult::Record).then_some(fields + more)
            }
            ReadRecordResult::Record if left == 0 => Some(fields),
            _ => None,
        };
        let fields = fields.ok_or_else(|| {
            let reason = format!("a quote that is not closed, or more than {COLUMNS_MAX} fields");
            BadLine::malformed(line.number, reason)
        })?;
        ends.truncate(fields);
        Ok(Self { line: line.number, text, ends })
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn fields(&self) -> impl Iterator<Item = Result<&str, BadLine>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(self.ends.iter().copied()).map(|(start, end)| {
            let bytes = self.text.get(start..end).unwrap_or_default();
            str::from_utf8(bytes).map_err(|_| BadLine::malformed(self.line, "not UTF-8"))
        })
    }
}
