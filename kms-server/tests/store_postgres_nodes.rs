//! Several server nodes over one PostgreSQL: what one changes the others obey within a second, and a
//! node that lost its database goes on with what it has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod hsm_common;
mod postgres_common;
mod site_common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hsm_common::Home;
use kms_core::{
    KeyKind, MeterId, MeterPolicy, MinimumProtection, Verdict,
    audit::{AuditEntry, AuditOutcome, Subject},
};
use kms_server::{
    audit::{Audit, AuditError},
    ciphering::Named,
    lifecycle::{ImportRules, LifecycleError, NewMeter},
};
use postgres_common::Cluster;
use site_common::*;

const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

/// What is promised of the other nodes, counted from the acknowledgement.
const PROMISED: Duration = Duration::from_secs(1);

fn options() -> Options {
    Options { blocks: 64, arena_bytes: 8 << 20, ..Options::default() }
}

/// A node over `cluster`'s database, warm and following.
async fn node(home: &Home, cluster: &Cluster) -> Arc<Site> {
    let store = Arc::new(cluster.open("ami").await);
    let token = Arc::new(home.token());
    let site = Site::over(token, home.canaries().encode(), store, options()).await;
    site.keyring.refresher.warm_up().await;
    let refresher = Arc::clone(&site.keyring.refresher);
    tokio::spawn(async move { refresher.follow().await });
    Arc::new(site)
}

