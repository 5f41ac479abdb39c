//! The store's contract on SQLite with real files, and what only SQLite can break: its place, its
//! schema, and a process that is killed in the middle of a commit.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod kill_common;
mod store_contract;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kill_common::run_and_kill;
use kms_core::{BlockNo, Epoch};
use kms_server::store::{
    ReadStore as _, StoreError, WriteStore,
    sites::RoleRow,
    sqlite::{Config, SqliteStore},
};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use store_contract::{
    Said, Scene, counter_cases::a_mark_that_is_there_stays_when_a_domain_is_completed,
};

fn config(path: impl Into<PathBuf>, create: bool) -> Config {
    Config { path: path.into(), create }
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(config(path, true)).await.unwrap()
}

async fn refusal(config: Config) -> String {
    SqliteStore::open(config).await.map(|_| ()).unwrap_err().to_string()
}

/// A connection past the store, for what the store would not do.
async fn beside(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqliteConnection::connect_with(&options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_the_stores_contract() {
    let directory = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    let fresh = async || {
        let name = format!("{}.db", made.fetch_add(1, Ordering::Relaxed));
        Arc::new(open(&directory.path().join(name)).await) as Arc<dyn WriteStore>
    };
    if let Err(broken) = store_contract::run(fresh).await {
        panic!("{broken}");
    }
}

#[tokio::test]
async fn invariant_3_a_mark_that_is_there_stays_when_a_domain_is_completed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let store = Arc::new(open(&path).await) as Arc<dyn WriteStore>;
    let take_away = async {
        let mut beside = beside(&path).await;
        sqlx::query("DELETE FROM head_table").execute(&mut beside).await.unwrap();
    };
    a_mark_that_is_there_stays_when_a_domain_is_completed(store, take_away).await.unwrap();
}

#[tokio::test]
async fn a_new_database_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/kms.db");
    let store = open(&path).await;
    store.commit(&[Scene::default().change(0, 1).unwrap()], Said::new().link()).await.unwrap();
    for name in ["kms.db", "kms.db-wal", "kms.db-shm"] {
        let mode = std::fs::metadata(path.with_file_name(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    drop(store);

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let sentence = refusal(config(&path, false)).await;
    assert!(sentence.contains("(mode 640)") && sentence.contains("chmod 600"), "{sentence}");
}

#[tokio::test]
async fn a_server_does_not_start_with_an_empty_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let sentence = refusal(config(&path, false)).await;
    assert!(
        sentence.contains("kms.db") && sentence.contains("run `kms-server init`"),
        "{sentence}"
    );
    assert!(!path.exists());
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named_with_the_fix() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let closed = directory.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
    // Permissions do not bind root; nobody, root included, makes files in /proc.
    let unwritable =
        if rustix::process::geteuid().is_root() { Path::new("/proc/self") } else { &closed };
    let sentence = refusal(config(unwritable.join("kms.db"), true)).await;
    let wanted = format!("cannot write to {}", unwritable.display());
    assert!(sentence.starts_with(&wanted) && sentence.contains("chown"), "{sentence}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    drop(open(&path).await);
    let mut beside = beside(&path).await;
    sqlx::query("PRAGMA user_version = 9").execute(&mut beside).await.unwrap();
    let sentence = refusal(config(&path, false)).await;
    assert!(sentence.contains("schema 9") && sentence.contains("up to 5"), "{sentence}");
}

/// The schema as version 3 left it.
const SCHEMA_3: [&str; 3] = [
    include_str!("../migrations/sqlite/0001_blocks.sql"),
    include_str!("../migrations/sqlite/0002_audit.sql"),
    include_str!("../migrations/sqlite/0003_heads.sql"),
];

/// A site with two meters and a tombstone, as version 3 wrote them.
const ROWS_3: &str = "\
    INSERT INTO domain VALUES (1, zeroblob(16), 4096, 'north', 3, 0, x'01', 7, zeroblob(64)); \
    INSERT INTO blocks VALUES (5, 1, 3, 9, 3, zeroblob(32), zeroblob(16)), \
        (6, 1, 3, 0, 0, zeroblob(32), zeroblob(16)); \
    INSERT INTO block_seals VALUES (5, 1, zeroblob(16), x'AA'); \
    INSERT INTO records VALUES (5, x'010000000000000001', 3, 7, 1, zeroblob(16), x'00FF2700'), \
        (5, x'010000000000000002', 3, 8, 1, zeroblob(16), x''), \
        (5, x'010000000000000003', 3, 9, 1, zeroblob(16), x'02'); \
    INSERT INTO meters VALUES (x'0000000000000001', 'a', 5, zeroblob(16)), \
        (x'0000000000000002', 'B ''quoted''', 5, x''); \
    INSERT INTO key_fingerprints VALUES (zeroblob(16), x'0000000000000001')";

#[tokio::test]
async fn a_database_of_schema_3_is_migrated_and_its_rows_stay_byte_for_byte() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let mut old = beside(&path).await;
    for schema in SCHEMA_3 {
        sqlx::raw_sql(schema).execute(&mut old).await.unwrap();
    }
    sqlx::raw_sql(ROWS_3).execute(&mut old).await.unwrap();
    let kept = "CREATE TABLE kept_records AS SELECT * FROM records; \
                CREATE TABLE kept_meters AS SELECT * FROM meters;";
    sqlx::raw_sql(kept).execute(&mut old).await.unwrap();
    old.close().await.unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();

    let store = SqliteStore::open(config(&path, false)).await.unwrap();
    // Odd, in the epoch of an odd founder: it writes, as it did.
    assert_eq!(store.role().await.unwrap(), RoleRow { epoch: Epoch(3), writes: true });
    assert_eq!(store.count_meters().await.unwrap(), 2);
    assert_eq!(store.block(BlockNo(5)).await.unwrap().unwrap().records.len(), 3);
    let mut beside = beside(&path).await;
    for differs in [
        "SELECT count(*) FROM (SELECT * FROM records EXCEPT SELECT * FROM kept_records)",
        "SELECT count(*) FROM (SELECT * FROM kept_records EXCEPT SELECT * FROM records)",
        "SELECT count(*) FROM (SELECT * FROM kept_meters EXCEPT \
            SELECT system_title, meter_id, block, fingerprints FROM meters WHERE adopted = 0)",
        "SELECT count(*) FROM pragma_foreign_key_check",
    ] {
        let rows: i64 = sqlx::query_scalar(differs).fetch_one(&mut beside).await.unwrap();
        assert_eq!(rows, 0, "{differs}");
    }
    // Foreign keys still bind, as does the length of a key.
    for refused in [
        "INSERT INTO records VALUES (7, x'01', 3, 1, 1, zeroblob(16), x'')",
        "INSERT INTO records VALUES (5, zeroblob(33), 3, 1, 1, zeroblob(16), x'')",
        "INSERT INTO records VALUES (5, x'', 3, 1, 1, zeroblob(16), x'')",
        "INSERT INTO meters VALUES (x'0000000000000009', 'a', 5, x'', 0)",
    ] {
        assert!(sqlx::raw_sql(refused).execute(&mut beside).await.is_err(), "{refused}");
    }
    // Opened once more there is nothing to do.
    beside.close().await.unwrap();
    store.close().await;
    SqliteStore::open(config(&path, false)).await.unwrap();
}

#[tokio::test]
async fn a_site_whose_role_was_taken_away_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let store = open(&path).await;
    let statement = "INSERT INTO domain \
                     VALUES (1, zeroblob(16), 4096, 'north', 2, 1, x'01', 7, zeroblob(64), 0)";
    sqlx::raw_sql(statement).execute(&mut beside(&path).await).await.unwrap();
    let refused = store.commit(&[Scene::default().change(0, 1).unwrap()], Said::new().link()).await;
    assert!(matches!(refused, Err(StoreError::Damaged(_))), "{refused:?}");
    store.commit(&[], Said::new().link()).await.unwrap();
}

#[tokio::test]
async fn somebody_elses_database_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.db");
    let mut other = beside(&path).await;
    sqlx::query("CREATE TABLE theirs (x)").execute(&mut other).await.unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let sentence = refusal(config(&path, true)).await;
    assert!(sentence.contains("is not a database of this service"), "{sentence}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("text.db");
    std::fs::write(&path, "not a database, but long enough to be taken for one".repeat(100))
        .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let sentence = refusal(config(&path, true)).await;
    assert!(sentence.contains("is not a database of this service"), "{sentence}");
}

#[tokio::test]
async fn a_damaged_record_is_called_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let store = open(&path).await;
    store.commit(&[Scene::default().change(0, 1).unwrap()], Said::new().link()).await.unwrap();
    let mut beside = beside(&path).await;
    let statement = "PRAGMA ignore_check_constraints = ON; UPDATE records SET mac = x'00'";
    sqlx::raw_sql(statement).execute(&mut beside).await.unwrap();
    assert!(matches!(store.block(BlockNo(0)).await, Err(StoreError::Damaged(_))));
    let statement = "UPDATE blocks SET sequence = -1";
    sqlx::raw_sql(statement).execute(&mut beside).await.unwrap();
    assert!(matches!(store.heads().await, Err(StoreError::Damaged(_))));
}

