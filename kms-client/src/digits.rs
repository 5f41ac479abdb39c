//! Hex digits as people and spreadsheets write them: `0x…`, with colons, dashes, or blanks between the
//! bytes. What more than one value could be read from is refused. The digits go straight into a buffer
//! that is wiped, and no message repeats them.

use zeroize::Zeroizing;

/// Decimal digits that a spreadsheet keeps of a number.
const SPREADSHEET_DIGITS: usize = 15;

/// The digits that were read.
pub(crate) struct Digits {
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    /// Digits of each of the first two groups, where there are just two.
    pub(crate) halves: Option<[usize; 2]>,
}

/// The reason why no digits were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadDigits {
    /// Nothing is there.
    Empty,
    /// Other characters.
    NotHex,
    /// So many digits: half a byte is left over.
    Odd(usize),
    /// A group among others has half a byte left over.
    OddGroup,
    /// A number in scientific notation.
    Number,
    /// More bytes than were asked for.
    TooLong,
}

/// Reads at most `len_max` bytes.
pub(crate) fn read(text: &str, len_max: usize) -> Result<Digits, BadDigits> {
    let text = bare(text);
    if text.is_empty() {
        return Err(BadDigits::Empty);
    }
    if is_number(text) {
        return Err(BadDigits::Number);
    }
    // Never grown, so nothing is left behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(len_max));
    let mut groups = [0; 2];
    let mut count = 0;
    for group in text.split(is_between).filter(|group| !group.is_empty()) {
        let digits = without_prefix(group);
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) || digits.is_empty() {
            return Err(BadDigits::NotHex);
        }
        if digits.len() % 2 == 1 {
            return Err(if digits.len() == text.len() || group.len() == text.len() {
                BadDigits::Odd(digits.len())
            } else {
                BadDigits::OddGroup
            });
        }
        if bytes.len() + digits.len() / 2 > len_max {
            return Err(BadDigits::TooLong);
        }
        let pairs = digits.as_bytes().chunks_exact(2);
        bytes.extend(pairs.map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])));
        if let Some(len) = groups.get_mut(count) {
            *len = digits.len();
        }
        count += 1;
    }
    if count == 0 {
        return Err(BadDigits::NotHex);
    }
    Ok(Digits { bytes, halves: (count == 2).then_some(groups) })
}

/// Without the blanks around it, and without what keeps a spreadsheet from taking it for a number:
/// `'00…` and `="00…"`.
pub(crate) fn bare(text: &str) -> &str {
    let text = trimmed(text);
    let quoted = text.strip_prefix("=\"").and_then(|rest| rest.strip_suffix('"'));
    trimmed(quoted.unwrap_or_else(|| text.strip_prefix('\'').unwrap_or(text)))
}

/// Without blanks of any kind around it.
pub(crate) fn trimmed(text: &str) -> &str {
    text.trim_matches(is_blank)
}

/// White space, the non-breaking kinds and the mark of no width included.
pub(crate) fn is_blank(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '\u{FEFF}' | '\u{200B}')
}

fn is_between(letter: char) -> bool {
    is_blank(letter) || matches!(letter, ':' | '-')
}

fn without_prefix(group: &str) -> &str {
    group.strip_prefix("0x").or_else(|| group.strip_prefix("0X")).unwrap_or(group)
}

fn nibble(digit: u8) -> u8 {
    char::from(digit).to_digit(16).unwrap_or_default() as u8
}

/// Whether it is what a spreadsheet makes of many digits: `1.2E+31`, `1,2E+31`, `1E+31`.
pub(crate) fn is_number(text: &str) -> bool {
    let Some((mantissa, exponent)) = text.split_once(['E', 'e']) else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let mantissa = mantissa.trim_start_matches(['+', '-']);
    let (whole, fraction) = mantissa.split_once(['.', ',']).unwrap_or((mantissa, ""));
    let power = exponent.trim_start_matches(['+', '-']);
    // Without a point or a sign it may be hex.
    let signed = mantissa.contains(['.', ',']) || exponent.starts_with('+');
    signed && digits(whole) && (fraction.is_empty() || digits(fraction)) && digits(power)
}

/// Whether it is decimal and nothing but zeros behind as many digits as a spreadsheet keeps.
pub(crate) fn is_rounded(text: &str) -> bool {
    let text = bare(text).as_bytes();
    let kept = text.split_at_checked(SPREADSHEET_DIGITS);
    kept.is_some_and(|(kept, rest)| {
        rest.len() > 1
            && kept[0] != b'0'
            && kept.iter().all(u8::is_ascii_digit)
            && rest.iter().all(|digit| *digit == b'0')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str) -> Result<Vec<u8>, BadDigits> {
        read(text, 64).map(|digits| digits.bytes.to_vec())
    }

    #[test]
    fn every_way_to_write_the_same_bytes_reads_the_same() {
        for text in [
            "D491470F",
            "d491470f",
            "0xD491470F",
            "0XD4 0X91 0x47 0x0f",
            "D4:91:47:0F",
            "D4-91-47-0F",
            " D491 470F\t",
            "\u{a0}D4\u{a0}91\u{202f}470F",
            "'D491470F",
            "=\"D491470F\"",
            "\u{feff}D491470F",
        ] {
            assert_eq!(bytes(text), Ok(vec![0xD4, 0x91, 0x47, 0x0F]), "{text}");
        }
    }

    #[test]
    fn what_a_spreadsheet_made_a_number_is_called_so() {
        for text in ["1.2E+31", "1,23457E+31", "1E+31", "1.2e31", "-1.2E+31", "1.2E-7"] {
            assert_eq!(bytes(text), Err(BadDigits::Number), "{text}");
        }
        // Hex that only looks so.
        assert_eq!(bytes("12E45678"), Ok(vec![0x12, 0xE4, 0x56, 0x78]));
        assert!(is_rounded("12345678901234500000000000000000"));
        assert!(!is_rounded("12345678901234560000000000000000"));
        assert!(!is_rounded("00000000000000000000000000000000"));
        assert!(!is_rounded("D4914700000000000000000000000000"));
    }

    #[test]
    fn half_bytes_are_told_apart() {
        assert_eq!(bytes("491"), Err(BadDigits::Odd(3)));
        assert_eq!(bytes("0x491"), Err(BadDigits::Odd(3)));
        assert_eq!(bytes("4:91"), Err(BadDigits::OddGroup));
        assert_eq!(bytes("xy"), Err(BadDigits::NotHex));
        assert_eq!(bytes("--"), Err(BadDigits::NotHex));
        assert_eq!(bytes("0x"), Err(BadDigits::NotHex));
        assert_eq!(bytes(" "), Err(BadDigits::Empty));
        assert_eq!(bytes(&"00".repeat(65)), Err(BadDigits::TooLong));
    }

    proptest! {
        #[test]
        fn bytes_come_back_however_they_are_parted(
            bytes in proptest::collection::vec(any::<u8>(), 1..=64),
            between in prop_oneof![Just(""), Just(":"), Just(" "), Just("-"), Just("\u{a0}")],
            size in 1_usize..9,
            prefix: bool,
        ) {
            let groups: Vec<_> = bytes.chunks(size).map(hex::encode).collect();
            let text = format!("{}{}", if prefix { "0x" } else { "" }, groups.join(between));
            prop_assert_eq!(&read(&text, 64).unwrap().bytes[..], &bytes[..]);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}") {
            let _ = read(&text, 64);
            let _ = is_rounded(&text);
        }
    }
}
