//! GET, SET and ACTION, the answers to them, and the exception: plain APDUs.

use crate::{keys::KeyId, octets::Octets, value::Value};

/// Deep enough for every argument that a meter here understands.
const DEPTH: u8 = 8;

/// Results of a service: data-access-result and action-result share these numbers.
pub mod result {
    /// Done.
    pub const SUCCESS: u8 = 0;
    /// The association may not do that.
    pub const DENIED: u8 = 3;
    /// There is no such object.
    pub const UNDEFINED: u8 = 4;
    /// Another type was due.
    pub const TYPE_UNMATCHED: u8 = 12;
    /// The meter did not do it and says no more.
    pub const OTHER: u8 = 250;
}

/// Class, instance (an OBIS code), and number of an attribute or a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Class of the object.
    pub class: u16,
    /// Its logical name.
    pub instance: [u8; 6],
    /// Attribute or method.
    pub index: u8,
}

/// The clock's time.
pub const CLOCK: Place = Place { class: 8, instance: [0, 0, 1, 0, 0, 255], index: 2 };
/// A text that may be read and set.
pub const LABEL: Place = Place { class: 1, instance: [0, 0, 96, 1, 0, 255], index: 2 };
/// Passes 3 and 4 of high-level security.
pub const REPLY_TO_HLS: Place = Place { class: 15, instance: [0, 0, 40, 0, 0, 255], index: 1 };

/// The invocation counter that belongs to a security setup.
pub fn counter_of(setup: u8) -> Place {
    Place { class: 1, instance: [0, 0, 43, 1, setup, 255], index: 2 }
}

/// Attribute or method of a security setup.
pub fn setup_of(setup: u8, index: u8) -> Place {
    Place { class: 64, instance: [0, 0, 43, 0, setup, 255], index }
}

/// What is asked of a meter. `id` is invoke-id-and-priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// get-request-normal
    Get {
        /// invoke-id and priority
        id: u8,
        /// the attribute
        at: Place,
    },
    /// set-request-normal
    Set {
        /// invoke-id and priority
        id: u8,
        /// the attribute
        at: Place,
        /// its new value
        value: Value,
    },
    /// action-request-normal
    Act {
        /// invoke-id and priority
        id: u8,
        /// the method
        at: Place,
        /// its parameter
        argument: Option<Value>,
    },
}

impl Request {
    /// A transfer of wrapped keys to a security setup (class 64, method 2).
    pub fn transfer(setup: u8, keys: &[(KeyId, Vec<u8>)]) -> Self {
        let one = |(id, wrapped): &(KeyId, Vec<u8>)| {
            Value::Structure(vec![Value::Enum(*id as u8), Value::Octets(wrapped.clone())])
        };
        let argument = Some(Value::Array(keys.iter().map(one).collect()));
        Self::Act { id: 0xc1, at: setup_of(setup, 2), argument }
    }

    /// Reads a plain request; nothing may follow it.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut octets = Octets(bytes);
        let (tag, normal, id) = (octets.byte()?, octets.byte()?, octets.byte()?);
        let at = Place {
            class: u16::from_be_bytes(octets.array()?),
            instance: octets.array()?,
            index: octets.byte()?,
        };
        let behind = octets.byte()?;
        let request = match (tag, normal, behind) {
            (0xc0, 1, 0) => Self::Get { id, at },
            (0xc1, 1, 0) => Self::Set { id, at, value: Value::take(&mut octets, DEPTH)? },
            (0xc3, 1, 0) => Self::Act { id, at, argument: None },
            (0xc3, 1, _) => Self::Act { id, at, argument: Some(Value::take(&mut octets, DEPTH)?) },
            _ => return None,
        };
        octets.end()?;
        Some(request)
    }

    /// Its bytes.
    pub fn write(&self) -> Vec<u8> {
        let (tag, id, at) = match self {
            Self::Get { id, at } => (0xc0, id, at),
            Self::Set { id, at, .. } => (0xc1, id, at),
            Self::Act { id, at, .. } => (0xc3, id, at),
        };
        let mut out = vec![tag, 1, *id];
        out.extend(at.class.to_be_bytes());
        out.extend(at.instance);
        out.push(at.index);
        match self {
            Self::Get { .. } | Self::Act { argument: None, .. } => out.push(0),
            Self::Set { value, .. } => {
                out.push(0);
                value.write(&mut out);
            }
            Self::Act { argument: Some(value), .. } => {
                out.push(1);
                value.write(&mut out);
            }
        }
        out
    }
}

