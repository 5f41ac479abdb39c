//! From this release on, a migration only adds: so servers of the release before, which run over the same database, go on.
//! What the handbook promises of a rolling upgrade stands on it.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::{fs, path::Path};

/// The last migration that was written without the rule: it is part of a release that no other one runs beside.
const FREE: u32 = 5;

/// The first statement that could take something from a server of the release before; `None`: all only add.
fn taken_away(sql: &str) -> Option<String> {
    let lines = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join(" ");
    let words = text.split(';').map(|one| one.split_whitespace().collect::<Vec<_>>().join(" "));
    words.filter(|statement| !statement.is_empty()).find(|statement| !only_adds(statement))
}

fn only_adds(statement: &str) -> bool {
    let statement = statement.to_uppercase();
    let begins = |words: &str| statement.starts_with(words);
    // It is how an older program that starts learns that it came too late.
    if begins("UPDATE SCHEMA_VERSION SET VERSION = ") || begins("PRAGMA USER_VERSION = ") {
        return true;
    }
    // A unique index refuses rows that the release before may write.
    if begins("CREATE TABLE ") || begins("CREATE INDEX ") {
        return true;
    }
    // Who does not name the column has to be able to write a row all the same.
    let adds_column = begins("ALTER TABLE ") && statement.contains(" ADD COLUMN ");
    let takes = ["DROP ", "RENAME ", "ALTER COLUMN ", "ADD CONSTRAINT ", " UNIQUE", " CHECK"];
    let may_be_left_out = statement.contains(" DEFAULT ") || !statement.contains(" NOT NULL");
    adds_column && may_be_left_out && !takes.iter().any(|word| statement.contains(word))
}

#[test]
fn a_migration_that_takes_something_from_the_release_before_is_found() {
    for adds in [
        "-- A comment; with DROP in it.\nCREATE TABLE x (a bigint NOT NULL UNIQUE);",
        "CREATE INDEX i ON x (a)",
        "UPDATE schema_version SET version = 6;",
        "ALTER TABLE x ADD COLUMN b bigint;\nALTER TABLE x ADD COLUMN c\n  bigint NOT NULL DEFAULT 0;",
    ] {
        assert_eq!(taken_away(adds), None, "{adds}");
    }
    for takes in [
        "DROP TABLE x",
        "ALTER TABLE x DROP COLUMN a",
        "ALTER TABLE x RENAME TO y",
        "ALTER TABLE x ADD COLUMN b bigint NOT NULL",
        "ALTER TABLE x ADD COLUMN b bigint DEFAULT 0 CHECK (b = 0)",
        "ALTER TABLE x ADD COLUMN b bigint, DROP COLUMN a",
        "ALTER TABLE x ADD CONSTRAINT c CHECK (a > 0)",
        "CREATE UNIQUE INDEX i ON x (a)",
        "UPDATE x SET a = 1",
        "DELETE FROM x",
        "CREATE TABLE y (a bigint); DROP TABLE x",
    ] {
        assert!(taken_away(takes).is_some(), "{takes}");
    }
}

#[test]
fn migrations_of_later_releases_only_add() {
    for store in ["sqlite", "postgres"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(store);
        let mut seen = 0;
        for file in fs::read_dir(&dir).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let number: u32 = name.split('_').next().unwrap().parse().unwrap();
            seen += 1;
            if number <= FREE {
                continue;
            }
            let taken = taken_away(&fs::read_to_string(&path).unwrap());
            assert_eq!(
                taken, None,
                "{store}/{name}: servers of the release before would not go on"
            );
        }
        assert!(seen >= FREE, "{dir:?}");
    }
}
