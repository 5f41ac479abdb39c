//! Places in an import file, as people find them, and what could not be read there.

use std::fmt;

use thiserror::Error;

/// Place of a record in its file. Its number is also that of the record's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Line of text, from 1.
    Line(u64),
    /// Row of a table whose rows are no lines, from 1.
    Row(u64),
    /// Element of a document, from 1.
    Element(u64),
}

impl Place {
    /// The number alone.
    pub fn number(self) -> u64 {
        match self {
            Self::Line(number) | Self::Row(number) | Self::Element(number) => number,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self {
            Self::Line(_) => "line",
            Self::Row(_) => "row",
            Self::Element(_) => "element",
        };
        write!(f, "{unit} {}", self.number())
    }
}

/// A record, or the text that it stands in, that could not be read. Says where and what, never what stood
/// in it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {reason}")]
pub struct BadRecord {
    /// The place where it stands.
    pub place: Place,
    /// A word for machines: `MALFORMED_LINE`, `LINE_TOO_LONG`, `BAD_HEADER` or `READ_FAILED`.
    pub code: &'static str,
    /// Its fault, and what would be right.
    pub reason: String,
}

impl BadRecord {
    pub(super) fn malformed(place: Place, reason: impl Into<String>) -> Self {
        Self { place, code: "MALFORMED_LINE", reason: reason.into() }
    }
}
