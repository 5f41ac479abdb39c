//! What was set aside, as protobuf has it and as [`crate::lifecycle`] and [`crate::replication`] do.

use bytes::Bytes;
use kms_proto::v1;

use super::{
    sites::{self, BadMessage},
    status::Refused,
};
use crate::{
    lifecycle::{Aside, AsideId, Reconciled, Refusal, Which},
    replication::{Known, MayNot, REPORTED_AT_ONCE, SiteCard},
    store::sites::{Decided, DivergenceAsked, Divergent, DivergentName, Resolution},
};
use kms_core::{
    BlockNo, KeyRecord, Numbered as _, Record, RecordKey,
    block::reconciling::{Decision, Parting},
};

/// Rows of a page unless another number is asked for, and at most.
const PAGE: (u32, u32) = (100, 256);
const ID_LEN: usize = 4 + 16;

/// The name of a record that was set aside, for people.
pub(crate) fn id_of(bytes: &[u8]) -> Result<AsideId, Refused> {
    let bad = Refused::Field {
        field: "id",
        problem: "it is to have 20 bytes, a block and a MAC: see `site divergence list`",
    };
    let bytes: &[u8; ID_LEN] = bytes.try_into().map_err(|_| bad.clone())?;
    let (block, mac) = bytes.split_first_chunk::<4>().ok_or_else(|| bad.clone())?;
    let mac = mac.try_into().map_err(|_| bad)?;
    Ok(AsideId { block: BlockNo(u32::from_be_bytes(*block)), mac })
}

fn wire_id(id: AsideId) -> Bytes {
    [&id.block.0.to_be_bytes()[..], &id.mac].concat().into()
}

