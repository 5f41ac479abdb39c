//! This site's role, as this process knows it: what its changes are numbered in. The database checks it once
//! more in each commit.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::watch;

use kms_core::{
    DomainRecord, Epoch,
    site::role::{Role, RoleRecord, Standing},
};

/// The role, shared by who changes blocks and who learns of promotions.
#[derive(Debug)]
pub struct SiteRole {
    standing: watch::Sender<Standing>,
    /// The epoch in which this site was rolled back, and the sentence that says so.
    rolled_back: Mutex<Option<(Epoch, Arc<str>)>>,
    /// Why this site's role is closed, as the mark of its database says.
    put_back: Mutex<Option<Arc<str>>>,
    /// The epoch that signed records said first. What this process went by before, since the database or the token was
    /// away, says nothing of when an epoch began.
    first: OnceLock<Epoch>,
}

impl SiteRole {
    /// A role that was verified.
    pub fn new(standing: Standing) -> Self {
        let standing = watch::Sender::new(standing);
        let (rolled_back, put_back, first) = Default::default();
        Self { standing, rolled_back, put_back, first }
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
        *self.standing.borrow()
    }

    /// Why this site changes nothing although its role says that it writes: its database went back behind what it had
    /// written in this epoch. A new epoch, or another site's promotion, is the way out.
    pub fn rolled_back(&self) -> Option<Arc<str>> {
        let now = self.now();
        let known = self.rolled_back.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it is closed already, since the database bears the mark: then this says why.
        let is_ours = now.role == Role::Primary;
        let reason = known.as_ref().filter(|(epoch, _)| *epoch == now.epoch && is_ours);
        reason.map(|(_, reason)| Arc::clone(reason))
    }

    /// This site was rolled back: it changes nothing more in its present epoch.
    pub(super) fn is_rolled_back(&self, reason: &str) {
        let epoch = self.now().epoch;
        let known = self.rolled_back.lock();
        *known.unwrap_or_else(PoisonError::into_inner) = Some((epoch, reason.into()));
    }

    /// The sentence of the mark that closes this site's role, if its database bears one.
    pub(super) fn put_back(&self) -> Option<Arc<str>> {
        self.put_back.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The database bears a mark, or none any more.
    pub(super) fn is_put_back(&self, why: Option<Arc<str>>) {
        *self.put_back.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Signed records say that this epoch is the highest.
    pub(super) fn was_verified(&self, epoch: Epoch) {
        let _ = self.first.set(epoch);
    }

    /// Whether this epoch began while this process ran.
    pub(super) fn began_here(&self, epoch: Epoch) -> bool {
        self.first.get().is_some_and(|first| epoch > *first)
    }

    /// Hears of every change.
    pub fn follow(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// The role changed, and the change is stored.
    pub(super) fn becomes(&self, standing: Standing) {
        self.standing.send_if_modified(|now| std::mem::replace(now, standing) != standing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invariant_3_an_epoch_that_was_there_when_the_records_were_read_first_did_not_begin_here() {
        let at = |epoch| Standing { role: Role::Primary, epoch: Epoch(epoch), open: true };
        // As it starts while the database is away.
        let role = SiteRole::new(Standing { open: false, ..at(2) });
        assert!(!role.began_here(Epoch(4)));
        role.was_verified(Epoch(4));
        role.becomes(at(4));
        assert!(!role.began_here(Epoch(4)) && role.began_here(Epoch(6)));
        role.was_verified(Epoch(6));
        assert!(role.began_here(Epoch(6)));
    }
}
