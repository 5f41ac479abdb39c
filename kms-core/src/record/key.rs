//! Names of records.

use dlms::SystemTitle;

use crate::{counters::LineName, fact::FactName};

/// A record's name within its domain: a byte for what it is about, and its name among those. Orders the
/// digest, as a database orders the bytes.
///
/// No key of ours begins another one, so that key and body stand side by side in a MAC's input: a meter's has
/// nine bytes, any other one's length is its second byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Filled up with zeros: of two of which one begins the other, the shorter comes first.
    bytes: [u8; RecordKey::LEN_MAX],
    len: u8,
}

impl RecordKey {
    /// The most bytes of a key.
    pub const LEN_MAX: usize = 32;
    /// The kind byte of meters.
    const METER: u8 = 1;
    /// The length of a meter's key: the kind byte and a title.
    const METER_LEN: usize = 9;
    /// The kind byte of counter lines.
    const LINE: u8 = 2;
    /// The length of a line's key: the kind byte, itself, a fingerprint and a title.
    const LINE_LEN: usize = 2 + 16 + 8;

    /// The record of the meter with this title, alive or buried.
    pub fn meter(title: &SystemTitle) -> Self {
        let mut key = [Self::METER; Self::METER_LEN];
        key[1..].copy_from_slice(title.as_bytes());
        Self::filled(&key)
    }

    /// The record of a counter line.
    pub fn line(name: &LineName) -> Self {
        let LineName { fingerprint, originator } = name;
        let mut key = [Self::LINE; Self::LINE_LEN];
        key[1] = Self::LINE_LEN as u8;
        key[2..18].copy_from_slice(&fingerprint.0);
        key[18..].copy_from_slice(originator.as_bytes());
        Self::filled(&key)
    }

    /// The record of a fact of the domain.
    pub fn fact(name: &FactName) -> Self {
        let mut key = [name.kind; Self::LEN_MAX];
        key[1] = Self::LEN_MAX as u8;
        key[2..].copy_from_slice(&name.name);
        Self::filled(&key)
    }

    /// A key as it is stored, well-formed or not; `None`: no key has so many bytes, or so few.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (1..=Self::LEN_MAX).contains(&bytes.len()).then(|| Self::filled(bytes))
    }

    /// The well-formed key that these bytes begin with, and what comes behind it.
    pub(crate) fn first_of(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let len = match bytes {
            [Self::METER, ..] => Self::METER_LEN,
            [_, len, ..] => usize::from(*len),
            _ => return None,
        };
        let (key, rest) = bytes.split_at_checked(len)?;
        Some((Self::from_bytes(key)?, rest))
    }

    fn filled(bytes: &[u8]) -> Self {
        let mut filled = [0; Self::LEN_MAX];
        for (to, from) in filled.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self { bytes: filled, len: bytes.len().min(Self::LEN_MAX) as u8 }
    }

    /// The bytes that are stored.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Whether it is a key that this release, or a later one, writes: its kind says how long it is.
    pub fn is_well_formed(&self) -> bool {
        match self.as_bytes() {
            [Self::METER, ..] => usize::from(self.len) == Self::METER_LEN,
            [_, len, ..] => *len == self.len,
            _ => false,
        }
    }

    /// Whether it is a meter's.
    pub fn is_meter(&self) -> bool {
        self.bytes.first() == Some(&Self::METER) && usize::from(self.len) == Self::METER_LEN
    }

    /// The title in a meter's key, or in one that may have been a meter's before its kind was changed.
    pub fn system_title(&self) -> Option<SystemTitle> {
        match self.as_bytes() {
            [_, title @ ..] => title.try_into().ok().map(SystemTitle::new),
            [] => None,
        }
    }
}

impl std::fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecordKey({})", hex::encode(self.as_bytes()))
    }
}

/// For the sentences of errors: whose record it is.
impl std::fmt::Display for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.system_title().filter(|_| self.is_meter()) {
            Some(title) => write!(f, "meter {title}"),
            None => f.write_str(&hex::encode(self.as_bytes())),
        }
    }
}
