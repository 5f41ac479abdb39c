//! A block under its next secret: all of it is there and opens, nothing of it opens under the former one, a follower
//! takes it over as a whole, and what parted meanwhile is not lost.

use super::*;
use crate::{
    BlockCount, ClearKey, Fingerprint, KeyId, KeyKind, KeyState, MeterRecord, Protection,
    SecuritySetup,
    block::{
        BlockMark,
        extending::Staged,
        proof::{Challenge, ProofKey},
        rules_tests::{
            BLOCK, EPOCH, empty, gone, keys, keys_of, meter, place, secret, title, write_in,
        },
    },
    counters::{Line, LineName},
    fact::{NewestList, SecretStage},
    freshness::Freshness,
};

const LATER: Epoch = Epoch(5);

fn key(n: u8, kind: KeyKind, protection: Protection, wrapped: Vec<u8>) -> KeyRecord {
    KeyRecord {
        id: KeyId([n; 16]),
        setup: SecuritySetup(0),
        kind,
        version: 1,
        state: KeyState::Active,
        protection,
        wrapped,
        value_len: 16,
        created_ms: 1,
        changed_ms: 1,
        kcv: kind.is_cipher_key().then_some([n; 5]),
        fingerprint: Fingerprint([n; 16]),
        life: Default::default(),
    }
}

/// A meter with a key of each way to be kept.
fn full(n: u8) -> MeterRecord {
    let Record::Meter(mut meter) = meter(n, 0) else { unreachable!() };
    let (keys, title) = (keys(), title(n));
    let value = |byte: u8, len: usize| ClearKey::new(vec![byte; len]);
    let hls = keys.seal_secret(&title, &KeyId([4; 16]), &value(4, 20), [1; 12]).unwrap();
    let mut secret = key(4, KeyKind::HlsSecret, Protection::Memory, hls);
    secret.fingerprint = keys.secret_fingerprint(&title, &value(4, 20));
    let guek = keys.wrap_key(&value(1, 16)).unwrap();
    let gak = keys.wrap_key(&value(2, 32)).unwrap();
    let mut destroyed = key(5, KeyKind::Gbek, Protection::Memory, Vec::new());
    destroyed.state = KeyState::Destroyed;
    meter.keys = vec![
        key(1, KeyKind::Guek, Protection::Memory, guek),
        destroyed,
        key(2, KeyKind::Gak, Protection::Memory, gak),
        key(3, KeyKind::Kek, Protection::Hsm, vec![9; 24]),
        secret,
    ];
    meter
}

fn line() -> Record {
    let name = LineName { fingerprint: Fingerprint([8; 16]), originator: title(1) };
    Record::Line(Line { name, offset: None })
}

fn list() -> Record {
    let list = NewestList { authority: [1; 32], number: None, this_update_ms: 3, resets: 0 };
    Record::Fact(Fact::List(list))
}

fn block() -> Verified {
    write_in(EPOCH, &empty(), [Record::Meter(full(1)), meter(2, 0), gone(3), line(), list()]).1
}

fn fact(stage: SecretStage) -> BlockSecrets {
    BlockSecrets {
        block: BLOCK,
        blocks: BlockCount::new(8).unwrap(),
        generation: 1,
        from: 1,
        version: 2,
        stage,
        made_ms: 1,
        link: [0; 16],
        wrapped: Vec::new(),
    }
}

/// The same block under the second secret, written in an epoch.
fn rewritten_in(epoch: Epoch, base: &Verified) -> (Extension, Vec<Record>, Verified) {
    let (one, two) = (keys(), keys_of(2));
    let both = (Under { keys: &one, version: 1 }, Under { keys: &two, version: 2 });
    let (extension, records) = rewrite(base, both, &fact(SecretStage::Rewritten), epoch).unwrap();
    let after = Staged::on(base.clone()).extended(extension.clone());
    (extension, records, after)
}

