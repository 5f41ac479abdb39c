//! Two sites that both wrote: the one that was fenced has the other's bytes afterwards, and nothing that was only its
//! own is missing from what was set aside.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    BlockMark,
    accepting::{Accepted, NotAccepted, PeersBlock, accept},
    lineage::Lineage,
    returning::{NotReturned, Return, bring_back},
    rules_tests::{BLOCK, EPOCH, empty, gone, keys, meter, three, title, verify, write_in},
    verified::Verified,
    withdrawing::{Withdrawn, raised, withdrawn},
};
use crate::KeyLife;
use crate::{
    BlockNo, Epoch, Fingerprint, FormerKey, FormerUse, KeyId, KeyKind, KeyRecord, KeyState,
    Protection, Record, RecordKey, SecuritySetup, StoredRecord, SystemTitle,
    counters::{Line, LineName, Offset},
    record::Tombstone,
};

/// The epoch that the other site was promoted to.
const THEIRS: Epoch = Epoch(5);

/// A block at its promotion: the same records, and a head of the new epoch.
fn promoted(block: &Verified, epoch: Epoch) -> Verified {
    write_in(epoch, block, []).1
}

/// The lineage of a block that was promoted once.
fn since(found: &Verified) -> Lineage {
    Lineage::of(THEIRS, |epoch| (epoch == THEIRS).then(|| found.mark()))
}

fn whole(block: &Verified, promoted_at: Option<BlockMark>) -> PeersBlock {
    PeersBlock { head: block.head.clone(), records: block.records.clone(), promoted_at }
}

fn keys_of(records: &[StoredRecord]) -> Vec<RecordKey> {
    records.iter().map(|record| record.key).collect()
}

fn key(n: u8) -> RecordKey {
    RecordKey::meter(&title(n))
}

/// Both sites had three meters; each wrote after the other was promoted.
struct Story {
    found: Verified,
    ours: Verified,
    theirs: Verified,
}

fn story() -> Story {
    let found = three();
    let ours = write_in(EPOCH, &found, [gone(1), meter(4, 0), meter(3, 7)]).1;
    let theirs = write_in(THEIRS, &promoted(&found, THEIRS), [meter(3, 9), meter(5, 0)]).1;
    Story { found, ours, theirs }
}

#[test]
fn invariant_4_a_parted_block_has_the_peers_bytes_afterwards_and_what_was_ours_alone_is_set_aside()
{
    let Story { found, ours, theirs } = story();
    let Return { ref records, ref gone, ref set_aside, .. } =
        bring_back(&ours, theirs.clone(), &since(&found)).unwrap();
    assert_eq!(keys_of(set_aside), [key(1), key(3), key(4)]);
    assert_eq!(gone, &[key(4)]);
    assert_eq!(keys_of(records), [key(1), key(3), key(5)], "in the order of their numbers");
    let back = bring_back(&ours, theirs.clone(), &since(&found)).unwrap().returned(ours);
    assert_eq!(back, theirs);
    let all = whole(&theirs, Some(found.mark()));
    assert_eq!(accept(&back, &keys(), all), Ok(Accepted::Nothing));
    assert_eq!(verify(back.head.clone(), back.records.clone()), Ok(back));
}

#[test]
fn what_the_peer_changed_since_and_we_did_not_is_nothing_of_ours() {
    let Story { found, theirs, .. } = story();
    let ours = write_in(EPOCH, &found, [meter(4, 0)]).1;
    let back = bring_back(&ours, theirs, &since(&found)).unwrap();
    assert_eq!(keys_of(&back.set_aside), [key(4)]);
}

#[test]
fn two_states_at_the_place_of_the_fork_have_nothing_in_common_but_what_is_equal() {
    let Story { found, theirs, .. } = story();
    let other = write_in(EPOCH, &empty(), [meter(1, 0), meter(2, 0), meter(3, 1)]).1;
    assert_eq!(other.head.position, found.head.position);
    let back = bring_back(&other, theirs, &since(&found)).unwrap();
    assert_eq!(keys_of(&back.set_aside), [key(3)]);
    let theirs = promoted(&found, THEIRS);
    assert_eq!(bring_back(&other, theirs.clone(), &since(&found)).unwrap().returned(other), theirs);
}

