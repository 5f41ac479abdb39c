//! One line, cut into its cells.

use std::str;

use csv_core::{ReadRecordResult, Reader};
use zeroize::Zeroizing;

use super::super::lines::Line;
use super::super::place::{BadRecord, Place};

/// More columns than any header may have. Spreadsheets leave empty ones at the end.
pub(super) const COLUMNS_MAX: usize = 64;

/// The cells of one line, unquoted, in buffers that are wiped.
pub(super) struct Cells {
    place: Place,
    text: Zeroizing<Vec<u8>>,
    ends: Vec<usize>,
}

impl Cells {
    pub(super) const UNREADABLE: &str =
        "a quote that is not closed on its line, or more than 64 fields";
    pub(super) const NOT_UTF_8: &str = "not UTF-8: save the file as \"CSV UTF-8\"";

    pub(super) fn read(reader: &mut Reader, line: &Line) -> Result<Self, BadRecord> {
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
        let fields = fields.ok_or_else(|| BadRecord::malformed(line.place(), Self::UNREADABLE))?;
        ends.truncate(fields);
        Ok(Self { place: line.place(), text, ends })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = Result<&str, BadRecord>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(self.ends.iter().copied()).map(|(start, end)| {
            let bytes = self.text.get(start..end).unwrap_or_default();
            str::from_utf8(bytes).map_err(|_| BadRecord::malformed(self.place, Self::NOT_UTF_8))
        })
    }
}
