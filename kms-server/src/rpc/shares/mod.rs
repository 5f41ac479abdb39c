//! One caller's share of what there is for all, from a message's first byte to the last of its answer:
//! connections, calls, items, memory. May name `messages` and what lies below them.

pub(crate) mod accounts;
pub(crate) mod budget;
pub(crate) mod ledger;
pub(crate) mod upload;
pub(crate) mod writes;