fn theirs(extension: &Extension) -> PeersBlock {
    let Extension { head, records } = extension.clone();
    PeersBlock { head, records, promoted_at: None }
}

#[test]
fn a_rewritten_block_has_all_of_it_under_the_new_secret_and_nothing_under_the_former_one() {
    let base =
        write_in(EPOCH, &block(), [Record::Fact(Fact::Secrets(fact(SecretStage::Staged)))]).1;
    let (extension, records, after) = rewritten_in(EPOCH, &base);
    let head = extension.head.clone();
    assert_eq!((head.secret_version, head.count), (2, base.head().count));
    let numbers: Vec<u64> = extension.records.iter().map(|it| it.position.sequence.0).collect();
    assert_eq!(numbers, (7..13).collect::<Vec<_>>());
    let read = Verified::of(head, after.records.clone(), &keys_of(2), &Freshness::default());
    assert_eq!(read.unwrap(), after);
    assert!(after.damaged().is_empty());
    assert!(after.authentic().all(|record| record.secret_version == 2));
    for (stored, record) in extension.records.iter().zip(&records) {
        assert!(!keys().record_is_authentic(BLOCK, stored, &mut Vec::new()));
        assert_eq!(Record::decode(&stored.body).as_ref(), Ok(record));
        let before = base.stored(&stored.key).unwrap();
        assert!(say_the_same(&Record::decode(&before.body).unwrap(), record), "{}", stored.key);
    }
    let Ok(Some(Record::Meter(meter))) = after.record(&title(1)) else { panic!() };
    let (new, old) = (keys_of(2), keys());
    for (at, byte, len) in [(0, 1, 16), (2, 2, 32)] {
        let mut out = [0; 32];
        new.unwrap_into(&meter.keys[at].wrapped, &mut out[..len]).unwrap();
        assert_eq!(out[..len], vec![byte; len]);
        assert!(old.unwrap_into(&meter.keys[at].wrapped, &mut out[..len]).is_err());
    }
    assert_eq!(meter.keys[1].wrapped, Vec::<u8>::new());
    assert_eq!(meter.keys[3].wrapped, [9; 24]);
    let hls = new.open_secret(&title(1), &KeyId([4; 16]), &meter.keys[4].wrapped).unwrap();
    assert_eq!(hls.expose_clear_key_bytes(), [4; 20]);
    assert_eq!(meter.keys[4].fingerprint, new.secret_fingerprint(&title(1), &hls));
    assert!(old.open_secret(&title(1), &KeyId([4; 16]), &meter.keys[4].wrapped).is_err());
}

#[test]
fn a_block_of_which_something_could_be_lost_is_not_rewritten() {
    let (one, two) = (keys(), keys_of(2));
    let both = (Under { keys: &one, version: 1 }, Under { keys: &two, version: 2 });
    let refused =
        |block: &Verified| rewrite(block, both, &fact(SecretStage::Rewritten), EPOCH).unwrap_err();
    let mut damaged = block();
    damaged.records[0].body[9] ^= 1;
    let damaged =
        Verified::of_any_age(damaged.head.clone(), damaged.records.clone(), &one).unwrap();
    assert_eq!(refused(&damaged), NotRewritten::Damaged(1));
    let mut lost = full(1);
    lost.keys[0].wrapped[3] ^= 1;
    let lost = write_in(EPOCH, &block(), [Record::Meter(lost)]).1;
    assert_eq!(refused(&lost), NotRewritten::DoesNotOpen(RecordKey::meter(&title(1))));
    // Of a later release: authentic, and nobody knows what is in it.
    let mut later = block();
    later.records[1].body[0] = 99;
    let key = later.records[1].key;
    later.records[1].mac = one.record_mac(BLOCK, &later.records[1], &mut Vec::new());
    assert_eq!(refused(&later), NotRewritten::Unknown(key));
}

