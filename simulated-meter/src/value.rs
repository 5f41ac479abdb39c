//! COSEM data in A-XDR, as far as a meter of tests says them.

use crate::octets::{Octets, put_counted, put_length};

/// One piece of COSEM data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// null-data
    Null,
    /// array
    Array(Vec<Value>),
    /// structure
    Structure(Vec<Value>),
    /// boolean
    Bool(bool),
    /// double-long-unsigned
    U32(u32),
    /// octet-string
    Octets(Vec<u8>),
    /// visible-string
    Text(Vec<u8>),
    /// integer
    I8(i8),
    /// unsigned
    U8(u8),
    /// long-unsigned
    U16(u16),
    /// enum
    Enum(u8),
}

/// Deeper than anything that a meter is sent; what is deeper is not followed.
const DEPTH: u8 = 8;

impl Value {
    /// The value that `bytes` are, if they are one and no more.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut octets = Octets(bytes);
        let value = Self::take(&mut octets, DEPTH)?;
        octets.end()?;
        Some(value)
    }

    pub(crate) fn take(octets: &mut Octets<'_>, depth: u8) -> Option<Self> {
        Some(match octets.byte()? {
            0 => Self::Null,
            1 => Self::Array(Self::several(octets, depth.checked_sub(1)?)?),
            2 => Self::Structure(Self::several(octets, depth.checked_sub(1)?)?),
            3 => Self::Bool(octets.byte()? != 0),
            6 => Self::U32(octets.number()?),
            9 => Self::Octets(octets.counted()?.to_vec()),
            10 => Self::Text(octets.counted()?.to_vec()),
            15 => Self::I8(i8::from_be_bytes(octets.array()?)),
            17 => Self::U8(octets.byte()?),
            18 => Self::U16(u16::from_be_bytes(octets.array()?)),
            22 => Self::Enum(octets.byte()?),
            _ => return None,
        })
    }

    fn several(octets: &mut Octets<'_>, depth: u8) -> Option<Vec<Self>> {
        let count = octets.length()?;
        // Each takes a byte at least: what says more is not believed.
        if count > octets.0.len() {
            return None;
        }
        (0..count).map(|_| Self::take(octets, depth)).collect()
    }

    /// Appends its bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(0),
            Self::Array(values) => Self::write_several(out, 1, values),
            Self::Structure(values) => Self::write_several(out, 2, values),
            Self::Bool(it) => out.extend([3, u8::from(*it)]),
            Self::U32(it) => {
                out.push(6);
                out.extend(it.to_be_bytes());
            }
            Self::Octets(bytes) => {
                out.push(9);
                put_counted(out, bytes);
            }
            Self::Text(bytes) => {
                out.push(10);
                put_counted(out, bytes);
            }
            Self::I8(it) => out.extend([15, it.to_be_bytes()[0]]),
            Self::U8(it) => out.extend([17, *it]),
            Self::U16(it) => {
                out.push(18);
                out.extend(it.to_be_bytes());
            }
            Self::Enum(it) => out.extend([22, *it]),
        }
    }

    fn write_several(out: &mut Vec<u8>, tag: u8, values: &[Self]) {
        out.push(tag);
        put_length(out, values.len());
        values.iter().for_each(|value| value.write(out));
    }
}
