//! Two sites that run: what is written at one is at the other one, proved, and who was promoted is believed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::{sync::Arc, time::Duration};

use kms_core::{
    MeterId, Verdict,
    ports::{Replicated, ReplicationGate as _},
    site::role::SignedRoleRecord,
};

use super::{
    home::at_two_homes,
    pair::{Network, Running, again, entry, eventually, in_step, promote, sites},
    site_common::{Site, call, id, meter, push, title},
};
use crate::{
    lifecycle::ImportRules,
    replication::{Cards, Peer as _, PeerSaid},
    store::sites::DivergenceAsked,
    telemetry::metrics::{Page, Source},
};

const PLAIN: &[u8] = b"\x0f\x00";

/// Takes the other site's promotion in.
pub(super) async fn fence(site: &Site, record: SignedRoleRecord) {
    site.keyring.roles.learn(vec![record], entry("Replication/Fence")).await.unwrap();
}

#[test]
fn what_is_imported_at_one_site_opens_apdus_at_the_other_and_is_said_to_be_there() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        assert_eq!(south.site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        let lines = (2..60).map(meter).collect();
        let import = call("Meters/ImportMeters");
        let imports = north.site.lifecycle.import(&import, lines, ImportRules::default());
        let states = imports.await.unwrap().states;
        assert_eq!(north.gate.replicated(&states).await, Replicated::Yes);
        assert_eq!(south.site.verdict(&push(59, PLAIN)).await, Verdict::Ok);
        let one = MeterId::new(&id(1)).unwrap();
        let states = north.site.lifecycle.delete(&call("Meters/DeleteMeter"), &one).await.unwrap();
        assert_eq!(north.gate.replicated(&states).await, Replicated::Yes);
        assert_eq!(south.site.verdict(&push(1, PLAIN)).await, Verdict::UnknownMeter);
        let following = south.status.all().following.unwrap();
        assert!(following.connected && following.refused.is_empty(), "{following:?}");
        assert_eq!(following.fault, None);
        // Without the other site a write is one that may be lost, and is said to be.
        south.cut().await;
        north.site.add(meter(70)).await;
        let block = north.site.keyring.records.block_of(&title(70));
        let head = north.site.keyring.records.head(block).await.unwrap();
        let mark =
            kms_core::block::BlockMark { block, position: head.position, digest: head.digest };
        assert_eq!(north.gate.replicated(&[mark]).await, Replicated::No);
        north.cut().await;
    });
}

/// How often changes were read from a site's database.
fn reads_of_changes(site: &Site) -> u64 {
    let text = Page::of([&*site.measured as &dyn Source]).render();
    let named = r#"kms_store_operation_seconds_count{operation="changes_after",outcome="ok"} "#;
    let count = text.lines().find_map(|line| line.strip_prefix(named));
    count.map_or(0, |count| count.parse().unwrap())
}

#[test]
fn what_is_committed_while_somebody_follows_is_not_read_back_for_it() {
    at_two_homes(async |north, south_home| {
        let (a, b) = sites(north, south_home).await;
        let network = Network::new();
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        eventually("somebody follows", async || !north.status.all().followers.is_empty()).await;
        let before = reads_of_changes(&north.site);
        for n in 0..30 {
            north.site.add(meter(n)).await;
        }
        // Meters that are there already, and more of a block at once.
        north
            .site
            .lifecycle
            .delete(&call("Meters/DeleteMeter"), &MeterId::new(&id(3)).unwrap())
            .await
            .unwrap();
        north.site.import((30..90).map(meter).collect(), ImportRules::default()).await;
        in_step(&north.site, &south.site).await;
        // Where the ledger's look is first, the database is asked.
        let read = reads_of_changes(&north.site) - before;
        assert!(read < 10, "{read} reads for 92 changes");
        // What was written while nobody followed is not known any more.
        south.cut().await;
        eventually("nobody follows", async || north.status.all().followers.is_empty()).await;
        north.site.add(meter(100)).await;
        let south = Running::start(again(south_home, "south", None).await, &network).await;
        in_step(&north.site, &south.site).await;
        assert!(reads_of_changes(&north.site) > before + read);
        south.cut().await;
        north.cut().await;
    });
}

#[test]
fn a_site_that_is_cut_off_in_mid_copy_goes_on_from_what_it_has() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.import((0..400).map(meter).collect(), ImportRules::default()).await;
        let north = Running::start(a, &network).await;
        let mut site = b;
        for _ in 0..3 {
            let running = Running::start(Arc::clone(&site), &network).await;
            let before = running.status.all().following.map_or(0, |it| it.blocks_adopted);
            eventually("something is taken over, or all of it", async || {
                let adopted = running.status.all().following.map_or(0, |it| it.blocks_adopted);
                adopted > before || running.site.store.count_meters().await.unwrap() == 400
            })
            .await;
            running.cut().await;
            drop(site);
            site = again(south, "south", None).await;
        }
        let running = Running::start(site, &network).await;
        in_step(&north.site, &running.site).await;
        assert_eq!(running.site.verdict(&push(399, PLAIN)).await, Verdict::Ok);
        running.cut().await;
        north.cut().await;
    });
}

#[test]
fn two_servers_of_one_site_that_both_follow_harm_nothing() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let north_runs = Running::start(a, &network).await;
        let other_network_port = Network::new();
        let first = Running::start(b, &network).await;
        let second = again(south, "south", None).await;
        // The certificates are the first network's; only the address to listen on is another one.
        let network_of_second = network.listening_at(other_network_port.south);
        let second = Running::start(second, &network_of_second).await;
        for n in 0..40 {
            north_runs.site.add(meter(n)).await;
        }
        in_step(&north_runs.site, &first.site).await;
        for site in [&first, &second] {
            let refused = site.status.all().following.unwrap().refused;
            assert!(refused.is_empty(), "{refused:?}");
        }
        // Over SQLite neither hears what the other one took over: what is stored counts.
        let fresh = again(south, "south", None).await;
        assert_eq!(fresh.verdict(&push(39, PLAIN)).await, Verdict::Ok);
        second.cut().await;
        first.cut().await;
        north_runs.cut().await;
    });
}

