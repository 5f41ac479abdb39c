//! The chain, checked by code that shares nothing with the server's: encoding and hash are written here
//! once more from what `audit.proto` says.

use std::collections::VecDeque;

use kms_proto::v1;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::event::AuditEvent;

/// An end of a chain that was found good at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHead {
    /// The node whose chain it is.
    pub node: [u8; 16],
    /// Of its last event then.
    pub sequence: u64,
    /// Of its last event then.
    pub hash: [u8; 32],
}

/// The place where a chain is first found broken.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("event {sequence}: {reason}")]
pub struct BrokenChain {
    /// The first bad event.
    pub sequence: u64,
    /// Its fault.
    pub reason: String,
}

/// The outcome of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChainReport {
    /// The node whose chain it is; 32 hex digits.
    pub node_id: String,
    /// Nothing is wrong.
    pub intact: bool,
    /// The last good event.
    pub sequence: u64,
    /// Its hash; 64 hex digits.
    pub hash: String,
    /// Signed heads that fitted.
    pub checkpoints: u64,
    /// The first bad event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_bad_sequence: Option<u64>,
    /// Its fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// SHA-256 of the key that signs, as `kms-server init` told it.
    pub key_fingerprint: String,
    /// Of the site's other tokens, of which the heads may be as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub further_key_fingerprints: Vec<String>,
}

/// A signed head.
pub(super) struct Head {
    node: [u8; 16],
    sequence: u64,
    hash: [u8; 32],
    at_ms: u64,
    signature: Vec<u8>,
}

impl Head {
    pub(super) fn from_wire(wire: &v1::AuditCheckpoint) -> Option<Self> {
        Some(Self {
            node: wire.node_id[..].try_into().ok()?,
            sequence: wire.sequence,
            hash: wire.hash[..].try_into().ok()?,
            at_ms: wire.at_ms,
            signature: wire.signature.to_vec(),
        })
    }
}

/// A chain under check.
pub(super) struct Chain {
    node: [u8; 16],
    key: [u8; 65],
    /// Of the site's other tokens: heads that they signed count as well.
    further: Vec<[u8; 65]>,
    sequence: u64,
    hash: [u8; 32],
    /// Ends that are still ahead, in order.
    ends: VecDeque<End>,
    checkpoints: u64,
}

/// An end that the chain must come to.
#[derive(Clone, Copy)]
struct End {
    sequence: u64,
    hash: [u8; 32],
    /// The token signed it; else it was found good here before.
    signed: bool,
}

impl Chain {
    pub(super) fn new(node: [u8; 16], key: [u8; 65]) -> Self {
        let start = Sha256::new().chain_update(b"ami.kms/audit-chain/1").chain_update(node);
        let hash = start.finalize().into();
        Self {
            node,
            key,
            further: Vec::new(),
            sequence: 0,
            hash,
            ends: VecDeque::new(),
            checkpoints: 0,
        }
    }

    /// With the keys of the site's other tokens.
    pub(super) fn with_further(self, further: Vec<[u8; 65]>) -> Self {
        Self { further, ..self }
    }

    pub(super) fn node(&self) -> [u8; 16] {
        self.node
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// That the heads are signed with keys that were expected: then with those alone, since the server says which
    /// further ones there are.
    pub(super) fn check_keys(&mut self, expected: &[[u8; 32]]) -> Result<(), BrokenChain> {
        if expected.is_empty() {
            return Ok(());
        }
        let shown = [self.key].into_iter().chain(std::mem::take(&mut self.further));
        let mut meant = shown.filter(|key| expected.contains(&Sha256::digest(key).into()));
        self.key = meant.next().ok_or_else(|| {
            broken(1, "the heads are signed with another key than the expected one")
        })?;
        self.further = meant.collect();
        Ok(())
    }

    /// An end that was found good before.
    pub(super) fn know(&mut self, head: &KnownHead) {
        self.expect(End { sequence: head.sequence, hash: head.hash, signed: false });
    }

    fn expect(&mut self, end: End) {
        let at = self.ends.partition_point(|other| other.sequence <= end.sequence);
        self.ends.insert(at, end);
    }

    /// The next signed head, before the event that it signs.
    pub(super) fn head(&mut self, head: Head) -> Result<(), BrokenChain> {
        let Head { node, sequence, hash, at_ms, signature } = head;
        let message = [
            b"ami.kms/audit-checkpoint/1".as_slice(),
            &node,
            &sequence.to_be_bytes(),
            &hash,
            &at_ms.to_be_bytes(),
        ]
        .concat();
        let is_signed = [&self.key].into_iter().chain(&self.further).any(|key| {
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key);
            key.verify(&message, &signature).is_ok()
        });
        if node != self.node || !is_signed {
            return Err(broken(sequence, "a head was not signed by the token's key"));
        }
        self.expect(End { sequence, hash, signed: true });
        self.compare()
    }

