//! TLS 1.3 with a certificate on both sides: certificates, authorities and revocation lists out of files, held
//! against each other and taken into use. May name `access`, for a caller's name, and the configuration.

pub(crate) mod authorities;
pub(crate) mod certificate;
pub(crate) mod checking;
pub(crate) mod error;
pub(crate) mod in_use;
pub(crate) mod newest;
pub(crate) mod presented;
pub(crate) mod revocation;
