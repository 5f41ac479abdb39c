//! Associations with meters, as far as keys go: HLS authentication in its four passes.
//!
//! The service issues the challenge, and keeps it: [`table`] has what is open, bounded, each for a while and each step once.
//! [`verbs`] begins one, answers the meter's challenge and verifies its answer; [`secrets`] is what mechanisms with a secret
//! need. An association is known at the node that began it, which its [`handle`] names.

mod handle;
mod item;
mod refused;
mod secrets;
mod table;
mod verbs;

pub use handle::Handle;
pub use item::{
    Action, Answered, Asked, Begin, Begun, CHALLENGE_LEN_DEFAULT, Given, GivenAnswer, Mechanism,
    Verified,
};
pub use refused::NotAssociated;
pub use verbs::{Associations, Below};
