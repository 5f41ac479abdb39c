//! HSM-backed key management for DLMS/COSEM smart meters: keeps meter keys wrapped under a PKCS #11
//! token, and opens what meters send.
//!
//! The parts, bottom up; a part names only parts on lower floors (`tests/architecture.rs` keeps that):
//!
//! | floor | part | |
//! |---|---|---|
//! | 7 | `main.rs` | command line |
//! | 6 | [`app`] | builds every part, bottom up; owns shutdown |
//! | 5 | [`config`] | file → checked `Config` of each part |
//! | 4 | [`rpc`] | the wire: tonic, rustls, `ami.kms.v1` |
//! | 3 | [`backup`], [`ciphering`], [`enrolment`], [`lifecycle`], [`replication`], [`site_health`] | backups and drills; HES verbs; another site joins; keys' lives; two sites; the one judgement of how the site is |
//! | 2 | [`keyring`], [`audit`] | open blocks, resident keys; the record of what was done |
//! | 1b | [`hsm`], [`store`] | one outside thing each |
//! | 1 | [`kms_core`] (a crate of its own), [`telemetry`] | nouns and rules, no IO; metrics and log |
//!
//! One decrypt: [`rpc`] (who are you, split the batch) → [`ciphering`] (parse, look up, open) →
//! [`keyring`] (a hit takes no lock; a miss opens the block once) → `dlms` → [`rpc`] → wire.
//! Start reading at `ciphering/mod.rs`.

pub mod hsm;
pub mod store;

pub mod audit;
pub mod backup;
pub mod ciphering;
pub mod enrolment;
pub mod keyring;
pub mod lifecycle;
pub mod replication;
pub mod rpc;
pub mod site_health;
pub mod site_keys;
pub mod transmitting;

pub mod associations;

pub mod app;
pub mod config;
pub mod telemetry;

// Helpers that the integration tests share say `kms_server`.
#[cfg(test)]
extern crate self as kms_server;
#[cfg(test)]
mod testing;
