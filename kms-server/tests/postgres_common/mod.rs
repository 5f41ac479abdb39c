//! A PostgreSQL cluster of its own for a test: Debian's binaries, a directory that goes away with it,
//! a Unix socket in there.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "helpers of tests may"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kms_server::store::postgres::{Config, PostgresStore, Tls};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;

/// The role that owns the tests' databases.
pub const USER: &str = "ami";
/// The superuser that `initdb` makes.
const SUPERUSER: &str = "boss";
/// Part of the socket's name; nothing listens on TCP unless a test says so.
const PORT: u16 = 5432;

const START_PATIENCE: Duration = Duration::from_secs(60);

/// A running cluster. Dropped, it is killed and its files go.
pub struct Cluster {
    home: TempDir,
    data: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl Cluster {
    /// A primary with the role [`USER`]; `settings` as in postgresql.conf.
    pub fn new(settings: &[&str]) -> Self {
        let (home, data) = place();
        let mut initdb = as_postgres(&binary("initdb"));
        initdb.args(["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]);
        run(initdb.args(["--username", SUPERUSER, "--pgdata"]).arg(&data));
        let mut cluster = Self { home, data, port: PORT, server: None };
        cluster.set(&["listen_addresses = ''", "max_wal_size = '256MB'"]);
        cluster.set(settings);
        cluster.start();
        cluster.sql_as(SUPERUSER, "postgres", &format!("CREATE ROLE {USER} LOGIN"));
        cluster
    }

    /// A streaming standby of this cluster.
    pub fn standby(&self) -> Self {
        let (home, data) = place();
        let mut copy = as_postgres(&binary("pg_basebackup"));
        copy.args(["-R", "--no-sync", "--checkpoint=fast", "--username", SUPERUSER]);
        run(copy
            .args(["--port", &self.port.to_string(), "--host"])
            .arg(self.sockets())
            .arg("-D")
            .arg(&data));
        let mut standby = Self { home, data, port: PORT, server: None };
        standby.set(&[&format!("unix_socket_directories = '{}'", standby.sockets().display())]);
        standby.start();
        standby
    }

    /// Listens on 127.0.0.1 from the next start, with this certificate.
    pub fn listen_with_tls(&mut self, certificate: &str, key: &str) {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        self.port = socket.local_addr().unwrap().port();
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.data.join(name);
            fs::write(&path, pem).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            if is_root() {
                run(Command::new("chown").arg("postgres:postgres").arg(&path));
            }
        }
        self.set(&["listen_addresses = '127.0.0.1'", "ssl = on"]);
    }

    /// Where it listens, on its socket and, if it does, on TCP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Appends to postgresql.conf; counts from the next start or reload.
    pub fn set(&self, settings: &[&str]) {
        let path = self.data.join("postgresql.conf");
        let mut text = fs::read_to_string(&path).unwrap();
        for setting in settings {
            text.push_str(&format!("{setting}\n"));
        }
        fs::write(path, text).unwrap();
    }

    pub fn start(&mut self) {
        let log = fs::File::create(self.home.path().join("log")).unwrap();
        // Ends with the thread that runs the test, however that ends.
        let mut server = ended_with_us(&binary("postgres"));
        server.arg("-D").arg(&self.data).arg("-k").arg(self.sockets());
        server.args(["-p", &self.port.to_string()]);
        server.stdout(Stdio::null()).stderr(log);
        self.server = Some(server.spawn().unwrap());
        let begun = Instant::now();
        while !self.answers() {
            assert!(begun.elapsed() < START_PATIENCE, "PostgreSQL does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn answers(&self) -> bool {
        let mut ask = Command::new(binary("pg_isready"));
        ask.args(["-q", "-d", "postgres", "-p", &self.port.to_string(), "-h"]).arg(self.sockets());
        ask.status().unwrap().success()
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut server) = self.server.take() else { return };
        let pid = Pid::from_child(&server);
        kill_process(pid, signal).unwrap();
        server.wait().unwrap();
    }

    /// As an operator stops it.
    pub fn stop(&mut self) {
        self.end(Signal::INT);
    }

    /// The postmaster and all that work for it, at once.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
        // The others see it, and a new postmaster refuses to start before they are gone.
        let _ = fs::remove_file(self.data.join("postmaster.pid"));
        std::thread::sleep(Duration::from_millis(50));
    }

    pub fn promote(&self) {
        run(as_postgres(&binary("pg_ctl")).args(["promote", "-w", "-D"]).arg(&self.data));
    }

    /// Waits until this standby has replayed all that its primary has written.
    pub async fn until_it_has_all_of(&self, primary: &Self) {
        let at: String = primary.asked("SELECT pg_current_wal_lsn()::text").await;
        let reached = format!("SELECT (pg_last_wal_replay_lsn() >= '{at}'::pg_lsn)::text");
        let begun = Instant::now();
        while self.asked(&reached).await != "true" {
            assert!(
                begun.elapsed() < START_PATIENCE,
                "the standby does not follow: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The one value that a query of an administrator gives, as text.
    async fn asked(&self, query: &str) -> String {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&self.sockets().display().to_string())
            .port(self.port)
            .username(SUPERUSER)
            .database("postgres");
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(query.to_owned()))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    /// Stops all of its processes where they are, or lets them go on.
    pub fn freeze(&self, frozen: bool) {
        signal_all(
            self.server.as_ref().expect("it runs"),
            if frozen { Signal::STOP } else { Signal::CONT },
        );
    }

    pub fn reload(&self) {
        let server = self.server.as_ref().expect("it runs");
        kill_process(Pid::from_child(server), Signal::HUP).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Stops, or lets go on, the replay of a standby.
    pub fn pause_replay(&self, pause: bool) {
        let verb = if pause { "pause" } else { "resume" };
        self.sql_as(SUPERUSER, "postgres", &format!("SELECT pg_wal_replay_{verb}()"));
    }

    /// A database that belongs to [`USER`].
    pub fn database(&self, name: &str) {
        let statement = format!("CREATE DATABASE {name} OWNER {USER}");
        self.sql_as(SUPERUSER, "postgres", &statement);
    }

    /// As an administrator in a database.
    pub fn sql(&self, database: &str, statement: &str) {
        self.sql_as(SUPERUSER, database, statement);
    }

    fn sql_as(&self, user: &str, database: &str, statement: &str) {
        let mut psql = Command::new(binary("psql"));
        psql.args([
            "-X",
            "-q",
            "-o",
            "/dev/null",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            user,
            "-d",
            database,
        ]);
        psql.args(["-p", &self.port.to_string(), "-c", statement, "-h"]).arg(self.sockets());
        run(&mut psql);
    }

    pub fn sockets(&self) -> PathBuf {
        self.home.path().join("s")
    }

    /// What the server said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap()
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn config(&self, database: &str) -> Config {
        Config {
            host: self.sockets().display().to_string(),
            port: self.port,
            database: database.to_owned(),
            user: USER.to_owned(),
            password: None,
            tls: Tls::Off,
            connections_max: 6,
            // As `init` at a primary, and as a server at a standby.
            create: !self.data.join("standby.signal").exists(),
        }
    }

    pub async fn open(&self, database: &str) -> PostgresStore {
        PostgresStore::open(self.config(database)).await.unwrap()
    }

    pub async fn refusal(&self, config: Config) -> String {
        PostgresStore::open(config).await.map(|_| ()).unwrap_err().to_string()
    }

    /// A connection past the store, for what the store would not do.
    pub async fn beside(&self, database: &str) -> PgConnection {
        let options = PgConnectOptions::new_without_pgpass()
            .host(&self.sockets().display().to_string())
            .port(self.port)
            .username(USER)
            .database(database);
        PgConnection::connect_with(&options).await.unwrap()
    }

    pub async fn tamper(&self, database: &str, statement: &str) {
        let mut beside = self.beside(database).await;
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut beside).await.unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // One that is frozen would never end.
            signal_all(&server, Signal::CONT);
            let _ = kill_process(Pid::from_child(&server), Signal::QUIT);
            let _ = server.wait();
        }
    }
}

/// The postmaster and all that work for it.
fn signal_all(server: &Child, signal: Signal) {
    let postmaster = Pid::from_child(server);
    let pid = postmaster.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    for process in children.chain([postmaster]) {
        let _ = kill_process(process, signal);
    }
}

/// A directory that PostgreSQL's account can use: it refuses to run as root.
fn place() -> (TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let data = home.path().join("data");
    let sockets = home.path().join("s");
    for directory in [&data, &sockets] {
        fs::create_dir(directory).unwrap();
    }
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(&sockets, fs::Permissions::from_mode(0o755)).unwrap();
    if is_root() {
        run(Command::new("chown").arg("postgres:postgres").args([&data, &sockets]));
    }
    (home, data)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The newest of Debian's.
fn binary(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(name));
    let newest = found.filter(|path| path.exists()).max();
    newest.unwrap_or_else(|| {
        panic!("PostgreSQL's `{name}` is not in /usr/lib/postgresql/*/bin: run `make bootstrap`")
    })
}

fn as_postgres(program: &Path) -> Command {
    under_another_account(program, &[])
}

fn ended_with_us(program: &Path) -> Command {
    under_another_account(program, &["--pdeathsig", "QUIT"])
}

fn under_another_account(program: &Path, options: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(options);
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg(program);
    command.current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