#[test]
fn a_damaged_record_is_set_aside_as_it_stands_since_nobody_knows_of_when_it_is() {
    let Story { found, ours, theirs } = story();
    let mut records = ours.records.clone();
    let at = records.iter().position(|record| record.key == key(2)).unwrap();
    records[at].body[4] ^= 1;
    let ours = verify(ours.head, records.clone()).unwrap();
    assert_eq!(ours.damaged(), [key(2)]);
    let back = bring_back(&ours, theirs.clone(), &since(&found)).unwrap();
    assert!(back.set_aside.contains(&records[at]));
    assert_eq!(back.returned(ours), theirs);
}

#[test]
fn invariant_7_no_block_is_brought_back_within_an_epoch_or_without_the_promotion() {
    let Story { found, ours, theirs } = story();
    let back = |ours: &Verified, theirs: &Verified, lineage: &Lineage| {
        bring_back(ours, theirs.clone(), lineage).unwrap_err()
    };
    let known = since(&found);
    assert_eq!(back(&theirs, &theirs, &known), NotReturned::OneEpoch(THEIRS));
    let lower = NotReturned::LowerEpoch { ours: THEIRS, theirs: EPOCH };
    assert_eq!(back(&theirs, &ours, &known), lower);
    let unknown = Lineage::of(THEIRS, |_| None);
    assert_eq!(back(&ours, &theirs, &unknown), NotReturned::NotPromoted(THEIRS));
    let of_another_epoch = Lineage::of(Epoch(7), |_| Some(found.mark()));
    assert_eq!(back(&ours, &theirs, &of_another_epoch), NotReturned::NotPromoted(THEIRS));
    let mark = BlockMark { block: BlockNo(8), ..found.mark() };
    let of_another_block = Lineage::of(THEIRS, |_| Some(mark));
    assert_eq!(back(&ours, &theirs, &of_another_block), NotReturned::NotPromoted(THEIRS));
    assert_eq!(back(&found, &theirs, &known), NotReturned::NotForked);
    assert_eq!(back(&empty(), &theirs, &known), NotReturned::NotForked);
}

#[test]
fn invariant_5_a_peers_block_that_is_damaged_or_another_one_replaces_nothing() {
    let Story { found, ours, theirs } = story();
    let mut records = theirs.records.clone();
    records[0].body[4] ^= 1;
    let damaged = Verified::of_any_age(theirs.head.clone(), records, &keys()).unwrap();
    let refused = bring_back(&ours, damaged, &since(&found)).unwrap_err();
    assert_eq!(refused, NotReturned::Damaged(1));
    let mut other = theirs.clone();
    other.head.block = BlockNo(BLOCK.0 + 1);
    assert_eq!(bring_back(&ours, other, &since(&found)).unwrap_err(), NotReturned::OtherBlock);
    let mut other = theirs;
    other.head.secret_version = 2;
    let refused = bring_back(&ours, other, &since(&found)).unwrap_err();
    assert_eq!(refused, NotReturned::SecretVersion { ours: 1, theirs: 2 });
}

/// We wrote in epoch 4 although the other site had been promoted to 3, and it went on from its own state to 5.
#[test]
fn what_we_wrote_below_the_mark_of_an_epoch_that_was_not_ours_is_set_aside_too() {
    let (two, three_, four, five) = (Epoch(2), Epoch(3), Epoch(4), Epoch(5));
    let start = promoted(&empty(), two);
    let found_by_three = write_in(two, &start, [meter(1, 0)]).1;
    let found_by_four = write_in(two, &found_by_three, [meter(2, 0)]).1;
    let ours = write_in(four, &promoted(&found_by_four, four), [meter(1, 4)]).1;
    let found_by_five = write_in(three_, &promoted(&found_by_three, three_), [meter(9, 0)]).1;
    let theirs = promoted(&found_by_five, five);
    let lineage = Lineage::of(five, |epoch| match epoch.0 {
        5 => Some(found_by_five.mark()),
        3 => Some(found_by_three.mark()),
        _ => None,
    });
    let back = bring_back(&ours, theirs.clone(), &lineage).unwrap();
    assert_eq!(keys_of(&back.set_aside), [key(1), key(2)]);
    assert_eq!(back.returned(ours), theirs);
}

