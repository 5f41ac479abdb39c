//! The store's contract on PostgreSQL, and what only PostgreSQL can break: its settings, its schema,
//! a standby, and a server that is killed in the middle of a commit.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod postgres_common;
mod store_contract;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kms_core::BlockNo;
use kms_server::store::{
    ReadStore as _, StandbyLag, StoreError, WriteStore,
    postgres::{Config, PostgresStore},
};
use postgres_common::{Cluster, USER};
use store_contract::{Said, Scene};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_keeps_the_stores_contract() {
    let cluster = Cluster::new(&[]);
    let made = AtomicUsize::new(0);
    let fresh = async || {
        let name = format!("case_{}", made.fetch_add(1, Ordering::Relaxed));
        cluster.database(&name);
        Arc::new(cluster.open(&name).await) as Arc<dyn WriteStore>
    };
    if let Err(broken) = store_contract::run(fresh).await {
        panic!("{broken}");
    }
}

#[tokio::test]
async fn each_setting_that_does_not_hold_is_refused_with_its_fix() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    drop(cluster.open("ami").await);
    for (setting, found) in [
        ("synchronous_commit", "off"),
        ("synchronous_commit", "local"),
        ("synchronous_commit", "remote_write"),
    ] {
        // A role's own setting counts, wherever it was made.
        cluster.sql("postgres", &format!("ALTER ROLE {USER} SET {setting} = {found}"));
        let sentence = cluster.refusal(cluster.config("ami")).await;
        assert!(sentence.contains(&format!("`{setting} = {found}`")), "{sentence}");
        assert!(sentence.contains("set it to `on` or `remote_apply`"), "{sentence}");
    }
    cluster.sql("postgres", &format!("ALTER ROLE {USER} SET synchronous_commit = remote_apply"));
    drop(cluster.open("ami").await);
    for setting in ["fsync", "full_page_writes"] {
        cluster.set(&[&format!("{setting} = off")]);
        cluster.reload();
        let sentence = cluster.refusal(cluster.config("ami")).await;
        assert!(sentence.contains(&format!("`{setting} = off`: set it to `on`")), "{sentence}");
        cluster.set(&[&format!("{setting} = on")]);
        cluster.reload();
    }
    cluster.sql(
        "postgres",
        &format!(
            "CREATE DATABASE latin OWNER {USER} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
        ),
    );
    let sentence = cluster.refusal(cluster.config("latin")).await;
    assert!(sentence.contains("LATIN1") && sentence.contains("ENCODING 'UTF8'"), "{sentence}");
}

#[tokio::test]
async fn a_setting_that_falls_later_takes_the_connections_made_from_then_on() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let store = cluster.open("ami").await;
    let before = store.heads().await.unwrap();
    cluster.sql("postgres", &format!("ALTER ROLE {USER} SET synchronous_commit = off"));
    let end =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{USER}'");
    cluster.sql("postgres", &end);
    let change = Scene::default().change(0, 1).unwrap();
    let refused = store.commit(std::slice::from_ref(&change), Said::new().link()).await;
    assert!(matches!(refused, Err(StoreError::Unreachable { .. })), "{refused:?}");
    cluster.sql("postgres", &format!("ALTER ROLE {USER} RESET synchronous_commit"));
    assert_eq!(store.heads().await.unwrap(), before);
    store.commit(&[change], Said::new().link()).await.unwrap();
}

#[tokio::test]
async fn nothing_leaves_the_machine_without_tls() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let far = Config { host: "db.example.org".into(), ..cluster.config("ami") };
    let sentence = cluster.refusal(far).await;
    assert!(sentence.contains("without TLS") && sentence.contains("store.tls_ca"), "{sentence}");
}

