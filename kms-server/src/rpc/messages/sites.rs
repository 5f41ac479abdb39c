//! The messages of two sites, as protobuf has them and as [`crate::replication`] does. What is not of the length that
//! it has to have is refused here; whether it is genuine is not decided here.

use bytes::Bytes;
use kms_proto::v1;

pub(crate) use super::papers::BadMessage;
use super::papers::{self, array};
use crate::replication::{
    BlockProof, BlockUpdate, HeadTablesSaid, HeadsAsked, MarksAsked, MarksSaid, PeerSaid, SiteCard,
};
use kms_core::{
    BlockNo, DomainId, Epoch, Head, Position, RecordKey, Sequence, StoredRecord, SystemTitle,
    block::BlockMark,
    counters::allocator::Witnessed,
    ports::MetersMessage,
    site::{
        readiness::SignedReadiness,
        role::{RoleRecord, SignedRoleRecord},
        tokens::TokenId,
    },
};

pub(super) fn at(epoch: u64, sequence: u64) -> Position {
    Position { epoch: Epoch(epoch), sequence: Sequence(sequence) }
}

/// A card, which each message has that begins something.
pub(crate) fn card(card: Option<v1::SiteCard>) -> Result<SiteCard, BadMessage> {
    let wire = card.ok_or(BadMessage("card"))?;
    let v1::SiteCard { site, domain_id, blocks, release, record_schema, epoch, writes, .. } = wire;
    if site.is_empty() || site.len() > 64 || release.len() > 64 {
        return Err(BadMessage("card.site"));
    }
    let domain = DomainId(array("card.domain_id", &domain_id)?);
    let (epoch, makeup) = (Epoch(epoch), wire.makeup.map(papers::read).transpose()?);
    let token = match wire.token.is_empty() {
        true => None,
        false => Some(TokenId(array("card.token", &wire.token)?)),
    };
    Ok(SiteCard { site, domain, blocks, release, record_schema, epoch, writes, makeup, token })
}

pub(crate) fn wire_card(card: SiteCard) -> v1::SiteCard {
    let SiteCard { site, domain, blocks, release, record_schema, epoch, writes, makeup, token } =
        card;
    v1::SiteCard {
        site,
        domain_id: Bytes::copy_from_slice(&domain.0),
        blocks,
        release,
        record_schema,
        epoch: epoch.0,
        writes,
        makeup: makeup.map(papers::wire),
        token: token.map_or_else(Bytes::new, |token| Bytes::copy_from_slice(&token.0)),
    }
}

pub(crate) fn head(head: Option<v1::BlockHead>) -> Result<Head, BadMessage> {
    let v1::BlockHead { block, secret_version, epoch, sequence, count, digest, mac } =
        head.ok_or(BadMessage("head"))?;
    Ok(Head {
        block: BlockNo(block),
        secret_version,
        position: at(epoch, sequence),
        count,
        digest: array("head.digest", &digest)?,
        mac: array("head.mac", &mac)?,
    })
}

pub(crate) fn wire_head(head: &Head) -> v1::BlockHead {
    let Head { block, secret_version, position, count, digest, mac } = head;
    v1::BlockHead {
        block: block.0,
        secret_version: *secret_version,
        epoch: position.epoch.0,
        sequence: position.sequence.0,
        count: *count,
        digest: Bytes::copy_from_slice(digest),
        mac: Bytes::copy_from_slice(mac),
    }
}

pub(super) fn record(record: v1::BlockRecord) -> Result<StoredRecord, BadMessage> {
    let v1::BlockRecord { key, epoch, sequence, secret_version, body, mac } = record;
    Ok(StoredRecord {
        key: RecordKey::from_bytes(&key).ok_or(BadMessage("records.key"))?,
        position: at(epoch, sequence),
        secret_version,
        body: body.into(),
        mac: array("records.mac", &mac)?,
    })
}

pub(super) fn wire_record(record: StoredRecord) -> v1::BlockRecord {
    let StoredRecord { key, position, secret_version, body, mac } = record;
    v1::BlockRecord {
        key: Bytes::copy_from_slice(key.as_bytes()),
        epoch: position.epoch.0,
        sequence: position.sequence.0,
        secret_version,
        body: body.into(),
        mac: Bytes::copy_from_slice(&mac),
    }
}

