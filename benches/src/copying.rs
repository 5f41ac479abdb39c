//! The bound below a full copy: the database's own copy of the same rows, with the same indexes and durability.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use kms_server::config::{Config, Store};
use softhsm_tests::Site;

use crate::Error;

/// Copies all rows of what a follower takes over into a new database of the same schema; prints the seconds.
const SCRIPT: &str = r#"
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

/// The database file of a site.
pub fn database_of(site: &Site) -> Result<PathBuf, Error> {
    match Config::load(&site.places().kms_toml)?.store {
        Store::Sqlite { path } => Ok(path),
        _ => Err("the benches' sites are on SQLite".into()),
    }
}

/// How long the database itself takes to copy the rows of `from`, and how many records these are. The server of that
/// site may run.
pub fn own_copy(from: &Path, into: &Path) -> Result<(Duration, u64), Error> {
    let output = Command::new("python3").args(["-c", SCRIPT]).arg(from).arg(into).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let (seconds, rows) = said.trim().split_once(' ').ok_or("the copy says no figures")?;
    Ok((Duration::from_secs_f64(seconds.parse()?), rows.parse()?))
}