fn a_key(id: u8, state: KeyState) -> KeyRecord {
    KeyRecord {
        id: KeyId([id; 16]),
        setup: SecuritySetup(0),
        kind: KeyKind::Guek,
        version: u16::from(id),
        state,
        protection: Protection::Memory,
        wrapped: vec![2; 24],
        value_len: 16,
        created_ms: 3,
        changed_ms: 3,
        kcv: None,
        fingerprint: Fingerprint([id; 16]),
        life: KeyLife::default(),
    }
}

fn with(keys: &[(u8, KeyState)]) -> Record {
    let Record::Meter(mut meter) = meter(1, 0) else { unreachable!() };
    meter.keys = keys.iter().map(|(id, state)| a_key(*id, *state)).collect();
    Record::Meter(meter)
}

#[test]
fn keys_that_we_know_to_be_compromised_or_destroyed_are_withdrawn_at_contact_and_no_others() {
    use KeyState::{Active, Compromised, Deactivated, Destroyed, PreActive};
    let ours = with(&[
        (1, Compromised),
        (2, Destroyed),
        (3, Deactivated),
        (4, Compromised),
        (5, Destroyed),
        (6, Compromised),
        (7, Destroyed),
    ]);
    let theirs = with(&[
        (1, Active),
        (2, PreActive),
        (3, Active),
        (4, Destroyed),
        (5, Compromised),
        (6, Compromised),
    ]);
    let expected = [(1, Compromised), (2, Destroyed), (5, Destroyed)]
        .map(|(id, state)| Withdrawn { key: KeyId([id; 16]), state });
    assert_eq!(withdrawn(&ours, &theirs), expected);
    assert_eq!(withdrawn(&ours, &gone(1)), []);
}

#[test]
fn a_meter_that_we_deleted_with_a_compromised_key_withdraws_its_value_at_the_peer() {
    let was = |id: u8, state| FormerKey {
        fingerprint: Fingerprint([id; 16]),
        was: Some(FormerUse { setup: SecuritySetup(0), kind: KeyKind::Guek, state }),
    };
    let Record::Tombstone(buried) = gone(1) else { unreachable!() };
    let keys = vec![was(1, KeyState::Compromised), was(2, KeyState::Active)];
    let ours = Record::Tombstone(Tombstone { keys, ..buried });
    let theirs = with(&[(1, KeyState::Active), (2, KeyState::Active)]);
    let withdraw = Withdrawn { key: KeyId([1; 16]), state: KeyState::Compromised };
    assert_eq!(withdrawn(&ours, &theirs), [withdraw]);
}

#[test]
fn invariant_3_a_line_that_was_set_aside_raises_the_one_that_stands() {
    let name = LineName { fingerprint: Fingerprint([7; 16]), originator: SystemTitle::new([9; 8]) };
    let line = |offset| Line { name, offset: Offset::new(offset) };
    let of = |offset| Record::Line(line(offset));
    assert_eq!(raised(&of(4), Some(&of(2))), Some(line(4)));
    assert_eq!(raised(&of(4), None), Some(line(4)));
    assert_eq!(raised(&of(4), Some(&Record::Line(Line::undeclared(name)))), Some(line(4)));
    assert_eq!((raised(&of(2), Some(&of(4))), raised(&of(4), Some(&of(4)))), (None, None));
    assert_eq!(raised(&meter(1, 0), None), None);
}

