//! A second token of one site, by the real programs: enrolled beside the first one, and the site goes on with it alone when
//! the first one is lost. The other site is told of it by signatures, and follows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{collections::BTreeSet, fs, path::PathBuf};

use common::{
    client, eventually,
    fleet::{add, apdu, line, line_in_hsm, push},
    programs,
};
use kms_client::Verdict;
use softhsm_tests::{
    Pair, Role, Setting, Site, SiteOptions,
    pair::{enrol, join, said_by},
};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tempfile::TempDir;

fn laid_out() -> (TempDir, Pair) {
    let dir = tempfile::Builder::new().prefix("kms-token-").tempdir_in("/dev/shm").unwrap();
    let set = |key, value: &str| Setting { section: "peer", key, value: value.to_owned() };
    let settings = vec![set("heartbeat_ms", "300"), set("prove_interval_s", "1")];
    let options = SiteOptions { settings, ..SiteOptions::default() };
    let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
    (dir, pair)
}

/// The site's configuration names this token from now on.
fn use_token(site: &Site, label: &str) {
    let path = &site.places().kms_toml;
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| match line.starts_with("token_label") {
        true => format!("token_label = {label:?}\n"),
        false => format!("{line}\n"),
    });
    fs::write(path, lines.collect::<String>()).unwrap();
}