/// A place between pages: block, epoch, sequence, MAC, key.
fn name_of(bytes: &[u8]) -> Result<DivergentName, Refused> {
    let bad = || Refused::Field { field: "after", problem: "it is not the `next` of a page" };
    let (block, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    let (epoch, rest) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
    let (sequence, rest) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
    let (mac, key) = rest.split_first_chunk::<16>().ok_or_else(bad)?;
    Ok(DivergentName {
        block: BlockNo(u32::from_be_bytes(*block)),
        key: RecordKey::from_bytes(key).ok_or_else(bad)?,
        position: sites::at(u64::from_be_bytes(*epoch), u64::from_be_bytes(*sequence)),
        mac: *mac,
    })
}

pub(crate) fn wire_name(name: &DivergentName) -> Bytes {
    let DivergentName { block, key, position, mac } = name;
    let (epoch, sequence) = (position.epoch.0.to_be_bytes(), position.sequence.0.to_be_bytes());
    [&block.0.to_be_bytes()[..], &epoch, &sequence, mac, key.as_bytes()].concat().into()
}

/// The page that is asked for.
pub(crate) fn asked(request: &v1::ListDivergenceRequest) -> Result<DivergenceAsked, Refused> {
    let v1::ListDivergenceRequest { after, limit, decided, id: _ } = request;
    let after = if after.is_empty() { None } else { Some(name_of(after)?) };
    let limit = if *limit == 0 { PAGE.0 } else { *limit }.min(PAGE.1);
    Ok(DivergenceAsked { after, block: None, undecided: !decided, limit })
}

pub(crate) fn wire_row(aside: Aside) -> v1::DivergenceRow {
    let Aside { divergent, record, differences } = aside;
    let id = wire_id(AsideId { block: divergent.block, mac: divergent.record.mac });
    let Divergent { block, record: stored, site, at_ms, decided } = divergent;
    let (meter_id, keys): (String, &[KeyRecord]) = match &record {
        Some(Record::Meter(meter)) => (meter.meter_id.as_str().to_owned(), &meter.keys),
        Some(Record::Tombstone(gone)) => {
            (gone.meter_id.as_ref().map_or_else(String::new, ToString::to_string), &[])
        }
        Some(Record::Line(_) | Record::Fact(_)) | None => (String::new(), &[]),
    };
    let key = |it: &kms_core::block::reconciling::KeyDifference| {
        let known = keys.iter().find(|key| key.id == it.key);
        v1::DivergentKey {
            key_id: Bytes::copy_from_slice(&it.key.0),
            kind: known.map_or(0, |key| i32::from(key.kind as u8)),
            security_setup: known.map_or(0, |key| u32::from(key.setup.0)),
            aside: i32::from(it.aside as u8),
            stands: it.stands.map_or(0, |state| i32::from(state as u8)),
        }
    };
    let title = stored.key.system_title().filter(|_| stored.key.is_meter());
    v1::DivergenceRow {
        id,
        block: block.0,
        epoch: stored.position.epoch.0,
        sequence: stored.position.sequence.0,
        site,
        set_aside_ms: at_ms,
        meter_id,
        system_title: title.map_or_else(Bytes::new, |it| Bytes::copy_from_slice(it.as_bytes())),
        key: Bytes::copy_from_slice(stored.key.as_bytes()),
        parting: i32::from(differences.parting as u8),
        keys: differences.keys.iter().map(key).collect(),
        other_policy: differences.policy,
        other_names: differences.names,
        decided: decided.map(wire_decided),
    }
}

fn wire_decided(decided: Decided) -> v1::DivergenceDecision {
    let Decided { resolution, at_ms, by } = decided;
    let decision = match resolution {
        Resolution::Merged => Decision::Accept,
        Resolution::Discarded => Decision::Discard,
    };
    v1::DivergenceDecision { decision: i32::from(decision as u8), at_ms, by }
}

/// What is to be decided, and about which records.
pub(crate) fn resolving(
    request: &v1::ResolveDivergenceRequest,
) -> Result<(Which, Decision), Refused> {
    let v1::ResolveDivergenceRequest { decision, id, rule, all } = request;
    let known = u8::try_from(*decision).ok().and_then(Decision::from_number);
    let decision =
        known.ok_or(Refused::Field { field: "decision", problem: "it is neither of the two" })?;
    let number = u8::try_from(*rule).ok();
    let rule = (*rule != 0).then(|| number.and_then(Parting::from_number));
    let none = Refused::Field { field: "rule", problem: "there is none of this number" };
    let which = match (id.is_empty(), rule, all) {
        (false, None, false) => Which::One(id_of(id)?),
        (true, Some(Some(parting)), false) => Which::Rule(Some(parting)),
        (true, None, true) => Which::Rule(None),
        (true, Some(None), false) => return Err(none),
        _ => {
            let problem = "say one of id, rule and all";
            return Err(Refused::Field { field: "id", problem });
        }
    };
    Ok((which, decision))
}

pub(crate) fn wire_reconciled(
    done: Reconciled,
    replicated: v1::Replicated,
) -> v1::ResolveDivergenceResponse {
    let Reconciled { decided, changed, left, more, states: _ } = done;
    let left = left.into_iter().map(|(id, Refusal { code, reason })| v1::DivergenceLeft {
        id: wire_id(id),
        word: code.word().to_owned(),
        reason,
    });
    v1::ResolveDivergenceResponse {
        decided,
        changed,
        left: left.collect(),
        more,
        replicated: replicated.into(),
    }
}

/// The answers to all rows, in their order, out of those to the rows that may be reported.
pub(crate) fn answers(may: &[Result<(), MayNot>], known: Vec<Known>) -> Vec<Known> {
    let mut known = known.into_iter();
    let missing = || Err("it was not looked at".to_owned());
    let answer = |may: &Result<(), MayNot>| match may {
        Ok(()) => known.next().unwrap_or_else(missing),
        Err(why) => Err(why.to_string()),
    };
    may.iter().map(answer).collect()
}

/// What another site wrote alone.
pub(crate) fn reported(
    records: Vec<v1::DivergentRecord>,
    site: &str,
) -> Result<Vec<Divergent>, Refused> {
    if records.len() > REPORTED_AT_ONCE as usize {
        return Err(Refused::TooMany { what: "records", limit: REPORTED_AT_ONCE as usize });
    }
    let row = |it: v1::DivergentRecord| {
        let v1::DivergentRecord { block, record, at_ms } = it;
        Ok(Divergent {
            block: BlockNo(block),
            record: sites::record(record.ok_or(BadMessage("records.record"))?)?,
            site: site.to_owned(),
            at_ms,
            decided: None,
        })
    };
    Ok(records.into_iter().map(row).collect::<Result<_, BadMessage>>()?)
}

pub(crate) fn wire_reported(card: SiteCard, rows: Vec<Divergent>) -> v1::ReportDivergenceRequest {
    let record = |row: Divergent| v1::DivergentRecord {
        block: row.block.0,
        record: Some(sites::wire_record(row.record)),
        at_ms: row.at_ms,
    };
    let records = rows.into_iter().map(record).collect();
    v1::ReportDivergenceRequest { card: Some(sites::wire_card(card)), records }
}

pub(crate) fn wire_known(known: Known) -> v1::DivergenceAnswer {
    match known {
        Ok(None) => v1::DivergenceAnswer::default(),
        Ok(Some(Decided { resolution, at_ms, by })) => v1::DivergenceAnswer {
            resolution: u32::from(resolution as u8),
            at_ms,
            by,
            refused: String::new(),
        },
        Err(refused) => v1::DivergenceAnswer { refused, ..v1::DivergenceAnswer::default() },
    }
}

pub(crate) fn known(answer: v1::DivergenceAnswer) -> Result<Known, BadMessage> {
    let v1::DivergenceAnswer { resolution, at_ms, by, refused } = answer;
    if !refused.is_empty() {
        return Ok(Err(refused.chars().take(REASON_MAX).collect()));
    }
    if resolution == 0 {
        return Ok(Ok(None));
    }
    let known = u8::try_from(resolution).ok().and_then(Resolution::from_number);
    let resolution = known.ok_or(BadMessage("answers.resolution"))?;
    let by: String = by.chars().take(REASON_MAX).collect();
    Ok(Ok(Some(Decided { resolution, at_ms, by })))
}

/// Characters of a reason, or of a name, that are kept.
const REASON_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::{StoredRecord, SystemTitle};

    #[test]
    fn a_place_between_pages_and_an_id_come_back_and_nothing_else_does() {
        let record = StoredRecord {
            key: RecordKey::meter(&SystemTitle::new([3; 8])),
            position: sites::at(2, 7),
            secret_version: 1,
            body: vec![1],
            mac: [9; 16],
        };
        let (site, at_ms) = ("north".to_owned(), 5);
        let row = Divergent { block: BlockNo(4), record, site, at_ms, decided: None };
        let name = row.name();
        assert_eq!(name_of(&wire_name(&name)), Ok(name));
        for end in 0..37 {
            assert!(name_of(&wire_name(&name)[..end.min(36)]).is_err(), "cut at {end}");
        }
        let id = AsideId { block: BlockNo(4), mac: [9; 16] };
        assert_eq!(id_of(&wire_id(id)), Ok(id));
        assert!(id_of(&[0; 19]).is_err() && id_of(&[0; 21]).is_err());
    }

    #[test]
    fn one_record_a_rule_or_all_is_decided_about_and_never_two_of_these() {
        let ask = |id: usize, rule, all| {
            let id = vec![0; id].into();
            resolving(&v1::ResolveDivergenceRequest { decision: 1, id, rule, all })
        };
        assert!(matches!(ask(20, 0, false), Ok((Which::One(_), Decision::Accept))));
        assert!(matches!(ask(0, 3, false), Ok((Which::Rule(Some(Parting::Keys)), _))));
        assert!(matches!(ask(0, 0, true), Ok((Which::Rule(None), _))));
        let wrong = [(0, 0, false), (20, 3, false), (20, 0, true), (0, 3, true), (0, 99, false)];
        for (id, rule, all) in wrong {
            assert!(ask(id, rule, all).is_err(), "{id} {rule} {all}");
        }
        let none = v1::ResolveDivergenceRequest { all: true, ..Default::default() };
        assert!(resolving(&none).is_err(), "nothing is decided unsaid");
    }
}