#[test]
fn a_follower_that_stores_nothing_does_not_stop_the_site_that_it_follows() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.import((0..200).map(meter).collect(), ImportRules::default()).await;
        let north = Running::start(a, &network).await;
        let client = network.client("south", network.north);
        let card = Cards::new(b.measured.clone(), &b.domain, Arc::default()).now().await.unwrap();
        let heads = b.store.heads().await.unwrap();
        let cursor = |head: &kms_core::Head| kms_core::block::BlockMark {
            block: head.block,
            position: head.position,
            digest: head.digest,
        };
        let cursors: Vec<_> = heads.iter().map(cursor).collect();
        // As many as may follow: each reads its first message, and nothing more.
        let mut stalled = Vec::new();
        for _ in 0..4 {
            let mut followed = client.follow(card.clone(), cursors.clone()).await.unwrap();
            let first = futures_util::StreamExt::next(&mut followed.said).await.unwrap().unwrap();
            assert!(matches!(first, PeerSaid::Card(card) if card.writes));
            stalled.push(followed);
        }
        let refused = client.follow(card, cursors).await.err().unwrap();
        assert!(refused.to_string().contains("TOO_MANY_FOLLOWERS"), "{refused}");
        for n in 200..230 {
            let added = tokio::time::timeout(Duration::from_secs(5), north.site.add(meter(n)));
            added.await.unwrap();
            assert_eq!(north.site.verdict(&push(n, PLAIN)).await, Verdict::Ok);
        }
        drop(stalled);
        north.cut().await;
    });
}

#[test]
fn invariant_7_a_site_whose_peer_was_promoted_is_fenced_at_first_contact_and_follows() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let runs = (
            Running::start(Arc::clone(&a), &network).await,
            Running::start(Arc::clone(&b), &network).await,
        );
        a.add(meter(1)).await;
        in_step(&a, &b).await;
        runs.0.cut().await;
        // Cut off, it writes on; and the other one is promoted.
        a.add(meter(2)).await;
        promote(&b).await;
        assert!(a.store.role().await.unwrap().writes);
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        eventually("it is fenced", async || !a.store.role().await.unwrap().writes).await;
        assert_eq!(a.store.role().await.unwrap().epoch, kms_core::Epoch(3));
        let rules = ImportRules::default();
        let refused = a.lifecycle.import(&call("Meters/ImportMeters"), vec![meter(3)], rules).await;
        assert!(refused.is_err());
        in_step(&a, &b).await;
        assert_eq!(
            a.store.divergence(DivergenceAsked::first(10)).await.unwrap().len(),
            1,
            "kept for people"
        );
        assert_eq!(a.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        north_runs.cut().await;
        runs.1.cut().await;
    });
}

#[test]
fn invariant_11_a_standby_is_ready_while_its_token_proves_what_it_stored_and_no_longer() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.import((0..50).map(meter).collect(), ImportRules::default()).await;
        let north_runs = Running::start(Arc::clone(&a), &network).await;
        let south_runs = Running::start(b, &network).await;
        let readiness = || north_runs.status.all().readiness.unwrap_or_default();
        eventually("all blocks are proved", async || readiness().proved == 16).await;
        assert!(readiness().oldest_ms.is_some() && readiness().failures.is_empty());
        let faults = north_runs.status.all().faults;
        assert!(faults.is_empty(), "{faults:?}");
        south.token.go_away("pulled out");
        eventually("it is red", async || readiness().failed == 16).await;
        let faults = north_runs.status.all().faults.join("; ");
        assert!(faults.contains("south") && faults.contains("pulled out"), "{faults}");
        south.token.come_back();
        eventually("it is well again", async || readiness().proved == 16).await;
        south_runs.cut().await;
        north_runs.cut().await;
    });
}

#[test]
fn invariant_4_a_peer_that_is_beyond_a_rolled_back_primary_confirms_none_of_its_writes() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let block = a.keyring.records.block_of(&title(1));
        let in_block = (2..).filter(|n| a.keyring.records.block_of(&title(*n)) == block);
        let [second, third, late] = in_block.take(3).collect::<Vec<u64>>()[..] else { panic!() };
        let database = a.database.clone();
        a.store.close().await;
        let before = std::fs::read(&database).unwrap();
        drop(a);
        let first = Running::start(again(north, "north", None).await, &network).await;
        let other = Running::start(Arc::clone(&b), &network).await;
        for n in [second, third] {
            first.site.add(meter(n)).await;
        }
        in_step(&first.site, &other.site).await;
        let site = Arc::clone(&first.site);
        first.cut().await;
        other.cut().await;
        site.store.close().await;
        drop(site);
        std::fs::write(&database, before).unwrap();
        // It knows of nothing, has nobody to ask, and writes at a place that the other site has long had.
        let rolled_back = Running::start(again(north, "north", None).await, &network).await;
        let import = call("Meters/ImportMeters");
        let lines = vec![meter(late)];
        let imports = rolled_back.site.lifecycle.import(&import, lines, ImportRules::default());
        let states = imports.await.unwrap().states;
        assert_eq!(states[0].block, block);
        let other = Running::start(b, &network).await;
        assert_eq!(rolled_back.gate.replicated(&states).await, Replicated::No);
        rolled_back.cut().await;
        other.cut().await;
    });
}
