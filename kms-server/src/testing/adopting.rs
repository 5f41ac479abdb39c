//! Taking over a peer's blocks: what is changed on the way is refused by name, and nothing of it is applied.

#![allow(clippy::unwrap_used, reason = "tests may")]

use kms_core::{
    BlockNo, Epoch, Head, MeterId, Position, RecordKey, Sequence, StoredRecord, Verdict,
};

use super::{
    home::at_two_homes,
    pair::{contents, entry, news, nowhere, position, promote, sites, whole},
    site_common::{Site, call, id, meter, push, title},
};
use crate::{
    keyring::{Arrived, Outcome, Taken},
    lifecycle::{ImportRules, NewMeter},
    store::sites::DivergenceAsked,
};

const PLAIN: &[u8] = b"\x0f\x00";

async fn adopt(site: &Site, arrived: Vec<Arrived>) -> Vec<Outcome> {
    let known = site.store.role_records().await.unwrap();
    site.keyring.adopter.adopt(arrived, &known, entry("Replication/Adopt")).await.unwrap()
}

async fn one(site: &Site, arrived: Arrived) -> Taken {
    adopt(site, vec![arrived]).await.remove(0).taken
}

/// Meters of one block.
fn in_block(site: &Site, block: BlockNo) -> Vec<u64> {
    (0..2_000).filter(|n| site.keyring.records.block_of(&title(*n)) == block).take(3).collect()
}

/// The block that it went to comes first, and the other one when it is back: no block is looked at in between.
#[test]
fn an_id_that_moved_and_moved_back_is_found_in_memory() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let home = a.keyring.records.block_of(&title(1));
        let other = (2..).find(|n| a.keyring.records.block_of(&title(*n)) != home).unwrap();
        let away = a.keyring.records.block_of(&title(other));
        let one = MeterId::new(&id(1)).unwrap();
        let delete = async || {
            a.lifecycle.delete(&call("Meters/DeleteMeter"), &one).await.unwrap();
        };
        a.add(meter(1)).await;
        adopt(&b, vec![whole(&a, home).await]).await;
        let (first, second) = (push(1, PLAIN), push(other, PLAIN));
        // Both blocks are open from now on.
        assert_eq!(b.verdict(&first).await, Verdict::Ok);
        assert_eq!(b.verdict(&second).await, Verdict::UnknownMeter);
        let found = || b.keyring.reader.title_of(&b.keyring.reader.snapshot(), one.as_str());
        assert_eq!(found(), Some(title(1)));
        delete().await;
        a.add(NewMeter { meter_id: one.clone(), ..meter(other) }).await;
        adopt(&b, vec![whole(&a, away).await]).await;
        assert_eq!(found(), Some(title(other)));
        delete().await;
        let readmit = call("Meters/ReadmitMeter");
        a.lifecycle.readmit(&readmit, &one, &title(1)).await.unwrap();
        a.add(meter(1)).await;
        for block in [away, home] {
            adopt(&b, vec![whole(&a, block).await]).await;
            assert_eq!(found(), Some(title(1)), "after block {block}");
        }
    });
}

