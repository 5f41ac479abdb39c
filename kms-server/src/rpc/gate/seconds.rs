//! The second person's word for a call that needs one. In order: may the call be carried out here at all, has somebody
//! else approved it, would it be done as the site is now; and only then is the approval used.

use std::sync::Arc;

use tonic::Status;

use super::recording::Recorder;
use crate::{
    keyring::NotChanged,
    lifecycle::LifecycleError,
    rpc::{
        access::{
            policy::{Permit, Second},
            verb::Verb,
        },
        approvals::{
            need::SiteBehind,
            waiting::{Approvals, Listed},
            whole::Asking,
        },
        messages::{
            role_status::{of_role, word_of_role},
            status::Refused,
        },
    },
};
use kms_core::audit::{AuditedCall, Subject};

/// Asks for second people.
#[derive(Clone)]
pub(crate) struct Seconds {
    pub(crate) approvals: Arc<Approvals>,
    pub(crate) recorder: Recorder,
}

impl Seconds {
    /// The word of the second person for a call that is carried out now; it is used up.
    pub(crate) async fn pass(
        &self,
        permit: &Permit,
        asking: &Asking,
        call: &AuditedCall,
    ) -> Result<Second, Status> {
        if let (Some(promotion), Some(site)) = (&asking.promotion, self.site()) {
            self.ahead(permit, asking, call).await?;
            if let Err(error) = (site.promotable)(*promotion).await {
                return Err(self.recorder.role_not_changed(call, &error).await);
            }
        } else {
            self.check_here(permit.verb(), asking, call).await?;
        }
        self.told(self.approvals.pass(permit, &asking.matter, call).await, call).await
    }

    /// As [`Seconds::pass`], and uses nothing: the call with its approval, as it waits.
    pub(crate) async fn ahead(
        &self,
        permit: &Permit,
        asking: &Asking,
        call: &AuditedCall,
    ) -> Result<Listed, Status> {
        self.check_here(permit.verb(), asking, call).await?;
        self.told(self.approvals.ahead(permit, &asking.matter, call).await, call).await
    }

    /// Refuses what only the site that writes can carry out, where this site is another one: an approval is of the site
    /// that was asked, so none is asked for, given or used here.
    async fn check_here(
        &self,
        verb: Verb,
        asking: &Asking,
        call: &AuditedCall,
    ) -> Result<(), Status> {
        if !asking.takes_a_writer {
            return Ok(());
        }
        self.check_writes(verb, asking.matter.about.subject.clone(), call).await
    }

    /// Refuses a call where this site does not write.
    pub(crate) async fn check_writes(
        &self,
        verb: Verb,
        subject: Subject,
        call: &AuditedCall,
    ) -> Result<(), Status> {
        let Some(site) = self.site() else { return Ok(()) };
        let Err(error) = (site.writes)().await else { return Ok(()) };
        let status = self.recorder.failure(call, subject, &error).await;
        // Unless it could not be recorded, which is told instead.
        let is_told = status.code() == tonic::Code::FailedPrecondition;
        // One that was put back says so: where no other site writes, it is the one to promote.
        let (is_put_back, ..) = (site.put_back)();
        match error {
            LifecycleError::NotPrimary { .. } if is_told && !is_put_back => {
                Err(Refused::MadeElsewhere { verb, site: site.name.clone() }.into())
            }
            _ => Err(status),
        }
    }

    fn site(&self) -> Option<&SiteBehind> {
        self.approvals.needs().site.as_ref()
    }

    async fn told<T>(&self, found: Result<T, Refused>, call: &AuditedCall) -> Result<T, Status> {
        match found {
            Ok(found) => Ok(found),
            Err(refused) => {
                // Whoever goes on asking is counted like one who asks for what he is not granted; all else was recorded.
                if refused.is_asked_again() {
                    self.recorder.0.record_refusal(call.clone(), refused.word()).await;
                }
                Err(refused.into())
            }
        }
    }
}

impl Recorder {
    /// Records why a role was not changed, and gives the status for it.
    pub(crate) async fn role_not_changed(&self, call: &AuditedCall, error: &NotChanged) -> Status {
        let (word, is_ours) = word_of_role(error);
        let recorded = self.not_done(call, word, is_ours).await;
        recorded.err().unwrap_or_else(|| of_role(error))
    }
}
