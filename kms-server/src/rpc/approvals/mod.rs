//! Calls that need two people: what a request asks for, and what waits for its second person. May name
//! `messages` and what lies below them.

mod about;
mod asked;
mod campaign_summary;
mod group_summary;
pub(crate) mod import_call;
mod key_summary;
pub(crate) mod need;
pub(crate) mod summary;
pub(crate) mod waiting;
pub(crate) mod whole;
