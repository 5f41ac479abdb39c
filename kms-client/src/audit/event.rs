//! Events as the server tells them.

use kms_proto::v1;
use serde::{Serialize, Serializer};

/// One event, as the server tells it; [`crate::Audit::verify`] shows whether that is what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditEvent {
    /// The node whose chain it is; 16 bytes.
    #[serde(serialize_with = "as_hex")]
    pub node_id: Vec<u8>,
    /// From 1, without a gap.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The name in the caller's certificate; `kms-server`: the service itself.
    pub caller: String,
    /// Such as `Meters/DeleteMeter`.
    pub verb: String,
    /// The `x-request-id` that the caller sent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// The meter, by the operator's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub meter_id: String,
    /// The meter, by its name on the wire.
    #[serde(serialize_with = "as_hex", skip_serializing_if = "Vec::is_empty")]
    pub system_title: Vec<u8>,
    /// The block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block: Option<u32>,
    /// The outcome of the call.
    pub outcome: AuditOutcome,
    /// The reason word; empty if the call was done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<AuditDetail>,
    /// Of a record of crypto traffic: items by block.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<AuditBlock>,
    /// The state of each block that changed with this event.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<AuditHead>,
    /// Of this event and all before it.
    #[serde(serialize_with = "as_hex")]
    pub hash: Vec<u8>,
}

/// The outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuditOutcome {
    /// The event could not be read.
    Unreadable = 0,
    /// As asked.
    Done = 1,
    /// For what was asked, or who asked.
    Refused = 2,
    /// For a fault of the service.
    Failed = 3,
}

/// A number in an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditDetail {
    /// The name of the number.
    pub name: String,
    /// The number.
    pub number: u64,
    /// Its name by number, as it is hashed.
    #[serde(skip)]
    pub(super) wire_name: u32,
}

/// Items of one block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditBlock {
    /// The block.
    pub block: u32,
    /// The number of items.
    pub items: u64,
}

/// The state of a block after a change: its position, and the digest over its records' MACs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditHead {
    /// The block.
    pub block: u32,
    /// The writer's epoch.
    pub epoch: u64,
    /// The change's number within the block.
    pub sequence: u64,
    /// Over its records' MACs.
    #[serde(serialize_with = "as_hex")]
    pub digest: Vec<u8>,
}

fn as_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

impl AuditEvent {
    pub(super) fn from_wire(wire: v1::AuditEvent) -> Self {
        let outcome = match wire.outcome() {
            v1::AuditOutcome::Unspecified => AuditOutcome::Unreadable,
            v1::AuditOutcome::Done => AuditOutcome::Done,
            v1::AuditOutcome::Refused => AuditOutcome::Refused,
            v1::AuditOutcome::Failed => AuditOutcome::Failed,
        };
        Self {
            node_id: wire.node_id.to_vec(),
            sequence: wire.sequence,
            at_ms: wire.at_ms,
            caller: wire.caller,
            verb: wire.verb,
            request_id: wire.request_id,
            meter_id: wire.meter_id,
            system_title: wire.system_title.to_vec(),
            block: wire.block,
            outcome,
            reason: wire.reason,
            details: wire.details.into_iter().map(AuditDetail::from_wire).collect(),
            blocks: wire
                .blocks
                .into_iter()
                .map(|block| AuditBlock { block: block.block, items: block.items })
                .collect(),
            heads: wire
                .heads
                .into_iter()
                .map(|head| AuditHead {
                    block: head.block,
                    epoch: head.epoch,
                    sequence: head.sequence,
                    digest: head.digest.to_vec(),
                })
                .collect(),
            hash: wire.hash.to_vec(),
        }
    }
}

impl AuditDetail {
    fn from_wire(wire: v1::AuditDetail) -> Self {
        let known =
            i32::try_from(wire.name).ok().and_then(|n| v1::AuditDetailName::try_from(n).ok());
        let name = known.map_or_else(
            || format!("detail_{}", wire.name),
            |name| name.as_str_name().to_lowercase(),
        );
        Self { name, number: wire.number, wire_name: wire.name }
    }
}
