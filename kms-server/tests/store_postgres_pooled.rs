//! A real pgbouncer before the database, and a primary that takes no changes: refused by name before
//! anything is made, and never with tables in `public`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod postgres_common;
mod store_contract;

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kms_core::BlockNo;
use kms_server::store::{
    ReadStore as _, StoreError, WriteStore as _,
    postgres::{Config, OpenError, PostgresStore},
};
use postgres_common::{Cluster, USER};
use store_contract::{Said, Scene};
use tempfile::TempDir;

/// A pooler before a cluster. Dropped, it is killed.
struct Pooler {
    child: Child,
    port: u16,
    home: TempDir,
}

impl Pooler {
    fn new(cluster: &Cluster, mode: &str, settings: &str) -> Self {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let sockets = cluster.sockets().display().to_string();
        let text = format!(
            "[databases]\n* = host={sockets} port={} user={USER}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = any\nunix_socket_dir =\npool_mode = {mode}\n{settings}\n",
            cluster.port()
        );
        let ini = home.path().join("pgbouncer.ini");
        fs::write(&ini, text).unwrap();
        fs::set_permissions(&ini, fs::Permissions::from_mode(0o644)).unwrap();
        // It refuses to run as root.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if rustix::process::geteuid().is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        }
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|path| fs::exists(path).unwrap())
            .unwrap_or_else(|| panic!("pgbouncer is not here: run `make bootstrap`"));
        let log = fs::File::create(home.path().join("log")).unwrap();
        let child = command
            .arg(program)
            .arg(&ini)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let pooler = Self { child, port, home };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || fs::read_to_string(pooler.home.path().join("log")).unwrap();
            assert!(began.elapsed() < Duration::from_secs(20), "it does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        pooler
    }

