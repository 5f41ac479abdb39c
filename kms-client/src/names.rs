//! The names of a meter: the operator's, and the one on the wire.

use dlms::SystemTitle;

use crate::digits;

pub use kms_core::MeterId;
pub use kms_core::meter::BadMeterId;

/// One of the two names of a meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeterName {
    /// The operator's.
    Id(MeterId),
    /// The one on the wire.
    Title(SystemTitle),
}

/// Not a system title.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a system title is 8 bytes: 16 hex digits")]
pub struct BadSystemTitle;

/// Reads 16 hex digits, in either case. They may begin with `0x`, and colons, dashes or blanks may stand
/// between bytes.
pub fn parse_system_title(text: &str) -> Result<SystemTitle, BadSystemTitle> {
    let digits = digits::read(text, 8).map_err(|_| BadSystemTitle)?;
    SystemTitle::try_from(&digits.bytes[..]).map_err(|_| BadSystemTitle)
}

/// Writes 16 hex digits, in upper case.
pub fn title_text(title: &SystemTitle) -> String {
    hex::encode_upper(title.as_bytes())
}

/// A title as hex digits, for serde.
pub(crate) mod title_hex {
    use super::{SystemTitle, parse_system_title, title_text};
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(
        title: &SystemTitle,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&title_text(title))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTitle, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_system_title(&text).map_err(de::Error::custom)
    }
}

/// A title that may be absent, for serde.
pub(crate) mod optional_title_hex {
    use super::{SystemTitle, parse_system_title, title_text};
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(
        title: &Option<SystemTitle>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match title {
            Some(title) => serializer.serialize_str(&title_text(title)),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTitle>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| parse_system_title(&text).map_err(de::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_of_any_other_length_is_not_a_title() {
        assert!(parse_system_title("4D4D4D000000BC").is_err());
        assert!(parse_system_title("4D4D4D0000BC614E00").is_err());
        assert!(parse_system_title("4D4D4D0000BC614X").is_err());
        let title = parse_system_title("4d4d4d0000bc614e").unwrap();
        assert_eq!(title_text(&title), "4D4D4D0000BC614E");
    }
}
