//! `Approvals`: the second person's side of calls that need two.

use std::sync::Arc;

use kms_proto::v1::{
    Approval, ApproveCallRequest, ApproveCallResponse, ListApprovalsRequest, ListApprovalsResponse,
    approvals_server,
};
use tonic::{Request, Response, Status, async_trait};

use crate::rpc::{
    access::{policy::Permit, verb::Verb},
    approvals::waiting::{Approvals, Listed},
    gate::recording::Recorder,
    messages::status::Refused,
};
use kms_core::audit::{Detail, Subject};

/// The second person's side of the wire.
pub(crate) struct ApprovalsService {
    pub(crate) approvals: Arc<Approvals>,
    pub(crate) recorder: Recorder,
}

#[async_trait]
impl approvals_server::Approvals for ApprovalsService {
    async fn list_approvals(
        &self,
        request: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListApprovals)?;
        let listed = self.approvals.list().await?;
        let entry = self.recorder.entry(&self.recorder.call(&permit, &request), Subject::NONE);
        self.recorder.record(entry.with(Detail::Items, listed.len() as u64)).await?;
        let approvals = listed.into_iter().map(wire).collect();
        Ok(Response::new(ListApprovalsResponse { approvals }))
    }

    async fn approve_call(
        &self,
        request: Request<ApproveCallRequest>,
    ) -> Result<Response<ApproveCallResponse>, Status> {
        let permit = Permit::of(&request, Verb::ApproveCall)?;
        let call = self.recorder.call(&permit, &request);
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
        // Recorded with it: what can't be recorded is not approved.
        let approved = self.approvals.approve((number, shown), permit.caller(), &call).await?;
        Ok(Response::new(ApproveCallResponse { approval: Some(wire(approved)) }))
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
