//! A site whose token is another vendor's: it joins one on SoftHSM, follows, takes over and is followed. And what it can't
//! do, said before anybody relies on it. Needs `make kryoptic`; left out without.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::path::Path;

use common::{
    client, eventually,
    fleet::{PLAIN, add, apdu, line, line_in_hsm, push},
    programs,
};
use kms_client::{KmsClient, Verdict};
use softhsm_tests::{Module, Pair, Role, Setting, Site, SiteOptions, pair::said_by};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tempfile::TempDir;

fn options(module: &Module) -> SiteOptions {
    let set = |key, value: &str| Setting { section: "peer", key, value: value.to_owned() };
    let settings = vec![set("heartbeat_ms", "300"), set("write_wait_ms", "5000")];
    SiteOptions { module: module.clone(), settings, ..SiteOptions::default() }
}

fn pair(a: &Module, b: &Module) -> (TempDir, Pair) {
    let dir = tempfile::Builder::new().prefix("kms-tokens-").tempdir_in("/dev/shm").unwrap();
    let pair = Pair::make_of(dir.path(), &programs(), [&options(a), &options(b)]).unwrap();
    (dir, pair)
}

/// Exit code and all that was said.
fn server(site: &Site, verb: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = site.command(verb).args(arguments).output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// Heads and records as they are stored, byte for byte.
async fn contents(site: &Site) -> Vec<String> {
    let url = format!("sqlite://{}", site.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query(
        "SELECT block || '/' || secret_version || '/' || epoch || '/' || sequence || '/' || hex(digest) || '/' || \
         hex(mac) FROM blocks UNION ALL SELECT block || '/' || epoch || '/' || sequence || '/' || hex(mac) || '/' || \
         hex(body) FROM records ORDER BY 1",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    database.close().await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn in_step(pair: &Pair) {
    eventually("the sites are in step", || async {
        contents(&pair.a).await == contents(&pair.b).await
    })
    .await;
}

/// Meters of both protections.
fn lines(from: u64, to: u64) -> Vec<String> {
    (from..=to).map(|n| if n % 5 == 0 { line_in_hsm(n) } else { line(n) }).collect()
}

async fn opens_all(client: &KmsClient, to: u64) {
    let pushes: Vec<_> = (1..=to).map(|n| apdu(push(n))).collect();
    for (opened, n) in client.decrypt_batch(pushes).await.unwrap().iter().zip(1..) {
        assert_eq!(opened.verdict(), Verdict::Ok, "meter {n}: {opened:?}");
        assert_eq!(opened.plaintext.as_deref(), Some(PLAIN), "meter {n}");
    }
}

fn ready_and_green(site: &Site) -> bool {
    let said = said_by(site, "status", &["site", "status", "--json"]).unwrap();
    let status: serde_json::Value = serde_json::from_str(&said).unwrap();
    status["replication"]["colour"] == "GREEN"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_on_another_vendors_token_joins_one_on_softhsm_takes_over_and_is_followed() {
    let Some(kryoptic) = Module::kryoptic_for("a site on another vendor's token") else { return };
    let (_dir, pair) = pair(&Module::SoftHsm, &kryoptic);
    let (first, second) = (&pair.a, &pair.b);
    let (a, b) = tokio::task::block_in_place(|| pair.start()).unwrap();
    let at_a = client(first, Role::Dev).await;
    add(&at_a, &lines(1, 60)).await;
    in_step(&pair).await;
    // Each block opens under the other token, and the one that writes knows it.
    tokio::task::block_in_place(|| pair.until_proved(first)).unwrap();
    eventually("green", async || ready_and_green(first) && ready_and_green(second)).await;
    let at_b = client(second, Role::Dev).await;
    opens_all(&at_b, 60).await;

    // The first site is gone: the second one writes, with keys of both protections that its own token makes.
    a.kill_9().unwrap();
    let promote = ["site", "promote", "--primary-is-lost", "--yes"];
    said_by(second, "promote", &promote).unwrap();
    add(&at_b, &lines(61, 120)).await;
    opens_all(&at_b, 120).await;

    // It comes back, follows, and opens what the other vendor's token wrapped.
    let a = first.start().unwrap();
    in_step(&pair).await;
    tokio::task::block_in_place(|| pair.until_proved(second)).unwrap();
    opens_all(&client(first, Role::Dev).await, 120).await;
    b.stop().unwrap();
    a.stop().unwrap();
}

/// A sentence that has to come before somebody builds on it.
const NEVER: &str = "its sealed KEKs can never be handed on";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_hands_no_kek_on_says_so_before_a_second_site_is_planned() {
    let Some(kryoptic) = Module::kryoptic_for("a token that hands no KEK on") else { return };
    let (_dir, pair) = pair(&kryoptic, &Module::SoftHsm);
    let first = &pair.a;
    let so_pin = first.places().so_pin.display().to_string();
    let (code, said) = server(first, "init", &["--create-token", "--so-pin-file", &so_pin]);
    assert_eq!(code, Some(0), "{said}");
    let told = said.lines().find(|line| line.starts_with("a second site")).expect(&said);
    assert!(told.contains(NEVER), "{told}");
    let (code, said) = server(first, "trust-peer", &["--try", "--so-pin-file", &so_pin]);
    assert!(code != Some(0) && said.contains(NEVER), "{said}");
    let (_, said) = server(first, "probe-hsm", &[]);
    let row = said.lines().find(|line| line.contains("can be handed on to another site"));
    let row = row.expect(&said);
    assert!(row.contains(NEVER) && !row.starts_with("ok"), "{row}");
    let a = first.start().unwrap();
    let plan = first.ami_tool(Role::AmiAdmin).run(&["site", "plan"], "").unwrap();
    let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.contains(NEVER), "{plan}");
    // Whoever goes on all the same is refused where the officer would have to act.
    let (request, fingerprint) = pair.ask().unwrap();
    let refused = pair.enrol(&request, &fingerprint).unwrap_err().to_string();
    assert!(refused.contains(NEVER), "{refused}");
    assert!(Path::new(&request).exists());
    a.stop().unwrap();
}
