//! A third site, read-only for ever: enrolled by the ceremony under a token of its own, by the real programs. It follows
//! whoever writes, opens what meters send, and neither writes, nor is promoted, nor witnesses anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::fs;

use common::{
    client, eventually,
    fleet::{add, apdu, import, line, line_in_hsm, parsed, push, title},
    programs,
};
use kms_client::{CallError, ImportRules, MeterName, PlainApdu, Protecting, Replicated, Verdict};
use softhsm_tests::{
    Pair, Role, Running, Setting, Site, SiteOptions,
    pair::{enrol_into, said_by},
};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

/// Three sites that serve.
struct World {
    pair: Pair,
    a: Option<Running>,
    b: Option<Running>,
    c: Site,
    c_runs: Option<Running>,
    _dir: TempDir,
}

impl World {
    /// The replica follows these.
    fn start(follows: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("kms-trio-").tempdir_in("/dev/shm").unwrap();
        let set = |key, value: &str| Setting { section: "peer", key, value: value.to_owned() };
        let settings = vec![set("heartbeat_ms", "300"), set("compare_interval_s", "5")];
        let options = SiteOptions { settings, ..SiteOptions::default() };
        let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
        let (a, b) = pair.start().unwrap();
        let c = pair.replica(&dir.path().join("site-c"), follows, &options).unwrap();
        enrol_into(&pair.a, &c).unwrap();
        let c_runs = Some(c.start().unwrap());
        Self { pair, a: Some(a), b: Some(b), c, c_runs, _dir: dir }
    }

    fn end(self) {
        for running in [self.a, self.b, self.c_runs].into_iter().flatten() {
            running.stop().unwrap();
        }
    }
}