#[test]
fn a_follower_takes_a_rewritten_block_as_a_whole_or_not_at_all() {
    let base =
        write_in(EPOCH, &block(), [Record::Fact(Fact::Secrets(fact(SecretStage::Staged)))]).1;
    let (extension, _, after) = rewritten_in(EPOCH, &base);
    let two = keys_of(2);
    // In step, and behind: the first change that it saw was the one before the last.
    for ours in [base.clone(), block()] {
        let adoption = accept_rewritten(&ours, &two, theirs(&extension)).unwrap();
        assert_eq!(adoption.adopted(ours), after);
    }
    let accept = |theirs: PeersBlock| accept_rewritten(&base, &two, theirs).unwrap_err();
    let at = extension.head.position;
    let mut part = theirs(&extension);
    part.records.pop();
    assert_eq!(accept(part), NotAccepted::Incomplete(at));
    let mut changed = theirs(&extension);
    changed.records[0].body[9] ^= 1;
    let key = changed.records[0].key;
    assert_eq!(accept(changed), NotAccepted::Record(key));
    let mut forged = theirs(&extension);
    forged.head.mac[0] ^= 1;
    assert_eq!(accept(forged), NotAccepted::Head);
    assert_eq!(
        accept_rewritten(&base, &keys_of(3), theirs(&extension)),
        Err(NotAccepted::Head),
        "under a third secret"
    );
    let ahead = write_in(LATER, &base, [meter(9, 1)]).1;
    let behind = accept_rewritten(&ahead, &two, theirs(&extension)).unwrap_err();
    assert!(matches!(behind, NotAccepted::Behind { .. }), "{behind}");
    // What a follower has and the writer left out: both are authentic, and one of the two lies.
    let more = write_in(EPOCH, &empty(), [meter(9, 1)]).1;
    assert_eq!(accept_rewritten(&more, &two, theirs(&extension)), Err(NotAccepted::Incomplete(at)));
    let (later, ..) = rewritten_in(LATER, &base);
    assert_eq!(accept(theirs(&later)), NotAccepted::NotPromoted { theirs: LATER });
    let found = BlockMark { position: block().mark().position, ..block().mark() };
    let promoted = PeersBlock { promoted_at: Some(found), ..theirs(&later) };
    assert_eq!(accept(promoted), NotAccepted::Forked(found.position));
}

mod parting {
    use super::*;

    /// Both were in step at `found`; the other site was promoted there.
    fn lineage(found: &Verified) -> Lineage {
        let mark = found.mark();
        Lineage::of(LATER, |epoch| (epoch == LATER).then_some(mark))
    }

    fn staged() -> Verified {
        write_in(EPOCH, &block(), [Record::Fact(Fact::Secrets(fact(SecretStage::Staged)))]).1
    }

    #[test]
    fn a_site_that_rewrote_a_block_alone_comes_back_and_sets_aside_only_what_it_alone_changed() {
        let found = staged();
        let ours = rewritten_in(EPOCH, &found).2;
        let (one, two) = (keys(), keys_of(2));
        let both = (Under { keys: &two, version: 2 }, Under { keys: &one, version: 1 });
        let theirs = write_in(LATER, &found, [meter(7, 0)]).1;
        assert!(was_rewritten_apart(&ours, &lineage(&found)));
        assert!(!was_rewritten_apart(&found, &lineage(&found)));
        let back = bring_back_rewritten(&ours, theirs.clone(), &lineage(&found), both).unwrap();
        assert_eq!(back.set_aside, []);
        assert_eq!(back.returned(ours.clone()), theirs);
        // And one more, that nobody else has.
        let mut alone = Staged::on(ours);
        let mut new = full(8);
        new.keys.truncate(1);
        new.keys[0].wrapped = two.wrap_key(&ClearKey::new(vec![8; 16])).unwrap();
        alone.put(Record::Meter(new));
        let extension = alone.seal(&two, EPOCH).unwrap();
        let ours = alone.extended(extension);
        let back = bring_back_rewritten(&ours, theirs, &lineage(&found), both).unwrap();
        let [aside] = &back.set_aside[..] else { panic!("{:?}", back.set_aside) };
        assert_eq!((aside.key, aside.secret_version), (RecordKey::meter(&title(8)), 1));
        assert!(one.record_is_authentic(BLOCK, aside, &mut Vec::new()));
        let Ok(Record::Meter(read)) = Record::decode(&aside.body) else { panic!() };
        let mut out = [0; 16];
        one.unwrap_into(&read.keys[0].wrapped, &mut out).unwrap();
        assert_eq!(out, [8; 16]);
    }