/// All fields of a block, one after the other; and back.
fn bytes_of(arrived: &Arrived) -> Vec<u8> {
    let Head { block, secret_version, position, count, digest, mac } = &arrived.head;
    let mut out = Vec::new();
    out.extend_from_slice(&block.0.to_be_bytes());
    out.extend_from_slice(&secret_version.to_be_bytes());
    out.extend_from_slice(&position.epoch.0.to_be_bytes());
    out.extend_from_slice(&position.sequence.0.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(digest);
    out.extend_from_slice(mac);
    for record in &arrived.records {
        out.extend_from_slice(record.key.as_bytes());
        out.extend_from_slice(&record.position.epoch.0.to_be_bytes());
        out.extend_from_slice(&record.position.sequence.0.to_be_bytes());
        out.extend_from_slice(&record.secret_version.to_be_bytes());
        out.extend_from_slice(&record.mac);
        out.extend_from_slice(&record.body);
    }
    out
}

fn of_bytes(mut bytes: &[u8], like: &Arrived) -> Arrived {
    fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
        let (head, rest) = bytes.split_first_chunk().unwrap();
        *bytes = rest;
        *head
    }
    let input = &mut bytes;
    let u32 = |input: &mut &[u8]| u32::from_be_bytes(take(input));
    let u64 = |input: &mut &[u8]| u64::from_be_bytes(take(input));
    let at =
        |input: &mut &[u8]| Position { epoch: Epoch(u64(input)), sequence: Sequence(u64(input)) };
    let head = Head {
        block: BlockNo(u32(input)),
        secret_version: u32(input),
        position: at(input),
        count: u32(input),
        digest: take(input),
        mac: take(input),
    };
    let record = |like: &StoredRecord| {
        let key = take::<9>(input);
        let record = StoredRecord {
            key: RecordKey::from_bytes(&key).unwrap(),
            position: at(input),
            secret_version: u32(input),
            mac: take(input),
            body: input[..like.body.len()].to_vec(),
        };
        *input = &input[like.body.len()..];
        record
    };
    let records = like.records.iter().map(record).collect();
    Arrived { head, records, is_whole: like.is_whole }
}

#[test]
fn invariant_5_each_flipped_bit_of_a_replicated_block_is_refused_and_none_is_applied() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let block = BlockNo(3);
        for n in in_block(&a, block) {
            a.add(meter(n)).await;
        }
        let before = contents(&b).await;
        for sent in [news(&a, block, nowhere()).await, whole(&a, block).await] {
            let bytes = bytes_of(&sent);
            assert_eq!(of_bytes(&bytes, &sent), sent);
            for (at, byte) in bytes.iter().enumerate() {
                let mut flipped = bytes.clone();
                flipped[at] = byte ^ (1 << (at % 8));
                let taken = one(&b, of_bytes(&flipped, &sent)).await;
                let refused = matches!(taken, Taken::NotAccepted(_) | Taken::Refused(_));
                assert!(refused, "byte {at}: {taken:?}");
            }
        }
        assert_eq!(contents(&b).await, before, "nothing was applied");
        let taken = one(&b, news(&a, block, nowhere()).await).await;
        assert_eq!(taken, Taken::Adopted { records: 3, set_aside: 0 });
    });
}

#[test]
fn invariant_5_what_is_cut_doubled_swapped_or_played_again_is_refused_by_name() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let block = BlockNo(3);
        let meters = in_block(&a, block);
        a.add(meter(meters[0])).await;
        a.add(meter(meters[1])).await;
        let old = news(&a, block, nowhere()).await;
        a.add(meter(meters[2])).await;
        let new = news(&a, block, nowhere()).await;
        let says = |taken: Taken, part: &str| {
            let said = match taken {
                Taken::NotAccepted(why) => why.to_string(),
                Taken::Refused(why) => why,
                other => panic!("{other:?}"),
            };
            assert!(said.contains(part), "{said}");
        };
        for gone in 0..3 {
            let mut cut = new.clone();
            cut.records.remove(gone);
            says(one(&b, cut).await, "ask for all of it");
        }
        let mut doubled = new.clone();
        doubled.records.push(doubled.records[0].clone());
        says(one(&b, doubled).await, "two records of");
        let mut swapped = new.clone();
        let (first, rest) = swapped.records.split_at_mut(1);
        std::mem::swap(&mut first[0].body, &mut rest[0].body);
        says(one(&b, swapped).await, "is not what the peer's writer wrote");
        let mut elsewhere = new.clone();
        elsewhere.head.block = BlockNo(4);
        says(one(&b, elsewhere).await, "not this block's");
        assert_eq!(adopt(&b, vec![new.clone(), new.clone()]).await.len(), 2);
        // In whatever order records come, they are one block.
        let other_way = Arrived { records: new.records.iter().rev().cloned().collect(), ..new };
        assert_eq!(one(&b, other_way.clone()).await, Taken::Nothing);
        says(one(&b, old).await, "behind our");
        assert_eq!(contents(&b).await[3], contents(&a).await[3]);
    });
}

