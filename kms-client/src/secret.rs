//! Key bytes on their way from an import file to the service.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de};
use zeroize::Zeroizing;

/// The clear value of a key or an association secret. Wiped on drop.
///
/// Not `Clone`, not `PartialEq`, not `Serialize`: each of these would be a second way out. What the
/// transport copies into its own buffers on the way out is beyond reach, and is not wiped.
pub struct KeyBytes(Box<Zeroizing<Vec<u8>>>);

/// Not the value of a key. Says nothing about the value but its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeyValue {
    /// Other characters, or an odd number of them.
    #[error("a key value is an even number of hex digits")]
    NotHex,
    /// Nothing, or too much.
    #[error("a key value is 1 to {} bytes", KeyBytes::LEN_MAX)]
    Length,
}

impl KeyBytes {
    /// The longest association secret that is accepted, in bytes; keys are 16 or 32.
    pub const LEN_MAX: usize = 64;

    /// Reads hex digits, straight into a buffer that is wiped.
    pub fn from_hex(digits: &str) -> Result<Self, BadKeyValue> {
        let len = digits.len() / 2;
        if !(1..=Self::LEN_MAX).contains(&len) {
            return Err(BadKeyValue::Length);
        }
        let mut bytes = Box::new(Zeroizing::new(vec![0; len]));
        hex::decode_to_slice(digits, &mut bytes[..]).map_err(|_| BadKeyValue::NotHex)?;
        Ok(Self(bytes))
    }

    /// The only way to the bytes. The name is long so that a search finds every caller.
    pub fn expose_key_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For the wire: the same allocation, still wiped when its last user lets go.
    pub(crate) fn into_wiped_bytes(self) -> Bytes {
        Bytes::from_owner(*self.0)
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(_) = self;
        f.write_str("KeyBytes(..)")
    }
}

impl<'de> Deserialize<'de> for KeyBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(HexVisitor)
    }
}

/// Takes hex digits from where they stand. Text with escapes would leave a copy in the parser's
/// scratch buffer, so it is refused; and no message repeats the value.
struct HexVisitor;

impl<'de> de::Visitor<'de> for HexVisitor {
    type Value = KeyBytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hex digits")
    }

    fn visit_borrowed_str<E: de::Error>(self, digits: &'de str) -> Result<KeyBytes, E> {
        KeyBytes::from_hex(digits).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<KeyBytes, E> {
        Err(E::custom("a key value is plain hex digits, without escapes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "D491470F47126332B07D1923B3504188";

    #[test]
    fn debug_does_not_show_the_bytes() {
        let key = KeyBytes::from_hex(DIGITS).unwrap();
        assert_eq!(format!("{key:?}"), "KeyBytes(..)");
    }

    #[test]
    fn hex_goes_in_and_the_same_bytes_go_to_the_wire() {
        let key = KeyBytes::from_hex(DIGITS).unwrap();
        assert_eq!(hex::encode_upper(key.expose_key_bytes()), DIGITS);
        assert_eq!(hex::encode_upper(key.into_wiped_bytes()), DIGITS);
    }

    #[test]
    fn no_message_repeats_the_value() {
        for json in ["\"D491470F47126332B07D1923B350418X\"", "\"\\u0044491470F\"", "\"\""] {
            let error = serde_json::from_str::<KeyBytes>(json).unwrap_err().to_string();
            assert!(!error.contains("491470F"), "{error}");
        }
    }
}