#[tokio::test]
async fn a_commit_that_is_given_up_leaves_the_store_usable() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let store = open(&path).await;
    for delay_us in (0..4_000).step_by(100) {
        // Built anew from what is there: the one given up may have been committed.
        let mut scene = Scene::default();
        let mut change = scene.change(0, 1).unwrap();
        while store.heads().await.unwrap().iter().any(|head| Some(head.position) > change.expected)
        {
            change = scene.change(0, 1).unwrap();
        }
        let _ = tokio::time::timeout(
            Duration::from_micros(delay_us),
            store.commit(&[change], Said::new().link()),
        )
        .await;
    }
    store.commit(&[Scene::default().change(1, 2).unwrap()], Said::new().link()).await.unwrap();
    assert_eq!(store.failed(), None);
}

#[tokio::test]
async fn all_acknowledged_writes_are_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let mut scene = Scene::default();
    let store = open(&path).await;
    for serial in 0..700 {
        store.commit(&[scene.change(5, serial).unwrap()], Said::new().link()).await.unwrap();
    }
    let before = store.block(BlockNo(5)).await.unwrap();
    drop(store); // Not closed: as a process that ends.
    let store = SqliteStore::open(config(&path, false)).await.unwrap();
    assert_eq!(store.block(BlockNo(5)).await.unwrap(), before);
    assert_eq!(store.count_meters().await.unwrap(), 700);
    store.close().await;
    let store = SqliteStore::open(config(&path, false)).await.unwrap();
    assert_eq!(store.block(BlockNo(5)).await.unwrap(), before);
}