/// What a meter answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// get-response-normal: the value, or a result that is not success.
    Got {
        /// invoke-id and priority of the request
        id: u8,
        /// what came of it
        got: Result<Value, u8>,
    },
    /// set-response-normal
    Set {
        /// invoke-id and priority of the request
        id: u8,
        /// what came of it
        result: u8,
    },
    /// action-response-normal
    Acted {
        /// invoke-id and priority of the request
        id: u8,
        /// what came of it
        result: u8,
        /// what the method gives back
        returned: Option<Value>,
    },
}

impl Response {
    /// Reads a plain response; nothing may follow it.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut octets = Octets(bytes);
        let (tag, normal, id, next) =
            (octets.byte()?, octets.byte()?, octets.byte()?, octets.byte()?);
        let response = match (tag, normal, next) {
            (0xc4, 1, 0) => Self::Got { id, got: Ok(Value::take(&mut octets, DEPTH)?) },
            (0xc4, 1, 1) => Self::Got { id, got: Err(octets.byte()?) },
            (0xc5, 1, result) => Self::Set { id, result },
            (0xc7, 1, result) => {
                let returned = match octets.byte()? {
                    0 => None,
                    // A result of the reading: 0 is data.
                    _ => (octets.byte()? == 0).then(|| Value::take(&mut octets, DEPTH)).flatten(),
                };
                Self::Acted { id, result, returned }
            }
            _ => return None,
        };
        octets.end()?;
        Some(response)
    }

    /// Its bytes.
    pub fn write(&self) -> Vec<u8> {
        match self {
            Self::Got { id, got: Ok(value) } => {
                let mut out = vec![0xc4, 1, *id, 0];
                value.write(&mut out);
                out
            }
            Self::Got { id, got: Err(result) } => vec![0xc4, 1, *id, 1, *result],
            Self::Set { id, result } => vec![0xc5, 1, *id, *result],
            Self::Acted { id, result, returned: None } => vec![0xc7, 1, *id, *result, 0],
            Self::Acted { id, result, returned: Some(value) } => {
                let mut out = vec![0xc7, 1, *id, *result, 1, 0];
                value.write(&mut out);
                out
            }
        }
    }
}

/// exception-response. Never protected, so never more than a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// The association is not there or may not do that.
    NotAllowed,
    /// Not understood.
    NotSupported,
    /// It does not open under the keys that the meter uses.
    Deciphering,
    /// The counter is too low or too far; this one is expected.
    Counter(u32),
}

impl Exception {
    /// Its bytes.
    pub fn write(self) -> Vec<u8> {
        match self {
            Self::NotAllowed => vec![0xd8, 1, 1],
            Self::NotSupported => vec![0xd8, 2, 2],
            Self::Deciphering => vec![0xd8, 1, 5],
            Self::Counter(expected) => [&[0xd8, 1, 6], &expected.to_be_bytes()[..]].concat(),
        }
    }

    /// Reads one.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xd8, 1, 1] => Some(Self::NotAllowed),
            [0xd8, 2, 2] => Some(Self::NotSupported),
            [0xd8, 1, 5] => Some(Self::Deciphering),
            [0xd8, 1, 6, rest @ ..] => {
                Some(Self::Counter(u32::from_be_bytes(rest.try_into().ok()?)))
            }
            _ => None,
        }
    }
}
