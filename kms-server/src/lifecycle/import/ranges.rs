//! The meters that a signer owns: whatever his files say, they bring no others, and nobody else's bring these.

use super::meter::NewMeter;
use kms_core::SystemTitle;

/// Digits of a system title.
const DIGITS: usize = 16;

/// What a signer owns, and whose meters besides he may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Beginnings of meter ids. Empty: ids do not matter.
    pub meters: Vec<String>,
    /// Ranges of system titles. Empty: titles do not matter.
    pub titles: Vec<TitleRange>,
    /// Names of signers whose meters this one's files may change.
    pub may_change: Vec<String>,
}

/// System titles from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TitleRange {
    first: [u8; 8],
    last: [u8; 8],
}

/// Not a range of system titles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the first digits of a system title (4D4D4D), nor a first and a last one (16 hex digits, dash, 16)"
)]
pub struct BadRange;

impl std::str::FromStr for TitleRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let title = |digits: &str, fill: char| {
            let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            let whole: String =
                digits.chars().chain(std::iter::repeat(fill)).take(DIGITS).collect();
            let number = u64::from_str_radix(&whole, 16).map_err(|_| BadRange)?;
            (is_hex && digits.len() <= DIGITS).then(|| number.to_be_bytes()).ok_or(BadRange)
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) if first.len() == DIGITS && last.len() == DIGITS => {
                (title(first, '0')?, title(last, 'F')?)
            }
            Some(_) => return Err(BadRange),
            None if text.is_empty() => return Err(BadRange),
            None => (title(text, '0')?, title(text, 'F')?),
        };
        if first <= last { Ok(Self { first, last }) } else { Err(BadRange) }
    }
}

impl TitleRange {
    fn has(&self, title: &SystemTitle) -> bool {
        (self.first..=self.last).contains(title.as_bytes())
    }
}

impl Ranges {
    /// Whether all of what is said here is so of the meter.
    pub(super) fn has(&self, meter: &NewMeter) -> bool {
        (self.meters.is_empty() || self.has_id(meter))
            && (self.titles.is_empty() || self.has_title(meter))
    }

    /// Whether any of it is: another one's file does not get hold of a meter by giving it another id or title.
    pub(super) fn touches(&self, meter: &NewMeter) -> bool {
        self.has_id(meter) || self.has_title(meter)
    }

    fn has_id(&self, meter: &NewMeter) -> bool {
        self.meters.iter().any(|beginning| meter.meter_id.as_str().starts_with(beginning.as_str()))
    }

    fn has_title(&self, meter: &NewMeter) -> bool {
        self.titles.iter().any(|range| range.has(&meter.system_title))
    }

    /// What two sites compare; nothing where nothing is said.
    pub(super) fn parts(&self) -> Vec<Vec<u8>> {
        let Self { meters, titles, may_change } = self;
        let text = |kind: &str, text: &String| [kind.as_bytes(), text.as_bytes()].concat();
        let ids = meters.iter().map(|it| text("meters ", it));
        let titles = titles.iter().map(|it| [&b"titles "[..], &it.first, &it.last].concat());
        ids.chain(titles).chain(may_change.iter().map(|it| text("may change ", it))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_titles_is_its_first_digits_or_its_two_ends() {
        let has = |range: &str, title: u64| {
            let range: TitleRange = range.parse().unwrap();
            range.has(&SystemTitle::new(title.to_be_bytes()))
        };
        for (range, title, due) in [
            ("4D4D4D", 0x4D4D_4D00_0000_0000, true),
            ("4d4d4d", 0x4D4D_4DFF_FFFF_FFFF, true),
            ("4D4D4D", 0x4D4D_4E00_0000_0000, false),
            ("4D4D4", 0x4D4D_4F00_0000_0000, true),
            ("4D4D4D0000000010-4D4D4D000000001F", 0x4D4D_4D00_0000_0010, true),
            ("4D4D4D0000000010-4D4D4D000000001F", 0x4D4D_4D00_0000_001F, true),
            ("4D4D4D0000000010-4D4D4D000000001F", 0x4D4D_4D00_0000_0020, false),
        ] {
            assert_eq!(has(range, title), due, "{range} {title:X}");
        }
        for bad in ["", "4D4D4G", "4D4D4D-4D4D4E", "4D4D4D4D4D4D4D4D4D", "+D4D", "-"] {
            assert_eq!(bad.parse::<TitleRange>(), Err(BadRange), "{bad}");
        }
        assert!("4D4D4D0000000020-4D4D4D000000001F".parse::<TitleRange>().is_err());
    }
}
