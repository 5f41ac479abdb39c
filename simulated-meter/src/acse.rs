//! Opening and releasing an association: AARQ, AARE, RLRQ, RLRE, in BER as far as DLMS uses it.

use crate::{
    keys::Title,
    octets::{Octets, put_counted},
};

/// `60 85 74 05 08 01 nn`: logical names, with (3) or without (1) ciphering.
const CONTEXT: [u8; 6] = [0x60, 0x85, 0x74, 0x05, 0x08, 0x01];
const MECHANISM: [u8; 6] = [0x60, 0x85, 0x74, 0x05, 0x08, 0x02];

/// RLRQ: the association is given up.
pub const RELEASE: [u8; 5] = [0x62, 0x03, 0x80, 0x01, 0x00];
/// RLRE: it was.
pub const RELEASED: [u8; 5] = [0x63, 0x03, 0x80, 0x01, 0x00];

/// InitiateRequest of a client that wants to get, set and act.
pub const INITIATE: [u8; 14] =
    [0x01, 0x00, 0x00, 0x00, 0x06, 0x5f, 0x1f, 0x04, 0x00, 0x00, 0x7e, 0x1f, 0xff, 0xff];
/// InitiateResponse to it.
pub const INITIATED: [u8; 14] =
    [0x08, 0x00, 0x06, 0x5f, 0x1f, 0x04, 0x00, 0x00, 0x10, 0x1d, 0x04, 0x00, 0x00, 0x07];

/// An AARQ or an AARE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// An answer (AARE), and its result: 0 is accepted. None is an AARQ.
    pub result: Option<u8>,
    /// Whether the context is one with ciphering.
    pub ciphered: bool,
    /// Title of whoever speaks.
    pub title: Option<Title>,
    /// Mechanism of authentication.
    pub mechanism: Option<u8>,
    /// Challenge, or password.
    pub challenge: Vec<u8>,
    /// InitiateRequest or -Response, plain or ciphered.
    pub user: Vec<u8>,
}

impl Opening {
    /// Reads an AARQ or AARE. Fields that say nothing here are passed over.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut octets = Octets(bytes);
        let is_answer = match octets.byte()? {
            0x60 => false,
            0x61 => true,
            _ => return None,
        };
        let mut fields = Octets(octets.counted()?);
        octets.end()?;
        let mut opening = Self { result: is_answer.then_some(1), ..Self::default() };
        while !fields.0.is_empty() {
            let tag = fields.byte()?;
            let field = fields.counted()?;
            opening.field(tag, field, is_answer)?;
        }
        Some(opening)
    }

    fn field(&mut self, tag: u8, field: &[u8], is_answer: bool) -> Option<()> {
        match (tag, is_answer) {
            (0xa1, _) => self.ciphered = inner(field, 0x06)?.strip_prefix(&CONTEXT)? == [3],
            (0xa2, true) => self.result = inner(field, 0x02)?.last().copied(),
            (0xa6, false) | (0xa4, true) => self.title = inner(field, 0x04)?.try_into().ok(),
            (0x8b, false) | (0x89, true) => {
                self.mechanism = field.strip_prefix(&MECHANISM)?.first().copied();
            }
            (0xac, false) | (0xaa, true) => self.challenge = inner(field, 0x80)?.to_vec(),
            (0xbe, _) => self.user = inner(field, 0x04)?.to_vec(),
            _ => {}
        }
        Some(())
    }

    /// Its bytes.
    pub fn write(&self) -> Vec<u8> {
        let is_answer = self.result.is_some();
        let either = |asking: u8, answering: u8| if is_answer { answering } else { asking };
        let mut out = Vec::new();
        let context = [&CONTEXT[..], &[if self.ciphered { 3 } else { 1 }]].concat();
        put(&mut out, 0xa1, &wrapped(0x06, &context));
        if let Some(result) = self.result {
            put(&mut out, 0xa2, &[2, 1, result]);
            // Diagnostic of the service's user: authentication is due (14), has failed (13), or nothing is said.
            let said = match (result, self.mechanism) {
                (0, Some(1..)) => 14,
                (0, _) => 0,
                _ => 13,
            };
            put(&mut out, 0xa3, &[0xa1, 3, 2, 1, said]);
        }
        if let Some(title) = self.title {
            put(&mut out, either(0xa6, 0xa4), &wrapped(0x04, &title));
        }
        if let Some(mechanism) = self.mechanism {
            put(&mut out, either(0x8a, 0x88), &[7, 0x80]);
            put(&mut out, either(0x8b, 0x89), &[&MECHANISM[..], &[mechanism]].concat());
            put(&mut out, either(0xac, 0xaa), &wrapped(0x80, &self.challenge));
        }
        if !self.user.is_empty() {
            put(&mut out, 0xbe, &wrapped(0x04, &self.user));
        }
        wrapped(either(0x60, 0x61), &out)
    }
}

/// The dedicated key of a plain InitiateRequest, if it has one.
pub(crate) fn dedicated_key(initiate: &[u8]) -> Option<Vec<u8>> {
    let mut octets = Octets(initiate);
    let [1, 1] = octets.array::<2>()? else { return None };
    Some(octets.counted()?.to_vec())
}

/// InitiateRequest with a dedicated key.
pub fn initiate_with(dedicated: &[u8]) -> Vec<u8> {
    let mut out = vec![1, 1];
    put_counted(&mut out, dedicated);
    out.extend(&INITIATE[2..]);
    out
}

fn inner(field: &[u8], tag: u8) -> Option<&[u8]> {
    let mut octets = Octets(field);
    (octets.byte()? == tag).then(|| octets.counted()).flatten()
}

fn put(out: &mut Vec<u8>, tag: u8, field: &[u8]) {
    out.push(tag);
    put_counted(out, field);
}

fn wrapped(tag: u8, field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, tag, field);
    out
}
