//! The same thing said of ten thousand lines: the first few are said as they come, the rest is counted and
//! said once.

use std::collections::BTreeMap;

/// Lines of a kind that are said one by one.
const SAID_MAX: u64 = 3;
/// Kinds that are told apart; further ones only by their code.
const KINDS_MAX: usize = 100;

/// The sentences said so far, by kind.
#[derive(Default)]
pub(crate) struct Refusals {
    kinds: BTreeMap<(String, String), Kind>,
}

struct Kind {
    lines: u64,
    first: Vec<u64>,
    text: String,
}

impl Refusals {
    /// Takes what is said of a line under a word. Whether it is to be said now.
    pub(crate) fn take(&mut self, word: &str, line: u64, meter_id: &str, text: &str) -> bool {
        let mut kind = (word.to_owned(), pattern(text, meter_id));
        if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&kind) {
            kind.1.clear();
        }
        let new = || Kind { lines: 0, first: Vec::new(), text: text.to_owned() };
        let kind = self.kinds.entry(kind).or_insert_with(new);
        kind.lines += 1;
        let few = kind.lines <= SAID_MAX;
        if few {
            kind.first.push(line);
        }
        few
    }

    /// One line for each kind of which not all was said, most frequent first.
    pub(crate) fn summed_up(&self) -> Vec<String> {
        let mut kinds: Vec<_> =
            self.kinds.iter().filter(|(_, kind)| kind.lines > SAID_MAX).collect();
        kinds.sort_by_key(|(_, kind)| std::cmp::Reverse(kind.lines));
        let told = |((word, _), kind): &(&(String, String), &Kind)| {
            let first: Vec<_> = kind.first.iter().map(ToString::to_string).collect();
            let (lines, text) = (grouped(kind.lines), &kind.text);
            format!("{lines} lines: {word}: {text}; first at lines {}", first.join(", "))
        };
        kinds.iter().map(told).collect()
    }
}

/// The text without what differs from line to line: the meter, and words with digits.
fn pattern(text: &str, meter_id: &str) -> String {
    let differs = |word: &str| {
        word.contains(|letter: char| letter.is_ascii_digit())
            || (!meter_id.is_empty() && word.contains(meter_id))
    };
    text.split_whitespace().filter(|word| !differs(word)).collect::<Vec<_>>().join(" ")
}

/// With a comma before each three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_many_lines_is_said_thrice_and_counted() {
        let mut refusals = Refusals::default();
        let said = (3..10_001).filter(|line| {
            let meter = format!("meter{line}");
            refusals.take(
                "KEY_DIFFERS",
                *line,
                &meter,
                &format!("{meter} has another GUEK (v{line})"),
            )
        });
        assert_eq!(said.collect::<Vec<_>>(), [3, 4, 5]);
        assert!(refusals.take("BAD_FIELD", 7, "", "no title"));
        assert_eq!(
            refusals.summed_up(),
            ["9,998 lines: KEY_DIFFERS: meter3 has another GUEK (v3); first at lines 3, 4, 5"]
        );
    }

    #[test]
    fn no_number_of_kinds_makes_it_grow() {
        let mut refusals = Refusals::default();
        for line in 0..1_000_u64 {
            let text: String = line.to_string().bytes().map(|b| char::from(b + 49)).collect();
            refusals.take("ODD", line, "", &text);
        }
        assert_eq!(refusals.kinds.len(), KINDS_MAX + 1);
        assert!(refusals.summed_up()[0].starts_with("900 lines: ODD: "));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
