//! The record of what was done: one hash chain a node, its ends signed by the token.
//!
//! A call that changes something brings its events into the change's own transaction (`chain`, behind
//! [`AuditedStore`]). What changes nothing is written by [`Audit::record`], many calls at once. Crypto
//! traffic is counted in memory and summed up once an interval (`traffic`). The end of the chain is
//! signed every so often (`heads`), and held against the chain at the next start. What can't be
//! recorded is refused.

mod approvals;
mod chain;
mod config;
mod end;
mod error;
mod heads;
mod lock;
mod log;
mod marks;
mod paging;
mod queue;
mod reading;
mod refusals;
mod scope;
mod tables;
mod traffic;
mod written;

pub use config::Config;
pub use end::has_end;
pub use error::AuditError;
pub use log::{Audit, AuditStatus};
pub use paging::{PAGE_MAX, Page};
pub use reading::Verification;
pub use scope::{Parts, Scope};
pub use tables::sign_head_table;