/// Names the database to the child; unset, the child's test does nothing.
const CHILD: &str = "KMS_TEST_STORE_OF_CHILD";
/// Blocks that each commit of the child changes together.
const TOGETHER: [u32; 3] = [1, 2, 3];
const KILLS: u64 = 20;

/// Not a test of its own: the process that the next test kills.
#[tokio::test]
async fn child_commits_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let store = open(Path::new(&path)).await;
    let mut scene = Scene::default();
    let done = store.heads().await.unwrap().first().map_or(0, |head| head.position.sequence.0);
    for serial in 0.. {
        let together =
            TOGETHER.map(|block| scene.change(block, 3 * serial + u64::from(block)).unwrap());
        if serial < done {
            continue; // An earlier child's.
        }
        store.commit(&together, Said::new().link()).await.unwrap();
        println!("\nacknowledged {}", serial + 1);
    }
}

#[tokio::test]
async fn invariant_4_a_killed_process_loses_nothing_acknowledged_and_leaves_nothing_half_done() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let mut acknowledged = 0;
    for kill in 0..KILLS {
        // Spread, not random, so that a failure repeats: 5 ms to 100 ms, in no order.
        acknowledged = run_and_kill(
            "child_commits_until_it_is_killed",
            CHILD,
            &path,
            Duration::from_millis(5 + kill * 37 % 96),
        )
        .max(acknowledged);

        let store = SqliteStore::open(config(&path, false)).await.unwrap();
        let heads = store.heads().await.unwrap();
        let there: Vec<u64> = heads.iter().map(|head| head.position.sequence.0).collect();
        let first = there.first().copied().unwrap_or(0);
        assert_eq!(there, vec![first; heads.len()], "half a commit after kill {kill}");
        assert!(first >= acknowledged, "kill {kill}: {acknowledged} acknowledged, {first} there");
        assert_eq!(store.count_meters().await.unwrap(), first * 3);
        for block in TOGETHER {
            let block = store.block(BlockNo(block)).await.unwrap();
            let records = block.map_or(0, |block| block.records.len() as u64);
            assert_eq!(records, first, "half a commit after kill {kill}");
        }
    }
    assert!(acknowledged > KILLS, "the child got nothing done");
}

/// Names the database to the child of the next test; unset, that test does nothing.
const LIMITED_CHILD: &str = "KMS_TEST_STORE_OF_LIMITED_CHILD";

