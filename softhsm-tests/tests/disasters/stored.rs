//! A site's database as a game looks at it, and the one that fails over.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use softhsm_tests::{Setting, Site, settings::quoted};
use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection};

use super::postgres_common::{Cluster, USER};

/// A site's database.
pub(crate) enum Stored {
    /// The file.
    Sqlite(PathBuf),
    /// A primary and its standby.
    Postgres(Box<Databases>),
}

/// All that is stored at one moment.
pub(crate) struct Contents {
    /// Heads and records, byte for byte.
    pub(crate) rows: Vec<String>,
    /// Keys of records that were set aside.
    pub(crate) aside: Vec<String>,
    /// 1: it writes.
    pub(crate) writes: i64,
}

const ROWS: &str = "SELECT block || '/' || secret_version || '/' || epoch || '/' || sequence || '/' || count || '/' || \
                    HEX(digest) || '/' || HEX(mac) FROM blocks ORDER BY block";
const RECORDS: &str = "SELECT block || '/' || HEX(key) || '/' || epoch || '/' || sequence || '/' || HEX(mac) || '/' || \
                       HEX(body) FROM records ORDER BY block, key";
const HEADS: &str = "SELECT block || '/' || epoch || '/' || sequence FROM blocks ORDER BY block";
const ASIDE: &str = "SELECT HEX(key) FROM divergence ORDER BY key";
const WRITES: &str = "SELECT CAST(CAST(writes AS integer) AS text) FROM role";

impl Stored {
    pub(crate) fn sqlite(site: &Site) -> Self {
        Self::Sqlite(site.places().data.join("kms.db"))
    }

    pub(crate) async fn contents(&self) -> Contents {
        let mut rows = self.read(ROWS).await;
        rows.extend(self.read(RECORDS).await);
        let writes = self.read(WRITES).await;
        Contents { rows, aside: self.read(ASIDE).await, writes: i64::from(writes == ["1"]) }
    }

    /// Where each block stands: block, epoch, sequence.
    pub(crate) async fn heads(&self) -> Vec<[u64; 3]> {
        let numbers = |row: String| {
            let mut parts = row.split('/').map(|part| part.parse().unwrap());
            std::array::from_fn(|_| parts.next().unwrap())
        };
        self.read(HEADS).await.into_iter().map(numbers).collect()
    }

    /// Whether the site writes, as its database has it.
    pub(crate) async fn writes(&self) -> bool {
        self.read(WRITES).await == ["1"]
    }

    async fn read(&self, query: &'static str) -> Vec<String> {
        match self {
            Self::Sqlite(path) => {
                let url = format!("sqlite://{}", path.display());
                let mut database = SqliteConnection::connect(&url).await.unwrap();
                let rows = sqlx::query(query).fetch_all(&mut database).await.unwrap();
                database.close().await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
            Self::Postgres(databases) => {
                let mut database = databases.primary.beside("ami").await;
                let way = "SET search_path TO ami_kms";
                sqlx::query(way).execute(&mut database).await.unwrap();
                let query = hex_in_postgres(query);
                let rows =
                    sqlx::query(AssertSqlSafe(query)).fetch_all(&mut database).await.unwrap();
                database.close().await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
        }
    }
}

/// `HEX(x)` as PostgreSQL says it.
fn hex_in_postgres(query: &str) -> String {
    let mut parts = query.split("HEX(");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |said, part| {
        let (column, rest) = part.split_once(')').unwrap();
        format!("{said}upper(encode({column}, 'hex')){rest}")
    })
}

/// PostgreSQL with a synchronous standby: what was acknowledged is on both.
pub(crate) struct Databases {
    /// The name by which the servers reach it; it moves.
    name: PathBuf,
    primary: Cluster,
    standby: Cluster,
}

impl Databases {
    pub(crate) fn start(dir: &Path) -> Self {
        let primary = Cluster::new(&[]);
        primary.database("ami");
        let standby = primary.standby();
        // Not before there is one: nothing would be committed.
        primary.set(&["synchronous_standby_names = '*'"]);
        primary.reload();
        let name = dir.join("database");
        symlink(primary.sockets(), &name).unwrap();
        Self { name, primary, standby }
    }

    /// `[store]` of a server.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        let set = |key, value: &str| Setting { section: "store", key, value: value.to_owned() };
        vec![
            set("kind", &quoted("postgresql")),
            set("path", ""),
            set("host", &quoted(&self.name.display().to_string())),
            set("port", &self.primary.port().to_string()),
            set("database", &quoted("ami")),
            set("user", &quoted(USER)),
            set("allow_no_tls", "true"),
        ]
    }

    /// The primary is killed, its standby takes over, and there is a standby again. Until then nothing is acknowledged.
    pub(crate) fn fail_over(&mut self) {
        self.primary.kill();
        self.standby.promote();
        std::fs::remove_file(&self.name).unwrap();
        symlink(self.standby.sockets(), &self.name).unwrap();
        // The new primary waits for one, as the old one did: it has its settings.
        let standby = self.standby.standby();
        self.primary = std::mem::replace(&mut self.standby, standby);
    }
}
