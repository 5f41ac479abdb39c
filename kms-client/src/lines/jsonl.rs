//! One JSON object a line.

use super::{BadLine, Line};
use crate::meter::NewMeter;

pub(super) fn parse(line: &Line) -> Result<NewMeter, BadLine> {
    parse_json(&line.bytes, line.number)
}

pub(super) fn parse_json(text: &[u8], line: u64) -> Result<NewMeter, BadLine> {
    serde_json::from_slice(text).map_err(|error| {
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or("not JSON");
        BadLine::malformed(line, format!("column {}: {}", error.column(), without_values(what)))
    })
}

/// What a parser says, less anything that it repeats from the line: a key may have slipped into any
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