/// Messages of meters, for the site that writes.
pub(crate) fn wire_evidence(
    card: SiteCard,
    messages: Vec<MetersMessage>,
) -> v1::HandEvidenceRequest {
    let wire = |MetersMessage { title, apdu }| v1::MetersMessage {
        system_title: Bytes::copy_from_slice(title.as_bytes()),
        apdu: apdu.into_vec().into(),
    };
    let messages = messages.into_iter().map(wire).collect();
    v1::HandEvidenceRequest { card: Some(wire_card(card)), messages }
}

/// The same as they came.
pub(crate) fn evidence(messages: Vec<v1::MetersMessage>) -> Result<Vec<MetersMessage>, BadMessage> {
    if messages.len() > MetersMessage::AT_ONCE {
        return Err(BadMessage("messages"));
    }
    let read = |v1::MetersMessage { system_title, apdu }: v1::MetersMessage| {
        if apdu.is_empty() || apdu.len() > MetersMessage::LEN_MAX {
            return Err(BadMessage("messages.apdu"));
        }
        let title = SystemTitle::new(array("messages.system_title", &system_title)?);
        Ok(MetersMessage { title, apdu: apdu.to_vec().into() })
    };
    messages.into_iter().map(read).collect()
}

pub(crate) fn marks_asked(
    asked: v1::ExchangeMarksRequest,
) -> Result<(SiteCard, MarksAsked), BadMessage> {
    let v1::ExchangeMarksRequest { card: theirs, marks: wire, lines_of } = asked;
    let asked = MarksAsked { marks: marks(&wire), lines_of: lines_of.map(BlockNo) };
    Ok((card(theirs)?, asked))
}

pub(crate) fn wire_marks_asked(card: SiteCard, asked: MarksAsked) -> v1::ExchangeMarksRequest {
    let MarksAsked { marks, lines_of } = asked;
    v1::ExchangeMarksRequest {
        card: Some(wire_card(card)),
        marks: wire_marks(&marks),
        lines_of: lines_of.map(|block| block.0),
    }
}

pub(crate) fn marks_said(said: v1::ExchangeMarksResponse) -> Result<MarksSaid, BadMessage> {
    let v1::ExchangeMarksResponse { card: theirs, marks: wire, set_aside, remembers_since } = said;
    let set_aside = set_aside.into_iter().map(record).collect::<Result<_, _>>()?;
    let (card, marks) = (card(theirs)?, marks(&wire));
    Ok(MarksSaid { card, marks, set_aside, remembers_since: remembers_since.map(Epoch) })
}

pub(crate) fn wire_marks_said(said: MarksSaid) -> v1::ExchangeMarksResponse {
    let MarksSaid { card, marks, set_aside, remembers_since } = said;
    v1::ExchangeMarksResponse {
        card: Some(wire_card(card)),
        marks: wire_marks(&marks),
        set_aside: set_aside.into_iter().map(wire_record).collect(),
        remembers_since: remembers_since.map(|epoch| epoch.0),
    }
}

fn marks(marks: &[v1::CounterMark]) -> Vec<(BlockNo, Witnessed)> {
    let mark = |mark: &v1::CounterMark| {
        let known = Witnessed { epoch: Epoch(mark.epoch), end: mark.reserved };
        (BlockNo(mark.block), known)
    };
    marks.iter().map(mark).collect()
}

fn wire_marks(marks: &[(BlockNo, Witnessed)]) -> Vec<v1::CounterMark> {
    let mark = |(block, mark): &(BlockNo, Witnessed)| v1::CounterMark {
        block: block.0,
        epoch: mark.epoch.0,
        reserved: mark.end,
    };
    marks.iter().map(mark).collect()
}

pub(crate) fn update(update: v1::BlockUpdate) -> Result<BlockUpdate, BadMessage> {
    let v1::BlockUpdate { head: wire, records, more } = update;
    let records = records.into_iter().map(record).collect::<Result<_, _>>()?;
    Ok(BlockUpdate { head: head(wire)?, records, more })
}

pub(crate) fn wire_update(update: BlockUpdate) -> v1::BlockUpdate {
    let BlockUpdate { head, records, more } = update;
    v1::BlockUpdate {
        head: Some(wire_head(&head)),
        records: records.into_iter().map(wire_record).collect(),
        more,
    }
}