    #[test]
    fn a_site_comes_back_to_a_block_that_was_rewritten_without_it() {
        let found = staged();
        let theirs = rewritten_in(LATER, &found).2;
        let mut new = full(8);
        new.keys.truncate(1);
        let ours = write_in(EPOCH, &found, [Record::Meter(new)]).1;
        let (one, two) = (keys(), keys_of(2));
        let both = (Under { keys: &one, version: 1 }, Under { keys: &two, version: 2 });
        let back = bring_back_rewritten(&ours, theirs.clone(), &lineage(&found), both).unwrap();
        let [aside] = &back.set_aside[..] else { panic!("{:?}", back.set_aside) };
        assert_eq!((aside.key, aside.secret_version), (RecordKey::meter(&title(8)), 2));
        assert!(two.record_is_authentic(BLOCK, aside, &mut Vec::new()));
        assert_eq!(back.returned(ours), theirs);
    }

    #[test]
    fn both_rewrote_under_one_secret_and_nothing_is_set_aside() {
        let found = staged();
        let ours = rewritten_in(EPOCH, &found).2;
        let theirs = rewritten_in(LATER, &found).2;
        let two = keys_of(2);
        let both = (Under { keys: &two, version: 2 }, Under { keys: &two, version: 2 });
        let back = bring_back_rewritten(&ours, theirs.clone(), &lineage(&found), both).unwrap();
        assert_eq!(back.set_aside, []);
        assert_eq!(back.returned(ours), theirs);
    }
}

#[test]
fn two_sites_never_give_one_number_to_two_secrets() {
    assert_eq!(next_version([1], true), Some(2));
    assert_eq!(next_version([1], false), Some(3));
    assert_eq!(next_version([1, 4, 3], true), Some(6));
    assert_eq!(next_version([1, 4, 3], false), Some(5));
    assert_eq!(next_version([u32::MAX - 1], true), None);
    assert_eq!(next_version([u32::MAX], false), None);
}

#[test]
fn a_link_is_of_two_secrets_their_versions_and_one_block() {
    let (one, two) = (keys_of(1), keys_of(2));
    let under = |keys, version| Under { keys, version };
    let right = link(BLOCK, under(&one, 1), under(&two, 2));
    for wrong in [
        link(BlockNo(8), under(&one, 1), under(&two, 2)),
        link(BLOCK, under(&two, 1), under(&two, 2)),
        link(BLOCK, under(&one, 1), under(&one, 2)),
        link(BLOCK, under(&one, 3), under(&two, 2)),
        link(BLOCK, under(&one, 1), under(&two, 4)),
    ] {
        assert_ne!(right, wrong);
    }
}

#[test]
fn while_a_secret_is_staged_a_proof_shows_that_it_opens_too() {
    let challenge = Challenge { prover: "b", verifier: "a", nonce: [3; 32], epoch: EPOCH };
    let of = |version| ProofKey::of(&place(version), &secret());
    let both = || of(1).with_staged(of(2));
    let block = block();
    let proof = both().prove(&challenge, &block).unwrap();
    assert!(both().confirms(&challenge, block.head(), &proof));
    for other in [of(1), of(2), of(1).with_staged(of(3)), of(2).with_staged(of(2))] {
        assert!(!other.confirms(&challenge, block.head(), &proof));
    }
    assert!(!both().confirms(&challenge, block.head(), &of(1).prove(&challenge, &block).unwrap()));
}
