//! A database that is older than what this site wrote: it says so itself, by its mark, or the peer has what it has not.

use std::sync::{Arc, PoisonError};

use super::{
    error::KeyringError,
    roles::{NotChanged, Roles},
};
use kms_core::{
    Epoch, Head,
    site::restored::{Condition, RestoreMark, SignedRestoreMark},
};

impl Roles {
    /// Why this site changes nothing although its role says that it writes.
    pub fn rolled_back(&self) -> Option<Arc<str>> {
        self.opener.role.rolled_back()
    }

    /// The epoch in which the domain was founded.
    pub fn founded(&self) -> Epoch {
        self.opener.domain.epoch
    }

    /// Holds a head that the peer says it has against ours. If it is authentic, of the epoch that we write in, and not a
    /// state that we came through or are at, our database was rolled back: nothing more is changed in this epoch, and
    /// the sentence says so.
    pub async fn hold_against(&self, theirs: &Head) -> Result<Option<Arc<str>>, KeyringError> {
        let (unsealed, ours) = self.opener.verified(theirs.block).await?;
        let head = ours.head();
        let now = self.opener.role.now();
        let is_of_epoch = theirs.position.epoch == now.epoch && now.writes();
        let is_beyond = theirs.position > head.position
            || theirs.position == head.position && theirs.digest != head.digest;
        if !is_of_epoch || !is_beyond || !unsealed.keys.head_is_authentic(theirs) {
            return Ok(None);
        }
        let reason = format!(
            "the peer has block {} at {}, and this database has it at {}: it was put back, and this site writes nothing \
             more in epoch {}. Promote the peer (`ami-tool site promote`), which has what is missing here; or, to give \
             that up, this site with `--above-epoch {}`",
            theirs.block, theirs.position, head.position, now.epoch.0, now.epoch.0
        );
        if self.opener.role.rolled_back().is_none() {
            tracing::error!("{reason}");
        }
        self.opener.role.is_rolled_back(&reason);
        Ok(self.opener.role.rolled_back())
    }

    /// The mark of the database, if it was rolled back and this site was not promoted since. Held against the token:
    /// a mark that somebody took away leaves a domain's record that the token did not sign.
    pub async fn restore_mark(&self) -> Result<Option<RestoreMark>, NotChanged> {
        Ok(self.signed_mark().await?.map(|signed| signed.mark))
    }

    /// The same, with its signature.
    pub(super) async fn signed_mark(&self) -> Result<Option<SignedRestoreMark>, NotChanged> {
        let store = &self.opener.store;
        let mark = store.restore_state().await?.mark();
        let domain = store.domain().await?.ok_or(NotChanged::Domain)?;
        match domain.condition(mark.as_ref(), &self.opener.hsm.public_key().await?) {
            Condition::Whole => {
                self.keep_mark(None);
                Ok(None)
            }
            Condition::RolledBack => {
                self.keep_mark(mark.as_ref().map(|signed| signed.mark.clone()));
                Ok(mark)
            }
            Condition::Unknown => Err(NotChanged::Domain),
        }
    }

    pub(super) fn keep_mark(&self, mark: Option<RestoreMark>) {
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = mark;
    }

    /// The mark of the database, as far as this process knows: nobody is asked.
    pub fn known_mark(&self) -> Option<RestoreMark> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
