//! The parts of the service that the server is given.

use std::sync::Arc;

use tonic::service::Routes;

use crate::{
    associations::Associations,
    audit::Audit,
    ciphering::Ciphering,
    enrolment::{Enroller, Kept},
    hsm::Hsm,
    keyring::{Overview, Roles},
    lifecycle::Lifecycle,
    replication::{Fencing, OwnMakeup, Planning, Status as ReplicationStatus, Syncing},
    rpc::services::replication::ReplicationParts,
    site_health::{Looks, TokenStatusSource},
    site_keys::{BlockSecretRotation, SiteKekRotation},
    store::ReadStore,
    telemetry::metrics::Source,
    transmitting::Transmitting,
};
use kms_core::{DomainRecord, ports::Clock};

/// The parts that the services stand on.
pub struct Parts {
    /// The calls of `Ciphering`.
    pub ciphering: Arc<Ciphering>,
    /// What is sent to meters: calls of both.
    pub transmitting: Arc<Transmitting>,
    /// Associations with meters.
    pub associations: Arc<Associations>,
    /// The calls of `Meters`.
    pub lifecycle: Arc<Lifecycle>,
    /// The service's own keys.
    pub rotation: Arc<BlockSecretRotation>,
    /// The site KEK.
    pub kek: Arc<SiteKekRotation>,
    /// Open blocks, for their status.
    pub keyring: Arc<Overview>,
    /// Who writes.
    pub roles: Arc<Roles>,
    /// The token, for the enrolment of another site.
    pub hsm: Hsm,
    /// The token's status.
    pub token_status: TokenStatusSource,
    /// The database, for its status.
    pub store: Arc<dyn ReadStore>,
    /// The record of what is done.
    pub audit: Arc<Audit>,
    /// The domain, and the site of it that this is.
    pub domain: DomainRecord,
    /// This site is the only one of its domain, by configuration.
    pub single_site: bool,
    /// The other site; `None`: there is none.
    pub replication: Option<Replicating>,
    /// The time, for certificates, approvals and uptime.
    pub clock: Arc<dyn Clock>,
    /// Figures of the parts that are not named above: the token, the store, and whoever else counts.
    pub sources: Vec<Arc<dyn Source>>,
}

/// The parts of a site that has a peer.
pub struct Replicating {
    /// Answers to the peer.
    pub parts: ReplicationParts,
    /// How replication stands.
    pub status: Arc<ReplicationStatus>,
    /// Brings the sites in step when somebody asks.
    pub syncing: Arc<Syncing>,
    /// Learns of promotions of the other site.
    pub fencing: Arc<Fencing>,
    /// Says what a promotion would cost.
    pub planning: Arc<Planning>,
    /// What this site says of itself: who is let in, is told here.
    pub makeup: Arc<OwnMakeup>,
}

impl Parts {
    /// The part that enrols other sites.
    pub(super) fn enroller(&self) -> Enroller {
        Enroller {
            domain: self.domain.clone(),
            hsm: self.hsm.clone(),
            store: Arc::clone(&self.store),
            audited: self.audit.clone(),
            clock: Arc::clone(&self.clock),
            roles: Arc::clone(&self.roles),
            kept: Kept::default(),
        }
    }

    /// Where the judgement of the site's health looks.
    pub(super) fn looks(&self) -> Looks {
        Looks {
            token: Arc::clone(&self.token_status),
            store: Arc::clone(&self.store),
            keyring: Arc::clone(&self.keyring),
            audit: Arc::clone(&self.audit),
        }
    }
}

/// The parts of a server whose services are made elsewhere: what the gate itself stands on.
pub struct GateParts {
    /// The services behind the gate.
    pub services: Routes,
    /// The record of who was refused, and of who asked for a second person.
    pub audit: Arc<Audit>,
    /// The time, for certificates and approvals.
    pub clock: Arc<dyn Clock>,
}
