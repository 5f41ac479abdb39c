//! The calls to other nodes of this site. Each is made once: what it asks for is spent by the call.

use std::{collections::BTreeMap, time::Instant};

use async_trait::async_trait;
use kms_proto::v1::nodes_client::NodesClient as Calls;
use tokio::time::timeout;
use tonic::{Code, Request, Status, transport::Channel};

use super::{client::channel, failure::of_status};
use crate::{
    replication::PeerError,
    rpc::{
        config::{PeerConfig, TlsConfig},
        messages::{forwarding, papers::BadMessage, request_id::NAME},
    },
    transmitting::{NotForwarded, Origin, OtherNodes, Plain, ProtectedBatch, time_left},
};
use kms_core::audit::NodeId;

/// An item's share of an answer beside its APDU: header, tag, numbers, a reason.
const ITEM_BYTES: usize = 1 << 10;
/// The rest of an answer.
const ANSWER_BYTES: usize = 64 << 10;

/// The other nodes of this site, over gRPC.
pub struct NodesClient {
    nodes: BTreeMap<NodeId, Calls<Channel>>,
}

impl NodesClient {
    /// To these nodes, with the identity of `own`. Opens no connection yet; call within a Tokio runtime.
    pub fn new(nodes: BTreeMap<NodeId, PeerConfig>, own: &TlsConfig) -> Self {
        let calls = |(node, way)| (node, Calls::new(channel(way, own.clone())));
        Self { nodes: nodes.into_iter().map(calls).collect() }
    }
}

#[async_trait]
impl OtherNodes for NodesClient {
    async fn protect(
        &self,
        node: NodeId,
        origin: &Origin<'_>,
        items: &[Plain<'_>],
    ) -> Result<ProtectedBatch, NotForwarded> {
        let calls = self.nodes.get(&node).ok_or(NotForwarded::NoAddress)?;
        let wait = time_left(origin.until, Instant::now()).ok_or(NotForwarded::Late)?;
        let mut request = Request::new(forwarding::wire(node, origin, items));
        request.set_timeout(wait);
        if let Ok(id) = origin.request_id.parse() {
            request.metadata_mut().insert(NAME, id);
        }
        let mut calls = calls.clone().max_decoding_message_size(answer_max(items));
        match timeout(wait, calls.protect(request)).await {
            Ok(Ok(answer)) => forwarding::answer(answer.into_inner(), items.len()).map_err(unread),
            Ok(Err(status)) => Err(not_forwarded(&status)),
            Err(_) => Err(NotForwarded::NoAnswer(format!("none within {wait:?}"))),
        }
    }
}

/// The longest answer to these items.
fn answer_max(items: &[Plain<'_>]) -> usize {
    let bytes = |item: &Plain<'_>| item.apdu.len() + ITEM_BYTES;
    items.iter().map(bytes).sum::<usize>() + ANSWER_BYTES
}

fn unread(BadMessage(what): BadMessage) -> NotForwarded {
    NotForwarded::NoAnswer(format!("its answer can't be read ({what})"))
}

fn not_forwarded(status: &Status) -> NotForwarded {
    if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) {
        return NotForwarded::NoAnswer(status.message().to_owned());
    }
    match of_status(status) {
        PeerError::NotReached(why) => NotForwarded::NotReached(why),
        PeerError::Refused { sentence, .. } => NotForwarded::Refused(sentence),
        PeerError::Broken(why) => NotForwarded::NoAnswer(why),
        PeerError::Unreadable(what) => NotForwarded::NoAnswer(what.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_a_silence() {
        let refused = not_forwarded(&Status::permission_denied("no"));
        assert_eq!(refused, NotForwarded::Refused("no".into()));
        for status in [
            Status::cancelled("Timeout expired"),
            Status::deadline_exceeded("late"),
            Status::from_error(Box::new(std::io::Error::other("reset"))),
        ] {
            assert!(matches!(not_forwarded(&status), NotForwarded::NoAnswer(_)), "{status:?}");
        }
    }
}
