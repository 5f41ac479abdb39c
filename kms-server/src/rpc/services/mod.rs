//! The calls of `ami.kms.v1` and the standard health service: each asks the gate's permit, hands over to
//! [`crate::ciphering`], [`crate::lifecycle`] or [`crate::audit`], and answers. May name the gate and what lies
//! below it; no listener names a service.

pub(crate) mod approvals;
pub(crate) mod audit;
mod campaigns;
pub(crate) mod ciphering;
mod contents;
pub(crate) mod groups;
pub(crate) mod health;
mod hls;
mod importing;
mod in_order;
mod looks;
pub(crate) mod meters;
pub(crate) mod nodes;
pub(crate) mod replication;
pub(crate) mod rotation;
mod sealed;
pub(crate) mod site;
mod site_keys;
mod triages;
mod triaging;
