//! Separators of cells, and lines that hold nothing else.

use super::super::lines::Line;

/// Bytes that may stand between two cells. Under one of them only is a header one.
pub(super) const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

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

/// Its name in a sentence.
pub(super) fn told(separator: u8) -> &'static str {
    match separator {
        b',' => "a comma",
        b';' => "a semicolon",
        _ => "a tab",
    }
}
