//! Calls that need two people: what waits, and being the second person.

use kms_proto::Method;
use kms_proto::v1;
use kms_proto::v1::approvals_client::ApprovalsClient;
use prost::Message;
use serde::{Serialize, Serializer};

use crate::call::{CallError, ProtocolError};
use crate::sites::Errand;
use crate::transport::Transport;

/// A call that waits for its second person, or has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Approval {
    /// The number to approve it by.
    pub approval_id: String,
    /// Service and call, as in `Meters/DeleteMeter`.
    pub verb: String,
    /// The name in the certificate of whoever made the call.
    pub requester: String,
    /// The subject of the call, such as a meter's id.
    pub summary: String,
    /// Since it was first made.
    pub age_ms: u64,
    /// Until it is forgotten.
    pub expires_in_ms: u64,
    /// Empty: nobody yet.
    pub approved_by: String,
    /// The name of this one call, as hex. Numbers come again; whoever approves says which call he was shown.
    #[serde(serialize_with = "as_hex")]
    pub digest: Vec<u8>,
}

fn as_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

pub(crate) async fn list(transport: &Transport) -> Result<Vec<Approval>, CallError> {
    let send =
        |link, request| async move { ApprovalsClient::new(link).list_approvals(request).await };
    let request = v1::ListApprovalsRequest {};
    let reply = transport.call(Errand::AtPrimary, request, send).await?;
    Ok(reply.approvals.into_iter().map(from_wire).collect())
}

/// To approve again changes nothing, so it may be sent again.
pub(crate) async fn approve(
    transport: &Transport,
    shown: &Approval,
) -> Result<Approval, CallError> {
    let send =
        |link, request| async move { ApprovalsClient::new(link).approve_call(request).await };
    let request = v1::ApproveCallRequest {
        approval_id: shown.approval_id.clone(),
        digest: shown.digest.clone().into(),
    };
    let reply = transport.call(Errand::AtPrimary, request, send).await?;
    Ok(reply.approval.map(from_wire).ok_or(ProtocolError::Missing("approval"))?)
}

/// Asks for the second person of a call that is made later, with this very request. It changes nothing, so it may be sent
/// again. `None`: one person is enough.
pub(crate) async fn ahead(
    transport: &Transport,
    call: Method,
    request: &impl Message,
) -> Result<Option<Approval>, CallError> {
    let send = |link, request| async move { ApprovalsClient::new(link).ask_ahead(request).await };
    let (verb, request) = (call.name().to_owned(), request.encode_to_vec().into());
    let request = v1::AskAheadRequest { verb, request };
    let reply = transport.call(Errand::AtPrimary, request, send).await?;
    Ok(reply.approval.map(from_wire))
}

fn from_wire(wire: v1::Approval) -> Approval {
    let v1::Approval { approval_id, verb, requester, summary, .. } = wire;
    let v1::Approval { age_ms, expires_in_ms, approved_by, digest, .. } = wire;
    let digest = digest.to_vec();
    Approval { approval_id, verb, requester, summary, age_ms, expires_in_ms, approved_by, digest }
}
