//! The audit log: what is recorded with what, and that nobody can change it unnoticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod kill_common;
mod store_contract;
#[path = "audit/support.rs"]
mod support;

#[path = "audit/chain.rs"]
mod chain;
#[path = "audit/crash.rs"]
mod crash;
#[path = "audit/late.rs"]
mod late;
#[path = "audit/sites.rs"]
mod sites;
#[path = "audit/tampering.rs"]
mod tampering;
#[path = "audit/writing.rs"]
mod writing;
