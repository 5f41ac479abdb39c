//! The calls of this service, carried out in a session: seals of block secrets, wrapped keys, keys of a
//! sealed file, signatures.

mod block_seals;
pub(super) mod enrolling;
pub(super) mod gcm;
mod making;
pub(super) mod oaep;
mod sealed_file;
pub(super) mod signing;
mod site_keks;
mod wrapped_keys;
