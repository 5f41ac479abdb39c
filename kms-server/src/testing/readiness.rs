//! What the sites tell each other of themselves: signed reports of readiness, head tables that each witnesses of the
//! other one, and the plan of a promotion that is made of them.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockNo, Position, RecordKey, Sequence, StoredRecord, SystemTitle,
    block::keys::digest,
    site::{
        makeup::Difference,
        readiness::{Colour, SignedReadiness},
    },
};

use super::{
    pair::{BLOCKS, Network, Running, again, beside, entry, eventually, in_step, opened, sites},
    site_common::{Site, id, meter, title},
};
use crate::{
    keyring::{NotChanged, Wish},
    lifecycle::ImportRules,
    replication::KnownFrom,
    store::{BlockChange, IndexEntry, RecordChange},
};

use super::home::at_two_homes;

fn newest(running: &Running) -> Option<SignedReadiness> {
    running.status.all().reports.newest
}

#[test]
fn invariant_11_a_site_that_follows_is_ready_by_a_signed_report_and_not_while_its_token_fails() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.import((0..40).map(meter).collect(), ImportRules::default()).await;
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        let south_runs = Running::start(Arc::clone(&b), &network).await;
        eventually("the site that follows has the report", async || {
            newest(&south_runs).is_some_and(|it| it.report.by == "north" && it.report.is_complete())
        })
        .await;
        let signed = newest(&south_runs).unwrap();
        let (key, other) = (a.hsm.public_key().await.unwrap(), b.hsm.public_key().await.unwrap());
        assert!(signed.is_signed_by(&key) && !signed.is_signed_by(&other));
        let mut forged = signed.clone();
        forged.report.failed = 1;
        assert!(!forged.is_signed_by(&key));
        assert_eq!((signed.report.site.as_str(), signed.report.proved), ("south", BLOCKS));
        for running in [&north_runs, &south_runs] {
            // A round's end is told once its report is signed: what was not reached at the start stands until then.
            eventually("nothing is wrong", async || {
                let status = running.status.all();
                (status.colour, status.faults) == (Some(Colour::Green), Vec::new())
            })
            .await;
        }
        south_runs.planning.ready().await.unwrap();
        // Other profiles at one of them are yellow, by name, at both.
        south_runs.makeup.profiles([1; 32]);
        for running in [&north_runs, &south_runs] {
            eventually("the difference is named", async || {
                let status = running.status.all();
                status.differences == [Difference::Profiles]
                    && status.colour == Some(Colour::Yellow)
                    && status.faults.iter().any(|fault| fault.contains("device profiles differ"))
            })
            .await;
        }
        south_runs.planning.ready().await.unwrap();
        south.token.go_away("pulled out");
        eventually("it is red", async || north_runs.status.all().colour == Some(Colour::Red)).await;
        let refused = south_runs.planning.ready().await.unwrap_err();
        assert!(matches!(&refused, NotChanged::NotReady(why) if why.contains("pulled out")));
        eventually("all of it is", async || newest(&north_runs).unwrap().report.failed == BLOCKS)
            .await;
        // What was proved before stays known, with its date.
        assert!(north_runs.status.all().reports.complete.unwrap().report.is_complete());
        south.token.come_back();
        eventually("it is proved again", async || {
            south_runs.planning.ready().await.is_ok()
                && newest(&south_runs).is_some_and(|it| it.report.is_complete())
        })
        .await;
        // Nobody asks any more: it opens its blocks for itself, and says that this is all.
        north_runs.cut().await;
        eventually("it reports for itself", async || {
            newest(&south_runs).is_some_and(|it| it.report.by == "south" && it.report.is_complete())
        })
        .await;
        assert!(newest(&south_runs).unwrap().is_signed_by(&other));
        south_runs.planning.ready().await.unwrap();
        south_runs.cut().await;
        // A restart forgets nothing of it, as long as it is young enough.
        let again = again(south, "south", None).await;
        let (grounds, beside) = beside(&again, &network, network.north);
        beside.reporting.load().await.unwrap();
        beside.planning.ready().await.unwrap();
        assert_eq!(grounds.status.all().colour, None, "the role was not looked at yet");
    });
}

