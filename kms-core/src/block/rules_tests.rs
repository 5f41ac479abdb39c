//! Two sites over one block: what is stored is believed or named, what is written stands, and what one site
//! wrote the other has byte for byte.

use proptest::prelude::*;

use super::{
    BlockMark,
    accepting::{Accepted, Adoption, NotAccepted, PeersBlock, accept},
    extending::{Extension, Staged},
    keys::{BlockKeys, SUBKEYS_LEN, SecretBinding},
    proof::{Challenge, NotWhole, ProofKey},
    verified::{Refused, Unreadable, Verified},
};
use crate::{
    BlockNo, BlockSecret, ChangeMark, DomainId, Epoch, Head, MeterId, MeterPolicy, MeterRecord,
    Position, Record, RecordKey, Sequence, StoredRecord, SystemTitle, freshness::Freshness,
    record::Tombstone,
};

const DOMAIN: DomainId = DomainId([1; 16]);
pub(super) const BLOCK: BlockNo = BlockNo(7);
pub(super) const EPOCH: Epoch = Epoch(4);

pub(super) fn place(secret_version: u32) -> SecretBinding<'static> {
    SecretBinding { domain: &DOMAIN, block: BLOCK, secret_version }
}

pub(super) fn secret() -> BlockSecret {
    BlockSecret::fill_with(|bytes| {
        bytes.fill(0x5A);
        Ok::<(), ()>(())
    })
    .unwrap()
}

pub(super) fn keys() -> BlockKeys {
    keys_of(1)
}

pub(super) fn keys_of(secret_version: u32) -> BlockKeys {
    let mut subkeys = [0; SUBKEYS_LEN];
    place(secret_version).derive_subkeys(&secret(), &mut subkeys);
    BlockKeys::new(DOMAIN, &subkeys).unwrap()
}

pub(super) fn title(n: u8) -> SystemTitle {
    SystemTitle::new([b'K', b'F', b'M', 0, 0, 0, 0, n])
}

pub(super) fn meter(n: u8, created_ms: u64) -> Record {
    Record::Meter(MeterRecord {
        meter_id: MeterId::new(&format!("m{n}")).unwrap(),
        system_title: title(n),
        logical_device_name: String::new(),
        policy: MeterPolicy::default(),
        keys: Vec::new(),
        created_ms,
        former: Vec::new(),
        changed_by: ChangeMark::default(),
        legal_hold_ms: None,
    })
}

pub(super) fn gone(n: u8) -> Record {
    Record::Tombstone(Tombstone {
        meter_id: Some(MeterId::new(&format!("m{n}")).unwrap()),
        system_title: title(n),
        keys: Vec::new(),
        deleted_ms: 9,
        changed_by: ChangeMark::default(),
        readmitted_ms: None,
    })
}

/// A block that was made and never written to.
pub(super) fn empty() -> Verified {
    verify(keys().first_head(BLOCK, 1, EPOCH), Vec::new()).unwrap()
}

pub(super) fn verify(head: Head, records: Vec<StoredRecord>) -> Result<Verified, Refused> {
    Verified::of(head, records, &keys(), &Freshness::default())
}

/// A change of a block, and the block after it.
fn write(base: &Verified, records: impl IntoIterator<Item = Record>) -> (Extension, Verified) {
    write_in(EPOCH, base, records)
}

/// A change of a block in an epoch.
pub(super) fn write_in(
    epoch: Epoch,
    base: &Verified,
    records: impl IntoIterator<Item = Record>,
) -> (Extension, Verified) {
    let mut staged = Staged::on(base.clone());
    records.into_iter().for_each(|record| staged.put(record));
    let extension = staged.seal(&keys(), epoch).unwrap();
    let after = staged.extended(extension.clone());
    (extension, after)
}

pub(super) fn three() -> Verified {
    write(&empty(), [meter(1, 0), meter(2, 0), meter(3, 0)]).1
}

fn at(sequence: u64) -> Position {
    Position { epoch: EPOCH, sequence: Sequence(sequence) }
}

mod verifying {
    use super::*;

    fn parts(block: &Verified) -> (Head, Vec<StoredRecord>) {
        (block.head.clone(), block.records.clone())
    }

