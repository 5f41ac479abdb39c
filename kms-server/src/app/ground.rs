//! The ground that all parts of the service stand on.

use std::sync::Arc;

use crate::{
    config::Site,
    hsm::Hsm,
    lifecycle::Signers,
    store::{WriteStore, measured::Measured, whole::WholeStore},
};
use kms_core::{DomainRecord, freshness::Freshness, ports::Clock, profile::Profiles};

/// Ground that all parts of the service stand on: opened, connected, and found to belong together.
pub(super) struct Ground {
    pub(super) site: Site,
    pub(super) domain: DomainRecord,
    pub(super) hsm: Hsm,
    pub(super) store: Arc<dyn WriteStore>,
    /// The same store, as who marks a database that was rolled back has it.
    pub(super) whole: Arc<dyn WholeStore>,
    /// The same store, as all but the end of the process use it.
    pub(super) measured: Arc<Measured<dyn WriteStore>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) freshness: Arc<Freshness>,
    pub(super) profiles: Arc<Profiles>,
    pub(super) signers: Signers,
}
