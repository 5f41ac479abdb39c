//! Protecting what is sent to meters. No (key, nonce) is used twice, whatever happens to this site or the other one: a
//! caller never names a counter, it gets one.
//!
//! [`batch`] takes APDUs and finds the keys, [`counters`] gives each a counter, of a line in a block whose range this node has
//! reserved, [`purpose`] holds a message against what it is said to be for, [`past`] tells what this site may have forgotten, [`witnessing`] asks the other site what it knows of our marks, [`forwarding`] has the node that holds a block protect what came here, [`confirming`] asks it before a mark is built on, [`remembered`] is what this server knows of them outside the database, [`declaring`] takes in what a key was used with
//! before it came here; [`broadcasting`] protects one message for each value that members of a group may use. The rules are `kms_core::counters`; here is the database, the peer and the clock.

mod batch;
mod blocks;
mod broadcasting;
mod confirming;
mod counters;
mod declaring;
mod figures;
mod forwarding;
mod holders;
mod item;
mod keeping;
mod keys;
mod looking;
mod past;
mod purpose;
mod refused;
mod remembered;
mod sides;
mod witnessing;

pub use batch::{Grounds, OtherSite, Transmitting};
pub use broadcasting::{Broadcast, BroadcastMessage, NotReached};
pub use declaring::{Declaration, Declared, NotDeclared};
pub use forwarding::{Origin, OtherNodes, time_left};
pub use item::{Envelope, Outcome, Plain, ProtectedBatch, Whose};
pub use purpose::refuse_claimed;
pub use refused::{NotForwarded, NotSent};
pub use sides::Sides;
