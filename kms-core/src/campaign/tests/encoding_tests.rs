//! Campaigns and their members as records have them.

use super::*;
use crate::{
    BlockCount, BlockNo, RefusalCode,
    campaign::{CHUNKS, Part, ROWS_MAX, SLOTS, row::Tried},
    fact::{Fact, FactName},
    life::choosing::Pair,
    record::Record,
};

fn full() -> Campaign {
    let window = Window { from_minute: 60, to_minute: 30, weekdays: 3 };
    let policy = Policy {
        kinds: vec![KeyKind::Guek, KeyKind::Gak],
        windows: vec![window],
        rate_per_hour: 9,
        ..Policy::default()
    };
    Campaign { reason: "why".into(), ended_ms: Some(8), ..campaign(policy) }
}

fn part() -> Part {
    let blocks = BlockCount::new(4).unwrap();
    let wanted = title(77);
    let (block, chunk) = (blocks.block_of(&wanted), Part::chunk_of(&wanted));
    let is_here = |it: &SystemTitle| blocks.block_of(it) == block && Part::chunk_of(it) == chunk;
    let mut titles: Vec<SystemTitle> = (0..2_000).map(title).filter(is_here).collect();
    titles.sort();
    let tried = Tried {
        at_ms: 5,
        pair: Pair { encryption: 2, authentication: Some(1) },
        outcome: Outcome::NoAnswer,
        frame: vec![1, 2, 3],
    };
    let mut rows: Vec<Row> = titles.into_iter().map(|title| Row::new(title, 1)).collect();
    rows[0] = Row {
        phase: Phase::Sent,
        canary: true,
        sent: true,
        unreachable: true,
        restarted: true,
        tried_since: true,
        lease: 5,
        doing: Action::Probe,
        targets: [2, 0],
        last: Some(Outcome::Refused),
        refused: Some(RefusalCode::NoKek),
        tried: vec![tried],
        ..rows[0].clone()
    };
    Part { block, blocks, slot: 3, chunk, campaign: CampaignId([7; 16]), started_ms: 1, rows }
}

#[test]
fn a_campaign_and_its_members_come_back_whole_and_in_no_other_form() {
    for fact in [Fact::Campaign(Box::new(full())), Fact::CampaignPart(part())] {
        let body = Record::Fact(fact.clone()).encode().unwrap();
        assert_eq!(Record::decode(&body), Ok(Record::Fact(fact)));
        for len in 0..body.len() {
            assert!(Record::decode(&body[..len]).is_err(), "{len}");
        }
        assert!(Record::decode(&[&body[..], &[0]].concat()).is_err());
    }
}

#[test]
fn what_a_record_does_not_hold_is_not_written() {
    let mut rows = part();
    rows.rows.swap(0, 1);
    let mut strange = part();
    strange.rows[0].title = title(1_000_000);
    let mut many = part();
    many.rows = vec![many.rows[0].clone(); ROWS_MAX + 1];
    let parts = [rows, strange, many, Part { chunk: CHUNKS, ..part() }];
    let named = Campaign { name: "no name".into(), ..full() };
    let placed = Campaign { slot: SLOTS, ..full() };
    let spoken = Campaign { reason: "x".repeat(256), ..full() };
    let facts = parts.into_iter().map(Fact::CampaignPart);
    let campaigns = [named, placed, spoken].map(|it| Fact::Campaign(Box::new(it)));
    for fact in facts.chain(campaigns) {
        assert!(Record::Fact(fact).encode().is_err());
    }
}

#[test]
fn the_members_of_a_block_are_records_of_that_block() {
    for count in [1, 3, 4_096, 65_536] {
        let blocks = BlockCount::new(count).unwrap();
        for block in [0, count / 2, count - 1].map(BlockNo) {
            for (slot, chunk) in [(0, 0), (SLOTS - 1, CHUNKS - 1)] {
                let name = FactName::of_campaign_part((block, blocks), slot, chunk);
                assert_eq!(name.block(blocks), block);
            }
        }
    }
}

#[test]
fn of_two_campaigns_in_one_place_the_newer_one_stays_and_of_one_the_later_state() {
    let older = full();
    let newer = Campaign { id: CampaignId([8; 16]), started_ms: 2, changes: 0, ..full() };
    let later = Campaign { changes: 9, status: Status::Paused, ..full() };
    for (a, b, stays) in [(&older, &newer, &newer), (&older, &later, &later)] {
        assert_eq!((a.merged(b), b.merged(a)), (stays.clone(), stays.clone()));
    }
    let ours = part();
    let mut theirs = part();
    theirs.rows[1].phase = Phase::Done;
    theirs.rows[0] = Row::new(theirs.rows[0].title, 1);
    let both = ours.merged(&theirs);
    assert_eq!(both, theirs.merged(&ours));
    assert_eq!((both.rows[0].phase, both.rows[1].phase), (Phase::Sent, Phase::Done));
    let other = Part { campaign: CampaignId([1; 16]), started_ms: 0, ..theirs };
    assert_eq!((ours.merged(&other), other.merged(&ours)), (ours.clone(), ours));
}
