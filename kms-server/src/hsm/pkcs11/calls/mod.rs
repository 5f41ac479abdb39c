//! The calls of this service, carried out in a session: seals, wrapped keys, keys of a sealed file,
//! signatures.

pub(super) mod gcm;
mod importing;
pub(super) mod oaep;
mod seal;
mod sealed_keys;
mod signing;
