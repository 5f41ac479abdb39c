//! The wire.

pub mod certificate;
