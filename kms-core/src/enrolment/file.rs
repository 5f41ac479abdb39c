//! The form in which papers travel as files: a title, what people should know, an empty line, and the bytes in
//! hexadecimal. The header is for people: who reads a file writes it anew and compares.

use std::fmt::Write as _;

/// Before each title.
const OURS: &str = "AMI KEY MANAGEMENT: ";
/// Bytes in a line.
const LINE_LEN: usize = 32;

/// The text of a file.
pub(super) fn write(title: &str, header: &[(&str, String)], bytes: &[u8]) -> String {
    let mut text = format!("{OURS}{title}\n");
    for (what, is) in header {
        // Writing into a String does not fail.
        let _ = writeln!(text, "{what}: {is}");
    }
    text.push('\n');
    for line in bytes.chunks(LINE_LEN) {
        text.push_str(&hex::encode(line));
        text.push('\n');
    }
    text
}

/// The bytes of a file with this title, at most `len_max`. The header is not read.
pub(super) fn read(title: &str, text: &str, len_max: usize) -> Option<Vec<u8>> {
    let below = text.strip_prefix(OURS)?.strip_prefix(title)?.strip_prefix('\n')?;
    let (_, digits) = below.split_once("\n\n")?;
    let len_max = len_max.checked_mul(3)?;
    if digits.len() > len_max {
        return None;
    }
    let lines = digits.lines().map(|line| hex::decode(line).ok());
    lines.collect::<Option<Vec<_>>>().map(|lines| lines.concat())
}
