//! Scope of an audit log: whose chain it is, and what it stands on.

use std::sync::Arc;

use crate::{hsm::Hsm, store::WriteStore};
use kms_core::{
    BlockCount, DomainId,
    audit::NodeId,
    freshness::Freshness,
    ports::{Clock, HeadWitness},
};

/// The node whose chain it is, and the blocks that its events are about.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The node.
    pub node: NodeId,
    /// Its site's key domain.
    pub domain: DomainId,
    /// The number of the domain's blocks.
    pub blocks: BlockCount,
    /// Knowledge of their newest states; the keyring holds blocks against it.
    pub freshness: Arc<Freshness>,
}

/// Parts that an audit log is built on.
#[derive(Clone)]
pub struct Parts {
    /// The database that keeps it.
    pub store: Arc<dyn WriteStore>,
    /// The token that signs its ends.
    pub hsm: Hsm,
    /// The time of events and signatures.
    pub clock: Arc<dyn Clock>,
    /// Ends that are remembered outside the database.
    pub witness: Arc<dyn HeadWitness>,
}