    #[test]
    fn what_was_written_is_believed_and_says_what_was_put_in() {
        let block = three();
        let (head, records) = parts(&block);
        let read = verify(head, records).unwrap();
        assert_eq!(read, block);
        assert_eq!(read.record(&title(2)), Ok(Some(meter(2, 0))));
        assert_eq!(read.record(&title(9)), Ok(None));
        assert_eq!((read.head().position, read.head().count), (at(3), 3));
    }

    #[test]
    fn invariant_5_each_way_to_change_a_block_is_refused_by_its_name() {
        let (head, records) = parts(&three());
        let mut forged = head.clone();
        forged.position = at(9);
        assert_eq!(verify(forged, records.clone()), Err(Refused::Head));
        assert_eq!(verify(head.clone(), records[1..].to_vec()), Err(Refused::Count));
        let mut twice = records.clone();
        twice[1] = twice[0].clone();
        assert_eq!(verify(head.clone(), twice), Err(Refused::Order));
        let mut turned = records.clone();
        turned.reverse();
        assert_eq!(verify(head.clone(), turned), Err(Refused::Order));
        let mut other = records;
        other[0].mac[0] ^= 1;
        assert_eq!(verify(head, other), Err(Refused::Digest));
    }

    #[test]
    fn invariant_5_an_older_state_and_a_second_one_at_its_place_are_refused() {
        let old = three();
        let (_, new) = write(&old, [gone(2)]);
        let freshness = Freshness::default();
        let check = |block: &Verified| {
            let (head, records) = parts(block);
            Verified::of(head, records, &keys(), &freshness).map(drop)
        };
        assert_eq!(check(&old), Ok(()));
        assert_eq!(check(&new), Ok(()));
        assert_eq!(check(&old), Err(Refused::Older { newest: at(4), found: at(3) }));
        let (_, fork) = write(&old, [gone(1)]);
        assert_eq!(check(&fork), Err(Refused::Forked(at(4))));
    }

    #[test]
    fn a_changed_record_takes_out_its_own_meter_and_says_so_of_those_that_are_missing() {
        let (head, mut records) = parts(&three());
        records[1].body[3] ^= 1;
        let block = verify(head, records).unwrap();
        assert_eq!(block.damaged(), [RecordKey::meter(&title(2))]);
        assert_eq!(block.record(&title(1)), Ok(Some(meter(1, 0))));
        assert_eq!(block.record(&title(2)), Err(Unreadable::Damaged));
        assert_eq!(block.record(&title(9)), Err(Unreadable::OneOfDamaged(1)));
        assert_eq!(block.authentic().count(), 2);
        assert_eq!(block.unreadable(&title(2)), [RecordKey::meter(&title(2))]);
        let (_, buried) = write(&block, [gone(2)]);
        assert_eq!((buried.damaged().len(), buried.record(&title(9))), (0, Ok(None)));
    }

    proptest! {
        #[test]
        fn invariant_5_no_bit_of_a_stored_record_can_be_turned(which in 0usize..3, bit in 0usize..1 << 12) {
            let (head, mut records) = parts(&three());
            let record = &mut records[which];
            let bit = bit % (8 * record.body.len());
            record.body[bit / 8] ^= 1 << (bit % 8);
            let key = record.key;
            let block = verify(head, records).unwrap();
            prop_assert_eq!(block.damaged(), [key]);
        }
    }
}

mod extending {
    use super::*;

    #[test]
    fn changes_are_numbered_without_a_gap_and_make_the_block_that_is_read_later() {
        let (extension, after) = write(&three(), [gone(1), meter(4, 0)]);
        let positions: Vec<_> = extension.records.iter().map(|record| record.position).collect();
        assert_eq!(positions, [at(4), at(5)]);
        assert_eq!((after.head().position, after.head().count), (at(5), 4));
        assert_eq!(verify(after.head.clone(), after.records.clone()), Ok(after));
    }

    #[test]
    fn a_later_epoch_goes_on_with_the_same_numbers() {
        let mut staged = Staged::on(three());
        staged.put(meter(9, 0));
        let extension = staged.seal(&keys(), Epoch(5)).unwrap();
        let position = Position { epoch: Epoch(5), sequence: Sequence(4) };
        assert_eq!(extension.head.position, position);
    }

