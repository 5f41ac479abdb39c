//! Invariant 5 over time: whoever can write to the database puts back what was there, deletes it or changes
//! it, while the servers are stopped. No old state is used, and what is wrong is named.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;
#[path = "../../kms-server/tests/postgres_common/mod.rs"]
mod postgres_common;

use std::{fs, path::PathBuf, time::Duration};

use common::{
    Home, blank_home, copy,
    fleet::{add, apdu, id, line, parsed, push, title},
    home,
    up::{Up, database, sql},
};
use kms_client::{ImportRules, MeterId, MeterName, Verdict};
use kms_core::BlockCount;
use postgres_common::{Cluster, USER};
use softhsm_tests::settings::{postgresql, quoted};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio_stream::StreamExt as _;

impl Up {
    async fn verdict(&self, n: u64) -> Verdict {
        self.client.decrypt(&apdu(push(n))).await.unwrap().verdict()
    }

    async fn faults(&self) -> String {
        self.client.site_status().await.unwrap().faults.join("; ")
    }

    async fn delete(&self, n: u64) {
        let id = MeterId::new(&id(n)).unwrap();
        self.client.meters().delete(&id).await.unwrap();
    }
}

fn block_of(n: u64) -> u32 {
    BlockCount::new(64).unwrap().block_of(&title(n)).0
}

/// A meter that lives in another block than meter 1.
fn elsewhere() -> u64 {
    (2..).find(|n| block_of(*n) != block_of(1)).unwrap()
}

/// Two meters, the first deleted after the database was copied. The server is stopped, or killed.
async fn with_a_deletion(kill: bool) -> (Home, PathBuf) {
    let home = home();
    let up = Up::of(&home).await;
    add(&up.client, &[line(1), line(elsewhere())]).await;
    up.stop();
    let old = home.places().dir.join("old.db");
    fs::copy(database(&home), &old).unwrap();
    let up = Up::of(&home).await;
    up.delete(1).await;
    assert_eq!(up.verdict(1).await, Verdict::UnknownMeter);
    if kill {
        up.running.kill_9().unwrap()
    } else {
        up.stop()
    }
    (home, old)
}

/// Puts rows back as they were in the old database.
fn put_back(old: &std::path::Path, tables: &[&str], of_block: bool) -> String {
    let only = if of_block { format!("WHERE block = {}", block_of(1)) } else { String::new() };
    let rows = tables.iter().map(|table| {
        format!("DELETE FROM {table} {only}; INSERT INTO {table} SELECT * FROM old.{table} {only};")
    });
    format!("ATTACH '{}' AS old; {}", old.display(), rows.collect::<String>())
}

const BLOCK: [&str; 3] = ["records", "meters", "blocks"];
const EVENTS: [&str; 3] = ["audit_checkpoints", "audit_events", "audit_chains"];