    /// The next event.
    pub(super) fn event(&mut self, event: &AuditEvent) -> Result<(), BrokenChain> {
        let due = self.sequence + 1;
        if event.sequence != due || event.node_id != self.node {
            return Err(broken(due, "an event is missing or out of order"));
        }
        let bytes = encode(event).ok_or_else(|| broken(due, "the event can't be read"))?;
        let hash = Sha256::new().chain_update(b"ami.kms/audit-event/1").chain_update(self.hash);
        let hash: [u8; 32] = hash.chain_update(bytes).finalize().into();
        if event.hash != hash {
            return Err(broken(due, "the event, or one before it, was changed"));
        }
        (self.sequence, self.hash) = (due, hash);
        self.compare()
    }

    fn compare(&mut self) -> Result<(), BrokenChain> {
        while let Some(End { sequence, hash, signed }) = self.ends.front().copied() {
            if sequence > self.sequence {
                break;
            }
            self.ends.pop_front();
            if sequence == self.sequence && hash != self.hash {
                let reason = if signed {
                    "a signed head says otherwise: events since the signed head before it were changed"
                } else {
                    "this is not the event that was found good here before"
                };
                return Err(broken(sequence, reason));
            }
            self.checkpoints += u64::from(signed);
        }
        Ok(())
    }

    /// All events were handed in; `claimed`: the number that the server gives the last one.
    pub(super) fn finish(&self, claimed: u64) -> Result<(), BrokenChain> {
        if !self.ends.is_empty() || claimed > self.sequence {
            return Err(broken(self.sequence + 1, "events were cut off the end"));
        }
        Ok(())
    }

    pub(super) fn report(&self, broken: Option<BrokenChain>) -> ChainReport {
        let (first_bad_sequence, reason) =
            broken.map(|broken| (broken.sequence, broken.reason)).unzip();
        ChainReport {
            node_id: hex::encode(self.node),
            intact: reason.is_none(),
            sequence: self.sequence,
            hash: hex::encode(self.hash),
            checkpoints: self.checkpoints,
            first_bad_sequence,
            reason,
            key_fingerprint: fingerprint(&self.key),
            further_key_fingerprints: self.further.iter().map(fingerprint).collect(),
        }
    }
}

fn fingerprint(key: &[u8; 65]) -> String {
    hex::encode(Sha256::digest(key))
}

fn broken(sequence: u64, reason: &str) -> BrokenChain {
    BrokenChain { sequence, reason: reason.to_owned() }
}

/// The canonical bytes, as `audit.proto` has them; `None` if the fields are none that have any.
fn encode(event: &AuditEvent) -> Option<Vec<u8>> {
    let mut out = vec![if event.heads.is_empty() { 1 } else { 2 }];
    out.extend_from_slice(&event.node_id);
    out.extend_from_slice(&event.sequence.to_be_bytes());
    out.extend_from_slice(&event.at_ms.to_be_bytes());
    for text in [&event.caller, &event.verb, &event.request_id, &event.meter_id] {
        put_text(&mut out, text)?;
    }
    match event.system_title.len() {
        0 => out.push(0),
        8 => {
            out.push(1);
            out.extend_from_slice(&event.system_title);
        }
        _ => return None,
    }
    out.push(u8::from(event.block.is_some()));
    out.extend(event.block.iter().flat_map(|block| block.to_be_bytes()));
    out.push(event.outcome as u8);
    put_text(&mut out, &event.reason)?;
    out.push(u8::try_from(event.details.len()).ok()?);
    for detail in &event.details {
        out.push(u8::try_from(detail.wire_name).ok()?);
        out.extend_from_slice(&detail.number.to_be_bytes());
    }
    out.extend_from_slice(&u16::try_from(event.blocks.len()).ok()?.to_be_bytes());
    for block in &event.blocks {
        out.extend_from_slice(&block.block.to_be_bytes());
        out.extend_from_slice(&block.items.to_be_bytes());
    }
    if !event.heads.is_empty() {
        out.extend_from_slice(&u32::try_from(event.heads.len()).ok()?.to_be_bytes());
    }
    for head in &event.heads {
        out.extend_from_slice(&head.block.to_be_bytes());
        out.extend_from_slice(&head.epoch.to_be_bytes());
        out.extend_from_slice(&head.sequence.to_be_bytes());
        out.extend_from_slice(head.digest.first_chunk::<32>().filter(|_| head.digest.len() == 32)?);
    }
    Some(out)
}

