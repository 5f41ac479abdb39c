//! The contents of the wire's messages: how a message unfolds while it arrives, its fields in our words and
//! back, and the status that a refusal becomes. May name `access` and the configuration.

pub(crate) mod audit;
pub(crate) mod campaigns;
pub(crate) mod columns;
pub(crate) mod deadline;
pub(crate) mod divergence;
pub(crate) mod enrolment_status;
pub(crate) mod floors;
pub(crate) mod forwarding;
pub(crate) mod framing;
pub(crate) mod groups;
pub(crate) mod hls;
pub(crate) mod lifecycle_status;
pub(crate) mod not_recorded;
mod numbers;
pub(crate) mod papers;
pub(crate) mod plan;
pub(crate) mod request_id;
pub(crate) mod role_status;
pub(crate) mod rotation;
pub(crate) mod shape;
pub(crate) mod sites;
pub(crate) mod status;
pub(crate) mod sync_status;
pub(crate) mod trailers;
pub(crate) mod transmitting;
pub(crate) mod triage;
pub(crate) mod unfit;
pub(crate) mod words;