/// Exit code and what was said.
fn server(site: &Site, verb: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = site.command(verb).args(arguments).output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[track_caller]
fn refused(site: &Site, verb: &str, arguments: &[&str], sentence: &str) {
    let (code, said) = server(site, verb, arguments);
    assert_ne!(code, Some(0), "{verb} {arguments:?}: {said}");
    assert!(said.contains(sentence), "{sentence:?} is not in: {said}");
}

fn token_files(site: &Site) -> BTreeSet<PathBuf> {
    fs::read_dir(&site.places().tokens).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The events of an audit chain that is good as a whole.
fn good_events(site: &Site, verify: &[&str]) -> u64 {
    let said = site.ami_tool(Role::Auditor).succeed(verify).unwrap();
    let good = said.lines().find_map(|line| line.strip_prefix("good events"));
    good.unwrap().trim().parse().unwrap()
}

async fn count(site: &Site, query: &'static str) -> i64 {
    let url = format!("sqlite://{}", site.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let row = sqlx::query(query).fetch_one(&mut database).await.unwrap();
    database.close().await.unwrap();
    row.get(0)
}

/// The second token's request, made while a server runs with the first one.
fn ask(site: &Site) -> (String, String) {
    let file = site.places().dir.join("token.request").display().to_string();
    let so_pin = site.places().so_pin.display().to_string();
    let create = ["--create-token", "--so-pin-file", &so_pin];
    let asked = [&["--join", "--request", &file, "--same-site"][..], &create].concat();
    let (code, said) = server(site, "init", &asked);
    assert_eq!(code, Some(0), "{said}");
    let line = said.lines().find_map(|line| line.strip_prefix("fingerprint "));
    (file, line.unwrap().trim().to_owned())
}

const SEALS: &str = "SELECT count(*) FROM block_seals";
const BLOCKS: &str = "SELECT count(*) FROM blocks";
/// Rows of peers that name a further token.
const TOLD: &str =
    "SELECT count(*) FROM peers WHERE substr(body, 1, 14) = x'616d692e6b6d732f706565722f34'";
const FIRST: &str = "ami-site-a";
const SECOND: &str = "ami-site-a-2";

/// Enrols a second token of `site`, whose server is stopped for the last step. The files of the first one.
fn enrol_second(site: &Site, running: softhsm_tests::Running) -> BTreeSet<PathBuf> {
    let first = token_files(site);
    // A second token is asked for by name: without it the database is in the way.
    use_token(site, SECOND);
    let out = site.places().dir.join("other.request").display().to_string();
    refused(site, "init", &["--join", "--request", &out], "the database has a key domain already");
    let (request, fingerprint) = ask(site);
    assert!(fs::read_to_string(&request).unwrap().contains("a second token of this very site"));
    // It opens nothing yet.
    refused(site, "check-config", &[], "use the token that the database was made with");
    use_token(site, FIRST);
    let (bundle, fingerprint) = enrol(site, &request, &fingerprint).unwrap();
    use_token(site, SECOND);
    let arguments = ["--join", "--bundle", &bundle, "--fingerprint", &fingerprint];
    refused(site, "init", &arguments, "another server");
    running.stop().unwrap();
    join(site, &bundle, &fingerprint).unwrap();
    refused(site, "init", &arguments, "has joined already");
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_goes_on_with_its_second_token_alone_and_the_other_site_follows() {
    let (_dir, pair) = laid_out();
    let (a, b) = pair.start().unwrap();
    let (site, other) = (&pair.a, &pair.b);
    add(&client(site, Role::Dev).await, &[line(1), line_in_hsm(2)]).await;
    let blocks = count(site, BLOCKS).await;
    let first = enrol_second(site, a);
    assert_eq!(count(site, SEALS).await, 2 * blocks);

    // The first one serves as before, and tells the other site.
    use_token(site, FIRST);
    assert_eq!(server(site, "check-config", &[]).0, Some(0));
    let a = site.start().unwrap();
    let at_a = client(site, Role::Dev).await;
    for n in [1, 2] {
        assert_eq!(at_a.decrypt(&apdu(push(n))).await.unwrap().verdict(), Verdict::Ok, "{n}");
    }
    add(&at_a, &[line(3)]).await;
    eventually("the other site knows both tokens", || async { count(other, TOLD).await == 1 })
        .await;

    // The first token is lost with the server, without a word.
    a.kill_9().unwrap();
    for files in first {
        fs::remove_dir_all(files).unwrap();
    }
    use_token(site, SECOND);
    let a = site.start().unwrap();
    let at_a = client(site, Role::Dev).await;
    for n in 1..=3 {
        assert_eq!(at_a.decrypt(&apdu(push(n))).await.unwrap().verdict(), Verdict::Ok, "{n}");
    }
    add(&at_a, &[line(4), line_in_hsm(5)]).await;
    pair.until_proved(site).unwrap();
    // A role record of the second token counts at the other site, and so do its heads of the audit log.
    said_by(site, "demote", &["site", "demote", "--yes"]).unwrap();
    said_by(site, "promote", &["site", "promote", "--yes"]).unwrap();
    pair.until_it_is(other, "SECONDARY", 4).unwrap();
    add(&at_a, &[line(6)]).await;
    let at_b = client(other, Role::Dev).await;
    eventually("the other site follows", || async {
        at_b.decrypt(&apdu(push(6))).await.is_ok_and(|it| it.verdict() == Verdict::Ok)
    })
    .await;
    pair.until_proved(site).unwrap();
    // One chain has heads of both, and so has its copy.
    let ends = good_events(site, &["audit", "verify"]);
    eventually("the copy goes as far, and is good", || async {
        good_events(other, &["audit", "verify", "--of", "site-a"]) >= ends
    })
    .await;
    said_by(site, "plan", &["site", "status", "--readiness"]).unwrap();
    b.stop().unwrap();
    a.stop().unwrap();
    assert_eq!(server(site, "check-config", &[]).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_tokens_that_somebody_changed_is_not_believed() {
    let (_dir, pair) = laid_out();
    let site = &pair.a;
    site.init().unwrap();
    let a = site.start().unwrap();
    enrol_second(site, a);
    let database = site.places().data.join("kms.db");
    let kept = fs::read(&database).unwrap();
    let url = format!("sqlite://{}", database.display());
    let change = "UPDATE site_tokens SET signature = zeroblob(64)";
    for (label, statement) in [(FIRST, change), (SECOND, change)] {
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        use_token(site, label);
        let refused = site.start().unwrap_err().to_string();
        assert!(refused.contains("changed outside this service"), "{label}: {refused}");
        fs::write(&database, &kept).unwrap();
    }
    site.start().unwrap().stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_the_second_token_wrote_comes_back_at_it_and_not_at_the_first_one() {
    let (dir, pair) = laid_out();
    let site = &pair.a;
    site.init().unwrap();
    let a = site.start().unwrap();
    add(&client(site, Role::Dev).await, &[line(1), line_in_hsm(2)]).await;
    enrol_second(site, a);
    let a = site.start().unwrap();
    let at_a = client(site, Role::Dev).await;
    // Which tokens count, and which one this is.
    let known = at_a.site_status().await.unwrap().tokens;
    let in_use: Vec<bool> = known.iter().map(|token| token.in_use).collect();
    assert_eq!(in_use, [true, false], "{known:?}");
    assert!(known.iter().all(|token| token.fingerprint.starts_with(&token.id)), "{known:?}");
    let said = said_by(site, "status", &["site", "status"]).unwrap();
    assert!(said.contains(&format!("site-a {}, in use", known[0].id)), "{said}");

    let backup = dir.path().join("second.backup").display().to_string();
    let (code, said) = server(site, "backup", &["--out", &backup, "--drill"]);
    assert_eq!(code, Some(0), "{said}");
    a.stop().unwrap();
    let lose = || {
        for name in ["kms.db", "kms.db-wal", "kms.db-shm"] {
            let _ = fs::remove_file(site.places().data.join(name));
        }
    };
    lose();
    use_token(site, FIRST);
    let (code, said) = server(site, "restore", &["--from", &backup]);
    assert_ne!(code, Some(0), "{said}");
    lose();
    use_token(site, SECOND);
    let (code, said) = server(site, "restore", &["--from", &backup]);
    assert_eq!(code, Some(0), "{said}");
    // Either token opens what came back.
    for label in [SECOND, FIRST] {
        use_token(site, label);
        let a = site.start().unwrap();
        let at_a = client(site, Role::Dev).await;
        for n in [1, 2] {
            let opened = at_a.decrypt(&apdu(push(n))).await.unwrap().verdict();
            assert_eq!(opened, Verdict::Ok, "{label}: {n}");
        }
        let ids = |known: &[kms_client::SiteToken]| -> BTreeSet<String> {
            known.iter().map(|token| token.id.clone()).collect()
        };
        assert_eq!(ids(&at_a.site_status().await.unwrap().tokens), ids(&known));
        a.stop().unwrap();
    }
}
