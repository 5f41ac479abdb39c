//! `Nodes`: what another node of this site was asked to protect, and this one holds the counters of.

use std::sync::Arc;

use kms_proto::v1::{EncryptBatchResponse, PlainBatch, ProtectRequest, nodes_server};
use tonic::{Request, Response, Status, async_trait};

use crate::{
    audit::Audit,
    lifecycle::LifecycleError,
    rpc::{
        access::{
            policy::{CallerName, Permit, Policy},
            verb::Verb,
        },
        gate::recording::call_of,
        messages::{
            lifecycle_status::of_lifecycle, request_id::RequestId, status::Refused, transmitting,
        },
        shares::budget::Budget,
    },
    transmitting::{Transmitting, refuse_claimed},
};

/// The other nodes' side of the wire.
#[derive(Clone)]
pub(crate) struct NodesService {
    pub(crate) transmitting: Arc<Transmitting>,
    pub(crate) audit: Arc<Audit>,
    pub(crate) budget: Budget,
    pub(crate) policy: Arc<Policy>,
}

#[async_trait]
impl nodes_server::Nodes for NodesService {
    async fn protect(
        &self,
        request: Request<ProtectRequest>,
    ) -> Result<Response<EncryptBatchResponse>, Status> {
        let node = Permit::of(&request, Verb::Protect)?;
        let id = request.extensions().get::<RequestId>().cloned();
        let ProtectRequest { caller, roles, call, node_id, batch } = request.into_inner();
        if node_id[..] != self.transmitting.node().0 {
            let problem = "another node is meant: correct the endpoints in [[nodes]]";
            return Err(Refused::Field { field: "node_id", problem }.into());
        }
        let permit = self.permit(&node, (&caller, &call), id.as_ref()).await?;
        tracing::debug!(node = %node.caller(), caller = %permit.caller(), ?roles, "forwarded");
        let answer = self.protect_batch(&permit, &batch.unwrap_or_default()).await?;
        Ok(Response::new(answer))
    }
}

impl NodesService {
    async fn protect_batch(
        &self,
        permit: &Permit,
        batch: &PlainBatch,
    ) -> Result<EncryptBatchResponse, Status> {
        let is_step = permit.verb() == Verb::AnswerHlsChallenge;
        let how = transmitting::how_forwarded(batch.protecting, is_step)?;
        // His share here is as large as at the node that he called.
        let _charge = self.budget.charge(permit, batch.lengths.len())?;
        let items = transmitting::items(batch, how)?;
        if let Err(reason) = self.transmitting.writes() {
            return Err(of_lifecycle(&LifecycleError::NotPrimary { reason }));
        }
        // One hop: what is not held here is refused, by the holder's name.
        let claimed = match permit.verb() {
            Verb::NextTransfer | Verb::EncryptBroadcast => None,
            _ => refuse_claimed(&items),
        };
        let protected = match claimed {
            Some(refused) => refused,
            None => self.transmitting.protect_batch(&items).await,
        };
        let outcomes = protected.outcomes.iter();
        let outcomes = outcomes.map(|outcome| (outcome.system_title, outcome.verdict));
        self.audit.count(permit.caller().as_str(), permit.verb().name(), outcomes);
        let answer = transmitting::protected_batch(0, items.len(), protected);
        let misfit = |_| Refused::Fault("ciphering's answer does not fit its batch");
        Ok(answer.map_err(misfit)?)
    }

    /// Whether this node would have let the caller make his call: the other one is trusted with his name, and with nothing
    /// that the policy here does not grant it.
    async fn permit(
        &self,
        node: &Permit,
        (caller, call): (&str, &str),
        id: Option<&RequestId>,
    ) -> Result<Permit, Status> {
        let problem = "a caller's name is 1 to 255 visible ASCII characters without spaces";
        let caller =
            CallerName::new(caller).map_err(|_| Refused::Field { field: "caller", problem })?;
        let verb = Verb::of_name(call).filter(is_forwarded);
        let problem = "a node forwards Ciphering/Encrypt, Ciphering/EncryptBatch, Ciphering/AnswerHlsChallenge, Rotation/NextTransfer and Groups/EncryptBroadcast alone";
        let verb = verb.ok_or(Refused::Field { field: "call", problem })?;
        let refused = match self.policy.permit(&caller, verb) {
            Ok(permit) => return Ok(permit),
            Err(forbidden) => Refused::from(forbidden),
        };
        // Names that the policy does not know are the node's making, and as many as it likes.
        let by = if self.policy.roles(&caller).is_ok() { &caller } else { node.caller() };
        self.audit.record_refusal(call_of(by, verb, id), refused.word()).await;
        Err(refused.into())
    }
}

/// The calls that a node hands on to the one that holds the counters.
fn is_forwarded(verb: &Verb) -> bool {
    use Verb::{AnswerHlsChallenge, Encrypt, EncryptBatch, EncryptBroadcast, NextTransfer};
    matches!(verb, Encrypt | EncryptBatch | AnswerHlsChallenge | NextTransfer | EncryptBroadcast)
}
