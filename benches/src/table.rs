//! The report's table, for a terminal or for benches/README.md.

/// One figure beside the bound below it.
#[derive(Clone, Debug)]
pub struct Row {
    /// The thing that was measured.
    pub what: String,
    /// The figure, with its unit.
    pub measured: String,
    /// The best that the figure can be, measured in the same run.
    pub bound: String,
    /// One to the other.
    pub ratio: String,
    /// The aim.
    pub budget: String,
    /// Whether it is reached; `None`: there is no aim.
    pub met: Option<bool>,
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let Self { what, measured, bound, ratio, budget, met } = self;
        let met = match met {
            Some(true) => "met",
            Some(false) => "not met",
            None => "-",
        };
        [what, measured, bound, ratio, budget, &met.to_owned()].map(Clone::clone)
    }
}

const HEAD: [&str; 6] = ["what", "measured", "bound below it", "ratio", "budget", ""];

/// As text with aligned columns, or as Markdown.
pub fn print(rows: &[Row], markdown: bool) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        if markdown {
            text.push_str(&format!("| {} |\n", line.join(" | ")));
            if number == 0 {
                text.push_str(&format!("|{}\n", "---|".repeat(HEAD.len())));
            }
        } else {
            let cells: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_an_aim_is_neither_met_nor_missed() {
        let row = Row {
            what: "look-up".into(),
            measured: "30 ns".into(),
            bound: "25 ns".into(),
            ratio: "1.20".into(),
            budget: String::new(),
            met: None,
        };
        assert!(
            print(std::slice::from_ref(&row), true)
                .ends_with("| look-up | 30 ns | 25 ns | 1.20 |  | - |\n")
        );
        assert!(print(&[row], false).contains("look-up  30 ns"));
    }
}
