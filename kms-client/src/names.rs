//! How a meter is named: by the operator, and on the wire.

use std::fmt;

use dlms::SystemTitle;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digits;

/// The operator's name for a meter: 1 to 64 visible ASCII characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterId(Box<str>);

/// Not a meter id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a meter id is 1 to {} visible ASCII characters without spaces", MeterId::LEN_MAX)]
pub struct BadMeterId;

impl MeterId {
    /// In bytes.
    pub const LEN_MAX: usize = 64;

    /// Checks length and characters.
    pub fn new(id: &str) -> Result<Self, BadMeterId> {
        let fits = (1..=Self::LEN_MAX).contains(&id.len());
        if fits && id.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(id.into()))
        } else {
            Err(BadMeterId)
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MeterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MeterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeterId({})", self.0)
    }
}

impl std::str::FromStr for MeterId {
    type Err = BadMeterId;

    fn from_str(id: &str) -> Result<Self, BadMeterId> {
        Self::new(id)
    }
}

impl Serialize for MeterId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for MeterId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = String::deserialize(deserializer)?;
        Self::new(&id).map_err(de::Error::custom)
    }
}

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
    fn a_meter_id_is_not_empty_long_or_spaced() {
        assert!(MeterId::new("").is_err());
        assert!(MeterId::new(&"x".repeat(65)).is_err());
        assert!(MeterId::new("a b").is_err());
        assert!(MeterId::new("ä").is_err());
        assert_eq!(MeterId::new("KFM-1000/7").unwrap().as_str(), "KFM-1000/7");
    }

    #[test]
    fn a_title_of_any_other_length_is_not_a_title() {
        assert!(parse_system_title("4D4D4D000000BC").is_err());
        assert!(parse_system_title("4D4D4D0000BC614E00").is_err());
        assert!(parse_system_title("4D4D4D0000BC614X").is_err());
        let title = parse_system_title("4d4d4d0000bc614e").unwrap();
        assert_eq!(title_text(&title), "4D4D4D0000BC614E");
    }
}
