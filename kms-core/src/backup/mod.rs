//! The file of a backup: all rows of a site's database as they were at one moment, in chunks that only this site's
//! token opens.
//!
//! A header in clear names the site and the key domain, and has the file's key, sealed by the site KEK with what the
//! header says as additional data. Each [`chunk`] is AES-256-GCM under that key with its number and the header's digest.
//! What is in them are [`part`]s: tables, their rows, and last of all a [`summary`] that the token signed. So a chunk
//! that is cut, doubled, swapped or changed is found and named, and a file that is whole is one that this site's token
//! made.

pub mod chunk;
pub mod header;
pub mod part;
pub mod summary;

#[cfg(test)]
mod tests;