/// We were rolled back behind what the peer has of our own epoch, and wrote on at places that it had long seen.
#[test]
fn invariant_4_a_site_that_was_rolled_back_sets_all_aside_that_the_peer_does_not_have() {
    let start = three();
    let seen = write_in(EPOCH, &start, [meter(4, 1), meter(1, 5), meter(2, 5)]).1;
    let theirs = write_in(THEIRS, &promoted(&seen, THEIRS), [meter(4, 9)]).1;
    let known = since(&seen);
    // Below where the promotion found it, at the same place, and beyond.
    let short = write_in(EPOCH, &start, [meter(6, 0)]).1;
    let equal = write_in(EPOCH, &start, [meter(6, 0), meter(3, 8), meter(7, 0)]).1;
    let long = write_in(EPOCH, &equal, [meter(8, 0)]).1;
    let expected = [
        (&short, vec![key(1), key(2), key(6)]),
        (&equal, vec![key(1), key(2), key(3), key(6), key(7)]),
        (&long, vec![key(1), key(2), key(3), key(6), key(7), key(8)]),
    ];
    for (ours, aside) in expected {
        let taken = accept(ours, &keys(), whole(&theirs, known.fork(EPOCH)));
        assert!(taken.is_err(), "{taken:?}");
        let back = bring_back(ours, theirs.clone(), &known).unwrap();
        assert_eq!(keys_of(&back.set_aside), aside);
        assert_eq!(back.returned(ours.clone()), theirs);
    }
}

/// A change of one of eight meters.
fn change() -> impl Strategy<Value = Record> {
    (0u8..8, 0u64..1 << 40, prop::bool::weighted(0.2))
        .prop_map(|(n, ms, buried)| if buried { gone(n) } else { meter(n, ms) })
}

fn changes() -> impl Strategy<Value = Vec<Vec<Record>>> {
    prop::collection::vec(prop::collection::vec(change(), 1..4), 0..5)
}

/// The block after these commits, and all states of records that they wrote.
fn written(
    epoch: Epoch,
    base: &Verified,
    commits: &[Vec<Record>],
) -> (Verified, Vec<StoredRecord>) {
    let (mut block, mut all) = (base.clone(), Vec::new());
    for commit in commits {
        let (extension, after) = write_in(epoch, &block, commit.iter().cloned());
        all.extend(extension.records);
        block = after;
    }
    (block, all)
}

proptest! {
    #[test]
    fn invariant_4_whatever_two_sites_write_after_a_fork_one_returns_to_equal_bytes_and_loses_nothing(
        before in changes(),
        unseen in changes(),
        ours in changes(),
        theirs in changes(),
    ) {
        // The promotion may find a block that lags behind what both have in common.
        let (found, _) = written(EPOCH, &empty(), &before);
        let (ours, alone) = written(EPOCH, &found, &[unseen, ours].concat());
        let (theirs, _) = written(THEIRS, &promoted(&found, THEIRS), &theirs);
        let lineage = since(&found);
        let taken = accept(&ours, &keys(), whole(&theirs, lineage.fork(EPOCH)));
        if alone.is_empty() {
            prop_assert_eq!(bring_back(&ours, theirs.clone(), &lineage), Err(NotReturned::NotForked));
            let Ok(Accepted::Adoption(adoption)) = taken else { panic!("{taken:?}") };
            prop_assert_eq!(adoption.adopted(ours), theirs);
            return Ok(());
        }
        prop_assert_eq!(taken, Err(NotAccepted::Forked(found.head.position)));
        let back = bring_back(&ours, theirs.clone(), &lineage).unwrap();
        // The newest state of each record that was written after the fork, and nothing else.
        let newest: BTreeMap<_, _> = alone.iter().map(|record| (record.key, record)).collect();
        let newest: Vec<_> = newest.into_values().cloned().collect();
        prop_assert_eq!(&back.set_aside, &newest);
        let there: BTreeSet<_> = keys_of(&theirs.records).into_iter().collect();
        prop_assert!(back.gone.iter().all(|key| ours.has(key) && !there.contains(key)));
        let returned = back.returned(ours);
        prop_assert_eq!(&returned, &theirs);
        prop_assert_eq!(verify(returned.head.clone(), returned.records.clone()), Ok(returned));
    }
}
