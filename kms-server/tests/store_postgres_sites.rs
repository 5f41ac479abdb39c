//! Two sites on PostgreSQL: a change of role against commits of several servers, the lock of the server that
//! follows, and a database of an older schema.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod postgres_common;
mod store_contract;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kms_core::{BlockNo, Epoch, site::role::RoleChange};
use kms_server::store::{
    Founding, ReadStore as _, StoreError, WriteStore as _,
    postgres::PostgresStore,
    sites::{FollowerLock, RoleRow},
};
use postgres_common::Cluster;
use sqlx::{Connection as _, Executor as _, PgConnection};
use store_contract::{
    Said, Scene,
    counter_cases::a_mark_that_is_there_stays_when_a_domain_is_completed,
    made_up::meter,
    site_scene::{self, FOUNDED, Store, learnt, promotion, row},
};

/// Long enough for a statement to come to the lock that it waits for.
const BLOCKED: Duration = Duration::from_millis(400);

/// A founder's database, and two servers over it.
async fn two_servers(cluster: &Cluster) -> (Store, Arc<PostgresStore>, Scene) {
    cluster.database("ami");
    let first: Store = Arc::new(cluster.open("ami").await);
    let scene = site_scene::found(&first, true).await.unwrap();
    (first, Arc::new(cluster.open("ami").await), scene)
}

