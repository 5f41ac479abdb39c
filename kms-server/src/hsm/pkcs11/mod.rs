//! The token behind PKCS #11: the only place that says `cryptoki`.
//!
//! | room or file | |
//! |---|---|
//! | `failure.rs` | what a return code says, and does not say |
//! | `quirks.rs` | what tokens do otherwise, on which, and where the cure stands |
//! | `connection/` | the library, its sessions, one epoch, the way back after a fault |
//! | `keys/` | what each key of ours may do, and proofs that it is ours |
//! | `calls/` | the traits: seals, wrapped keys, sealed files, signatures |
//! | `init.rs` | makes the keys |
//! | `ceremony/` | a second site: its keys, whom our officer trusts, KEKs that are handed over |
//! | `probe/` | what this token can do, and that it does not do what our keys forbid |

mod calls;
mod ceremony;
mod connection;
mod failure;
mod init;
mod keys;
mod probe;
mod quirks;

pub use ceremony::{
    joining::{JoinKeys, make_join_keys, sign_as_joining},
    receiving::{Received, receive_keks},
    trusting::{TrustError, can_trust, distrust_peer, trust_peer},
};
pub use connection::{
    library::steps,
    token::{Pkcs11Token, own_canaries},
};
pub use init::{InitError, InitReport, init, make_ceremony_key, take_back};
pub use keys::{
    canary::{BadCanaries, Canaries},
    making::MadeKey,
};
pub use probe::{
    report::{ProbeReport, ProbeRow, RowKind},
    run::probe,
    subject::ProbeDepth,
};
pub use quirks::{HeldBy, Known, Quirk, Reckoned, TABLE as QUIRKS};
