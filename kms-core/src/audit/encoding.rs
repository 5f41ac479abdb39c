//! An event's canonical bytes.

use super::{
    AuditEntry, AuditEvent, AuditOutcome, AuditText, AuditedCall, Detail, NodeId, Subject,
};
use crate::{
    BlockNo, Epoch, MeterId, Numbered as _, Position, Sequence, SystemTitle, block::BlockMark,
};

/// Bytes that are no event of this schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an audit event of schema {PLAIN} or {WITH_HEADS}")]
pub struct BadEvent;

/// The layout below, up to the blocks: what says nothing of heads.
const PLAIN: u8 = 1;
/// And heads behind them, at least one.
const WITH_HEADS: u8 = 2;

const DONE: u8 = 1;
const REFUSED: u8 = 2;
const FAILED: u8 = 3;

impl AuditEvent {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Self { node, sequence, entry } = self;
        let AuditEntry { at_ms, call, subject, outcome, details, blocks, heads } = entry;
        let AuditedCall { caller, verb, request_id, approval: _ } = call;
        let Subject { meter_id, system_title, block } = subject;
        let mut out = Vec::with_capacity(192 + 52 * heads.len());
        out.push(if heads.is_empty() { PLAIN } else { WITH_HEADS });
        out.extend_from_slice(&node.0);
        out.extend_from_slice(&sequence.to_be_bytes());
        out.extend_from_slice(&at_ms.to_be_bytes());
        put_text(&mut out, caller.as_str());
        put_text(&mut out, verb.as_str());
        put_text(&mut out, request_id.as_str());
        put_text(&mut out, meter_id.as_ref().map_or("", MeterId::as_str));
        put_optional(&mut out, system_title.as_ref().map(SystemTitle::as_bytes));
        put_optional(&mut out, block.map(|block| block.0.to_be_bytes()).as_ref());
        let (outcome, word) = match outcome {
            AuditOutcome::Done => (DONE, ""),
            AuditOutcome::Refused(word) => (REFUSED, word.as_str()),
            AuditOutcome::Failed(word) => (FAILED, word.as_str()),
        };
        out.push(outcome);
        put_text(&mut out, word);
        let details = details.get(..AuditEntry::DETAILS_MAX).unwrap_or(details);
        out.push(details.len() as u8);
        for (detail, number) in details {
            out.push(*detail as u8);
            out.extend_from_slice(&number.to_be_bytes());
        }
        let blocks = blocks.get(..AuditEntry::BLOCKS_MAX).unwrap_or(blocks);
        out.extend_from_slice(&(blocks.len() as u16).to_be_bytes());
        for (block, items) in blocks {
            out.extend_from_slice(&block.0.to_be_bytes());
            out.extend_from_slice(&items.to_be_bytes());
        }
        if !heads.is_empty() {
            out.extend_from_slice(&(heads.len() as u32).to_be_bytes());
        }
        for BlockMark { block, position, digest } in heads {
            out.extend_from_slice(&block.0.to_be_bytes());
            out.extend_from_slice(&position.epoch.0.to_be_bytes());
            out.extend_from_slice(&position.sequence.0.to_be_bytes());
            out.extend_from_slice(digest);
        }
        out
    }

    /// The event in `body`; refuses anything that [`AuditEvent::encode`] would not write.
    pub fn decode(body: &[u8]) -> Result<Self, BadEvent> {
        let mut input = Reader(body);
        let [schema] = input.array()?;
        if ![PLAIN, WITH_HEADS].contains(&schema) {
            return Err(BadEvent);
        }
        let node = NodeId(input.array()?);
        let sequence = input.u64()?;
        let at_ms = input.u64()?;
        let (caller, verb, request_id) = (input.text()?, input.text()?, input.text()?);
        let subject = Subject {
            meter_id: match input.text()?.as_str() {
                "" => None,
                id => Some(MeterId::new(id).map_err(|_| BadEvent)?),
            },
            system_title: input.optional()?.map(SystemTitle::new),
            block: input.optional()?.map(|block| BlockNo(u32::from_be_bytes(block))),
        };
        let [outcome] = input.array()?;
        let word = input.text()?;
        let outcome = match outcome {
            DONE if word.is_empty() => AuditOutcome::Done,
            REFUSED => AuditOutcome::Refused(word),
            FAILED => AuditOutcome::Failed(word),
            _ => return Err(BadEvent),
        };
        let (details, blocks) = (input.details()?, input.blocks()?);
        let heads = if schema == WITH_HEADS { input.heads()? } else { Vec::new() };
        if !input.0.is_empty() {
            return Err(BadEvent);
        }
        let call = AuditedCall { caller, verb, request_id, approval: None };
        let entry = AuditEntry { at_ms, call, subject, outcome, details, blocks, heads };
        Ok(Self { node, sequence, entry })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Its type has cut it to 255.
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn put_optional<const N: usize>(out: &mut Vec<u8>, bytes: Option<&[u8; N]>) {
    out.push(u8::from(bytes.is_some()));
    out.extend_from_slice(bytes.map_or(&[], |bytes| bytes));
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadEvent> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(BadEvent)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u64(&mut self) -> Result<u64, BadEvent> {
        self.array().map(u64::from_be_bytes)
    }

    fn optional<const N: usize>(&mut self) -> Result<Option<[u8; N]>, BadEvent> {
        match self.array()? {
            [0] => Ok(None),
            [1] => self.array().map(Some),
            _ => Err(BadEvent),
        }
    }

    fn text(&mut self) -> Result<AuditText, BadEvent> {
        let [len] = self.array()?;
        let (head, rest) = self.0.split_at_checked(len.into()).ok_or(BadEvent)?;
        self.0 = rest;
        let text = std::str::from_utf8(head).map_err(|_| BadEvent)?;
        let exact = AuditText::new(text);
        if exact.as_str() == text { Ok(exact) } else { Err(BadEvent) }
    }

    fn details(&mut self) -> Result<Vec<(Detail, u64)>, BadEvent> {
        let [count] = self.array()?;
        if usize::from(count) > AuditEntry::DETAILS_MAX {
            return Err(BadEvent);
        }
        (0..count)
            .map(|_| {
                let [number] = self.array()?;
                Ok((Detail::from_number(number).ok_or(BadEvent)?, self.u64()?))
            })
            .collect()
    }

    fn blocks(&mut self) -> Result<Vec<(BlockNo, u64)>, BadEvent> {
        let count = u16::from_be_bytes(self.array()?);
        if usize::from(count) > AuditEntry::BLOCKS_MAX {
            return Err(BadEvent);
        }
        (0..count).map(|_| Ok((BlockNo(u32::from_be_bytes(self.array()?)), self.u64()?))).collect()
    }

    fn heads(&mut self) -> Result<Vec<BlockMark>, BadEvent> {
        let count = u32::from_be_bytes(self.array()?);
        if count == 0 {
            return Err(BadEvent);
        }
        (0..count)
            .map(|_| {
                let block = BlockNo(u32::from_be_bytes(self.array()?));
                let (epoch, sequence) = (Epoch(self.u64()?), Sequence(self.u64()?));
                Ok(BlockMark {
                    block,
                    position: Position { epoch, sequence },
                    digest: self.array()?,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = AuditText> {
        "[!-~]{0,12}".prop_map(|text| AuditText::new(&text))
    }

    fn event() -> impl Strategy<Value = AuditEvent> {
        let subject = (
            proptest::option::of("[!-~]{1,9}".prop_map(|id| MeterId::new(&id).unwrap())),
            proptest::option::of(any::<[u8; 8]>().prop_map(SystemTitle::new)),
            proptest::option::of(any::<u32>().prop_map(BlockNo)),
        );
        let outcome = prop_oneof![
            Just(AuditOutcome::Done),
            text().prop_map(AuditOutcome::Refused),
            text().prop_map(AuditOutcome::Failed),
        ];
        let details = proptest::collection::vec(
            (proptest::sample::select(Detail::ALL), any::<u64>()),
            0..AuditEntry::DETAILS_MAX,
        );
        let blocks =
            proptest::collection::vec((any::<u32>().prop_map(BlockNo), any::<u64>()), 0..4);
        let mark = (any::<u32>(), any::<u64>(), any::<u64>(), any::<[u8; 32]>()).prop_map(
            |(block, epoch, sequence, digest)| {
                let position = Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
                BlockMark { block: BlockNo(block), position, digest }
            },
        );
        let lists = (blocks, proptest::collection::vec(mark, 0..3));
        let call = (text(), text(), text());
        let place = (any::<[u8; 16]>(), any::<u64>(), any::<u64>());
        (place, call, subject, outcome, details, lists).prop_map(
            |((node, sequence, at_ms), (caller, verb, request_id), s, outcome, details, lists)| {
                let (blocks, heads) = lists;
                let subject = Subject { meter_id: s.0, system_title: s.1, block: s.2 };
                let call = AuditedCall { caller, verb, request_id, approval: None };
                let entry = AuditEntry { at_ms, call, subject, outcome, details, blocks, heads };
                AuditEvent { node: NodeId(node), sequence, entry }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(event in event()) {
            prop_assert_eq!(AuditEvent::decode(&event.encode()), Ok(event));
        }

        #[test]
        fn two_events_never_have_the_same_bytes(a in event(), b in event()) {
            prop_assert_eq!(a == b, a.encode() == b.encode());
        }

        #[test]
        fn any_bytes_that_decode_are_what_would_be_encoded(
            mut body in event().prop_map(|event| event.encode()),
            at in any::<prop::sample::Index>(),
            with in any::<u8>(),
        ) {
            let at = at.index(body.len());
            body[at] = with;
            if let Ok(event) = AuditEvent::decode(&body) {
                prop_assert_eq!(event.encode(), body);
            }
        }

        #[test]
        fn a_cut_or_longer_body_does_not_decode(event in event(), cut in any::<prop::sample::Index>()) {
            let mut body = event.encode();
            prop_assert!(AuditEvent::decode(&body[..cut.index(body.len())]).is_err());
            body.push(0);
            prop_assert!(AuditEvent::decode(&body).is_err());
        }
    }

    /// The client has an encoder of its own: both are held to these bytes.
    #[test]
    fn the_encoding_and_the_hash_of_one_event_never_change() {
        let call = AuditedCall {
            request_id: AuditText::new("r-1"),
            ..AuditedCall::new("admin-1", "Meters/DeleteMeter")
        };
        let subject = Subject {
            meter_id: MeterId::new("KFM-1").ok(),
            system_title: Some(SystemTitle::new(*b"KFM\x00\x00\x00\x00\x01")),
            block: Some(BlockNo(7)),
        };
        let mut entry = call
            .entry(1_700_000_000_000, subject, AuditOutcome::refused("METER_NOT_FOUND"))
            .with(Detail::Items, 3);
        entry.blocks = vec![(BlockNo(9), 2)];
        let empty = super::super::ChainTip::empty(NodeId([0xA1; 16]));
        let (tip, stored) = empty.append(entry.clone());
        assert_eq!(hex::encode(&stored.body), GOLDEN_BODY);
        assert_eq!(hex::encode(tip.hash), GOLDEN_HASH);
        let position = Position { epoch: Epoch(2), sequence: Sequence(5) };
        entry.heads = vec![BlockMark { block: BlockNo(7), position, digest: [0xD1; 32] }];
        let (_, stored) = empty.append(entry);
        let heads = format!("0000000100000007{:016x}{:016x}{}", 2, 5, "d1".repeat(32));
        assert_eq!(hex::encode(&stored.body), format!("02{}{heads}", &GOLDEN_BODY[2..]));
    }

    const GOLDEN_BODY: &str = concat!(
        "01a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a100000000000000010000018bcfe568000761646d696e2d",
        "31124d65746572732f44656c6574654d6574657203722d31054b464d2d31014b464d000000000101",
        "00000007020f4d455445525f4e4f545f464f554e4401060000000000000003000100000009000000",
        "0000000002",
    );
    const GOLDEN_HASH: &str = "0b030de64d9f8be1e870f3b5a484c68fa87ac5c8a22b6219bc3c03feb703747f";
}
