//! Text for people: aligned blocks; and standard output that may go away.

use std::io::{self, Write as _};

use kms_client::Replicated;
use serde::Serialize;

use crate::failure::Failure;

/// Writes one line to standard output. Ends quietly when nobody reads it any more.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::reader_gone(),
        _ => Failure::files(format!("standard output: {error}")),
    })
}

/// Writes one JSON object on one line.
pub(crate) fn say_json(value: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value);
    say(&line.map_err(|error| Failure::files(format!("the answer is not JSON: {error}")))?)
}

/// Writes a value as JSON, or as text.
pub(crate) fn show(
    json: bool,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    if json { say_json(value) } else { say(&text()) }
}

/// What is said of changes that the primary alone has.
pub(crate) const UNREPLICATED: &str = "NOT confirmed by the other site in time: were this site lost now, they \
    would be lost, too";

/// Says that the primary alone has a change, where that is so.
pub(crate) fn say_unreplicated(replicated: Replicated) -> Result<(), Failure> {
    match replicated {
        Replicated::Unreplicated => say(&format!("changes are here and {UNREPLICATED}")),
        Replicated::Replicated | Replicated::NotApplicable => Ok(()),
    }
}

/// Names and values below each other, values aligned.
pub(crate) fn block(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let row = |(name, value): &(&str, String)| format!("{name:width$}  {value}");
    rows.iter().map(row).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_block_stand_below_each_other() {
        assert_eq!(block(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2");
    }
}
