//! The security control byte, first of the security header.

use core::fmt;

/// A security suite: which algorithms and key lengths hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    /// AES-GCM-128, AES-128 key wrap.
    Suite0,
    /// As suite 0, with ECDSA and ECDH on P-256.
    Suite1,
    /// AES-GCM-256, AES-256 key wrap, ECDSA and ECDH on P-384.
    Suite2,
}

impl Suite {
    /// Length of every symmetric key of the suite (encryption, authentication, key encryption,
    /// dedicated), in bytes.
    //= Green Book, "Security suites": 128 bits in suites 0 and 1, 256 bits in suite 2
    pub const fn key_len(self) -> usize {
        match self {
            Self::Suite0 | Self::Suite1 => 16,
            Self::Suite2 => 32,
        }
    }

    /// The suite's number, 0 to 2.
    pub const fn number(self) -> u8 {
        match self {
            Self::Suite0 => 0,
            Self::Suite1 => 1,
            Self::Suite2 => 2,
        }
    }
}

impl TryFrom<u8> for Suite {
    type Error = UnknownSuite;

    fn try_from(number: u8) -> Result<Self, UnknownSuite> {
        match number {
            0 => Ok(Self::Suite0),
            1 => Ok(Self::Suite1),
            2 => Ok(Self::Suite2),
            reserved => Err(UnknownSuite(reserved)),
        }
    }
}

/// A suite number that the standard reserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSuite(
    /// The number.
    pub u8,
);

impl fmt::Display for UnknownSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "security suite {} is reserved", self.0)
    }
}

impl core::error::Error for UnknownSuite {}

/// The key set of an APDU: said by the security control byte or, in general-ciphering, by key-info.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySet {
    /// The global unicast encryption key, GUEK (or the key of the association or exchange).
    Unicast,
    /// The global broadcast encryption key, GBEK.
    Broadcast,
}

/// The security control byte, taken apart without loss.
///
/// It says what the sender claims, not what is allowed: a byte with neither protection is a value too,
/// and which combinations a form may carry is checked by [`crate::CipheredApdu::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecurityControl {
    /// Bits 3 to 0.
    pub suite: Suite,
    /// Bit 6.
    pub key_set: KeySet,
    /// Bit 4: a tag is at the end.
    pub authenticated: bool,
    /// Bit 5: the content is ciphertext.
    pub encrypted: bool,
    /// Bit 7: the APDU was compressed (ITU-T V.44) before it was protected.
    pub compressed: bool,
}

//= Green Book, security header, table "Security control byte"
//# bits 3…0 suite; bit 4 authentication; bit 5 encryption; bit 6 key set; bit 7 compression
const SUITE: u8 = 0b0000_1111;
const AUTHENTICATED: u8 = 0b0001_0000;
const ENCRYPTED: u8 = 0b0010_0000;
const BROADCAST: u8 = 0b0100_0000;
const COMPRESSED: u8 = 0b1000_0000;

impl SecurityControl {
    /// Authentication and encryption under the unicast key: `30`, `31`, `32`.
    pub const fn authenticated_encryption(suite: Suite) -> Self {
        Self {
            suite,
            key_set: KeySet::Unicast,
            authenticated: true,
            encrypted: true,
            compressed: false,
        }
    }

    /// Authentication only, under the unicast key: `10`, `11`, `12`.
    pub const fn authentication_only(suite: Suite) -> Self {
        Self { encrypted: false, ..Self::authenticated_encryption(suite) }
    }

    /// Reads the byte. Every byte whose suite is not reserved is one value, and the other way round.
    pub fn from_byte(byte: u8) -> Result<Self, UnknownSuite> {
        let suite = Suite::try_from(byte & SUITE)?;
        let key_set = if byte & BROADCAST == 0 { KeySet::Unicast } else { KeySet::Broadcast };
        Ok(Self {
            suite,
            key_set,
            authenticated: byte & AUTHENTICATED != 0,
            encrypted: byte & ENCRYPTED != 0,
            compressed: byte & COMPRESSED != 0,
        })
    }

    /// The byte as it stands on the wire and in the additional authenticated data.
    pub const fn to_byte(self) -> u8 {
        let Self { suite, key_set, authenticated, encrypted, compressed } = self;
        suite.number()
            | if authenticated { AUTHENTICATED } else { 0 }
            | if encrypted { ENCRYPTED } else { 0 }
            | match key_set {
                KeySet::Unicast => 0,
                KeySet::Broadcast => BROADCAST,
            }
            | if compressed { COMPRESSED } else { 0 }
    }
}
