//! The name of a request: in the service's log, in its answer, in its errors.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

use tonic::metadata::{Ascii, MetadataValue};

/// The key of a call's metadata that it stands under.
pub(crate) const HEADER: &str = "x-request-id";
/// The key of `ErrorInfo.metadata` that it stands under.
pub(crate) const METADATA_KEY: &str = "request_id";

/// 1 to 64 letters, digits, `-`, `_`, `.` and `:`. It names, it does not authorise: no secret belongs
/// in it, nor a meter's id.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestId(MetadataValue<Ascii>);

/// Not a request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request id is 1 to {} letters, digits, `-`, `_`, `.` and `:`", RequestId::LEN_MAX)]
pub struct BadRequestId;

impl RequestId {
    /// In bytes.
    pub const LEN_MAX: usize = 64;

    /// Checks length and characters.
    pub fn new(id: &str) -> Result<Self, BadRequestId> {
        let is_plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        if !(1..=Self::LEN_MAX).contains(&id.len()) || !id.bytes().all(is_plain) {
            return Err(BadRequestId);
        }
        id.parse().map(Self).map_err(|_| BadRequestId)
    }

    /// 16 hex digits, most likely used by nobody else.
    pub fn random() -> Self {
        // The standard library's hasher is seeded from the operating system.
        let id = format!("{:016x}", RandomState::new().hash_one(0_u8));
        Self(id.parse().unwrap_or(MetadataValue::from_static("0")))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(crate) fn metadata(&self) -> MetadataValue<Ascii> {
        self.0.clone()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({self})")
    }
}

impl std::str::FromStr for RequestId {
    type Err = BadRequestId;

    fn from_str(id: &str) -> Result<Self, BadRequestId> {
        Self::new(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_and_short() {
        let long = "x".repeat(RequestId::LEN_MAX);
        for id in ["7", "hes-1:2026.11_22", &long] {
            assert_eq!(RequestId::new(id).unwrap().as_str(), id);
        }
        for id in ["", "a b", "a\"b", "a\nb", &format!("{long}x")] {
            assert_eq!(RequestId::new(id), Err(BadRequestId), "{id:?}");
        }
    }

    #[test]
    fn random_ids_are_well_formed_and_differ() {
        let (one, other) = (RequestId::random(), RequestId::random());
        assert_eq!(RequestId::new(one.as_str()).unwrap(), one);
        assert_eq!(one.as_str().len(), 16);
        assert_ne!(one, other);
    }
}
