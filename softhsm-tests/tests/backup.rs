//! Backup and restore as operators do it: a real server on SoftHSM and SQLite that serves meanwhile, a backup that is
//! tried, changed and restored, and a site that writes again only above every epoch that is known.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{ffi::OsStr, fs, path::Path};

use common::fleet::{add, apdu, id, line, line_in_hsm, parsed, push};
use kms_client::{CallError, ClientConfig, ImportRules, KmsClient, MeterId, Verdict};
use softhsm_tests::{Programs, Role, ServerError, Site, SiteOptions, pair::said_by};
use sqlx::{Connection as _, SqliteConnection};
use tokio_stream::StreamExt as _;

async fn client(site: &Site) -> KmsClient {
    let config = ClientConfig::load(&site.client_toml(Role::Dev)).unwrap();
    KmsClient::connect(config).await.unwrap()
}

async fn opens(client: &KmsClient, n: u64) -> Verdict {
    client.decrypt(&apdu(push(n))).await.unwrap().verdict()
}

async fn refusal_of_a_write(client: &KmsClient, n: u64) -> String {
    let lines = tokio_stream::iter(parsed(&line(n)));
    let mut results = client.meters().import(lines, ImportRules::default());
    match results.next().await.unwrap() {
        Ok(result) => result.code,
        Err(CallError::Refused { code, .. }) => code,
        Err(error) => panic!("{error}"),
    }
}

fn refused(site: &Site, verb: &'static str, arguments: &[&OsStr]) -> String {
    match site.run(verb, arguments) {
        Err(ServerError::Failed { output, .. }) => output,
        other => panic!("{verb} was not refused: {other:?}"),
    }
}

fn file(path: &Path) -> [&OsStr; 2] {
    ["--from".as_ref(), path.as_os_str()]
}

