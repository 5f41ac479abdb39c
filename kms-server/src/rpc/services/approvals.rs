//! `Approvals`: the second person's side of calls that need two.

use std::sync::Arc;

use kms_proto::v1::{
    Approval, ApproveCallRequest, ApproveCallResponse, AskAheadRequest, AskAheadResponse,
    ListApprovalsRequest, ListApprovalsResponse, approvals_server,
};
use tonic::{Request, Response, Status, async_trait};

use crate::rpc::{
    access::{
        policy::{Permit, Policy},
        verb::Verb,
    },
    approvals::{waiting::Listed, whole::Asking},
    gate::seconds::Seconds,
    messages::status::Refused,
};
use kms_core::{
    audit::{AuditedCall, Detail, Subject},
    two_people::CallName,
};

/// The second person's side of the wire, and the first one's where the call itself is made later.
pub(crate) struct ApprovalsService {
    pub(crate) seconds: Seconds,
    pub(crate) policy: Arc<Policy>,
}

#[async_trait]
impl approvals_server::Approvals for ApprovalsService {
    async fn list_approvals(
        &self,
        request: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListApprovals)?;
        let Seconds { approvals, recorder } = &self.seconds;
        let listed = approvals.list().await?;
        let entry = recorder.entry(&recorder.call(&permit, &request), Subject::NONE);
        recorder.record(entry.with(Detail::Items, listed.len() as u64)).await?;
        let approvals = listed.into_iter().map(wire).collect();
        Ok(Response::new(ListApprovalsResponse { approvals }))
    }

    async fn approve_call(
        &self,
        request: Request<ApproveCallRequest>,
    ) -> Result<Response<ApproveCallResponse>, Status> {
        let permit = Permit::of(&request, Verb::ApproveCall)?;
        let call = self.seconds.recorder.call(&permit, &request);
        let ApproveCallRequest { approval_id, digest } = request.into_inner();
        let number = approval_id.parse().map_err(|_| Refused::Field {
            field: "approval_id",
            problem: "it is a number; it stands in the refusal and in ListApprovals",
        })?;
        let shown = digest[..].try_into().map_err(|_| Refused::Field {
            field: "digest",
            problem: "32 bytes, as ListApprovals shows them: say which call you were shown. A client of an older \
                      release says none, and approves nothing",
        })?;
        self.check_here((number, shown), &call).await?;
        // Recorded with it: what can't be recorded is not approved.
        let approvals = &self.seconds.approvals;
        let approved = approvals.approve((number, shown), permit.caller(), &call).await?;
        Ok(Response::new(ApproveCallResponse { approval: Some(wire(approved)) }))
    }

    async fn ask_ahead(
        &self,
        request: Request<AskAheadRequest>,
    ) -> Result<Response<AskAheadResponse>, Status> {
        let permit = Permit::of(&request, Verb::AskAhead)?;
        let call = self.seconds.recorder.call(&permit, &request);
        let AskAheadRequest { verb, request } = request.into_inner();
        let verb = Verb::of_name(&verb)
            .filter(|verb| verb.may_need_two_people() && !verb.is_stream())
            .ok_or(Refused::Field {
                field: "verb",
                problem: "a call of one message that can need two people, as in Site/Promote",
            })?;
        let later = match self.policy.permit(permit.caller(), verb) {
            Ok(later) => later,
            Err(forbidden) => {
                let refused = Refused::from(forbidden);
                self.seconds.recorder.0.record_refusal(call, refused.word()).await;
                return Err(refused.into());
            }
        };
        let approval = self.approved(&later, &Asking::of_message(verb, &request), &call).await?;
        Ok(Response::new(AskAheadResponse { approval }))
    }
}

impl ApprovalsService {
    /// The call as it waits with its approval; none where one person is enough for it. Recorded.
    async fn approved(
        &self,
        later: &Permit,
        asking: &Asking,
        call: &AuditedCall,
    ) -> Result<Option<Approval>, Status> {
        let Seconds { approvals, recorder } = &self.seconds;
        let needs = approvals.needs();
        let entry = recorder.entry(call, asking.matter.about.subject.clone());
        if !needs.concern(later.verb()) || needs.take_one(later.verb(), asking) {
            recorder.record(entry).await?;
            return Ok(None);
        }
        let listed = self.seconds.ahead(later, asking, call).await?;
        recorder.record(entry.with(Detail::Approval, listed.number)).await?;
        Ok(Some(wire(listed)))
    }

    /// Nobody approves a call that this site could not carry out by now.
    async fn check_here(&self, shown: (u64, CallName), call: &AuditedCall) -> Result<(), Status> {
        let listed = self.seconds.approvals.list().await?;
        let meant = listed.into_iter().find(|one| (one.number, one.name) == shown);
        let Some(meant) = meant.filter(|one| one.verb.is_of_the_writer()) else { return Ok(()) };
        let call = AuditedCall { approval: Some(meant.number), ..call.clone() };
        self.seconds.check_writes(meant.verb, meant.about.subject, &call).await
    }
}

fn wire(listed: Listed) -> Approval {
    let Listed { number, name, verb, requester, about, age_ms, expires_in_ms, approved_by } =
        listed;
    Approval {
        approval_id: number.to_string(),
        verb: verb.name().to_owned(),
        requester,
        summary: about.line,
        age_ms,
        expires_in_ms,
        approved_by: approved_by.unwrap_or_default(),
        digest: name.to_vec().into(),
    }
}
