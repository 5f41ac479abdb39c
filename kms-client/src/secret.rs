//! Key bytes on their way from an import file to the service.

use std::fmt;

use bytes::Bytes;
use kms_core::DomainId;
use serde::{Deserialize, Deserializer, de};
use zeroize::Zeroizing;

use crate::digits::{self, BadDigits};

/// The clear value of a key or an association secret. Wiped on drop.
///
/// Not `Clone`, not `PartialEq`, not `Serialize`: each of these would be a second way out. What the
/// transport copies into its own buffers on the way out is beyond reach, and is not wiped.
pub struct KeyBytes(Box<Zeroizing<Vec<u8>>>);

/// Not the value of a key. Says nothing about the value but its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadKeyValue {
    /// Other characters.
    #[error("a key value is an even number of hex digits")]
    NotHex,
    /// Half a byte is left over.
    #[error(
        "{0} hex digits, and a key value has an even number: a leading zero may be lost, as \
         spreadsheets lose it: format the column as text"
    )]
    Odd(usize),
    /// Half a byte is left over in a group of digits.
    #[error("a group of digits has an odd number of them: write two for each byte")]
    OddGroup,
    /// A number, which has lost most of the digits.
    #[error(
        "a spreadsheet turned this key into a number (such as 1.2E+31) and its digits are lost: \
         format the column as text, and enter the keys again"
    )]
    Number,
    /// Two keys.
    #[error("two values in one place: were two columns merged?")]
    TwoValues,
    /// Nothing, or too much.
    #[error("a key value is 1 to {} bytes", KeyBytes::LEN_MAX)]
    Length,
}

impl From<BadDigits> for BadKeyValue {
    fn from(bad: BadDigits) -> Self {
        match bad {
            BadDigits::NotHex => Self::NotHex,
            BadDigits::Odd(digits) => Self::Odd(digits),
            BadDigits::OddGroup => Self::OddGroup,
            BadDigits::Number => Self::Number,
            BadDigits::Empty | BadDigits::TooLong => Self::Length,
        }
    }
}

impl KeyBytes {
    /// The longest association secret that is accepted, in bytes; keys are 16 or 32.
    pub const LEN_MAX: usize = 64;

    /// Digits of a key of 16 bytes: two groups of them are two keys, or one of 32 bytes, and which is
    /// not to be guessed.
    const ONE_KEY: usize = 32;

    /// Reads hex digits, straight into a buffer that is wiped. They may begin with `0x`, and colons,
    /// dashes or blanks may stand between bytes.
    pub fn from_hex(digits: &str) -> Result<Self, BadKeyValue> {
        let read = digits::read(digits, Self::LEN_MAX)?;
        if read.halves == Some([Self::ONE_KEY; 2]) {
            return Err(BadKeyValue::TwoValues);
        }
        Ok(Self(Box::new(read.bytes)))
    }

    /// Of bytes that are wiped already.
    pub(crate) fn of_wiped(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(Box::new(bytes))
    }

    /// The only way to the bytes. The name is long so that a search finds every caller.
    pub fn expose_key_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The check value of an AES key, by CMAC, in hexadecimal. `None`: of another length. The other convention, a block
    /// of zeros encrypted, would give away a part of what GCM authenticates with.
    pub fn check_value(&self) -> Option<String> {
        // The domain is in the fingerprint alone, which nobody gets here.
        let identified = kms_core::block::keys::identify_bytes(&DomainId([0; 16]), &self.0);
        identified.map(|(_, check_value)| hex::encode_upper(check_value))
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
    fn a_check_value_is_the_one_of_cmac_and_not_of_a_block_of_zeros() {
        // The other one of this published key begins with C6A13B.
        let key = KeyBytes::from_hex("000102030405060708090A0B0C0D0E0F").unwrap();
        assert_eq!(key.check_value().as_deref(), Some("BE7ED6AE78"));
        assert_eq!(KeyBytes::from_hex("0011").unwrap().check_value(), None);
    }

    #[test]
    fn no_message_repeats_the_value() {
        for json in ["\"D491470F47126332B07D1923B350418X\"", "\"\\u0044491470F\"", "\"\""] {
            let error = serde_json::from_str::<KeyBytes>(json).unwrap_err().to_string();
            assert!(!error.contains("491470F"), "{error}");
        }
    }
}