    fn config(&self, cluster: &Cluster) -> Config {
        Config { host: "127.0.0.1".into(), port: self.port, ..cluster.config("ami") }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SOON: Duration = Duration::from_secs(20);

/// Why the database is refused, once the pooler has noticed which of its connections were ended.
async fn settled_refusal(config: &Config) -> OpenError {
    let began = Instant::now();
    loop {
        match PostgresStore::open(config.clone()).await {
            Err(error) if error.is_away() && began.elapsed() < SOON => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            opened => break opened.map(|_| ()).unwrap_err(),
        }
    }
}

/// What pgbouncer is told where a driver's options are in its way.
const IGNORES: &str = "ignore_startup_parameters = options,extra_float_digits";

fn cluster() -> Cluster {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    cluster
}

async fn nothing_was_made(cluster: &Cluster) {
    let tables: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    )
    .fetch_one(&mut cluster.beside("ami").await)
    .await
    .unwrap();
    assert_eq!(tables, 0, "tables were made");
}

#[tokio::test]
async fn a_pooler_that_drops_the_sessions_settings_is_refused_by_name_and_nothing_is_made() {
    let cluster = cluster();
    let pooler = Pooler::new(&cluster, "session", IGNORES);
    let refusal = PostgresStore::open(pooler.config(&cluster)).await.map(|_| ()).unwrap_err();
    let sentence = refusal.to_string();
    assert!(matches!(refusal, OpenError::Session { name: "search_path", .. }), "{sentence}");
    for words in ["`search_path = \"$user\", public`", "ignore_startup_parameters", "ALTER ROLE"] {
        assert!(sentence.contains(words), "{sentence}");
    }
    nothing_was_made(&cluster).await;

    // Each of them counts, not only the first; set for the role, all of them hold.
    for (name, value) in [
        ("search_path", "ami_kms"),
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("statement_timeout", "30s"),
        ("jit", "off"),
    ] {
        let refusal = settled_refusal(&pooler.config(&cluster)).await;
        assert!(
            matches!(refusal, OpenError::Session { name: found, .. } if found == name),
            "{name}: {refusal:?}"
        );
        cluster.sql("postgres", &format!("ALTER ROLE {USER} SET {name} = '{value}'"));
        cluster.sql(
            "postgres",
            &format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{USER}'"
            ),
        );
    }
    nothing_was_made(&cluster).await;
    // Now a pooler in session mode will do, and the tables are where they belong.
    let began = Instant::now();
    let store = loop {
        match PostgresStore::open(pooler.config(&cluster)).await {
            Ok(store) => break store,
            Err(error) => assert!(error.is_away() && began.elapsed() < SOON, "{error:?}"),
        }
    };
    let change = Scene::default().change(0, 1).unwrap();
    store.commit(&[change], Said::new().link()).await.unwrap();
    let direct = cluster.open("ami").await;
    assert!(direct.block(BlockNo(0)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_pooler_by_transaction_or_statement_is_refused_by_name_whatever_it_is_set_to() {
    let cluster = cluster();
    for (name, value) in [
        ("search_path", "ami_kms"),
        ("lock_timeout", "10s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("statement_timeout", "30s"),
        ("jit", "off"),
    ] {
        cluster.sql("postgres", &format!("ALTER ROLE {USER} SET {name} = '{value}'"));
    }
    for mode in ["transaction", "statement"] {
        for order in ["server_round_robin = 0", "server_round_robin = 1"] {
            let settings = format!("{IGNORES}\n{order}\nmin_pool_size = 3");
            let pooler = Pooler::new(&cluster, mode, &settings);
            for _ in 0..3 {
                let refusal =
                    PostgresStore::open(pooler.config(&cluster)).await.map(|_| ()).unwrap_err();
                assert!(matches!(refusal, OpenError::Pooled), "{mode}, {order}: {refusal:?}");
                let sentence = refusal.to_string();
                assert!(sentence.contains("pool_mode = session"), "{sentence}");
                assert!(!refusal.is_away());
            }
        }
    }
    nothing_was_made(&cluster).await;
    // And the database itself is never taken for one.
    for _ in 0..5 {
        drop(cluster.open("ami").await);
    }
}

#[tokio::test]
async fn a_pooler_whose_database_is_away_is_worth_another_start() {
    let mut cluster = cluster();
    let pooler = Pooler::new(&cluster, "session", &format!("{IGNORES}\nserver_login_retry = 1"));
    cluster.stop();
    let refusal = PostgresStore::open(pooler.config(&cluster)).await.map(|_| ()).unwrap_err();
    assert!(refusal.is_away(), "{refusal:?}");
}

#[tokio::test]
async fn a_primary_that_is_read_only_is_called_so_and_is_no_standby() {
    let cluster = cluster();
    let off = |value: &str| {
        cluster.sql(
            "postgres",
            &format!("ALTER ROLE {USER} SET default_transaction_read_only = {value}"),
        );
    };
    // Before `init` makes anything.
    off("on");
    let sentence = cluster.refusal(cluster.config("ami")).await;
    assert!(sentence.contains("although it is a primary"), "{sentence}");
    nothing_was_made(&cluster).await;
    off("off");
    drop(cluster.open("ami").await);

    // With a schema there, `init` hears it too; a server starts, reads, and says what is wrong.
    off("on");
    let sentence = cluster.refusal(cluster.config("ami")).await;
    assert!(sentence.contains("default_transaction_read_only = off"), "{sentence}");
    let config = Config { create: false, ..cluster.config("ami") };
    let store = PostgresStore::open(config).await.unwrap();
    assert_eq!(store.standby_lag().await.unwrap(), None);
    let said = store.takes_changes().await;
    assert!(matches!(said, Err(StoreError::ReadOnlyPrimary)), "{said:?}");
    let change = Scene::default().change(0, 1).unwrap();
    let refused = store.commit(std::slice::from_ref(&change), Said::new().link()).await;
    assert!(matches!(refused, Err(StoreError::ReadOnlyPrimary)), "{refused:?}");

    off("off");
    cluster.sql(
        "postgres",
        &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{USER}'"),
    );
    let store = cluster.open("ami").await;
    store.takes_changes().await.unwrap();
    store.commit(&[change], Said::new().link()).await.unwrap();
}