#[test]
fn a_plan_says_what_a_promotion_costs_also_when_the_primary_is_gone() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        let south_runs = Running::start(Arc::clone(&b), &network).await;
        in_step(&a, &b).await;
        south_runs.cut().await;
        // Nobody follows. Three changes, two of them in one block.
        let block = a.keyring.records.block_of(&title(1));
        let same = (2..).filter(|n| a.keyring.records.block_of(&title(*n)) == block);
        let another = (2..).find(|n| a.keyring.records.block_of(&title(*n)) != block).unwrap();
        let late: Vec<u64> = same.take(2).chain([another]).collect();
        for n in &late {
            a.add(meter(*n)).await;
        }
        a.audit.sign_table(true).await;
        let (_, beside) = beside(&b, &network, network.north);
        beside.witnessing.look().await.unwrap();
        let plan = beside.planning.plan(false).await.unwrap();
        assert_eq!(
            (plan.known_from, plan.peer_answers, plan.peer_writes),
            (KnownFrom::Peer, true, true)
        );
        assert_eq!((plan.behind_count, plan.changes_missing), (2, 3));
        assert_eq!((plan.behind[0].block, plan.behind[0].changes), (block, 2));
        let named: Vec<&str> =
            plan.behind.iter().flat_map(|it| &it.meters).map(|it| it.as_str()).collect();
        assert!(late.iter().all(|n| named.contains(&id(*n).as_str())), "{named:?}");
        assert!(!named.contains(&id(1).as_str()), "it is here already");
        assert!(plan.needs_loss);
        assert!(matches!(plan.refusal, Some(NotChanged::NotReady(_))), "{:?}", plan.refusal);
        north_runs.cut().await;
        // The other site is dead: what it had signed is what is known, without names.
        let plan = beside.planning.plan(true).await.unwrap();
        assert_eq!((plan.known_from, plan.peer_answers), (KnownFrom::HeadTable, false));
        assert_eq!((plan.behind_count, plan.changes_missing), (2, 3));
        assert!(plan.behind.iter().all(|it| it.meters.is_empty()));
        assert_eq!((plan.unopened_count, plan.were_opened, plan.token_fault), (0, true, None));
        south.token.go_away("pulled out");
        let plan = beside.planning.plan(true).await.unwrap();
        assert_eq!(plan.unopened_count, BLOCKS);
        let costs = plan.unopened.iter().find(|it| it.block == block).unwrap();
        assert_eq!(costs.meters.iter().map(|it| it.as_str()).collect::<Vec<_>>(), [id(1)]);
        assert!(plan.token_fault.unwrap().contains("pulled out"));
    });
}

#[test]
fn invariant_5_a_site_whose_database_was_put_back_is_named_by_itself_and_by_the_one_that_witnessed_it()
 {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let database = a.database.clone();
        a.store.close().await;
        let before = std::fs::read(&database).unwrap();
        drop(a);
        let first = Running::start(again(north, "north", None).await, &network).await;
        let other = Running::start(b, &network).await;
        first.site.add(meter(2)).await;
        first.site.audit.sign_table(true).await;
        eventually("it is witnessed", async || {
            let at = other.status.all().witnessed_ms;
            let own = first.site.store.head_table().await.unwrap().unwrap();
            let own = kms_core::freshness::HeadTable::decode(&own.body).unwrap();
            at == Some(own.at_ms)
        })
        .await;
        let faults = other.status.all().faults;
        assert!(faults.iter().all(|fault| !fault.contains("put back")), "{faults:?}");
        let site = Arc::clone(&first.site);
        first.cut().await;
        site.store.close().await;
        drop(site);
        std::fs::write(&database, before).unwrap();
        let rolled_back = Running::start(again(north, "north", None).await, &network).await;
        eventually("the other site names it", async || {
            let faults = other.status.all().faults;
            faults.iter().any(|fault| fault.contains("site north is not what it was"))
        })
        .await;
        eventually("it is told so itself", async || {
            let faults = rolled_back.status.all().faults;
            faults.iter().any(|fault| fault.contains("this database is not the newest"))
        })
        .await;
        rolled_back.cut().await;
        other.cut().await;
    });
}

/// Writes an authentic record of a schema that no release has yet.
async fn add_unknown(site: &Site, block: BlockNo) {
    let (keys, _) = opened(site, block).await;
    let stored = site.store.block(block).await.unwrap().unwrap();
    let before = stored.head.position;
    let position = Position { sequence: Sequence(before.sequence.0 + 1), ..before };
    let mut record = StoredRecord {
        key: RecordKey::meter(&SystemTitle::new([0xEE; 8])),
        position,
        secret_version: 1,
        body: vec![200, 1, 7],
        mac: [0; 16],
    };
    record.mac = keys.record_mac(block, &record, &mut Vec::new());
    let mut records = stored.records;
    records.push(record.clone());
    records.sort_by_key(|record| record.key);
    let digest = digest(records.iter().map(|record| &record.mac));
    let mut head = stored.head;
    (head.position, head.count, head.digest) = (position, head.count + 1, digest);
    head.mac = keys.head_mac(&head);
    let records = vec![RecordChange { record, index: IndexEntry::Nothing }];
    let change = BlockChange { expected: Some(before), head, seals: Vec::new(), records };
    site.commits.commit(vec![change], vec![entry("x/y")]).await.unwrap();
}

#[test]
fn a_site_with_records_of_a_newer_release_keeps_them_says_so_and_is_not_promoted() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        add_unknown(&a, BlockNo(3)).await;
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        let south_runs = Running::start(Arc::clone(&b), &network).await;
        in_step(&a, &b).await;
        eventually("the other site hears of it", async || {
            north_runs.status.all().differences.contains(&Difference::UnknownRecords)
        })
        .await;
        let faults = south_runs.status.all().faults.join("; ");
        assert!(faults.contains("1 records can't be read by this release"), "{faults}");
        let expected = b.store.role().await.unwrap().epoch;
        let wish = Wish { expected, is_lost: true, above: None };
        let refused = b.keyring.roles.promote(wish, entry("Site/Promote"), 5).await.unwrap_err();
        assert!(
            matches!(refused, NotChanged::UnknownRecords { count: 1, first: BlockNo(3) }),
            "{refused}"
        );
        let plan = south_runs.planning.plan(false).await.unwrap();
        assert_eq!(plan.unknown_records, 1);
        south_runs.cut().await;
        north_runs.cut().await;
        // Bytes that somebody else has written are damage, and keep no site from being promoted.
        let mut store = b.store.block(BlockNo(3)).await.unwrap().unwrap();
        assert_eq!(store.records.remove(0).body, [200, 1, 7]);
    });
}