pub(crate) fn states(states: Vec<v1::BlockState>) -> Result<Vec<BlockMark>, BadMessage> {
    let mark = |state: v1::BlockState| {
        let v1::BlockState { block, epoch, sequence, digest } = state;
        let digest = array("digest", &digest)?;
        Ok(BlockMark { block: BlockNo(block), position: at(epoch, sequence), digest })
    };
    states.into_iter().map(mark).collect()
}

pub(crate) fn wire_states(marks: Vec<BlockMark>) -> Vec<v1::BlockState> {
    let state = |BlockMark { block, position, digest }: BlockMark| v1::BlockState {
        block: block.0,
        epoch: position.epoch.0,
        sequence: position.sequence.0,
        digest: Bytes::copy_from_slice(&digest),
    };
    marks.into_iter().map(state).collect()
}

pub(crate) fn asked(request: v1::ListBlockHeadsRequest) -> HeadsAsked {
    let v1::ListBlockHeadsRequest { card: _, blocks, at_least, wait_ms } = request;
    let position = |it: v1::BlockPosition| (BlockNo(it.block), at(it.epoch, it.sequence));
    HeadsAsked {
        blocks: blocks.into_iter().map(BlockNo).collect(),
        at_least: at_least.into_iter().map(position).collect(),
        wait_ms,
    }
}

pub(crate) fn wire_asked(card: SiteCard, asked: HeadsAsked) -> v1::ListBlockHeadsRequest {
    let HeadsAsked { blocks, at_least, wait_ms } = asked;
    let position = |(block, position): (BlockNo, Position)| v1::BlockPosition {
        block: block.0,
        epoch: position.epoch.0,
        sequence: position.sequence.0,
    };
    v1::ListBlockHeadsRequest {
        card: Some(wire_card(card)),
        blocks: blocks.into_iter().map(|block| block.0).collect(),
        at_least: at_least.into_iter().map(position).collect(),
        wait_ms,
    }
}

/// What a message of a peer that is followed says: its card before its block, if it has both.
pub(crate) fn said(response: v1::FollowChangesResponse) -> Result<Vec<PeerSaid>, BadMessage> {
    let v1::FollowChangesResponse { card: wire, update: block } = response;
    let mut said = Vec::with_capacity(2);
    if wire.is_some() {
        said.push(PeerSaid::Card(card(wire)?));
    }
    if let Some(block) = block {
        said.push(PeerSaid::Update(update(block)?));
    }
    Ok(said)
}

pub(crate) fn wire_said(said: PeerSaid) -> v1::FollowChangesResponse {
    match said {
        PeerSaid::Card(card) => {
            v1::FollowChangesResponse { card: Some(wire_card(card)), update: None }
        }
        PeerSaid::Update(update) => {
            v1::FollowChangesResponse { card: None, update: Some(wire_update(update)) }
        }
    }
}

pub(crate) fn challenges(
    challenges: Vec<v1::BlockChallenge>,
) -> Result<Vec<(BlockNo, [u8; 32])>, BadMessage> {
    let challenge =
        |it: v1::BlockChallenge| Ok((BlockNo(it.block), array("challenges.nonce", &it.nonce)?));
    challenges.into_iter().map(challenge).collect()
}

pub(crate) fn wire_challenges(
    card: SiteCard,
    challenges: Vec<(BlockNo, [u8; 32])>,
    report: Option<&SignedReadiness>,
) -> v1::ProveBlocksRequest {
    let challenge = |(block, nonce): (BlockNo, [u8; 32])| v1::BlockChallenge {
        block: block.0,
        nonce: Bytes::copy_from_slice(&nonce),
    };
    let challenges = challenges.into_iter().map(challenge).collect();
    let report = report.map(papers::wire_report);
    v1::ProveBlocksRequest { card: Some(wire_card(card)), challenges, report }
}

pub(crate) fn proof(proof: v1::BlockProof) -> Result<BlockProof, BadMessage> {
    let v1::BlockProof { block, head: wire, proof, mut failure } = proof;
    let outcome = if proof.is_empty() {
        // For a status: of whatever length the peer says.
        let cut = failure.char_indices().nth(FAILURE_MAX).map_or(failure.len(), |(at, _)| at);
        failure.truncate(cut);
        Err(failure)
    } else {
        Ok((head(wire)?, array("proofs.proof", &proof)?))
    };
    Ok(BlockProof { block: BlockNo(block), outcome })
}

