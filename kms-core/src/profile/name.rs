//! Names of device profiles.

use std::fmt;

/// The name of a device profile: 1 to 32 small letters, digits, dashes and dots, the first one a letter or a digit.
/// Its file is called by it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileName(Box<str>);

/// Not the name of a profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a profile's name is 1 to {} small letters, digits, dashes and dots, the first one a letter or a digit",
    ProfileName::LEN_MAX
)]
pub struct BadProfileName;

impl ProfileName {
    /// In bytes.
    pub const LEN_MAX: usize = 32;

    /// Checks length and characters.
    pub fn new(name: &str) -> Result<Self, BadProfileName> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let mut bytes = name.bytes();
        let begins = bytes.next().is_some_and(plain);
        let fits = name.len() <= Self::LEN_MAX;
        if begins && fits && bytes.all(|byte| plain(byte) || matches!(byte, b'-' | b'.')) {
            Ok(Self(name.into()))
        } else {
            Err(BadProfileName)
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ProfileName {
    type Err = BadProfileName;

    fn from_str(name: &str) -> Result<Self, BadProfileName> {
        Self::new(name)
    }
}

impl fmt::Display for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ProfileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProfileName({})", self.0)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for ProfileName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for ProfileName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <String as serde::Deserialize>::deserialize(deserializer)?;
        Self::new(&name).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profiles_name_is_one_that_a_file_may_have_anywhere() {
        for name in ["dlms", "gbcs-1.4", "0", &"x".repeat(32)] {
            assert_eq!(ProfileName::new(name).unwrap().as_str(), name);
        }
        for name in ["", "-a", ".toml", "A", "a/b", "a b", "a_b", "ä", &"x".repeat(33)] {
            assert_eq!(ProfileName::new(name), Err(BadProfileName), "{name:?}");
        }
    }
}