/// Not a test of its own: the process whose writes begin to fail.
#[tokio::test]
async fn child_commits_until_the_disk_fails() {
    let Some(path) = std::env::var_os(LIMITED_CHILD) else { return };
    let store = open(Path::new(&path)).await;
    let mut scene = Scene::default();
    let mut acknowledged = 0;
    let failure = loop {
        match store.commit(&[scene.change(1, acknowledged).unwrap()], Said::new().link()).await {
            Ok(()) => acknowledged += 1,
            Err(failure) => break failure,
        }
    };
    assert!(matches!(failure, StoreError::Unreachable { .. }), "{failure}");
    let reason = store.failed().expect("the failure is kept");
    assert_eq!(store.until_failed().await, reason);
    // A change so small that it would fit is refused as well.
    let next = store.commit(&[], Said::new().link()).await.unwrap_err();
    assert_eq!(next.to_string(), format!("the database is not reachable: {reason}"));
    assert!(store.heads().await.is_ok(), "reading goes on");
    println!("\nacknowledged {acknowledged}");
}

#[tokio::test]
async fn invariant_4_after_a_disk_failure_nothing_more_is_written_and_nothing_acknowledged_is_lost()
{
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    // A bound on the size of files, with its signal off: beyond it each write fails with an IO error.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 400; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_commits_until_the_disk_fails", "--nocapture"])
        .env(LIMITED_CHILD, &path)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let number = told.lines().find_map(|line| line.strip_prefix("acknowledged "));
    let acknowledged: u64 = number.unwrap_or_else(|| panic!("{output:?}")).parse().unwrap();
    assert!(output.status.success() && acknowledged > 0, "{output:?}");

    let store = SqliteStore::open(config(&path, false)).await.unwrap();
    let sequence = store.heads().await.unwrap().first().map(|head| head.position.sequence.0);
    // What failed may be there or not; what was acknowledged is.
    assert!((acknowledged..=acknowledged + 1).contains(&sequence.unwrap_or(0)), "{sequence:?}");
}

/// Bytes of the log beside the database.
fn log_bytes(path: &Path) -> u64 {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(0, |log| log.len())
}

/// Commits 400 new meters, each in another block.
async fn write_400(store: &SqliteStore, scene: &mut Scene, written: &mut u64) {
    let serials = *written + 1..=*written + 400;
    let changes: Vec<_> =
        serials.map(|serial| scene.change(serial as u32 % 4_096, serial).unwrap()).collect();
    store.commit(&changes, Said::new().link()).await.unwrap();
    *written += 400;
}

/// The bound that `store::sqlite` states, and the pages of one commit of these tests.
const LOG_MOST: u64 = (8 + 2) << 20;

#[tokio::test]
async fn the_log_stays_within_its_bound_whatever_is_written_and_is_cut_when_a_killed_one_is_opened()
{
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let mut store = open(&path).await;
    let mut scene = Scene::default();
    let (mut most, mut left, mut written, mut last, mut cuts) = (0, 0, 0, 0, 0);
    for round in 0..3 {
        for _ in 0..50 {
            write_400(&store, &mut scene, &mut written).await;
            let size = log_bytes(&path);
            most = most.max(size);
            cuts += u32::from(size < last);
            last = size;
        }
        last = 0;
        // As after kill -9: the files as they are, and another process that opens them.
        let killed = directory.path().join(format!("killed-{round}.db"));
        for suffix in ["", "-wal"] {
            let of = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            std::fs::copy(of(&path), of(&killed)).unwrap();
        }
        left = left.max(log_bytes(&killed));
        drop(store);
        store = open(&killed).await;
        assert_eq!(log_bytes(&killed), 0, "round {round}: the log was not cut at the start");
        drop(store);
        store = open(&path).await;
    }
    println!("log: {most} bytes at most, cut {cuts} times; {left} after a kill");
    assert!(cuts > 0, "it was never cut while it ran: the test shows nothing");
    assert!(left > 1 << 20, "nothing was left to cut: the test shows nothing");
    assert!(most <= LOG_MOST, "{most}");
}

#[tokio::test]
async fn a_reader_that_stays_delays_nobody_and_the_log_is_cut_when_it_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.db");
    let store = open(&path).await;
    let mut scene = Scene::default();
    let mut written = 0;
    write_400(&store, &mut scene, &mut written).await;
    let mut reader = beside(&path).await;
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM records").execute(&mut reader).await.unwrap();
    let began = std::time::Instant::now();
    for _ in 0..60 {
        write_400(&store, &mut scene, &mut written).await;
    }
    // Each wait for that reader would be five seconds.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let held_back = log_bytes(&path);
    assert!(held_back > LOG_MOST, "{held_back}");
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.unwrap();
    for _ in 0..60 {
        write_400(&store, &mut scene, &mut written).await;
    }
    assert!(log_bytes(&path) <= LOG_MOST, "{}", log_bytes(&path));
}
