//! One JSON object a line.

use std::io::Read;

use super::lines::{Line, WipedLines};
use super::place::{BadRecord, Place};
use super::record::{MeterRecord, ReadRecords};
use crate::meter::NewMeter;

/// Reads JSON Lines.
pub(super) struct JsonLines<R> {
    lines: WipedLines<R>,
}

impl<R: Read> JsonLines<R> {
    /// Reads nothing yet.
    pub(super) fn new(reader: R) -> Self {
        Self { lines: WipedLines::new(reader) }
    }
}

impl<R: Read> ReadRecords for JsonLines<R> {
    fn position(&self) -> u64 {
        self.lines.position()
    }
}

impl<R: Read> Iterator for JsonLines<R> {
    type Item = Result<MeterRecord, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        let blank = |line: &Result<_, _>| line.as_ref().is_ok_and(Line::is_blank);
        let line = self.lines.by_ref().find(|line| !blank(line))?;
        Some(line.and_then(|line| {
            let place = line.place();
            let meter = parse(&line.bytes, place)?;
            Ok(MeterRecord { place, meter })
        }))
    }
}

impl NewMeter {
    /// Reads one import record's JSON, in one line or many.
    pub fn from_json(text: &[u8]) -> Result<Self, BadRecord> {
        parse(text, Place::Line(1))
    }
}

fn parse(text: &[u8], place: Place) -> Result<NewMeter, BadRecord> {
    serde_json::from_slice(text).map_err(|error| {
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or("not JSON");
        let what = without_values(what);
        BadRecord::malformed(place, format!("column {}: {what}", error.column()))
    })
}

/// A parser's message, less anything that it repeats from the line: a key may have slipped into any
/// field. Text in double quotes goes, and what stands in backquotes unless it is a plain word.
fn without_values(message: &str) -> String {
    let mut kept = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find(['"', '`']) {
        let (before, quoted) = rest.split_at(at);
        kept.push_str(before);
        let (quote, quoted) = quoted.split_at(1);
        // In double quotes stands a value, which may itself hold quotes: up to the last one.
        let end = if quote == "\"" { quoted.rfind('"') } else { quoted.find('`') };
        let Some(end) = end else { return kept };
        let word = &quoted[..end];
        if quote == "`" && is_plain_word(word) {
            kept.push_str(&format!("`{word}`"));
        } else {
            kept.push('…');
        }
        rest = &quoted[end + 1..];
    }
    kept.push_str(rest);
    kept
}

/// Such as the name of a field; hex digits alone are not.
fn is_plain_word(word: &str) -> bool {
    word.len() <= 40
        && word.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && !word.bytes().all(|byte| byte.is_ascii_hexdigit())
}
