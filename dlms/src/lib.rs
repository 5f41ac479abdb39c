//! DLMS/COSEM message security.
#![no_std]
#![forbid(unsafe_code)]

/// The name of one DLMS device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemTitle([u8; 8]);

impl SystemTitle {
    /// Wraps a title that is already known to be eight bytes.
    pub const fn new(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }
    /// The bytes as they stand on the wire.
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}
