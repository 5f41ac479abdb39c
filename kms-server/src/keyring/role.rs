//! This site's role, as this process knows it: what its changes are numbered in. The database checks it once
//! more in each commit.

use tokio::sync::watch;

use kms_core::{
    DomainRecord,
    site::role::{Role, RoleRecord, Standing},
};

/// The role, shared by who changes blocks and who learns of promotions.
#[derive(Debug)]
pub struct SiteRole(watch::Sender<Standing>);

impl SiteRole {
    /// A role that was verified.
    pub fn new(standing: Standing) -> Self {
        Self(watch::Sender::new(standing))
    }

    /// The role that a site begins with, before any promotion.
    pub fn founding(domain: &DomainRecord) -> Self {
        Self::new(Standing::of::<RoleRecord>(domain, &[]))
    }

    /// A role that nobody has looked at yet: nothing is changed until then.
    pub fn unknown(domain: &DomainRecord) -> Self {
        Self::new(Standing { role: Role::Secondary, epoch: domain.epoch, open: false })
    }

    /// The role now.
    pub fn now(&self) -> Standing {
        *self.0.borrow()
    }

    /// Hears of every change.
    pub fn follow(&self) -> watch::Receiver<Standing> {
        self.0.subscribe()
    }

    /// The role changed, and the change is stored.
    pub(super) fn becomes(&self, standing: Standing) {
        self.0.send_if_modified(|now| std::mem::replace(now, standing) != standing);
    }
}