fn put_text(out: &mut Vec<u8>, text: &str) -> Option<()> {
    out.push(u8::try_from(text.len()).ok()?);
    out.extend_from_slice(text.as_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

    use super::*;

    const NODE: [u8; 16] = [0xA1; 16];

    fn wire_event() -> v1::AuditEvent {
        v1::AuditEvent {
            node_id: NODE.to_vec().into(),
            sequence: 1,
            at_ms: 1_700_000_000_000,
            caller: "admin-1".into(),
            verb: "Meters/DeleteMeter".into(),
            request_id: "r-1".into(),
            meter_id: "KFM-1".into(),
            system_title: b"KFM\x00\x00\x00\x00\x01".to_vec().into(),
            block: Some(7),
            outcome: v1::AuditOutcome::Refused as i32,
            reason: "METER_NOT_FOUND".into(),
            details: vec![v1::AuditDetail { name: 6, number: 3 }],
            blocks: vec![v1::AuditBlock { block: 9, items: 2 }],
            hash: hex::decode(GOLDEN_HASH).unwrap().into(),
            heads: Vec::new(),
        }
    }

    /// The server's test has the same bytes.
    const GOLDEN_HASH: &str = "0b030de64d9f8be1e870f3b5a484c68fa87ac5c8a22b6219bc3c03feb703747f";

    #[test]
    fn one_events_hash_is_that_of_the_server() {
        let event = AuditEvent::from_wire(wire_event());
        let mut chain = Chain::new(NODE, [0; 65]);
        assert_eq!(chain.event(&event), Ok(()));
        let plain = encode(&event).unwrap();
        let head = v1::AuditHead { block: 7, epoch: 2, sequence: 5, digest: vec![0xD1; 32].into() };
        let event = AuditEvent::from_wire(v1::AuditEvent { heads: vec![head], ..wire_event() });
        // As the server's test has it, too.
        let heads = format!("0000000100000007{:016x}{:016x}{}", 2, 5, "d1".repeat(32));
        let wanted = format!("02{}{heads}", &hex::encode(plain)[2..]);
        assert_eq!(hex::encode(encode(&event).unwrap()), wanted);
    }

    /// A chain of `n` events as the server would write it.
    fn events(n: u64) -> Vec<AuditEvent> {
        let mut hash = Chain::new(NODE, [0; 65]).hash;
        (1..=n)
            .map(|sequence| {
                let head =
                    v1::AuditHead { block: 7, epoch: 2, sequence, digest: vec![0xD1; 32].into() };
                let wire = v1::AuditEvent { sequence, heads: vec![head], ..wire_event() };
                let mut event = AuditEvent::from_wire(wire);
                let bytes = encode(&event).unwrap();
                let link = Sha256::new().chain_update(b"ami.kms/audit-event/1").chain_update(hash);
                hash = link.chain_update(bytes).finalize().into();
                event.hash = hash.to_vec();
                event
            })
            .collect()
    }

    fn check(events: &[AuditEvent], known: Option<(u64, [u8; 32])>) -> Result<(), BrokenChain> {
        let mut chain = Chain::new(NODE, [0; 65]);
        if let Some((sequence, hash)) = known {
            chain.know(&KnownHead { node: NODE, sequence, hash });
        }
        events.iter().try_for_each(|event| chain.event(event))?;
        chain.finish(0)
    }

    #[test]
    fn each_change_of_an_event_is_found_at_its_place() {
        let good = events(5);
        assert_eq!(check(&good, None), Ok(()));
        let changes: [fn(&mut AuditEvent); 17] = [
            |event| event.node_id[0] ^= 1,
            |event| event.sequence += 1,
            |event| event.at_ms += 1,
            |event| event.caller.push('x'),
            |event| event.verb.clear(),
            |event| event.request_id.clear(),
            |event| event.meter_id.clear(),
            |event| event.system_title.clear(),
            |event| event.block = None,
            |event| event.outcome = super::super::event::AuditOutcome::Done,
            |event| event.reason.clear(),
            |event| event.details[0].number += 1,
            |event| event.blocks.clear(),
            |event| event.heads.clear(),
            |event| event.heads[0].epoch += 1,
            |event| event.heads[0].sequence += 1,
            |event| event.heads[0].digest[31] ^= 1,
        ];
        for change in changes {
            let mut altered = good.clone();
            change(&mut altered[2]);
            assert_eq!(check(&altered, None).unwrap_err().sequence, 3);
        }
        let mut without = good.clone();
        without.remove(2);
        assert_eq!(check(&without, None).unwrap_err().sequence, 3);
        let mut swapped = good.clone();
        swapped.swap(1, 3);
        assert_eq!(check(&swapped, None).unwrap_err().sequence, 2);
    }

    #[test]
    fn an_end_that_was_known_shows_a_cut_and_a_chain_written_anew() {
        let good = events(5);
        let end = |event: &AuditEvent| (event.sequence, event.hash[..].try_into().unwrap());
        assert_eq!(check(&good, Some(end(&good[3]))), Ok(()));
        assert_eq!(check(&good[..3], Some(end(&good[3]))).unwrap_err().sequence, 4);
        assert_eq!(check(&good, Some((4, [0; 32]))).unwrap_err().sequence, 4);
    }

    #[test]
    fn a_head_counts_only_if_the_key_signed_it() {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let key: [u8; 65] = pair.public_key().as_ref().try_into().unwrap();
        let good = events(5);
        let head = |sequence: u64, hash: [u8; 32]| {
            let message = [
                b"ami.kms/audit-checkpoint/1".as_slice(),
                &NODE,
                &sequence.to_be_bytes(),
                &hash,
                &9u64.to_be_bytes(),
            ];
            let signature = pair.sign(&random, &message.concat()).unwrap().as_ref().to_vec();
            Head { node: NODE, sequence, hash, at_ms: 9, signature }
        };
        let hash: [u8; 32] = good[3].hash[..].try_into().unwrap();
        let run = |head: Head, events: &[AuditEvent]| {
            let mut chain = Chain::new(NODE, key);
            chain.head(head)?;
            events.iter().try_for_each(|event| chain.event(event))?;
            chain.finish(0)?;
            Ok::<_, BrokenChain>(chain.checkpoints)
        };
        assert_eq!(run(head(4, hash), &good), Ok(1));
        assert_eq!(run(head(4, hash), &good[..3]).unwrap_err().sequence, 4);
        assert_eq!(run(head(4, [1; 32]), &good).unwrap_err().sequence, 4);
        let moved = Head { at_ms: 8, ..head(4, hash) };
        assert!(run(moved, &good).unwrap_err().reason.contains("not signed"));
    }

    #[test]
    fn heads_of_each_pinned_key_count_and_of_no_other() {
        let (own, second, third) = ([1; 65], [2; 65], [3; 65]);
        let pin = |key: [u8; 65]| <[u8; 32]>::from(Sha256::digest(key));
        let left = |expected: &[[u8; 32]]| {
            let mut chain = Chain::new(NODE, own).with_further(vec![second, third]);
            chain.check_keys(expected).map(|()| [vec![chain.key], chain.further].concat())
        };
        assert_eq!(left(&[]), Ok(vec![own, second, third]));
        assert_eq!(left(&[pin(second)]), Ok(vec![second]));
        assert_eq!(left(&[pin(third), pin(own)]), Ok(vec![own, third]));
        assert_eq!(left(&[pin(own), [0; 32]]), Ok(vec![own]));
        assert!(left(&[[0; 32]]).is_err());
    }
}