#[tokio::test(flavor = "multi_thread")]
async fn invariant_5_one_block_rolled_back_while_no_process_ran_is_refused_and_named() {
    for kill in [false, true] {
        let (home, old) = with_a_deletion(kill).await;
        sql(&home, &put_back(&old, &BLOCK, true)).await;
        let up = Up::of(&home).await;
        assert_eq!(up.verdict(1).await, Verdict::Unavailable, "killed: {kill}");
        assert_eq!(up.verdict(elsewhere()).await, Verdict::Ok, "killed: {kill}");
        let faults = up.faults().await;
        let named = format!("block {} went back from", block_of(1));
        assert!(faults.contains(&named), "killed: {kill}: {faults}");
        // Nor is anything built on it.
        let lines = tokio_stream::iter(parsed(&line(1)));
        let import = up.client.meters().import(lines, ImportRules::default());
        let results: Vec<_> = import.collect().await;
        let built = results.iter().flatten().any(|result| result.code.is_empty());
        assert!(!built, "killed: {kill}: {results:?}");
        up.stop();
        // The fault stays, however often the server starts.
        let up = Up::of(&home).await;
        assert_eq!(up.verdict(1).await, Verdict::Unavailable, "killed: {kill}");
        up.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_5_a_block_rolled_back_with_its_events_or_with_all_of_the_database_is_refused() {
    for kill in [false, true] {
        for what in ["events", "events and head table", "everything"] {
            let (home, old) = with_a_deletion(kill).await;
            match what {
                "everything" => {
                    for end in ["-wal", "-shm"] {
                        let _ = fs::remove_file(format!("{}{end}", database(&home).display()));
                    }
                    fs::copy(&old, database(&home)).unwrap();
                }
                _ => {
                    let mut statements = put_back(&old, &BLOCK, true);
                    let events = put_back(&old, &EVENTS, false);
                    statements += events.split_once(';').unwrap().1;
                    if what != "events" {
                        let table = put_back(&old, &["head_table"], false);
                        statements += table.split_once(';').unwrap().1;
                    }
                    sql(&home, &statements).await;
                }
            }
            // Twice: the first start does not make the second one forget.
            for _ in 0..2 {
                let up = Up::of(&home).await;
                assert_ne!(up.verdict(1).await, Verdict::Ok, "{what}, killed: {kill}");
                let faults = up.faults().await;
                assert!(faults.contains("the database is not the newest"), "{what}: {faults}");
                up.stop();
            }
        }
    }
}

/// As at the replica of a site that was late when its server started.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_catches_up_is_opened_and_written_to_without_a_restart() {
    let (home, old) = with_a_deletion(false).await;
    let newest = home.places().dir.join("newest.db");
    fs::copy(database(&home), &newest).unwrap();
    fs::copy(&old, database(&home)).unwrap();
    let up = Up::of(&home).await;
    let (other, new) = (elsewhere(), elsewhere() + 1);
    let named = MeterName::Id(MeterId::new(&id(new)).unwrap());
    assert_eq!(up.verdict(other).await, Verdict::Unavailable);
    assert!(up.faults().await.contains("the database is not the newest"));
    assert!(!up.client.site_status().await.unwrap().warm_up.done);
    assert!(up.client.meters().get(&named).await.is_err());
    let all = [&BLOCK[..], &EVENTS, &["key_fingerprints", "block_seals", "head_table"]].concat();
    let arrive = put_back(&newest, &all, false).replacen("; ", "; BEGIN; ", 1) + " COMMIT";
    sql(&home, &arrive).await;
    common::eventually("no fault is left", async || up.faults().await.is_empty()).await;
    common::eventually("warm-up", async || up.client.site_status().await.unwrap().warm_up.done)
        .await;
    assert_eq!(
        (up.verdict(1).await, up.verdict(other).await),
        (Verdict::UnknownMeter, Verdict::Ok)
    );
    let refused = up.client.meters().get(&named).await.unwrap_err().to_string();
    assert!(refused.contains("there is no meter"), "{refused}");
    add(&up.client, &[line(new)]).await;
    up.stop();
    // What was written behind the newer end is one chain with it.
    let up = Up::of(&home).await;
    assert_eq!((up.faults().await, up.verdict(new).await), (String::new(), Verdict::Ok));
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_table_that_is_gone_forged_or_old_is_named_and_no_old_state_used() {
    for (statement, says, serves) in [
        ("DELETE FROM head_table", "its signed head table is missing", false),
        (
            "UPDATE head_table SET signature = zeroblob(64)",
            "was not signed by the token's key",
            false,
        ),
        ("UPDATE head_table SET number = number + 1", "was not signed by the token's key", false),
        // What it does not say stands in the events since.
        ("put back", "the signed head table was number", true),
    ] {
        let (home, old) = with_a_deletion(false).await;
        let statements = match statement {
            "put back" => put_back(&old, &["head_table"], false),
            other => other.to_owned(),
        };
        sql(&home, &statements).await;
        let up = Up::of(&home).await;
        let faults = up.faults().await;
        assert!(faults.contains(says), "{statement}: {faults}");
        let (one, other) = (up.verdict(1).await, up.verdict(elsewhere()).await);
        let wanted = if serves {
            (Verdict::UnknownMeter, Verdict::Ok)
        } else {
            (Verdict::Unavailable, Verdict::Unavailable)
        };
        assert_eq!((one, other), wanted, "{statement}");
        up.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_column_of_the_domain_row_is_signed_and_a_changed_one_is_refused_by_name() {
    let home = home();
    Up::of(&home).await.stop();
    let original = fs::read(database(&home)).unwrap();
    for (column, changed, says) in [
        ("domain", "zeroblob(16)", "`domain` row"),
        ("blocks", "blocks * 2", "`domain` row"),
        ("site", "'elsewhere'", "`domain` row"),
        ("epoch", "epoch + 2", "`domain` row"),
        ("even", "1 - even", "`domain` row"),
        ("created_ms", "created_ms + 1", "`domain` row"),
        ("signature", "zeroblob(64)", "`domain` row"),
        ("signature", "NULL", "kms-server migrate"),
    ] {
        sql(&home, &format!("UPDATE domain SET {column} = {changed}")).await;
        let refused = home.start().expect_err("a changed domain row is refused").to_string();
        assert!(refused.contains(says), "{column}: {refused}");
        if changed == "NULL" {
            // Nor does it get signed again.
            let refused = home.run("migrate", &[]).unwrap_err().to_string();
            assert!(refused.contains("somebody took its signature away"), "{refused}");
        }
        for end in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{end}", database(&home).display()));
        }
        fs::write(database(&home), &original).unwrap();
    }
    // At run time it does not matter what stands there.
    let up = Up::of(&home).await;
    sql(&home, "UPDATE domain SET epoch = 1000000").await;
    add(&up.client, &[line(1)]).await;
    sql(&home, "UPDATE domain SET epoch = 2").await;
    assert_eq!(up.faults().await, "");
    up.stop();
    let up = Up::of(&home).await;
    assert_eq!(up.verdict(1).await, Verdict::Ok);
    up.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_before_it_noted_a_commit_starts_as_if_it_had() {
    let home = home();
    let data = home.places().data.clone();
    for round in 0..6u64 {
        let up = Up::of(&home).await;
        assert_eq!(up.faults().await, "", "round {round}");
        for n in 0..round {
            assert_eq!(up.verdict(n).await, Verdict::Ok, "round {round}");
        }
        let noted = fs::read(data.join("audit-tip")).unwrap();
        add(&up.client, &[line(round)]).await;
        assert_ne!(fs::read(data.join("audit-tip")).unwrap(), noted, "noted at each commit");
        up.running.kill_9().unwrap();
        match round % 3 {
            // Killed after the commit and before the note, a power cut that lost it, and neither.
            0 => fs::write(data.join("audit-tip"), noted).unwrap(),
            1 => fs::write(data.join("audit-tip"), vec![0; noted.len()]).unwrap(),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_of_an_older_version_is_migrated_once_and_only_when_asked() {
    let home = home();
    let up = Up::of(&home).await;
    add(&up.client, &[line(1), line(elsewhere())]).await;
    up.stop();
    // As an older version left it: blocks without a change don't exist, nothing is signed or noted.
    let old = "DELETE FROM block_seals WHERE block NOT IN (SELECT block FROM records); \
               DELETE FROM blocks WHERE block NOT IN (SELECT block FROM records); \
               DROP TABLE role; DROP TABLE role_records; DROP TABLE peers; DROP TABLE divergence; \
               DROP TABLE counter_marks; DROP TABLE witnessed_marks; DROP TABLE receive_floors; \
               DROP TABLE floor_runs; DROP TABLE papers; DROP TABLE restore; DROP TABLE site_tokens; \
               DROP TABLE peer_audit_events; DROP TABLE peer_audit_checkpoints; DROP TABLE peer_audit_chains; \
               DROP TABLE approvals; DROP TABLE site_keks; DROP TABLE closed_keks; \
               DROP TABLE head_table; ALTER TABLE domain DROP COLUMN signature; \
               ALTER TABLE domain DROP COLUMN read_only; \
               PRAGMA user_version = 2;";
    sql(&home, old).await;
    for file in ["audit-tip", "audit-tips"] {
        fs::remove_file(home.places().data.join(file)).unwrap();
    }
    let refused = home.start().expect_err("an unmigrated domain is refused").to_string();
    assert!(refused.contains("kms-server migrate"), "{refused}");
    let told = home.run("migrate", &[]).unwrap();
    assert!(
        told.lines().any(|line| line.starts_with("blocks made") && line.ends_with("62")),
        "{told}"
    );
    let up = Up::of(&home).await;
    assert_eq!((up.verdict(1).await, up.verdict(elsewhere()).await), (Verdict::Ok, Verdict::Ok));
    assert_eq!(up.faults().await, "");
    add(&up.client, &(10..200).map(line).collect::<Vec<_>>()).await;
    up.stop();
    let refused = home.run("migrate", &[]).unwrap_err().to_string();
    assert!(refused.contains("nothing to do"), "{refused}");
}

fn settings(cluster: &Cluster) -> Vec<(&'static str, &'static str, String)> {
    let mut store = postgresql(&cluster.sockets(), "ami", USER);
    store.push(("store", "port", cluster.port().to_string()));
    store
}

/// A node of the site whose first one is `first`: a data directory and port of its own.
fn node(cluster: &Cluster, first: Option<&Home>) -> Home {
    let mut settings = settings(cluster);
    if let Some(first) = first {
        settings.push(("hsm", "token_dir", quoted(&first.places().tokens.display().to_string())));
    }
    let borrowed: Vec<_> = settings.iter().map(|(s, k, v)| (*s, *k, v.as_str())).collect();
    let home = blank_home(&borrowed);
    let Some(first) = first else {
        home.init().unwrap();
        return home;
    };
    for part in ["secrets", "certificates"] {
        let target = home.places().dir.join(part);
        fs::remove_dir_all(&target).unwrap();
        copy(&first.places().dir.join(part), &target);
    }
    fs::copy(&first.places().softhsm_conf, &home.places().softhsm_conf).unwrap();
    home
}

async fn postgres(cluster: &Cluster, statements: &str) {
    let sockets = cluster.sockets().display().to_string();
    let url = format!("postgres://{USER}@localhost:{}/ami?host={sockets}", cluster.port());
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_5_a_node_that_was_down_for_a_month_starts_beside_the_others_and_uses_nothing_old()
 {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let first = node(&cluster, None);
    let (second, third) = (node(&cluster, Some(&first)), node(&cluster, Some(&first)));
    let other = elsewhere();
    let up = Up::of(&first).await;
    add(&up.client, &[line(1), line(other)]).await;
    up.stop();
    let keep = "SET search_path TO ami_kms; \
                CREATE TABLE kept_blocks AS SELECT * FROM blocks; \
                CREATE TABLE kept_records AS SELECT * FROM records; \
                CREATE TABLE kept_meters AS SELECT * FROM meters;";
    postgres(&cluster, keep).await;
    // A month in which the others write.
    let (b, c) = (Up::of(&second).await, Up::of(&third).await);
    b.delete(1).await;
    for n in 100..300 {
        add(&c.client, &[line(n)]).await;
    }
    // Beside the living, one of them killed in the middle of its work.
    c.running.kill_9().unwrap();
    let a = Up::of(&first).await;
    assert_eq!(a.faults().await, "");
    assert_eq!((a.verdict(1).await, a.verdict(299).await), (Verdict::UnknownMeter, Verdict::Ok));
    a.stop();
    let c = Up::of(&third).await;
    assert_eq!(c.faults().await, "");
    c.stop();
    b.stop();
    // What the others wrote to one block is taken back.
    let block = block_of(1);
    let back = format!(
        "SET search_path TO ami_kms; \
         DELETE FROM meters WHERE block = {block}; DELETE FROM records WHERE block = {block}; \
         UPDATE blocks SET (epoch, sequence, count, digest, mac) = \
           (SELECT epoch, sequence, count, digest, mac FROM kept_blocks k WHERE k.block = blocks.block) \
           WHERE block = {block}; \
         INSERT INTO records SELECT * FROM kept_records WHERE block = {block}; \
         INSERT INTO meters SELECT * FROM kept_meters WHERE block = {block};"
    );
    postgres(&cluster, &back).await;
    for home in [&first, &second, &third] {
        let up = Up::of(home).await;
        assert_eq!(up.verdict(1).await, Verdict::Unavailable);
        let faults = up.faults().await;
        assert!(faults.contains(&format!("block {block} went back from")), "{faults}");
        up.stop();
    }
    // And with it all that the audit log says since: whoever wrote it knows better.
    let cut = "SET search_path TO ami_kms; \
               DELETE FROM audit_events; DELETE FROM audit_checkpoints; DELETE FROM audit_chains;";
    postgres(&cluster, cut).await;
    for home in [&first, &second, &third] {
        let up = Up::of(home).await;
        assert_eq!(up.verdict(other).await, Verdict::Unavailable);
        let faults = up.faults().await;
        assert!(faults.contains("the database is not the newest"), "{faults}");
        up.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_out_of_range_and_blocks_deleted_under_running_nodes_are_named_and_stop_nobody() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let first = node(&cluster, None);
    let second = node(&cluster, Some(&first));
    let (a, b) = (Up::of(&first).await, Up::of(&second).await);
    let other = elsewhere();
    add(&a.client, &[line(1), line(other)]).await;
    let block = block_of(1);
    let free = (0..64).find(|at| ![block, block_of(other)].contains(at)).unwrap();
    let statements = format!(
        "SET search_path TO ami_kms; \
         INSERT INTO blocks SELECT -7, secret_version, epoch, sequence, count, digest, mac FROM blocks LIMIT 1; \
         UPDATE blocks SET sequence = -1 WHERE block = {block}; \
         DELETE FROM block_seals WHERE block = {free}; DELETE FROM blocks WHERE block = {free};"
    );
    postgres(&cluster, &statements).await;
    for up in [&a, &b] {
        common::eventually("the rows are named", async || {
            let faults = up.faults().await;
            [format!("block {block} is damaged"), format!("block {free} is damaged: it is missing")]
                .iter()
                .all(|says| faults.contains(says))
        })
        .await;
    }
    // Others' changes are heard of all the same.
    a.delete(other).await;
    common::eventually("the other node obeys", async || {
        b.verdict(other).await == Verdict::UnknownMeter
    })
    .await;
    assert_eq!(a.verdict(1).await, Verdict::Ok, "what is in memory stays");
    tokio::time::sleep(Duration::from_millis(10)).await;
    a.stop();
    b.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_blocks_of_a_domain_of_the_usual_size_are_made_and_fit_into_a_small_arena() {
    let few = blank_home(&[]);
    let begun = std::time::Instant::now();
    few.init().unwrap();
    let least = begun.elapsed();
    let home = blank_home(&[("site", "block_count", "4096"), ("keyring", "arena_mib", "4")]);
    let begun = std::time::Instant::now();
    home.init().unwrap();
    let all = begun.elapsed();
    let up = Up::of(&home).await;
    let status = up.client.site_status().await.unwrap();
    println!(
        "init: {all:?} for 4,096 blocks, {least:?} for 64; warm-up {} ms, {} bytes of the arena",
        status.warm_up.elapsed_ms, status.keyring.arena_bytes_used
    );
    assert_eq!((status.warm_up.blocks_open, status.warm_up.blocks_failed), (4096, 0));
    assert_eq!(status.faults, [""; 0]);
    assert!(status.keyring.arena_bytes_used < 1 << 20);
    add(&up.client, &(0..50).map(line).collect::<Vec<_>>()).await;
    up.stop();
}
