//! A block that is read in part is, byte for byte, the one that is read as a whole.

use proptest::prelude::*;

use super::{
    accepting::{Accepted, PeersBlock, accept},
    extending::Staged,
    known::{InPart, Known},
    rules_tests::{EPOCH, empty, gone, keys, meter, title, write_in},
    verified::{Unreadable, Verified},
};
use crate::{Epoch, Record, RecordKey, StoredRecord, freshness::Freshness};

fn key(n: u8) -> RecordKey {
    RecordKey::meter(&title(n))
}

fn stored(block: &Verified) -> Vec<StoredRecord> {
    block.authentic().cloned().collect()
}

/// The block in part, read out of these rows.
fn part(
    known: &Known,
    head: &crate::Head,
    rows: &[StoredRecord],
    asked: &[RecordKey],
) -> Option<Verified> {
    let records = rows.iter().filter(|row| asked.contains(&row.key)).cloned().collect();
    let read = InPart { head: head.clone(), asked, records };
    known.verified(read, &keys(), &Freshness::default())
}

fn three() -> Verified {
    write_in(EPOCH, &empty(), [meter(1, 0), meter(2, 0), meter(3, 0)]).1
}

proptest! {
    #[test]
    fn a_history_in_parts_is_the_history_of_whole_blocks(
        steps in prop::collection::vec((prop::collection::btree_set(0u8..12, 1..4), any::<bool>(), 0u64..3), 1..24)
    ) {
        let (mut whole, mut other) = (empty(), empty());
        let mut known = Known::of(&whole).unwrap();
        for (nth, (titles, buries, epochs)) in steps.into_iter().enumerate() {
            let record = |n: &u8| if buries && n.is_multiple_of(3) { gone(*n) } else { meter(*n, nth as u64) };
            let records: Vec<Record> = titles.iter().map(record).collect();
            let epoch = Epoch(whole.head().position.epoch.0 + epochs / 2 * 2);
            let asked: Vec<RecordKey> = titles.iter().map(|n| key(*n)).collect();
            let rows = stored(&whole);
            let base = part(&known, whole.head(), &rows, &asked).expect("it is the known one");
            for n in &titles {
                prop_assert_eq!(base.record(&title(*n)), whole.record(&title(*n)));
            }
            let (all, after) = write_in(epoch, &whole, records.clone());
            let (some, after_part) = write_in(epoch, &base, records);
            prop_assert_eq!(&all, &some);
            prop_assert_eq!(Known::of(&after), Known::of(&after_part));

            // And at the other site.
            let promoted_at = Some(other.mark());
            let theirs = PeersBlock { head: all.head, records: all.records, promoted_at };
            let there = stored(&other);
            let of_other = Known::of(&other).unwrap();
            let base = part(&of_other, other.head(), &there, &asked).expect("it is the known one");
            let taken = accept(&other, &keys(), theirs.clone());
            prop_assert_eq!(&taken, &accept(&base, &keys(), theirs));
            let Ok(Accepted::Adoption(adoption)) = taken else { panic!("{taken:?}") };
            let known_there = Known::of(&adoption.clone().adopted(base));
            other = adoption.adopted(other);
            prop_assert_eq!(known_there, Known::of(&other));

            known = Known::of(&after_part).unwrap();
            whole = after;
        }
    }
}

#[test]
fn what_was_not_asked_for_is_there_and_says_nothing() {
    let block = three();
    let known = Known::of(&block).unwrap();
    let base = part(&known, block.head(), &stored(&block), &[key(2), key(9)]).unwrap();
    assert!(!base.is_whole() && block.is_whole());
    assert_eq!(base.record(&title(2)), block.record(&title(2)));
    assert_eq!(base.record(&title(9)), Ok(None));
    assert_eq!(base.record(&title(1)), Err(Unreadable::NotRead));
    assert_eq!(base.stands(&key(1)), Err(Unreadable::NotRead));
    assert!(base.has(&key(1)) && !base.has(&key(9)));
    assert_eq!(base.count_of(1), 3);
    assert_eq!((base.was_read(&key(2)), base.was_read(&key(1))), (true, false));
    assert!(Staged::on(base).record(&title(1)).is_err());
}

#[test]
fn another_head_is_not_the_known_one() {
    let (block, known) = (three(), Known::of(&three()).unwrap());
    let later = write_in(EPOCH, &block, [meter(1, 9)]).1;
    assert_eq!(
        part(&known, later.head(), &stored(&later), &[key(2)]),
        None,
        "another server's commit"
    );
    let older = Known::of(&later).unwrap();
    assert_eq!(part(&older, block.head(), &stored(&block), &[key(2)]), None, "a head put back");
    let mut changed = block.head().clone();
    changed.mac[3] ^= 1;
    assert_eq!(part(&known, &changed, &stored(&block), &[key(2)]), None, "a MAC that nobody made");
}

#[test]
fn a_state_that_is_not_the_newest_is_not_used() {
    let block = three();
    let known = Known::of(&block).unwrap();
    let freshness = Freshness::default();
    freshness.know(&write_in(EPOCH, &block, [meter(1, 9)]).1.mark());
    let read = InPart { head: block.head().clone(), asked: &[], records: Vec::new() };
    assert_eq!(known.verified(read, &keys(), &freshness), None);
}

#[test]
fn a_record_that_was_tampered_with_is_not_used_and_not_signed_over() {
    let block = three();
    let known = Known::of(&block).unwrap();
    let mut rows = stored(&block);
    rows[1].body[0] ^= 1;
    assert_eq!(part(&known, block.head(), &rows, &[key(2)]), None);
    // Of another one a change goes on, over the records as they were written.
    let base = part(&known, block.head(), &rows, &[key(3)]).unwrap();
    let change = write_in(EPOCH, &base, [meter(3, 5)]).0;
    assert_eq!(change, write_in(EPOCH, &block, [meter(3, 5)]).0);
    // One that is gone, one that came, and one with another one's MAC.
    assert_eq!(part(&known, block.head(), &rows[..2], &[key(3)]), None);
    let more = stored(&write_in(EPOCH, &block, [meter(4, 0)]).1);
    assert_eq!(part(&known, block.head(), &more, &[key(4)]), None);
    // An earlier state of a record, as its writer made it, in the place of the newest.
    let after = write_in(EPOCH, &block, [meter(3, 5)]).1;
    let known = Known::of(&after).unwrap();
    let (mut put_back, now) = (stored(&after), stored(&after));
    put_back[2] = stored(&block)[2].clone();
    assert!(part(&known, after.head(), &now, &[key(3)]).is_some());
    assert_eq!(part(&known, after.head(), &put_back, &[key(3)]), None);
}

#[test]
fn of_a_block_with_damage_nothing_stays_known() {
    let block = three();
    let mut rows = stored(&block);
    rows[0].body[0] ^= 1;
    let damaged = super::rules_tests::verify(block.head().clone(), rows).unwrap();
    assert_eq!(damaged.damaged().len(), 1);
    assert_eq!(Known::of(&damaged), None);
}
