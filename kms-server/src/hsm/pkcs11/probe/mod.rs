//! The trial of a token: what it can do, and that it does not do what our keys forbid.

mod abilities;
mod attacks;
mod attacks_pairs;
mod deeds;
mod free_key;
mod new_keys;
pub(super) mod report;
pub(super) mod run;
pub(super) mod subject;
mod table;
