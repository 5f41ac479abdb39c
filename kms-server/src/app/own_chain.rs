//! This node's audit chain, opened over its own files.

use std::{path::Path, sync::Arc};

use super::{
    fault::Fault,
    node::{HeadFile, node_id},
    outside::OperatingSystem,
};
use crate::audit::{Audit, AuditError, Config, Parts, Scope};
use crate::{hsm::Hsm, store::WriteStore};
use kms_core::{DomainRecord, freshness::Freshness, ports::Clock};

/// All that a node's chain stands on.
pub(super) struct OwnChain<'a> {
    pub(super) data_dir: &'a Path,
    pub(super) domain: &'a DomainRecord,
    pub(super) freshness: Arc<Freshness>,
    pub(super) store: Arc<dyn WriteStore>,
    pub(super) hsm: Hsm,
    pub(super) clock: Arc<dyn Clock>,
}

impl OwnChain<'_> {
    /// Opens it. One that is broken is a fault to be seen in the status: crypto calls go on.
    pub(super) async fn open(self, config: Config) -> Result<Arc<Audit>, Fault> {
        let Self { data_dir, domain, freshness, store, hsm, clock } = self;
        let node = node_id(data_dir, &OperatingSystem)?;
        let witness = HeadFile::of(data_dir, node);
        let witness = Arc::new(witness.map_err(|error| Fault::Setting(error.into()))?);
        let scope = Scope { node, domain: domain.domain, blocks: domain.blocks, freshness };
        let parts = Parts { store, hsm, clock, witness };
        Audit::open(config, scope, parts).await.map_err(|error| match error {
            AuditError::Witness(_) => Fault::Setting(error.into()),
            // The database and the token were there a moment ago.
            _ => Fault::Away(error.into()),
        })
    }
}