    #[test]
    fn what_is_staged_is_what_the_next_change_builds_on() {
        let mut staged = Staged::on(three());
        assert!(staged.is_empty());
        staged.put(gone(1));
        assert_eq!(staged.record(&title(1)), Ok(Some(gone(1))));
        assert_eq!(staged.base().record(&title(1)), Ok(Some(meter(1, 0))));
    }

    #[test]
    fn one_record_that_has_no_encoding_is_a_refusal_of_all() {
        let Record::Meter(mut long) = meter(1, 0) else { unreachable!() };
        long.logical_device_name = "x".repeat(1 << 16);
        let mut staged = Staged::on(three());
        staged.put(meter(4, 0));
        staged.put(Record::Meter(long));
        assert_eq!(staged.seal(&keys(), EPOCH).unwrap_err().key, RecordKey::meter(&title(1)));
    }
}

mod accepting {
    use super::*;

    /// A peer's block beside ours, what has changed since, and what both come to.
    struct Story {
        ours: Verified,
        news: PeersBlock,
        theirs: Verified,
    }

    fn said(head: &Head, records: Vec<StoredRecord>) -> PeersBlock {
        PeersBlock { head: head.clone(), records, promoted_at: None }
    }

    /// All of a block, as a peer says it.
    fn whole(block: &Verified) -> PeersBlock {
        said(&block.head, block.records.clone())
    }

    /// The part of a block that changed after this position.
    fn since(block: &Verified, position: Position) -> PeersBlock {
        let mut all = whole(block);
        all.records.retain(|record| record.position > position);
        all
    }

    fn story() -> Story {
        let ours = three();
        let (_, between) = write(&ours, [gone(2), meter(4, 0)]);
        let (_, theirs) = write(&between, [meter(1, 7), gone(4)]);
        let news = since(&theirs, ours.head().position);
        Story { ours, news, theirs }
    }

    fn take(ours: &Verified, news: &PeersBlock) -> Result<Accepted, NotAccepted> {
        accept(ours, &keys(), news.clone())
    }

    fn adoption(accepted: Result<Accepted, NotAccepted>) -> Adoption {
        match accepted.unwrap() {
            Accepted::Adoption(adoption) => adoption,
            Accepted::Nothing => panic!("nothing was taken over"),
        }
    }

    #[test]
    fn invariant_6_a_peers_changes_are_taken_over_byte_for_byte_and_once() {
        let Story { ours, news, theirs } = story();
        let taken = adoption(take(&ours, &news));
        assert!(taken.records.is_sorted_by_key(|record| record.position));
        let after = taken.adopted(ours);
        assert_eq!(after, theirs);
        assert_eq!(take(&after, &news), Ok(Accepted::Nothing));
    }

    #[test]
    fn all_of_a_block_can_be_taken_over_what_is_there_is_not_written_again() {
        let Story { ours, theirs, .. } = story();
        let all = whole(&theirs);
        let taken = adoption(take(&ours, &all));
        assert_eq!(taken.records.len(), 3, "meter 3 has not changed");
        assert_eq!(adoption(take(&empty(), &all)).adopted(empty()), theirs);
    }

    #[test]
    fn the_order_in_which_records_come_does_not_matter() {
        let Story { ours, mut news, theirs } = story();
        news.records.reverse();
        assert_eq!(adoption(take(&ours, &news)).adopted(ours), theirs);
    }

    #[test]
    fn a_record_that_is_damaged_here_comes_back_from_the_peer() {
        let Story { ours, theirs, .. } = story();
        let mut records = ours.records.clone();
        records[2].body[0] ^= 1;
        let damaged = verify(ours.head, records).unwrap();
        assert_eq!(damaged.damaged().len(), 1);
        let all = whole(&theirs);
        let taken = adoption(take(&damaged, &all));
        assert_eq!(taken.adopted(damaged), theirs);
    }

    #[test]
    fn a_damaged_record_comes_back_from_a_peer_that_stands_where_we_do() {
        let theirs = three();
        let mut records = theirs.records.clone();
        records[2].body[0] ^= 1;
        let damaged = verify(theirs.head.clone(), records).unwrap();
        let all = whole(&theirs);
        let taken = adoption(take(&damaged, &all));
        assert_eq!((taken.records.len(), taken.adopted(damaged.clone())), (1, theirs));
        let none = PeersBlock { records: Vec::new(), ..all };
        assert_eq!(take(&damaged, &none), Ok(Accepted::Nothing));
    }

