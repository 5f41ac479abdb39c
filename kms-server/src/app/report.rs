//! The words of a verb that is done.

use std::fmt;

/// The words of a verb that is done: text for people through `Display`, JSON through serde.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Name and outcome, in order.
    pub lines: Vec<(String, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut lines = self.lines.iter();
        lines.try_for_each(|(name, outcome)| writeln!(f, "{name:width$}  {outcome}"))
    }
}
