//! The token behind PKCS #11: the only place that says `cryptoki`.
//!
//! | file | |
//! |---|---|
//! | `fault.rs` | what a return code says, and does not say |
//! | `lock.rs` | locks that a panic elsewhere does not poison |
//! | `library.rs` | the module in this process: initialise, find the slot, log in |
//! | `template.rs` | what each key of ours may do |
//! | `gcm.rs` | AES-GCM with lengths that we enforce |
//! | `canary.rs` | proofs that a KEK is the one the database was made with |
//! | `pool.rs` | sessions that are used |
//! | `holder.rs` | the session that holds unwrapped keys |
//! | `connection.rs` | everything that dies with one epoch |
//! | `token.rs` | calls, and the way back after a fault |
//! | `seal.rs`, `sealed_keys.rs` | the traits |
//! | `importing.rs` | keys of a sealed import file, never seen |
//! | `signing.rs` | signatures, for audit heads |
//! | `init.rs` | makes the keys |
//! | `probe.rs`, `abilities.rs` | what this token can do |
//! | `attacks.rs`, `attacks_pairs.rs`, `deeds.rs` | and that it does not do what our keys forbid |

mod abilities;
mod attacks;
mod attacks_pairs;
mod canary;
mod connection;
mod deeds;
mod fault;
mod gcm;
mod holder;
mod importing;
mod init;
mod library;
mod lock;
mod pool;
mod probe;
mod seal;
mod sealed_keys;
mod signing;
mod template;
mod token;

pub use canary::{BadCanaries, Canaries};
pub use init::{InitError, InitReport, MadeKey, init, make_ceremony_key, take_back};
pub use library::steps;
pub use probe::{ProbeDepth, ProbeReport, ProbeRow, RowKind, probe};
pub use token::Pkcs11Token;
