//! The trial of a token: what it can do, and that it does not do what our keys forbid.

pub(super) mod abilities;
mod attacks;
mod attacks_pairs;
mod deeds;
pub(super) mod run;
