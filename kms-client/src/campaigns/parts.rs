//! Parts of messages that may be absent, and numbers that have to be smaller ones.

use kms_core::Numbered;

use crate::call::ProtocolError;
use crate::meter::numbered;

/// A part of a message that has to be there.
pub(super) fn there<T>(part: Option<T>, name: &'static str) -> Result<T, ProtocolError> {
    part.ok_or(ProtocolError::Missing(name))
}

/// A time that may be none.
pub(super) fn time(ms: u64) -> Option<u64> {
    Some(ms).filter(|ms| *ms > 0)
}

/// A sentence or a word that may be none.
pub(super) fn said(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// A number that has to be a smaller one.
pub(super) fn small<T: TryFrom<u32>>(what: &'static str, number: u32) -> Result<T, ProtocolError> {
    T::try_from(number).map_err(|_| ProtocolError::OutOfRange { what })
}

/// The item that a number stands for; 0: none.
pub(super) fn optional<T: Numbered>(number: i32) -> Result<Option<T>, ProtocolError> {
    (number != 0).then(|| numbered(number)).transpose()
}
