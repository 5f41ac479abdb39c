//! Tables in plain text. Colours only where somebody looks at them.

use std::io::{IsTerminal as _, stdout};

/// The meaning of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// To be taken with care.
    Care,
    /// Refused, as it should be.
    Refused,
    /// Not as it should be.
    Bad,
}

impl Tone {
    const fn escape(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Care => "\x1b[33m",
            Self::Refused => "\x1b[36m",
            Self::Bad => "\x1b[1;31m",
        }
    }
}

/// One cell.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// The text; without control characters.
    pub text: String,
    /// The meaning.
    pub tone: Tone,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }
}

/// A heading, and how many characters its column may take at most.
pub type Column = (&'static str, usize);

/// The table as text. Each column is as wide as it must be; longer cells end with "…".
pub fn render(columns: &[Column], rows: &[Vec<Cell>], coloured: bool) -> String {
    let width = |index: usize, (heading, most): &Column| {
        let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| length(&cell.text));
        cells.chain([length(heading)]).max().unwrap_or(0).min(*most)
    };
    let widths: Vec<usize> =
        columns.iter().enumerate().map(|(index, column)| width(index, column)).collect();
    let headings: Vec<Cell> = columns.iter().map(|(heading, _)| Cell::from(*heading)).collect();
    let rule: Vec<Cell> = widths.iter().map(|width| Cell::from("-".repeat(*width))).collect();
    [&headings, &rule].into_iter().chain(rows).map(|row| line(row, &widths, coloured)).collect()
}

/// Whether standard output is somebody's terminal.
pub fn is_terminal() -> bool {
    stdout().is_terminal()
}

fn line(row: &[Cell], widths: &[usize], coloured: bool) -> String {
    let cells: Vec<String> =
        row.iter().zip(widths).map(|(cell, width)| padded(cell, *width, coloured)).collect();
    format!("  {}\n", cells.join("  ").trim_end())
}

fn padded(cell: &Cell, width: usize, coloured: bool) -> String {
    let text = shortened(&cell.text, width);
    let spaces = " ".repeat(width.saturating_sub(length(&text)));
    match cell.tone.escape() {
        escape if coloured && !escape.is_empty() => format!("{escape}{text}\x1b[0m{spaces}"),
        _ => text + &spaces,
    }
}

fn shortened(text: &str, width: usize) -> String {
    if length(text) <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec!["KFM-1".into(), Cell { text: "OK".to_owned(), tone: Tone::Good }],
            vec!["a meter with a long name".into(), "MALFORMED".into()],
        ]
    }

    #[test]
    fn columns_are_aligned_and_long_cells_cut() {
        let text = render(&[("meter", 8), ("verdict", 20)], &rows(), false);
        let wanted =
            "  meter     verdict\n  --------  ---------\n  KFM-1     OK\n  a meter…  MALFORMED\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn a_file_gets_no_colours() {
        assert!(!render(&[("meter", 8), ("verdict", 20)], &rows(), false).contains('\x1b'));
        assert!(
            render(&[("meter", 8), ("verdict", 20)], &rows(), true).contains("\x1b[32mOK\x1b[0m")
        );
    }
}