/// How long after `acknowledged` the node says `wanted` of `apdu`.
async fn obeyed(node: &Site, apdu: &[u8], wanted: Verdict, acknowledged: Instant) -> Duration {
    loop {
        let found = node.verdict(apdu).await;
        let after = acknowledged.elapsed();
        assert!(after < PROMISED, "{found:?}, due {wanted:?}, after {after:?}");
        if found == wanted {
            return after;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The longest of all nodes'.
async fn by_all(nodes: &[Arc<Site>], apdu: &[u8], wanted: Verdict) -> Duration {
    let acknowledged = Instant::now();
    let asked = nodes.iter().map(|node| obeyed(node, apdu, wanted, acknowledged));
    futures_util::future::join_all(asked).await.into_iter().max().unwrap()
}

/// Imports one meter, however many other nodes write to its block.
async fn change(node: &Site, meter: impl Fn() -> NewMeter, rules: ImportRules) {
    loop {
        match node.lifecycle.import(&call("Meters/ImportMeters"), vec![meter()], rules).await {
            Err(LifecycleError::Busy) => {}
            done => return assert!(done.unwrap().results[0].outcome.is_ok()),
        }
    }
}

/// Meters that the load asks for.
const FLEET: u64 = 300;

/// Each node opens pushes of the whole fleet, and one imports meters, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
    imported: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(nodes: &[Arc<Site>]) -> Self {
        let (stop, opened, imported) =
            <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let mut tasks = Vec::new();
        for node in nodes {
            let (node, stop, opened) = (Arc::clone(node), Arc::clone(&stop), Arc::clone(&opened));
            tasks.push(tokio::spawn(async move {
                for n in (0..FLEET).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    assert_eq!(node.verdict(&push(n, PLAIN)).await, Verdict::Ok);
                    opened.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
            }));
        }
        let (node, stop_too, count) =
            (Arc::clone(&nodes[0]), Arc::clone(&stop), Arc::clone(&imported));
        tasks.push(tokio::spawn(async move {
            for first in (100_000..).step_by(20) {
                if stop_too.load(Ordering::Relaxed) {
                    break;
                }
                let some: Vec<_> = (first..first + 20).map(meter).collect();
                // Busy, where nodes were faster eight times: a caller comes back.
                let call = call("Meters/ImportMeters");
                match node.lifecycle.import(&call, some, ImportRules::default()).await {
                    Err(LifecycleError::Busy) => {}
                    done => {
                        assert!(done.unwrap().results.iter().all(|one| one.outcome.is_ok()));
                        count.fetch_add(20, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }));
        Self { stop, opened, imported, tasks }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let (opened, imported) =
            (self.opened.load(Ordering::Relaxed), self.imported.load(Ordering::Relaxed));
        println!("meanwhile {opened} pushes opened, {imported} meters imported");
        assert!(opened > FLEET && imported > 0, "that was no load");
    }
}

on_a_token! {
    fn an_import_a_policy_and_a_deletion_are_obeyed_by_all_nodes_within_a_second_under_load(home) {
        run(async {
            let cluster = Cluster::new(&[]);
            cluster.database("ami");
            let first = node(home, &cluster).await;
            first.import((0..FLEET).map(meter).collect(), ImportRules::default()).await;
            let nodes = [first, node(home, &cluster).await, node(home, &cluster).await];
            let load = Load::start(&nodes);
            let mut worst = [Duration::ZERO; 4];
            for round in 0..12 {
                let n = 1_000 + round;
                let (writer, calls) = (&nodes[round as usize % 3], nodes[1].hsm.status().calls);
                let apdu = push(n, PLAIN);
                change(writer, || meter(n), ImportRules::default()).await;
                let import = by_all(&nodes, &apdu, Verdict::Ok).await;

                // A policy that the meter's pushes, authenticated only, no longer meet.
                let weak = push_with(n, 0x10, &value(n, GUEK), &value(n, GAK), PLAIN);
                assert_eq!(nodes[2].verdict(&weak).await, Verdict::Ok);
                let strict = MeterPolicy {
                    minimum_protection: MinimumProtection::AuthenticatedEncrypted,
                    ..MeterPolicy::default()
                };
                let stricter = || meter_with(n, Vec::new(), strict.clone());
                let rules = ImportRules { change_policy: true, ..ImportRules::default() };
                change(writer, stricter, rules).await;
                let policy = by_all(&nodes, &weak, Verdict::PolicyRefused).await;

                // A further key.
                let rules = ImportRules { add_versions: true, ..ImportRules::default() };
                let newer = || vec![key(KeyKind::Guek, value(n, 50))];
                change(writer, || meter_with(n, newer(), strict.clone()), rules).await;
                let apdu = push_with(n, 0x30, &value(n, 50), &value(n, GAK), PLAIN);
                let version = by_all(&nodes, &apdu, Verdict::Ok).await;

                let meter_id = MeterId::new(&id(n)).unwrap();
                while let Err(LifecycleError::Busy) = writer.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id).await {}
                let deletion = by_all(&nodes, &apdu, Verdict::UnknownMeter).await;
                for (worst, now) in worst.iter_mut().zip([import, policy, version, deletion]) {
                    *worst = now.max(*worst);
                }
                assert!(nodes[1].hsm.status().calls - calls <= 16, "a renewed block asks no token");
            }
            let [import, policy, version, deletion] = worst;
            println!(
                "obeyed by three nodes, worst of 12: import {import:?}, policy {policy:?}, \
                 key version {version:?}, deletion {deletion:?}"
            );
            load.end().await;
        });
    }

    fn a_node_that_lost_its_database_answers_from_memory_and_says_so(home) {
        run(async {
            let mut cluster = Cluster::new(&[]);
            cluster.database("ami");
            let site = node(home, &cluster).await;
            site.import((0..50).map(meter).collect(), ImportRules::default()).await;
            let other = node(home, &cluster).await;
            assert_eq!(other.keyring.overview.status().not_following, None);
            cluster.kill();
            let lost = Instant::now();
            let silence = loop {
                if let Some(silence) = other.keyring.overview.status().not_following {
                    break silence;
                }
                assert!(lost.elapsed() < Duration::from_secs(3), "it does not say so");
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            println!("said after {:?}: {silence:?}", lost.elapsed());
            assert!(silence.since_ms > 0 && silence.reason.contains("not reachable"), "{silence:?}");
            for n in 0..50 {
                assert_eq!(other.verdict(&push(n, PLAIN)).await, Verdict::Ok);
            }
            // Forged frames wait for no database that is known to be away.
            let forged = push_with(1, 0x30, &value(1, 99), &value(1, GAK), PLAIN);
            let begun = Instant::now();
            for _ in 0..100 {
                assert_eq!(other.verdict(&forged).await, Verdict::MicFailure);
            }
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
            let refused = other.lifecycle.delete(&call("Meters/DeleteMeter"), &MeterId::new("meter-1").unwrap()).await;
            assert!(matches!(refused, Err(LifecycleError::Unavailable { .. })), "{refused:?}");

            cluster.start();
            let back = Instant::now();
            while other.keyring.overview.status().not_following.is_some() {
                assert!(back.elapsed() < Duration::from_secs(10), "it does not come back");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            println!("follows again {:?} after the database came back", back.elapsed());
            site.lifecycle.delete(&call("Meters/DeleteMeter"), &MeterId::new("meter-1").unwrap()).await.unwrap();
            by_all(&[other], &push(1, PLAIN), Verdict::UnknownMeter).await;
        });
    }

    fn invariant_5_a_resident_block_is_closed_once_a_newer_state_is_authentic_that_cannot_be_read(home) {
        run(async {
            let cluster = Cluster::new(&[]);
            cluster.database("ami");
            let store = Arc::new(cluster.open("ami").await);
            let token = Arc::new(home.token());
            let slow = Site::over(token, home.canaries().encode(), store, options()).await;
            let other = node(home, &cluster).await;
            other.add(meter(1)).await;
            assert_eq!(slow.verdict(&push(1, PLAIN)).await, Verdict::Ok);
            let id = MeterId::new(&id(1)).unwrap();
            other.lifecycle.delete(&call("Meters/DeleteMeter"), &id).await.unwrap();
            other.audit.sign_table(true).await;
            let block = slow.keyring.reader.block_of(&title(1));
            let flip = format!(
                "UPDATE ami_kms.blocks SET mac = set_byte(mac, 0, get_byte(mac, 0) # 1) WHERE block = {block}");
            cluster.tamper("ami", &flip).await;
            // It has not followed yet, and hears in the signed table what there is.
            slow.audit.sign_table(false).await;
            let slow = Arc::new(slow);
            let refresher = Arc::clone(&slow.keyring.refresher);
            tokio::spawn(async move { refresher.follow().await });
            let began = Instant::now();
            while slow.verdict(&push(1, PLAIN)).await == Verdict::Ok {
                assert!(began.elapsed() < Duration::from_secs(10), "still open");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(slow.verdict(&push(1, PLAIN)).await, Verdict::Unavailable);
        });
    }

    fn forged_frames_do_not_become_a_flood_of_queries(home) {
        run(async {
            let cluster = Cluster::new(&["log_statement = 'all'"]);
            cluster.database("ami");
            let site = node(home, &cluster).await;
            site.import((0..64).map(meter).collect(), ImportRules::default()).await;
            // Where the block stands, and, if it has moved, all of it.
            let looks = || cluster.log().matches("FROM blocks WHERE block = $1").count();
            let before = looks();
            let begun = Instant::now();
            let mut frames = 0u32;
            while begun.elapsed() < Duration::from_secs(1) {
                let forged = push_with(1, 0x30, &value(1, 99), &value(1, GAK), PLAIN);
                assert_eq!(site.verdict(&forged).await, Verdict::MicFailure);
                frames += 1;
            }
            let looked = looks() - before;
            println!("{frames} forged frames in a second made their block be looked at {looked} times");
            assert!(frames > 50 && (1..=11).contains(&looked), "{looked} looks");
        });
    }

    fn a_standbys_node_opens_and_refuses_changes_by_name(home) {
        run(async {
            let cluster = Cluster::new(&[]);
            cluster.database("ami");
            let primary = node(home, &cluster).await;
            primary.import((0..20).map(meter).collect(), ImportRules::default()).await;
            let standby = cluster.standby();
            let site = node(home, &standby).await;
            for n in 0..20 {
                assert_eq!(site.verdict(&push(n, PLAIN)).await, Verdict::Ok);
            }
            let refused = site.lifecycle.delete(&call("Meters/DeleteMeter"), &MeterId::new("meter-1").unwrap()).await;
            assert!(matches!(refused, Err(LifecycleError::ReadOnly)), "{refused:?}");
            assert!(site.store.standby_lag().await.unwrap().is_some());
            // What has to be recorded is refused for the same reason; what is counted waits.
            let look = || call("Meters/GetMeter").entry(1, Subject::NONE, AuditOutcome::Done);
            assert_eq!(site.audit.record(look()).await, Err(AuditError::ReadOnly));
            site.audit.count("hes", "Ciphering/Decrypt", [(Some(title(1)), Verdict::Ok)].into_iter());
            site.audit.sum_up(Duration::from_secs(60)).await;
            assert_eq!((site.audit.status().sequence, site.audit.status().fault), (0, None));
            // A standby has no notifications: only the poll hears of what its primary's nodes change.
            let mut worst = Duration::ZERO;
            for n in 4..12 {
                primary.lifecycle.delete(&call("Meters/DeleteMeter"), &MeterId::new(&id(n)).unwrap()).await.unwrap();
                let nodes = [Arc::clone(&site)];
                worst = worst.max(by_all(&nodes, &push(n, PLAIN), Verdict::UnknownMeter).await);
            }
            println!("deletions are obeyed at the standby after {worst:?} at worst");
            let (found, _) = site.open(&push(3, PLAIN), Named::Id("meter-3")).await;
            assert_eq!(found.verdict, Verdict::Ok);
            // Promoted, it takes changes, and its log begins with what waited: the start, the count.
            standby.promote();
            eventually_recorded(&site.audit, look()).await;
            site.audit.sum_up(Duration::from_secs(60)).await;
            assert_eq!((site.audit.status().sequence, site.audit.status().fault), (3, None));
            let meter_id = MeterId::new(&id(2)).unwrap();
            site.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id).await.unwrap();
        });
    }
}

/// A connection that was open at the promotion may still say that it is a standby's.
async fn eventually_recorded(audit: &Audit, entry: AuditEntry) {
    let begun = Instant::now();
    while let Err(error) = audit.record(entry.clone()).await {
        assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
