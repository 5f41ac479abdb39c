//! The right to call: every call by name, the policy over callers, roles and calls, and the list of it for
//! people. Names nothing else of `rpc`.

mod list;
pub(crate) mod policy;
mod role;
pub(crate) mod sites;
pub(crate) mod verb;
mod writers;

pub use list::markdown;
