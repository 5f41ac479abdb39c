//! Between the wire's receive floors and ours.

use bytes::Bytes;
use kms_proto::v1;

use super::sites::BadMessage;
use kms_core::{
    BlockNo, Fingerprint, SystemTitle,
    audit::NodeId,
    counters::LineName,
    floors::{Floor, FloorPlace, FloorRow},
};

/// Floors that are read of one answer.
const FLOORS_MAX: usize = 4_096;

fn array<const N: usize>(bytes: &[u8], what: &'static str) -> Result<[u8; N], BadMessage> {
    bytes.try_into().map_err(|_| BadMessage(what))
}

/// The place after which floors are asked for.
pub(crate) fn after(wire: Option<v1::ReceiveFloor>) -> Result<FloorPlace, BadMessage> {
    match wire {
        None => Ok(FloorPlace::since(0)),
        Some(wire) => {
            let v1::ReceiveFloor { block, fingerprint, originator, node, at_ms, .. } = wire;
            Ok(FloorPlace {
                at_ms,
                block: BlockNo(block),
                line: line(&fingerprint, &originator)?,
                node: NodeId(array(&node, "a node has 16 bytes")?),
            })
        }
    }
}

fn line(fingerprint: &[u8], originator: &[u8]) -> Result<LineName, BadMessage> {
    Ok(LineName {
        fingerprint: Fingerprint(array(fingerprint, "a fingerprint has 16 bytes")?),
        originator: SystemTitle::new(array(originator, "a system title has 8 bytes")?),
    })
}

/// To ask for what comes after a place.
pub(crate) fn wire_after(place: &FloorPlace) -> v1::ReceiveFloor {
    let FloorPlace { at_ms, block, line, node } = *place;
    let (body, mac) = ([0; Floor::LEN], [0; 16]);
    let row = wire(&FloorRow { block, line, node, at_ms, body, mac });
    v1::ReceiveFloor { body: Bytes::new(), mac: Bytes::new(), ..row }
}

/// A floor.
pub(crate) fn wire(row: &FloorRow) -> v1::ReceiveFloor {
    let FloorRow { block, line: LineName { fingerprint, originator }, node, at_ms, body, mac } =
        row;
    v1::ReceiveFloor {
        block: block.0,
        fingerprint: Bytes::copy_from_slice(&fingerprint.0),
        originator: Bytes::copy_from_slice(originator.as_bytes()),
        node: Bytes::copy_from_slice(&node.0),
        at_ms: *at_ms,
        body: Bytes::copy_from_slice(body),
        mac: Bytes::copy_from_slice(mac),
    }
}

/// Floors that came.
pub(crate) fn rows(floors: Vec<v1::ReceiveFloor>) -> Result<Vec<FloorRow>, BadMessage> {
    if floors.len() > FLOORS_MAX {
        return Err(BadMessage("more floors than an answer has"));
    }
    let row = |wire: v1::ReceiveFloor| {
        Ok(FloorRow {
            block: BlockNo(wire.block),
            line: line(&wire.fingerprint, &wire.originator)?,
            node: NodeId(array(&wire.node, "a node has 16 bytes")?),
            at_ms: wire.at_ms,
            body: array(&wire.body, "a floor has 16 bytes")?,
            mac: array(&wire.mac, "a MAC has 16 bytes")?,
        })
    };
    floors.into_iter().map(row).collect()
}