/// The row that a commit to this block waits for, held until the transaction of the answer ends.
async fn hold(cluster: &Cluster, statement: &'static str) -> PgConnection {
    let mut holder = cluster.beside("ami").await;
    holder.execute("BEGIN").await.unwrap();
    holder.execute(statement).await.unwrap();
    holder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_4_a_change_of_role_waits_for_the_commits_that_began_before_it() {
    let cluster = Cluster::new(&[]);
    let (store, other, mut scene) = two_servers(&cluster).await;
    let fence = learnt(&store, RoleChange::Promotion, 3).await.unwrap();
    let holder = hold(&cluster, "SELECT FROM ami_kms.blocks WHERE block = 1 FOR UPDATE").await;
    let change = scene.steps(1, FOUNDED, &[meter(1, "a", &[])]);
    let head = change.head.clone();
    let committing = tokio::spawn(async move { other.commit(&[change], Said::new().link()).await });
    tokio::time::sleep(BLOCKED).await;
    let changing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.change_role(&fence, Said::new().link()).await }
    });
    tokio::time::sleep(BLOCKED).await;
    assert!(!committing.is_finished() && !changing.is_finished(), "neither can have ended");
    holder.close().await.unwrap();
    committing.await.unwrap().expect("it began while the site wrote");
    changing.await.unwrap().unwrap();
    assert_eq!(store.role().await.unwrap(), row(3, false));
    assert!(store.heads().await.unwrap().contains(&head), "acknowledged, so it is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_4_a_promotion_over_heads_that_a_commit_moved_meanwhile_is_a_conflict() {
    let cluster = Cluster::new(&[]);
    let (store, other, mut scene) = two_servers(&cluster).await;
    let stale = promotion(&store, 4).await.unwrap();
    let holder = hold(&cluster, "SELECT FROM ami_kms.blocks WHERE block = 1 FOR UPDATE").await;
    let change = scene.steps(1, FOUNDED, &[meter(1, "a", &[])]);
    let committing = tokio::spawn(async move { other.commit(&[change], Said::new().link()).await });
    tokio::time::sleep(BLOCKED).await;
    let changing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.change_role(&stale, Said::new().link()).await }
    });
    tokio::time::sleep(BLOCKED).await;
    holder.close().await.unwrap();
    committing.await.unwrap().unwrap();
    let refused = changing.await.unwrap();
    assert!(matches!(refused, Err(StoreError::Conflict(BlockNo(1)))), "{refused:?}");
    assert_eq!(store.role().await.unwrap(), row(FOUNDED, true));
    assert_eq!(store.role_records().await.unwrap(), []);
    let fresh = promotion(&store, 4).await.unwrap();
    store.change_role(&fresh, Said::new().link()).await.unwrap();
    let heads = store.heads().await.unwrap();
    assert!(heads.iter().all(|head| head.position.epoch == Epoch(4)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_4_a_commit_that_waited_for_a_change_of_role_sees_the_role_after_it() {
    let cluster = Cluster::new(&[]);
    let (store, other, mut scene) = two_servers(&cluster).await;
    let step = promotion(&store, 4).await.unwrap();
    // The change of role holds its lock, and waits for the head table's row.
    let holder = hold(&cluster, "SELECT FROM ami_kms.head_table FOR UPDATE").await;
    let changing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.change_role(&step, Said::new().link()).await }
    });
    tokio::time::sleep(BLOCKED).await;
    // Of another server, whose role is the old one as far as it knows.
    let change = scene.steps(1, FOUNDED, &[meter(1, "a", &[])]);
    let committing = tokio::spawn({
        let other = Arc::clone(&other);
        async move { other.commit(&[change], Said::new().link()).await }
    });
    tokio::time::sleep(BLOCKED).await;
    assert!(!committing.is_finished(), "it waits for the role");
    // What changes no block waits for nothing.
    let begun = Instant::now();
    other.commit(&[], Said::new().link()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    holder.close().await.unwrap();
    changing.await.unwrap().unwrap();
    let refused = committing.await.unwrap();
    let wanted = RoleRow { epoch: Epoch(4), writes: true };
    assert!(matches!(refused, Err(StoreError::NotWriter(row)) if row == wanted), "{refused:?}");
    assert_eq!(store.count_meters().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_never_gets_the_role_leaves_the_store_usable() {
    let cluster = Cluster::new(&[]);
    let (store, _other, mut scene) = two_servers(&cluster).await;
    // Longer than anybody waits for a lock.
    let holder = hold(&cluster, "SELECT pg_advisory_xact_lock(1095584082)").await;
    let change = scene.steps(1, FOUNDED, &[meter(1, "a", &[])]);
    let refused = store.commit(std::slice::from_ref(&change), Said::new().link()).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    holder.close().await.unwrap();
    // On as many connections as there are.
    for _ in 0..8 {
        store.commit(&[], Said::new().link()).await.unwrap();
        store.heads().await.unwrap();
    }
    store.commit(&[change], Said::new().link()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_of_the_follower_is_one_servers_and_goes_with_its_connection() {
    let cluster = Cluster::new(&[]);
    let (store, other, _) = two_servers(&cluster).await;
    let mut lock = store.follower_lock().await.unwrap().expect("nobody has it");
    for _ in 0..20 {
        assert!(other.follower_lock().await.unwrap().is_none(), "two have it");
    }
    // Its connection dies, of whatever: another server has it at once, and the first one hears of it.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'";
    cluster.sql("ami", end);
    let begun = Instant::now();
    let taken: Box<dyn FollowerLock> = loop {
        if let Some(lock) = other.follower_lock().await.unwrap() {
            break lock;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "nobody gets it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let taken_after = begun.elapsed();
    let lost = tokio::time::timeout(Duration::from_secs(5), lock.until_lost()).await;
    assert!(matches!(lost, Ok(StoreError::Unreachable { .. })), "{lost:?}");
    println!(
        "taken over {taken_after:?} after the end, known to be lost {:?} after it",
        begun.elapsed()
    );
    // Let go, it is free.
    drop(taken);
    let begun = Instant::now();
    while store.follower_lock().await.unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(5), "it is not let go");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn invariant_3_a_mark_that_is_there_stays_when_a_domain_is_completed() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let store: Store = Arc::new(cluster.open("ami").await);
    let take_away = async { cluster.sql("ami", "DELETE FROM ami_kms.head_table") };
    a_mark_that_is_there_stays_when_a_domain_is_completed(store, take_away).await.unwrap();
}

/// The peer follows one server of a site: the others go by this, and name nobody as missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_the_peer_follows_one_server_is_known_to_the_others_until_its_connection_ends() {
    let cluster = Cluster::new(&[]);
    let (store, other, _) = two_servers(&cluster).await;
    // The lock of a server that follows says nothing of it.
    let _follows = store.follower_lock().await.unwrap().expect("nobody has it");
    assert!(!store.is_followed().await.unwrap() && !other.is_followed().await.unwrap());
    let followed = store.followed_lock().await.unwrap().expect("nobody has it");
    for _ in 0..20 {
        assert!(other.is_followed().await.unwrap() && store.is_followed().await.unwrap());
        assert!(other.followed_lock().await.unwrap().is_none(), "two have it");
    }
    drop(followed);
    let begun = Instant::now();
    while other.is_followed().await.unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(5), "it is not let go");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The schema as version 3 left it.
const SCHEMA_3: [&str; 3] = [
    include_str!("../migrations/postgres/0001_blocks.sql"),
    include_str!("../migrations/postgres/0002_audit.sql"),
    include_str!("../migrations/postgres/0003_heads.sql"),
];

/// A site with two meters and a tombstone, as version 3 wrote them.
const ROWS_3: &str = "\
    INSERT INTO domain VALUES (true, decode(repeat('00', 16), 'hex'), 4096, 'north', 3, false, '\\x01', 7, \
        decode(repeat('00', 64), 'hex')); \
    INSERT INTO blocks SELECT block, 1, 3, 9, 3, decode(repeat('00', 32), 'hex'), \
        decode(repeat('00', 16), 'hex') FROM unnest(ARRAY[5, 6]) AS block; \
    INSERT INTO records SELECT 5, decode('01000000000000000' || n, 'hex'), 3, 6 + n, 1, \
        decode(repeat('00', 16), 'hex'), decode('00FF2700', 'hex') FROM generate_series(1, 3) AS n; \
    INSERT INTO meters VALUES ('\\x0000000000000001', 'a', 5, decode(repeat('00', 16), 'hex')), \
        ('\\x0000000000000002', 'B ''quoted''', 5, '')";

#[tokio::test]
async fn a_database_of_schema_3_is_migrated_and_its_rows_stay_byte_for_byte() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let mut old = cluster.beside("ami").await;
    old.execute("CREATE SCHEMA ami_kms; SET search_path = ami_kms").await.unwrap();
    for schema in SCHEMA_3.into_iter().chain([ROWS_3]) {
        sqlx::raw_sql(schema).execute(&mut old).await.unwrap();
    }
    let kept = "CREATE TABLE kept_records AS SELECT * FROM records; \
                CREATE TABLE kept_meters AS SELECT * FROM meters";
    sqlx::raw_sql(kept).execute(&mut old).await.unwrap();

    let store = PostgresStore::open(cluster.config("ami")).await.unwrap();
    // Odd, in the epoch of an odd founder: it writes, as it did.
    assert_eq!(store.role().await.unwrap(), row(3, true));
    assert_eq!(store.count_meters().await.unwrap(), 2);
    assert_eq!(store.block(BlockNo(5)).await.unwrap().unwrap().records.len(), 3);
    for differs in [
        "SELECT count(*) FROM (SELECT * FROM records EXCEPT SELECT * FROM kept_records) AS one",
        "SELECT count(*) FROM (SELECT * FROM kept_records EXCEPT SELECT * FROM records) AS one",
        "SELECT count(*) FROM (SELECT * FROM kept_meters EXCEPT \
            SELECT system_title, meter_id, block, fingerprints FROM meters WHERE NOT adopted) AS one",
    ] {
        let rows: i64 = sqlx::query_scalar(differs).fetch_one(&mut old).await.unwrap();
        assert_eq!(rows, 0, "{differs}");
    }
    for refused in [
        "INSERT INTO records SELECT 5, decode(repeat('00', 33), 'hex'), 3, 1, 1, mac, body FROM records",
        "INSERT INTO records SELECT 5, '', 3, 1, 1, mac, body FROM records",
        "INSERT INTO meters VALUES ('\\x0000000000000009', 'a', 5, '')",
    ] {
        assert!(old.execute(refused).await.is_err(), "{refused}");
    }
    // A server of the release before, which is still up, writes as it did.
    let old_commit = "INSERT INTO meters (system_title, meter_id, block, fingerprints) \
                      VALUES ('\\x0000000000000009', 'c', 5, '') ON CONFLICT DO NOTHING";
    assert_eq!(old.execute(old_commit).await.unwrap().rows_affected(), 1);
    assert_eq!(store.count_meters().await.unwrap(), 3);
}

#[tokio::test]
async fn a_site_whose_role_was_taken_away_writes_nothing() {
    let cluster = Cluster::new(&[]);
    let (store, _, mut scene) = two_servers(&cluster).await;
    cluster.tamper("ami", "DELETE FROM ami_kms.role").await;
    for block in [1, 99] {
        let change = scene.steps(block, FOUNDED, &[meter(1, "a", &[])]);
        let refused = store.commit(&[change], Said::new().link()).await;
        assert!(matches!(refused, Err(StoreError::Damaged(_))), "{refused:?}");
    }
    let twice = Founding::new(site_scene::domain(true), Vec::new(), site_scene::table(9));
    assert!(matches!(store.create_domain(&twice).await, Err(StoreError::Taken { .. })));
}
