//! Audit chains as protobuf has them, between sites and for auditors.

use bytes::Bytes;
use kms_proto::v1;

use super::{
    papers::{BadMessage, array},
    sites,
};
use crate::replication::AuditSaid;
use kms_core::audit::{ChainTip, Checkpoint, NodeId, StoredEvent, copying::Piece};

/// Chains that are read of an answer.
const CHAINS_MAX: usize = 4_096;

/// A chain's name; `None`: it is empty.
pub(crate) fn node(bytes: &[u8]) -> Result<Option<NodeId>, BadMessage> {
    match bytes {
        [] => Ok(None),
        bytes => Ok(Some(NodeId(array("node_id", bytes)?))),
    }
}

pub(crate) fn wire_node(node: &NodeId) -> Bytes {
    Bytes::copy_from_slice(&node.0)
}

pub(crate) fn wire_tip(tip: &ChainTip) -> v1::AuditChainTip {
    v1::AuditChainTip {
        node_id: wire_node(&tip.node),
        sequence: tip.sequence,
        hash: Bytes::copy_from_slice(&tip.hash),
    }
}

pub(crate) fn wire_checkpoint(head: &Checkpoint) -> v1::AuditCheckpoint {
    let Checkpoint { tip, at_ms, signature } = head;
    v1::AuditCheckpoint {
        node_id: wire_node(&tip.node),
        sequence: tip.sequence,
        hash: Bytes::copy_from_slice(&tip.hash),
        at_ms: *at_ms,
        signature: Bytes::copy_from_slice(signature),
    }
}

/// The answer to a peer that copies.
pub(crate) fn wire_said(said: AuditSaid) -> v1::FetchAuditEventsResponse {
    let AuditSaid { card, chains, piece: Piece { events, heads } } = said;
    let event = |event: StoredEvent| v1::StoredAuditEvent {
        sequence: event.sequence,
        hash: Bytes::copy_from_slice(&event.hash),
        body: event.body.into(),
    };
    v1::FetchAuditEventsResponse {
        card: Some(sites::wire_card(card)),
        events: events.into_iter().map(event).collect(),
        checkpoints: heads.iter().map(wire_checkpoint).collect(),
        chains: chains.iter().map(wire_tip).collect(),
    }
}

/// Its answer, as read. `node` is the chain that was asked for.
pub(crate) fn said(
    response: v1::FetchAuditEventsResponse,
    node: Option<NodeId>,
) -> Result<AuditSaid, BadMessage> {
    let v1::FetchAuditEventsResponse { card, events, checkpoints, chains } = response;
    if chains.len() > CHAINS_MAX || (node.is_none() && !events.is_empty()) {
        return Err(BadMessage("chains"));
    }
    let node = node.unwrap_or(NodeId([0; 16]));
    let event = |event: v1::StoredAuditEvent| {
        let v1::StoredAuditEvent { sequence, hash, body } = event;
        Ok(StoredEvent { node, sequence, hash: array("events.hash", &hash)?, body: body.into() })
    };
    let head = |head: v1::AuditCheckpoint| {
        let tip = tip(&head.node_id, head.sequence, &head.hash)?;
        let signature = array("checkpoints.signature", &head.signature)?;
        Ok(Checkpoint { tip, at_ms: head.at_ms, signature })
    };
    Ok(AuditSaid {
        card: sites::card(card)?,
        chains: chains
            .iter()
            .map(|it| tip(&it.node_id, it.sequence, &it.hash))
            .collect::<Result<_, _>>()?,
        piece: Piece {
            events: events.into_iter().map(event).collect::<Result<_, _>>()?,
            heads: checkpoints.into_iter().map(head).collect::<Result<_, _>>()?,
        },
    })
}

fn tip(node: &[u8], sequence: u64, hash: &[u8]) -> Result<ChainTip, BadMessage> {
    let node = NodeId(array("node_id", node)?);
    Ok(ChainTip { node, sequence, hash: array("hash", hash)? })
}
