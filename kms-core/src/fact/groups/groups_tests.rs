use super::*;
use crate::{
    BlockCount,
    fact::{Fact, FactName},
};

fn value(kind: KeyKind, n: u8, since_ms: u64, stage: ValueStage) -> GroupValue {
    GroupValue {
        kind,
        since_ms,
        fingerprint: Fingerprint([n; 16]),
        kcv: [n; 5],
        stage,
        made_here: true,
    }
}

fn title(n: u8) -> SystemTitle {
    SystemTitle::new([n; 8])
}

fn group() -> Group {
    Group {
        name: GroupName::new("north-street").unwrap(),
        created_ms: 10,
        setup: SecuritySetup(0),
        client: 1,
        originator: title(0xEE),
        authenticated: true,
        class_version: 1,
        carrier: Carrier::default(),
        deleted_ms: None,
        wants_ms: None,
        values: vec![value(KeyKind::Gbek, 1, 20, ValueStage::Settled)],
        members: vec![title(1), title(2)],
    }
}

fn membership(group: &str, since_ms: u64, left_ms: Option<u64>) -> Membership {
    Membership {
        title: title(1),
        setup: SecuritySetup(0),
        group: GroupName::new(group).unwrap(),
        authenticated: true,
        since_ms,
        left_ms,
    }
}

fn both(a: &Group, b: &Group) -> Group {
    let merged = a.merged(b);
    assert_eq!(merged, b.merged(a), "at either site");
    assert_eq!(merged, merged.merged(a), "told again");
    merged
}

#[test]
fn it_is_read_as_it_was_put_and_in_no_other_form() {
    let mut all = group();
    (all.deleted_ms, all.wants_ms) = (Some(3), Some(4));
    all.put_value(value(KeyKind::Gak, 3, 30, ValueStage::Rotating));
    for fact in [
        Fact::Group(group()),
        Fact::Group(all.clone()),
        Fact::Membership(membership("a", 5, None)),
        Fact::Membership(membership("a", 5, Some(6))),
    ] {
        let mut bytes = Vec::new();
        fact.put(&mut bytes);
        assert_eq!(Fact::take(&bytes), Ok(fact));
        for cut in 0..bytes.len() {
            assert_eq!(Fact::take(&bytes[..cut]), Err(BadEncoding));
        }
        bytes.push(0);
        assert_eq!(Fact::take(&bytes), Err(BadEncoding));
    }
    let read = |group: &Group| {
        let mut bytes = Vec::new();
        Fact::Group(group.clone()).put(&mut bytes);
        Fact::take(&bytes)
    };
    let unordered = Group { members: vec![title(2), title(1)], ..group() };
    assert_eq!(read(&unordered), Err(BadEncoding));
    let of_another_kind = value(KeyKind::Guek, 1, 1, ValueStage::Settled);
    let foreign = Group { values: vec![of_another_kind], ..group() };
    assert_eq!(read(&foreign), Err(BadEncoding));
    assert!(GroupName::new("").is_err() && GroupName::new("a b").is_err());
}

#[test]
fn a_membership_lies_in_the_block_of_its_meter() {
    let blocks = BlockCount::new(4096).unwrap();
    for n in 0..=255 {
        let name = FactName::of_membership(&title(n), SecuritySetup(n));
        assert_eq!(name.block(blocks), blocks.block_of(&title(n)));
        assert_ne!(name, FactName::of_membership(&title(n), SecuritySetup(n.wrapping_add(1))));
    }
}

#[test]
fn two_sites_that_both_rotated_lose_no_value_that_a_meter_may_have() {
    let rotated = |n, since| {
        let mut one = group();
        one.put_value(value(KeyKind::Gbek, n, since, ValueStage::Rotating));
        one
    };
    let merged = both(&rotated(2, 30), &rotated(3, 40));
    let in_flight: Vec<u8> =
        merged.in_flight(KeyKind::Gbek).map(|value| value.fingerprint.0[0]).collect();
    assert_eq!(in_flight, [1, 2, 3]);
    assert_eq!(merged.wanted(KeyKind::Gbek).unwrap().fingerprint, Fingerprint([3; 16]));
    assert_eq!(merged.settled(KeyKind::Gbek).unwrap().fingerprint, Fingerprint([1; 16]));
    // One site ended the rotation and the other one did not hear of it: it goes on until somebody ends it again.
    let mut ended = rotated(2, 30);
    ended.settle(KeyKind::Gbek);
    assert_eq!(ended.settled(KeyKind::Gbek).unwrap().fingerprint, Fingerprint([2; 16]));
    assert_eq!(ended.in_flight(KeyKind::Gbek).count(), 1);
    let merged = both(&ended, &rotated(2, 30));
    assert_eq!(merged.in_flight(KeyKind::Gbek).count(), 2);
    let mut again = merged;
    again.settle(KeyKind::Gbek);
    assert_eq!(again, ended);
}

#[test]
fn no_member_is_lost_and_no_group_that_one_site_alone_gave_up() {
    let mut north = group();
    north.add(title(7));
    let south = Group {
        deleted_ms: Some(50),
        wants_ms: Some(9),
        members: vec![title(2), title(3)],
        ..group()
    };
    let merged = both(&north, &south);
    assert_eq!(merged.members, [title(1), title(2), title(3), title(7)]);
    assert_eq!((merged.deleted_ms, merged.wants_ms), (None, Some(9)));
    let gone = Group { deleted_ms: Some(60), ..group() };
    assert_eq!(both(&gone, &south).deleted_ms, Some(60));
    // Made anew, it is what it was made as.
    let anew = Group { created_ms: 99, client: 5, values: Vec::new(), ..group() };
    assert_eq!((both(&anew, &south).client, both(&anew, &south).deleted_ms), (5, None));
}

#[test]
fn a_member_that_one_site_took_out_is_one() {
    let stays = membership("a", 5, None);
    let left = membership("a", 5, Some(70));
    let elsewhere = membership("b", 6, None);
    for (a, b, both) in [
        (&stays, &left, &stays),
        (&stays, &elsewhere, &elsewhere),
        (&left, &elsewhere, &elsewhere),
        (&left, &membership("a", 5, Some(80)), &membership("a", 5, Some(80))),
    ] {
        assert_eq!((&a.merged(b), &b.merged(a)), (both, both));
    }
}

#[test]
fn who_left_after_a_rotation_began_is_a_reason_for_another_one() {
    let mut one = group();
    one.wants_ms = Some(25);
    one.put_value(value(KeyKind::Gbek, 2, 30, ValueStage::Rotating));
    let mut later = one.clone();
    later.wants_ms = Some(30);
    one.settle(KeyKind::Gbek);
    later.settle(KeyKind::Gbek);
    assert_eq!((one.wants_ms, later.wants_ms), (None, Some(30)));
    // Only so many former values are remembered, and none of those in use is forgotten.
    for n in 10..60 {
        one.put_value(value(KeyKind::Gbek, n, n.into(), ValueStage::Rotating));
        one.settle(KeyKind::Gbek);
    }
    assert_eq!(one.values.len(), FORMER_MAX + 1);
    assert!(one.fits().is_ok());
}
