//! The meter by published examples, by its dialects, and what is built on it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

mod careful;
mod common;
mod cuts;
mod dialects;
mod nonces;
mod sessions;
mod vectors;
