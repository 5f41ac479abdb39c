//! The HES's verbs: open ciphered APDUs and check their MICs.
//!
//! A batch goes through three passes. [`batch`]: parse, look up, open what is resident, without a
//! lock and without a wait. [`misses`]: open the blocks that were missing, then try again. [`token`]:
//! ask the HSM for keys of protection `HSM`. Where other servers write to the same database, [`doubt`]
//! looks once more at what did not open. What opened and came from a meter with receive floors is then judged by
//! [`floors`]. What is accepted from a meter is decided in one place, [`attempt`]. Why frames of one meter don't open is
//! found by [`triage`], which opens nothing for anybody.

mod arrival;
mod attempt;
mod batch;
mod doubt;
mod figures;
mod floors;
mod hls;
mod item;
mod misses;
mod token;
mod triage;
mod verbs;

pub use floors::{Floors, FloorsConfig};
pub use hls::{Carrier, FloorsBefore, Gmac, GmacClaim};
pub use item::{Item, Named, OpenedBatch, Outcome, Want};
pub use triage::{Triage, TriageAsked, TriagedFrame};
pub use verbs::Ciphering;
