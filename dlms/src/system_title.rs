//! The name of a DLMS device on the wire.

use core::fmt;
use core::str::FromStr;

/// The name of one DLMS device: three letters of its maker, then five bytes of its own.
///
/// Public; it travels in clear. It is the first 8 of the 12 nonce bytes, so no two devices that share
/// a key may share a title. Any eight bytes are one: clients with an all-zero title exist.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemTitle([u8; Self::LEN]);

impl SystemTitle {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 8;

    /// Wraps a title that is already known to be eight bytes.
    pub const fn new(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes as they stand on the wire.
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The initialization vector of the message `invocation_counter` of this device.
    //= Green Book, "Initialization vector": system title (8), then invocation counter (4, big-endian)
    pub fn nonce(&self, invocation_counter: u32) -> [u8; crate::NONCE_LEN] {
        let mut nonce = [0; crate::NONCE_LEN];
        let (fixed, counting) = nonce.split_at_mut(Self::LEN);
        fixed.copy_from_slice(&self.0);
        counting.copy_from_slice(&invocation_counter.to_be_bytes());
        nonce
    }
}

impl TryFrom<&[u8]> for SystemTitle {
    type Error = NotASystemTitle;

    fn try_from(bytes: &[u8]) -> Result<Self, NotASystemTitle> {
        bytes.try_into().map(Self).map_err(|_| NotASystemTitle)
    }
}

impl FromStr for SystemTitle {
    type Err = NotASystemTitle;

    /// Reads 16 hexadecimal digits, in either case, with nothing around them.
    fn from_str(text: &str) -> Result<Self, NotASystemTitle> {
        let digits: &[u8; 2 * Self::LEN] =
            text.as_bytes().try_into().map_err(|_| NotASystemTitle)?;
        let mut bytes = [0; Self::LEN];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            let [high, low] = *pair;
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Ok(Self(bytes))
    }
}

fn digit(character: u8) -> Result<u8, NotASystemTitle> {
    let value = char::from(character).to_digit(16).ok_or(NotASystemTitle)?;
    u8::try_from(value).map_err(|_| NotASystemTitle)
}

impl fmt::Display for SystemTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for SystemTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SystemTitle({self})")
    }
}

/// Not eight bytes, or not sixteen hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotASystemTitle;

impl fmt::Display for NotASystemTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a system title is 8 bytes, written as 16 hexadecimal digits")
    }
}

impl core::error::Error for NotASystemTitle {}