async fn tamper(database: &Path, statement: &'static str) {
    let url = format!("sqlite://{}", database.display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// The site loses its database, with the log beside it.
fn lose_the_database(site: &Site) {
    for name in ["kms.db", "kms.db-wal", "kms.db-shm"] {
        let _ = fs::remove_file(site.places().data.join(name));
    }
}

#[tokio::test]
async fn invariant_3_a_restored_site_reads_at_once_and_writes_only_above_every_epoch_that_is_known()
{
    let dir = tempfile::Builder::new().prefix("kms-backup-").tempdir_in("/dev/shm").unwrap();
    let site = Site::make(dir.path(), Programs::find().unwrap(), SiteOptions::default()).unwrap();
    site.init().unwrap();
    let server = site.start().unwrap();
    let serving = client(&site).await;
    let fleet: Vec<String> = (0..20).map(line).chain([line_in_hsm(20)]).collect();
    add(&serving, &fleet).await;
    serving.meters().delete(&id(7).parse::<MeterId>().unwrap()).await.unwrap();

    // While it serves.
    let backup = dir.path().join("site.backup");
    let out = ["--out".as_ref(), backup.as_os_str(), "--drill".as_ref()];
    let said = site.run("backup", &out).unwrap();
    println!("{said}");
    assert!(said.contains("blocks opened, 21 records"), "{said}");
    assert!(refused(&site, "backup", &out).contains("is there already"));
    // There is nothing to keep where there is no directory, be it misspelt; and what fails says of which file.
    for (out, more, said) in [
        ("one.backup", &["--keep", "3"][..], "--keep removes older backups from a directory"),
        ("misspelt/", &["--keep", "3"], "misspelt/ is none: name a directory"),
        ("misspelt/one.backup", &[], "misspelt/one.backup: the backup's file"),
    ] {
        let out = dir.path().join(out);
        let more = more.iter().map(OsStr::new);
        let arguments: Vec<&OsStr> =
            ["--out".as_ref(), out.as_os_str()].into_iter().chain(more).collect();
        let refusal = refused(&site, "backup", &arguments);
        assert!(refusal.contains(said) && !out.exists(), "{refusal}");
    }
    // No key, and no meter's name, in clear.
    let bytes = fs::read(&backup).unwrap();
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(!has(b"meter-1") && !has(common::fleet::title(1).as_bytes()));
    add(&serving, &[line(30)]).await;

    // Nothing is restored over a database that is there, least of all under a server.
    let said = refused(&site, "restore", &file(&backup));
    assert!(said.contains("another server has the database"), "{said}");
    server.stop().unwrap();
    let said = refused(&site, "restore", &file(&backup));
    assert!(said.contains("it is not empty"), "{said}");

    lose_the_database(&site);
    // A backup that was changed is named, and leaves no database behind that serves.
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let bad = dir.path().join("bad.backup");
    fs::write(&bad, &flipped).unwrap();
    let said = refused(&site, "restore", &file(&bad));
    assert!(said.contains("chunk") && said.contains("was changed"), "{said}");
    assert!(said.contains("bad.backup: "), "{said}");
    let said = refused(&site, "restore", &file(&dir.path().join("none.backup")));
    assert!(said.contains("none.backup: ") && said.contains("No such file"), "{said}");
    fs::write(&bad, &bytes[..bytes.len() - 1]).unwrap();
    assert!(refused(&site, "restore", &file(&bad)).contains("the backup is cut"));
    assert!(refused(&site, "serve", &[]).contains("no database"), "nothing was made of it");

    let said = site.run("restore", &file(&backup)).unwrap();
    println!("{said}");
    let server = site.start().unwrap();
    let restored = client(&site).await;
    for (n, verdict) in [
        (1, Verdict::Ok),
        (20, Verdict::Ok),
        (7, Verdict::UnknownMeter),
        (30, Verdict::UnknownMeter),
    ] {
        assert_eq!(opens(&restored, n).await, verdict, "{n}");
    }
    assert_eq!(refusal_of_a_write(&restored, 40).await, "NOT_PRIMARY");
    // What it says of that, and what to do: there is no other site whose servers could be named.
    let meter = dir.path().join("meter.json");
    fs::write(&meter, line(40)).unwrap();
    let create = ["meter", "create", "--from", meter.to_str().unwrap()];
    let encrypt = ["encrypt", "--meter", &id(1), "--apdu", "c001c100"];
    for (role, arguments) in [(Role::AmiAdmin, &create[..]), (Role::Dev, &encrypt)] {
        let said = site.ami_tool(role).succeed(arguments).unwrap_err().to_string();
        assert!(said.contains("was put back (ROLLED_BACK)"), "{said}");
        let next = said.split_once("next: ").unwrap().1;
        assert!(next.starts_with("`ami-tool site promote --above-epoch N`"), "{said}");
    }
    let faults = restored.site_status().await.unwrap().faults.join("; ");
    assert!(faults.contains("the database was rolled back (backup "), "{faults}");
    let promote = |more: &[&str]| {
        said_by(&site, "promote", &[&["site", "promote", "--yes"][..], more].concat())
    };
    for without in [&[][..], &["--primary-is-lost"]] {
        let said = promote(without).unwrap_err().to_string();
        assert!(said.contains("ROLLED_BACK") && said.contains("--above-epoch"), "{said}");
    }
    // A start changes nothing of it, nor does who writes to the database: the row that commits look at gives no
    // right, and without the mark the domain is nobody's.
    server.stop().unwrap();
    let database = site.places().data.join("kms.db");
    tamper(&database, "UPDATE role SET writes = 1").await;
    let server = site.start().unwrap();
    assert_eq!(refusal_of_a_write(&client(&site).await, 40).await, "NOT_PRIMARY");
    server.stop().unwrap();
    let kept = dir.path().join("kept.db");
    fs::copy(&database, &kept).unwrap();
    tamper(&database, "DELETE FROM restore").await;
    let said = refused(&site, "serve", &[]);
    assert!(said.contains("is not what this site's token signed"), "{said}");
    lose_the_database(&site);
    fs::copy(&kept, &database).unwrap();
    tamper(&database, "UPDATE role SET writes = 0").await;
    let _server = site.start().unwrap();
    let restored = client(&site).await;
    assert_eq!(refusal_of_a_write(&restored, 40).await, "NOT_PRIMARY");
    let said = promote(&["--above-epoch", "5"]).unwrap();
    assert!(said.contains("PRIMARY") && said.contains('6'), "{said}");
    add(&restored, &[line(40)]).await;
    assert_eq!(opens(&restored, 40).await, Verdict::Ok);
}
