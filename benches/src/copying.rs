//! The bound below a full copy: the database's own copy of the same rows, with the same indexes and durability.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use kms_server::config::{Config, Store};
use softhsm_tests::{Setting, Site, settings::postgresql};

use crate::Error;

/// Copies all rows of what a follower takes over into a new database of the same schema; prints seconds and records.
const SQLITE: &str = r#"
import sqlite3, sys, time
old, new = sys.argv[1:]
source = sqlite3.connect("file:" + old + "?mode=ro", uri=True)
schema = [sql for (sql,) in source.execute(
    "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid")]
source.close()
copy = sqlite3.connect(new, isolation_level=None)
copy.execute("PRAGMA journal_mode = WAL")
copy.execute("PRAGMA synchronous = FULL")
for sql in schema:
    copy.execute(sql)
copy.execute("ATTACH ? AS old", (old,))
began = time.monotonic()
for table in ("blocks", "records", "meters", "key_fingerprints"):
    copy.execute("BEGIN IMMEDIATE")
    copy.execute(f"INSERT INTO main.{table} SELECT * FROM old.{table}")
    copy.execute("COMMIT")
took = time.monotonic() - began
(rows,) = copy.execute("SELECT count(*) FROM main.records").fetchone()
print(took, rows)
"#;

/// The same by COPY, out of one database of a cluster and into another one.
const POSTGRES: &str = r#"
set -e
export PGHOST="$1" PGUSER="$2"
ask() { psql --quiet --no-psqlrc --tuples-only --no-align --set ON_ERROR_STOP=1 "$@"; }
ask -d "$4" -c "DROP SCHEMA IF EXISTS ami_kms CASCADE" 2>/dev/null
pg_dump --schema-only "$3" | ask -d "$4" >/dev/null
export PGOPTIONS="-c search_path=ami_kms"
began=$(date +%s.%N)
for table in blocks records meters key_fingerprints; do
    ask -d "$3" -c "COPY $table TO STDOUT (FORMAT binary)" | ask -d "$4" -c "COPY $table FROM STDIN (FORMAT binary)"
done
ended=$(date +%s.%N)
rows=$(ask -d "$4" -c "SELECT count(*) FROM records")
echo "$(echo "$ended $began" | awk '{ print $1 - $2 }') $rows"
"#;

/// The databases' owner in the cluster.
const OWNER: &str = "ami";
/// The database that the cluster's own copy goes to.
const COPY: &str = "ami_copy";

/// The two sites' databases in one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Databases {
    /// Of the site of even epochs.
    A,
    /// Of the other one.
    B,
}

impl Databases {
    fn name(self) -> &'static str {
        match self {
            Self::A => "ami_a",
            Self::B => "ami_b",
        }
    }
}

/// Where the sites' rows are.
#[derive(Clone, Debug)]
pub enum Place {
    /// Each site has a file.
    Sqlite,
    /// A cluster with this socket directory has both.
    Postgres(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        })
    }
}

impl Place {
    /// The cluster, if one is named.
    pub fn of(postgres: Option<&Path>) -> Self {
        postgres.map_or(Self::Sqlite, |sockets| Self::Postgres(sockets.to_owned()))
    }

    /// The settings of a site whose rows are there.
    pub fn settings(&self, of: Databases) -> Vec<Setting> {
        let Self::Postgres(sockets) = self else { return Vec::new() };
        let store = postgresql(sockets, of.name(), OWNER).into_iter();
        store.map(|(section, key, value)| Setting { section, key, value }).collect()
    }

    /// How long the database itself takes to copy the rows of `site`, the one of even epochs, and how many records these
    /// are. Its server may run.
    pub fn own_copy(&self, site: &Site, dir: &Path) -> Result<(Duration, u64), Error> {
        match self {
            Self::Sqlite => {
                let into = dir.join("copy.db");
                let mut copy = Command::new("python3");
                let copied = said(copy.args(["-c", SQLITE]).arg(file_of(site)?).arg(&into))?;
                fs::remove_file(into)?;
                Ok(copied)
            }
            Self::Postgres(sockets) => {
                let mut copy = Command::new("sh");
                copy.args(["-c", POSTGRES, "copy"]).arg(sockets);
                said(copy.args([OWNER, Databases::A.name(), COPY]))
            }
        }
    }
}

/// The database file of a site.
fn file_of(site: &Site) -> Result<PathBuf, Error> {
    match Config::load(&site.places().kms_toml)?.store {
        Store::Sqlite { path } => Ok(path),
        _ => Err("the site is not on SQLite".into()),
    }
}

/// The seconds and the records that a script prints.
fn said(script: &mut Command) -> Result<(Duration, u64), Error> {
    let output = script.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let (seconds, rows) = said.trim().split_once(' ').ok_or("the copy says no figures")?;
    Ok((Duration::from_secs_f64(seconds.parse()?), rows.parse()?))
}