    #[test]
    fn invariant_5_a_message_that_is_not_what_the_peer_wrote_is_refused_by_name() {
        let Story { ours, news, .. } = story();
        let changed = |change: &dyn Fn(&mut PeersBlock)| {
            let mut news = news.clone();
            change(&mut news);
            take(&ours, &news).unwrap_err()
        };
        let refused = changed(&|news| news.head.count += 1);
        assert_eq!(refused, NotAccepted::Head);
        let refused = changed(&|news| news.head.block = BlockNo(8));
        assert_eq!(refused, NotAccepted::Head);
        let refused = changed(&|news| news.head.secret_version = 2);
        assert_eq!(refused, NotAccepted::SecretVersion { ours: 1, theirs: 2 });
        let refused = changed(&|news| drop(news.records.remove(0)));
        assert_eq!(refused, NotAccepted::Incomplete(at(7)));
        let refused = changed(&|news| news.records.push(news.records[0].clone()));
        assert!(matches!(refused, NotAccepted::Twice(_)), "{refused}");
        let refused = changed(&|news| news.records[0].position = at(4));
        assert!(matches!(refused, NotAccepted::Record(_)), "{refused}");
    }

    #[test]
    fn invariant_5_a_replayed_record_of_the_peers_own_past_is_refused() {
        let Story { theirs, .. } = story();
        let (news, _) = write(&theirs, [meter(5, 0)]);
        let past = three().records[0].clone();
        let replayed = said(&news.head, [news.records, vec![past]].concat());
        let refused = take(&theirs, &replayed).unwrap_err();
        assert!(matches!(refused, NotAccepted::OlderRecord { .. }), "{refused}");
    }

    #[test]
    fn invariant_5_a_record_of_another_place_is_refused() {
        let Story { ours, news, .. } = story();
        // Of the same block under another version of its secret, and of a later state of the peer.
        let (later, _) = write(&story().theirs, [meter(9, 0)]);
        let mut records = news.records.clone();
        records.extend(later.records);
        let refused = take(&ours, &said(&news.head, records)).unwrap_err();
        assert_eq!(refused, NotAccepted::Record(RecordKey::meter(&title(9))));
        let other = accept(&ours, &keys_of(2), news);
        assert_eq!(other, Err(NotAccepted::Head));
    }

    #[test]
    fn two_sites_that_both_wrote_have_parted_and_say_so() {
        let Story { ours, news, theirs } = story();
        let (mine, parted) = write(&ours, [meter(6, 0)]);
        assert_eq!(take(&parted, &news), Err(NotAccepted::Incomplete(at(7))));
        let behind = NotAccepted::Behind { ours: at(7), theirs: at(4) };
        assert_eq!(take(&theirs, &said(&mine.head, mine.records)), Err(behind));
        let (fork, _) = write(&ours, [meter(8, 0)]);
        assert_eq!(take(&parted, &said(&fork.head, fork.records)), Err(NotAccepted::Forked(at(4))));
    }

    /// The other site was promoted over `found`, and wrote the same meter twice.
    fn promoted(found: &Verified) -> PeersBlock {
        let write = |base: &Verified, record| {
            let mut staged = Staged::on(base.clone());
            staged.put(record);
            let extension = staged.seal(&keys(), Epoch(5)).unwrap();
            staged.extended(extension)
        };
        let theirs = write(&write(found, meter(1, 8)), meter(1, 9));
        let promoted_at = Some(found.mark());
        PeersBlock { promoted_at, ..since(&theirs, found.head().position) }
    }

    #[test]
    fn invariant_4_what_we_wrote_beyond_the_fork_is_not_overwritten_by_the_same_meter() {
        let found = three();
        let theirs = promoted(&found);
        assert_eq!(adoption(take(&found, &theirs)).records.len(), 1);
        // Ours that never reached the other side: their record of the meter is newer, count and digest agree.
        let (_, ours) = write(&found, [gone(1)]);
        assert_eq!(take(&ours, &theirs), Err(NotAccepted::Forked(at(3))));
        let other = PeersBlock {
            promoted_at: Some(BlockMark { digest: [0; 32], ..found.mark() }),
            ..theirs
        };
        assert_eq!(take(&found, &other), Err(NotAccepted::Forked(at(3))));
    }