async fn rows(site: &Site, query: &'static str) -> Vec<String> {
    let url = format!("sqlite://{}", site.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query(query).fetch_all(&mut database).await.unwrap();
    database.close().await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// All heads and all records of a site.
async fn contents(site: &Site) -> Vec<String> {
    let heads = rows(
        site,
        "SELECT block || '/' || epoch || '/' || sequence || '/' || count || '/' || hex(digest) || '/' || hex(mac) \
         FROM blocks ORDER BY block",
    );
    let records = rows(
        site,
        "SELECT block || '/' || hex(key) || '/' || epoch || '/' || sequence || '/' || hex(mac) || '/' || hex(body) \
         FROM records ORDER BY block, key",
    );
    [heads.await, records.await].concat()
}

async fn in_step(first: &Site, second: &Site) {
    eventually("the sites are in step", || async {
        contents(first).await == contents(second).await
    })
    .await;
}

async fn opens(site: &Site, n: u64) -> Verdict {
    client(site, Role::Dev).await.decrypt(&apdu(push(n))).await.unwrap().verdict()
}

/// All that `ami-tool` of the administrator says to a call that is refused.
#[track_caller]
fn refusal(site: &Site, arguments: &[&str]) -> String {
    let output = site.ami_tool(Role::AmiAdmin).run(arguments, "").unwrap();
    assert!(!output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// All that a server says that does not start.
#[track_caller]
fn refused_start(site: &Site) -> String {
    site.start().map(drop).expect_err("it must not start").to_string()
}

/// The reason word of an import that is refused.
async fn refused_import(site: &Site, n: u64) -> String {
    let at_site = client(site, Role::Dev).await;
    let lines = tokio_stream::iter(parsed(&line(n)));
    let mut results = at_site.meters().import(lines, ImportRules::default());
    match results.next().await.unwrap() {
        Ok(result) => result.code,
        Err(CallError::Refused { code, .. }) => code,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_replica_follows_and_opens_and_is_neither_written_to_nor_promoted() {
    let mut world = World::start(&["site-a", "site-b"]);
    let (a, b, c) = (&world.pair.a, &world.pair.b, &world.c);
    let lines: Vec<String> =
        (1..=40).map(|n| if n % 5 == 0 { line_in_hsm(n) } else { line(n) }).collect();
    add(&client(a, Role::Dev).await, &lines).await;
    in_step(a, c).await;
    let at_c = client(c, Role::Dev).await;
    let pushes: Vec<_> = (1..=40).map(|n| apdu(push(n))).collect();
    for opened in at_c.decrypt_batch(pushes).await.unwrap() {
        assert_eq!(opened.verdict(), Verdict::Ok, "{opened:?}");
    }
    let status = said_by(c, "site status", &["site", "status", "--json"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["standing"]["role"], "REPLICA", "{status}");
    assert_eq!(refused_import(c, 99).await, "NOT_PRIMARY");
    let named =
        PlainApdu { bytes: b"\xC0\x01".as_slice().into(), meter: MeterName::Title(title(1)) };
    match at_c.encrypt_batch(&[named], Protecting::default()).await {
        Err(CallError::Refused { code, .. }) => assert_eq!(code, "NOT_PRIMARY"),
        sent => panic!("{sent:?}"),
    }
    let promote = ["site", "promote", "--yes"];
    for more in [&[][..], &["--primary-is-lost"], &["--primary-is-lost", "--although-unproved"]] {
        let said = refusal(c, &[&promote, more].concat());
        assert!(said.contains("READ_ONLY_REPLICA"), "{said}");
    }
    for said in [refusal(c, &["site", "demote", "--yes"]), refusal(c, &["site", "plan"])] {
        assert!(said.contains("READ_ONLY_REPLICA"), "{said}");
    }
    assert!(rows(c, "SELECT CAST(epoch AS TEXT) FROM role_records").await.is_empty());
    // Only the other site's word makes a write replicated: one that the replica alone has is one that may be lost.
    world.b.take().unwrap().stop().unwrap();
    for result in import(&client(a, Role::Dev).await, &[line(50)]).await {
        assert_eq!((result.code.as_str(), result.replicated), ("", Replicated::Unreplicated));
    }
    in_step(a, c).await;
    assert_ne!(contents(a).await, contents(b).await);
    world.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_follows_whoever_is_promoted_and_parts_with_what_only_the_lost_site_wrote() {
    let mut world = World::start(&["site-a", "site-b"]);
    let (a, b, c) = (&world.pair.a, &world.pair.b, &world.c);
    add(&client(a, Role::Dev).await, &(1..=20).map(line).collect::<Vec<_>>()).await;
    in_step(a, b).await;
    world.pair.until_proved(a).unwrap();
    // What it writes alone reaches the replica, and nobody else.
    world.b.take().unwrap().kill_9().unwrap();
    add(&client(a, Role::Dev).await, &[line(21)]).await;
    in_step(a, c).await;
    assert_eq!(opens(c, 21).await, Verdict::Ok);
    world.a.take().unwrap().kill_9().unwrap();
    world.b = Some(b.start().unwrap());
    said_by(
        b,
        "promote",
        &["site", "promote", "--primary-is-lost", "--although-unproved", "--yes"],
    )
    .unwrap();
    add(&client(b, Role::Dev).await, &[line(31)]).await;
    in_step(b, c).await;
    world.pair.until_it_is(c, "REPLICA", 3).unwrap();
    assert_eq!((opens(c, 31).await, opens(c, 21).await), (Verdict::Ok, Verdict::UnknownMeter));
    assert_eq!(rows(c, "SELECT hex(key) FROM divergence").await.len(), 1, "kept for people");
    // It is no help to a promotion, and has not become what it follows.
    let said = refusal(c, &["site", "promote", "--primary-is-lost", "--yes"]);
    assert!(said.contains("READ_ONLY_REPLICA"), "{said}");
    world.a = Some(a.start().unwrap());
    in_step(a, b).await;
    add(&client(b, Role::Dev).await, &[line(32)]).await;
    in_step(b, c).await;
    // It was killed in the middle of whatever it does, and goes on.
    world.c_runs.take().unwrap().kill_9().unwrap();
    add(&client(b, Role::Dev).await, &[line(33)]).await;
    world.c_runs = Some(c.start().unwrap());
    in_step(b, c).await;
    assert_eq!(opens(c, 33).await, Verdict::Ok);
    world.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_may_follow_a_site_that_follows_itself_and_nobody_takes_it_for_a_witness() {
    let mut world = World::start(&["site-b"]);
    let (a, c) = (&world.pair.a, &world.c);
    add(&client(a, Role::Dev).await, &(1..=10).map(line).collect::<Vec<_>>()).await;
    in_step(a, c).await;
    assert_eq!(opens(c, 10).await, Verdict::Ok);
    // In the place of the other site it is refused, whoever has made that mistake.
    world.a.take().unwrap().stop().unwrap();
    let settings = fs::read_to_string(&a.places().kms_toml).unwrap();
    fs::write(&a.places().kms_toml, settings.replace("site = \"site-b\"", "site = \"site-c\""))
        .unwrap();
    let said = refused_start(a);
    assert!(said.contains("a read-only replica"), "{said}");
    fs::write(&a.places().kms_toml, settings).unwrap();
    // And it stays what the ceremony made of it.
    world.c_runs.take().unwrap().stop().unwrap();
    let settings = fs::read_to_string(&c.places().kms_toml).unwrap();
    let changed = settings.replace("read_only = true", "read_only = false");
    assert_ne!(changed, settings);
    fs::write(&c.places().kms_toml, changed).unwrap();
    let said = refused_start(c);
    assert!(said.contains("never changes"), "{said}");
    world.end();
}