#[tokio::test]
async fn a_server_does_not_start_with_an_empty_database_nor_with_a_newer_schema() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let serve = || Config { create: false, ..cluster.config("ami") };
    let sentence = cluster.refusal(serve()).await;
    assert!(sentence.contains("run `kms-server init`"), "{sentence}");
    drop(cluster.open("ami").await);
    drop(PostgresStore::open(serve()).await.unwrap());
    cluster.tamper("ami", "UPDATE ami_kms.schema_version SET version = 9").await;
    let sentence = cluster.refusal(serve()).await;
    assert!(sentence.contains("schema 9") && sentence.contains("up to 5"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_start_at_once_make_one_schema() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let starting: Vec<_> =
        (0..4).map(|_| tokio::spawn(PostgresStore::open(cluster.config("ami")))).collect();
    for started in starting {
        started.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_damaged_record_is_called_damaged() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let store = cluster.open("ami").await;
    store.commit(&[Scene::default().change(0, 1).unwrap()], Said::new().link()).await.unwrap();
    cluster
        .tamper("ami", "ALTER TABLE ami_kms.records DROP CONSTRAINT records_mac_check; UPDATE ami_kms.records SET mac = '\\x00'")
        .await;
    assert!(matches!(store.block(BlockNo(0)).await, Err(StoreError::Damaged(_))));
    cluster.tamper("ami", "UPDATE ami_kms.blocks SET sequence = -1").await;
    assert!(matches!(store.heads().await, Err(StoreError::Damaged(_))));
}

#[tokio::test]
async fn a_commit_that_is_given_up_leaves_the_store_usable() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let store = cluster.open("ami").await;
    for delay_us in (0..4_000).step_by(100) {
        // Built anew from what is there: the one given up may have been committed.
        let mut scene = Scene::default();
        let mut change = scene.change(0, 1).unwrap();
        let there = store.heads().await.unwrap();
        while there.iter().any(|head| Some(head.position) > change.expected) {
            change = scene.change(0, 1).unwrap();
        }
        let _ = tokio::time::timeout(
            Duration::from_micros(delay_us),
            store.commit(&[change], Said::new().link()),
        )
        .await;
    }
    store.commit(&[Scene::default().change(1, 2).unwrap()], Said::new().link()).await.unwrap();
}

/// Waits until `done`, at most `patience`.
async fn until(patience: Duration, what: &str, mut done: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < patience, "{what}: not within {patience:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_serves_reads_refuses_changes_by_name_shows_its_lag_and_is_promoted() {
    let mut primary = Cluster::new(&[]);
    primary.database("ami");
    let written = primary.open("ami").await;
    let mut scene = Scene::default();
    written.commit(&[scene.change(0, 1).unwrap()], Said::new().link()).await.unwrap();
    let standby = primary.standby();
    // `init` has nothing to do there, and says so before it touches a token.
    let init = Config { create: true, ..standby.config("ami") };
    let sentence = standby.refusal(init).await;
    assert!(sentence.contains("is a standby"), "{sentence}");
    let store = standby.open("ami").await;
    let patience = Duration::from_secs(20);
    assert_eq!(written.standby_lag().await.unwrap(), None);
    assert_eq!(store.heads().await.unwrap(), written.heads().await.unwrap());

    let refused = store.commit(&[scene.clone().change(0, 9).unwrap()], Said::new().link()).await;
    assert!(matches!(refused, Err(StoreError::ReadOnly)), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("standby"));

    let level = |lag: StandbyLag| lag.bytes == 0 && lag.ms == Some(0) && lag.receiving;
    let lag = async || store.standby_lag().await.unwrap().expect("it is a standby");
    until(patience, "the standby is level", async || level(lag().await)).await;
    // The age of the last commit replayed is known once there was one.
    written.commit(&[scene.change(0, 2).unwrap()], Said::new().link()).await.unwrap();
    let replayed = async || store.heads().await.unwrap() == written.heads().await.unwrap();
    until(patience, "the change is replayed", replayed).await;
    standby.pause_replay(true);
    for serial in 3..60 {
        written.commit(&[scene.change(0, serial).unwrap()], Said::new().link()).await.unwrap();
    }
    until(patience, "the lag is shown", async || lag().await.bytes > 10_000).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let behind = lag().await;
    assert!(behind.ms.is_some_and(|ms| ms >= 50) && behind.receiving, "{behind:?}");
    println!("paused standby: {behind:?}");
    standby.pause_replay(false);
    until(patience, "the standby is level again", async || level(lag().await)).await;
    assert_eq!(store.block(BlockNo(0)).await.unwrap(), written.block(BlockNo(0)).await.unwrap());

    // What the primary says, a standby that polls hears as well.
    let mut follow = store.follow().unwrap();
    let head = written.heads().await.unwrap().remove(0);
    assert_eq!(follow.next().await.unwrap().at, [(head.block, head.position)]);
    let change = scene.change(0, 60).unwrap();
    let wanted = (BlockNo(0), change.head.position);
    written.commit(&[change], Said::new().link()).await.unwrap();
    let heard = async { while !follow.next().await.unwrap().at.contains(&wanted) {} };
    tokio::time::timeout(patience, heard).await.expect("the standby hears of it");

    primary.kill();
    until(patience, "the primary is missed", async || !lag().await.receiving).await;
    standby.promote();
    let promoted = Instant::now();
    let change = scene.change(0, 100).unwrap();
    until(patience, "a promoted standby takes changes", async || {
        store.commit(std::slice::from_ref(&change), Said::new().link()).await.is_ok()
    })
    .await;
    println!("writes {:?} after the promotion", promoted.elapsed());
    assert_eq!(store.standby_lag().await.unwrap(), None);
    assert_eq!(store.heads().await.unwrap(), [change.head]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_heard_of_at_once_and_after_the_database_came_back() {
    let mut cluster = Cluster::new(&[]);
    cluster.database("ami");
    let (writer, reader) = (cluster.open("ami").await, cluster.open("ami").await);
    let mut follow = reader.follow().unwrap();
    assert_eq!(follow.next().await.unwrap().at, [], "first of all, where everything stands");
    let mut scene = Scene::default();
    let (mut worst, mut all) = (Duration::ZERO, Duration::ZERO);
    for serial in 0..20 {
        let change = scene.change(7, serial).unwrap();
        let wanted = (BlockNo(7), change.head.position);
        writer.commit(&[change], Said::new().link()).await.unwrap();
        let begun = Instant::now();
        while !follow.next().await.unwrap().at.contains(&wanted) {}
        worst = worst.max(begun.elapsed());
        all += begun.elapsed();
    }
    println!("heard of after {worst:?} at worst, {all:?} for 20");
    assert!(worst < Duration::from_millis(700), "{worst:?}");
    // The poll alone, each 500 ms, would take 10 s for these.
    assert!(all < Duration::from_secs(4), "polled, not notified: {all:?}");

    cluster.stop();
    let away = Instant::now();
    while follow.next().await.is_ok() {}
    assert!(away.elapsed() < Duration::from_secs(3), "silence is noticed: {:?}", away.elapsed());
    cluster.start();
    let change = scene.change(7, 100).unwrap();
    let wanted = (BlockNo(7), change.head.position);
    until(Duration::from_secs(10), "writing goes on", async || {
        writer.commit(std::slice::from_ref(&change), Said::new().link()).await.is_ok()
    })
    .await;
    let back = Instant::now();
    while !follow.next().await.is_ok_and(|heard| heard.at.contains(&wanted)) {
        assert!(back.elapsed() < Duration::from_secs(10), "it is not heard again");
    }
}

/// Blocks that each commit changes together.
const TOGETHER: [u32; 3] = [1, 2, 3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_4_a_killed_database_loses_nothing_acknowledged_and_leaves_nothing_half_done() {
    let mut cluster = Cluster::new(&[]);
    cluster.database("ami");
    let store = Arc::new(cluster.open("ami").await);
    let mut acknowledged = 0;
    for kill in 0..5_u64 {
        let committing = tokio::spawn(commit_until_it_fails(Arc::clone(&store)));
        // Spread, not random, so that a failure repeats.
        tokio::time::sleep(Duration::from_millis(150 + kill * 37 % 96)).await;
        cluster.kill();
        let (last, failure) = committing.await.unwrap();
        acknowledged = last.max(acknowledged);
        // Killed between the commit's arrival and its answer, nobody knows.
        let is_lost =
            matches!(failure, StoreError::Unreachable { .. } | StoreError::Unknown { .. });
        assert!(is_lost, "{failure}");
        cluster.start();

        let heads = loop {
            match store.heads().await {
                Ok(heads) => break heads,
                Err(StoreError::Unreachable { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        };
        let there: Vec<u64> = heads.iter().map(|head| head.position.sequence.0).collect();
        let first = there.first().copied().unwrap_or(0);
        assert_eq!(there, vec![first; heads.len()], "half a commit after kill {kill}");
        assert!(first >= acknowledged, "kill {kill}: {acknowledged} acknowledged, {first} there");
        assert!(
            first <= acknowledged + 1,
            "kill {kill}: {first} there, {acknowledged} acknowledged"
        );
        assert_eq!(store.count_meters().await.unwrap(), first * 3);
        for block in TOGETHER {
            let block = store.block(BlockNo(block)).await.unwrap();
            let records = block.map_or(0, |block| block.records.len() as u64);
            assert_eq!(records, first, "half a commit after kill {kill}");
        }
    }
    println!("{acknowledged} commits acknowledged, 5 kills");
    assert!(acknowledged > 20, "little was done: {acknowledged}");
}

/// The last acknowledged number, and why it was the last.
async fn commit_until_it_fails(store: Arc<PostgresStore>) -> (u64, StoreError) {
    let mut scene = Scene::default();
    let done = store.heads().await.unwrap().first().map_or(0, |head| head.position.sequence.0);
    for serial in 0.. {
        let together =
            TOGETHER.map(|block| scene.change(block, 3 * serial + u64::from(block)).unwrap());
        if serial < done {
            continue; // From before the last kill.
        }
        if let Err(failure) = store.commit(&together, Said::new().link()).await {
            return (serial, failure);
        }
    }
    unreachable!("it never ends by itself")
}