#[test]
fn invariant_6_a_block_that_is_taken_over_twice_writes_nothing_the_second_time() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let block = BlockNo(3);
        let n = in_block(&a, block)[0];
        a.add(meter(n)).await;
        let sent = news(&a, block, nowhere()).await;
        let taken = one(&b, sent.clone()).await;
        assert_eq!(taken, Taken::Adopted { records: 1, set_aside: 0 });
        assert_eq!(b.verdict(&push(n, PLAIN)).await, Verdict::Ok, "in memory at once");
        let events = b.audit.status().sequence;
        for again in [sent, whole(&a, block).await] {
            assert_eq!(one(&b, again).await, Taken::Nothing);
        }
        assert_eq!(b.audit.status().sequence, events);
    });
}

#[test]
fn an_id_that_moved_between_blocks_stops_no_block_in_whatever_order_they_come() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let (from, to) = (BlockNo(3), BlockNo(4));
        let (old, new) = (in_block(&a, from)[0], in_block(&a, to)[0]);
        a.add(meter(old)).await;
        one(&b, news(&a, from, nowhere()).await).await;
        let meter_id = MeterId::new(&id(old)).unwrap();
        a.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id).await.unwrap();
        // The device was exchanged: its id is another title's now, in another block.
        a.add(NewMeter { meter_id: meter_id.clone(), ..meter(new) }).await;
        // The new one comes first: for a while two titles claim one id.
        let taken = one(&b, news(&a, to, nowhere()).await).await;
        assert!(matches!(taken, Taken::Adopted { .. }), "{taken:?}");
        assert_eq!(b.verdict(&push(new, PLAIN)).await, Verdict::Ok);
        let at = position(&b, from).await;
        let taken = one(&b, news(&a, from, at).await).await;
        assert!(matches!(taken, Taken::Adopted { .. }), "{taken:?}");
        assert_eq!(b.lifecycle.get(&meter_id).await.unwrap().record.system_title, title(new));
        assert_eq!(b.verdict(&push(old, PLAIN)).await, Verdict::UnknownMeter);
    });
}

#[test]
fn invariant_7_what_a_fenced_site_wrote_alone_is_set_aside_and_its_block_becomes_the_peers() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let block = BlockNo(3);
        let meters = in_block(&a, block);
        a.add(meter(meters[0])).await;
        one(&b, news(&a, block, nowhere()).await).await;
        // Never seen by the other site, which is promoted.
        a.add(meter(meters[1])).await;
        let record = promote(&b).await;
        let roles = [record.clone()];
        // Nothing goes back without the promotion, and nothing in parts.
        let adopter = &a.keyring.adopter;
        let sent = whole(&b, block).await;
        let parts = Arrived { is_whole: false, ..sent.clone() };
        let writer = adopter.adopt(vec![sent.clone()], &roles, entry("Replication/Adopt")).await;
        assert!(writer.is_err(), "it writes still, as it believes");
        super::two_sites::fence(&a, record).await;
        let unknown = adopter.adopt(vec![sent.clone()], &[], entry("x")).await.unwrap().remove(0);
        assert!(matches!(unknown.taken, Taken::NotAccepted(_)), "{unknown:?}");
        let asked = one(&a, parts).await;
        assert!(matches!(asked, Taken::NotAccepted(_)), "{asked:?}");
        assert_eq!(one(&a, sent).await, Taken::Adopted { records: 0, set_aside: 1 });
        assert_eq!(contents(&a).await[3], contents(&b).await[3]);
        assert_eq!(a.verdict(&push(meters[1], PLAIN)).await, Verdict::UnknownMeter);
        let kept = a.store.divergence(DivergenceAsked::first(10)).await.unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].record.key, RecordKey::meter(&title(meters[1])));
        let rules = ImportRules::default();
        let refused = a.lifecycle.import(&call("Meters/ImportMeters"), vec![meter(9)], rules).await;
        assert!(refused.is_err(), "a fenced site writes nothing");
    });
}