/// Characters of a failure that are kept.
const FAILURE_MAX: usize = 300;

pub(crate) fn wire_proof(proof: BlockProof) -> v1::BlockProof {
    let BlockProof { block, outcome } = proof;
    match outcome {
        Ok((head, proof)) => v1::BlockProof {
            block: block.0,
            head: Some(wire_head(&head)),
            proof: Bytes::copy_from_slice(&proof),
            failure: String::new(),
        },
        Err(failure) => v1::BlockProof { block: block.0, head: None, proof: Bytes::new(), failure },
    }
}

pub(crate) fn role_record(record: &v1::SignedRoleRecord) -> Result<SignedRoleRecord, BadMessage> {
    let v1::SignedRoleRecord { message, signature } = record;
    Ok(SignedRoleRecord {
        record: RoleRecord::decode(message).map_err(|_| BadMessage("records.message"))?,
        signature: array("records.signature", signature)?,
    })
}

pub(crate) fn wire_role_record(signed: &SignedRoleRecord) -> v1::SignedRoleRecord {
    v1::SignedRoleRecord {
        message: signed.record.message().into(),
        signature: Bytes::copy_from_slice(&signed.signature),
    }
}

pub(crate) fn head_tables(
    response: v1::ShowHeadTablesResponse,
) -> Result<HeadTablesSaid, BadMessage> {
    let v1::ShowHeadTablesResponse { card, own, witnessed, tokens, asker_tokens } = response;
    Ok(HeadTablesSaid {
        card: self::card(card)?,
        own: own.map(papers::table).transpose()?,
        witnessed: witnessed.map(papers::table).transpose()?,
        tokens: papers::token_lists(tokens)?,
        known: papers::token_ids(&asker_tokens)?,
    })
}

pub(crate) fn wire_head_tables(said: HeadTablesSaid) -> v1::ShowHeadTablesResponse {
    let HeadTablesSaid { card, own, witnessed, tokens, known } = said;
    v1::ShowHeadTablesResponse {
        card: Some(wire_card(card)),
        own: own.map(papers::wire_table),
        witnessed: witnessed.map(papers::wire_table),
        tokens: tokens.iter().map(papers::wire_token_list).collect(),
        asker_tokens: known.iter().map(|id| Bytes::copy_from_slice(&id.0)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use kms_core::SystemTitle;

    fn block() -> BlockUpdate {
        let record = |n: u8| StoredRecord {
            key: RecordKey::meter(&SystemTitle::new([n; 8])),
            position: at(2, n.into()),
            secret_version: 1,
            body: vec![n; 40],
            mac: [n; 16],
        };
        let head = Head {
            block: BlockNo(3),
            secret_version: 1,
            position: at(2, 9),
            count: 2,
            digest: [7; 32],
            mac: [8; 16],
        };
        BlockUpdate { head, records: vec![record(5), record(9)], more: false }
    }

    #[test]
    fn a_block_comes_back_from_its_message() {
        let wire = wire_said(PeerSaid::Update(block())).encode_to_vec();
        let back = v1::FollowChangesResponse::decode(&wire[..]).unwrap();
        assert_eq!(said(back), Ok(vec![PeerSaid::Update(block())]));
    }

    /// What is another block than the one that was sent is for the MACs to refuse.
    #[test]
    fn invariant_5_each_flipped_bit_of_a_message_is_unreadable_or_another_block() {
        let sent = vec![PeerSaid::Update(block())];
        let wire = wire_said(PeerSaid::Update(block())).encode_to_vec();
        for at in 0..wire.len() {
            for bit in 0..8 {
                let mut flipped = wire.clone();
                flipped[at] ^= 1 << bit;
                let read = v1::FollowChangesResponse::decode(&flipped[..]);
                let is_sent = read.is_ok_and(|read| said(read).is_ok_and(|said| said == sent));
                assert!(!is_sent, "byte {at}, bit {bit}");
            }
        }
        for end in 0..wire.len() {
            let read = v1::FollowChangesResponse::decode(&wire[..end]);
            let is_sent = read.is_ok_and(|read| said(read).is_ok_and(|said| said == sent));
            assert!(!is_sent, "cut at {end}");
        }
    }
}