    #[test]
    fn invariant_7_a_higher_epoch_counts_with_its_promotion_only() {
        let found = three();
        let theirs = PeersBlock { promoted_at: None, ..promoted(&found) };
        let refused = NotAccepted::NotPromoted { theirs: Epoch(5) };
        assert_eq!(take(&found, &theirs), Err(refused));
        let mark = BlockMark { block: BlockNo(8), ..found.mark() };
        let theirs = PeersBlock { promoted_at: Some(mark), ..theirs };
        assert_eq!(take(&found, &theirs), Err(refused));
    }

    #[test]
    fn what_is_damaged_here_does_not_stand_in_the_way_of_its_repair() {
        let theirs = three();
        // Its number was raised: the digest, over MACs, holds.
        let mut records = theirs.records.clone();
        records[1].position = at(3);
        let raised = verify(theirs.head.clone(), records).unwrap();
        assert_eq!(raised.damaged().len(), 1);
        assert_eq!(adoption(take(&raised, &whole(&theirs))).adopted(raised), theirs);
        // It stands under another key, in the same order.
        let mut records = theirs.records.clone();
        records[2].key = RecordKey::meter(&title(9));
        let moved = verify(theirs.head.clone(), records).unwrap();
        let repair = adoption(take(&moved, &whole(&theirs)));
        assert_eq!((repair.records.len(), repair.gone.len()), (1, 1));
        assert_eq!(repair.adopted(moved), theirs);
    }

    #[test]
    fn a_peers_whole_block_is_verified_without_being_remembered() {
        let block = three();
        let any = Verified::of_any_age(block.head.clone(), block.records.clone(), &keys());
        assert_eq!(any.as_ref(), Ok(&block));
        let forged = Head { count: 9, ..block.head };
        assert_eq!(Verified::of_any_age(forged, block.records, &keys()), Err(Refused::Head));
    }

    proptest! {
        #[test]
        fn invariant_5_no_bit_of_a_message_can_be_turned(bit in 0usize..1 << 14) {
            let Story { ours, mut news, .. } = story();
            let bits = 8 * news.records.iter().map(|record| record.body.len() + 16).sum::<usize>();
            let mut bit = bit % bits;
            for record in &mut news.records {
                let len = 8 * (record.body.len() + 16);
                if bit < len {
                    let place = match record.body.get_mut(bit / 8) {
                        Some(byte) => byte,
                        None => &mut record.mac[bit / 8 - (len / 8 - 16)],
                    };
                    *place ^= 1 << (bit % 8);
                    break;
                }
                bit -= len;
            }
            let refused = take(&ours, &news).unwrap_err();
            prop_assert!(matches!(refused, NotAccepted::Record(_)), "{}", refused);
        }
    }
}

mod proving {
    use super::*;

    fn challenge() -> Challenge<'static> {
        Challenge { prover: "b", verifier: "a", nonce: [3; 32], epoch: EPOCH }
    }

    #[test]
    fn a_proof_answers_one_challenge_about_one_state() {
        let key = ProofKey::of(&place(1), &secret());
        let block = three();
        let proof = key.prove(&challenge(), &block).unwrap();
        assert!(key.confirms(&challenge(), block.head(), &proof));
        let (_, later) = write(&block, [gone(1)]);
        assert!(!key.confirms(&challenge(), later.head(), &proof));
        for other in [
            Challenge { prover: "a", verifier: "b", ..challenge() },
            Challenge { prover: "ba", verifier: "", ..challenge() },
            Challenge { nonce: [4; 32], ..challenge() },
            Challenge { epoch: Epoch(5), ..challenge() },
        ] {
            assert!(!key.confirms(&other, block.head(), &proof), "{other:?}");
        }
        let other = ProofKey::of(&place(2), &secret());
        assert!(!other.confirms(&challenge(), block.head(), &proof));
    }

    #[test]
    fn a_block_with_a_damaged_record_is_not_proved() {
        let block = three();
        let mut records = block.records.clone();
        records[0].body[0] ^= 1;
        let damaged = verify(block.head, records).unwrap();
        let key = ProofKey::of(&place(1), &secret());
        assert_eq!(key.prove(&challenge(), &damaged), Err(NotWhole(1)));
    }
}
