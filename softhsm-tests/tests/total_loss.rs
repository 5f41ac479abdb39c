//! A site that lost its token and its database is recovered from the other one, step by step as the handbook says it:
//! real servers, two SoftHSM tokens, two SQLite databases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{ffi::OsStr, fs, path::Path};

use common::fleet::{add, apdu, line, push};
use kms_client::{ClientConfig, KmsClient, Verdict};
use softhsm_tests::{Pair, Programs, Role, ServerError, Site, SiteOptions, pair::said_by};

async fn client(site: &Site) -> KmsClient {
    let config = ClientConfig::load(&site.client_toml(Role::Dev)).unwrap();
    KmsClient::connect(config).await.unwrap()
}

async fn opens(site: &Site, n: u64) -> Verdict {
    client(site).await.decrypt(&apdu(push(n))).await.unwrap().verdict()
}

fn run(site: &Site, verb: &'static str, arguments: &[&str]) -> String {
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    let said = site.run(verb, &arguments).unwrap();
    println!("$ kms-server {verb}\n{said}");
    said
}

fn tool(site: &Site, arguments: &[&str]) -> String {
    let said = said_by(site, "ami-tool", arguments).unwrap();
    println!("$ ami-tool {}\n{said}", arguments[..2].join(" "));
    said
}

/// The line of a report that begins with `what`.
fn told(said: &str, what: &str) -> String {
    let line = said.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {what}: {said}")).trim().to_owned()
}

fn empty(directory: &Path) {
    fs::remove_dir_all(directory).unwrap();
    fs::create_dir(directory).unwrap();
}

#[tokio::test]
async fn invariant_4_a_site_that_lost_token_and_database_gets_everything_from_the_other_one() {
    let dir = tempfile::Builder::new().prefix("kms-loss-").tempdir_in("/dev/shm").unwrap();
    let pair = Pair::make(dir.path(), &Programs::find().unwrap(), &SiteOptions::default()).unwrap();
    let (a, _b) = pair.start().unwrap();
    let (lost, other) = (&pair.a, &pair.b);
    add(&client(lost).await, &[line(1), line(2)]).await;
    pair.until_proved(lost).unwrap();
    let backup = dir.path().join("a.backup");
    run(lost, "backup", &["--out", backup.to_str().unwrap()]);

    // The primary burns down.
    a.kill_9().unwrap();
    empty(&lost.places().tokens);
    empty(&lost.places().data);
    tool(other, &["site", "promote", "--primary-is-lost", "--yes"]);
    add(&client(other).await, &[line(3)]).await;

    // It joins anew, with a new token.
    let place = |site: &Site, name: &str| site.places().dir.join(name).display().to_string();
    let (request, bundle) = (place(lost, "join.request"), place(other, "bundle"));
    let so_pin = |site: &Site| site.places().so_pin.display().to_string();
    let ours = so_pin(lost);
    let said = run(
        lost,
        "init",
        &["--join", "--request", &request, "--create-token", "--so-pin-file", &ours],
    );
    let fingerprint = told(&said, "fingerprint");
    let theirs = so_pin(other);
    run(
        other,
        "trust-peer",
        &["--request", &request, "--fingerprint", &fingerprint, "--so-pin-file", &theirs],
    );
    let enrol = ["site", "enrol", "--request", &request, "--fingerprint", &fingerprint];
    let enrol = [&enrol[..], &["--out", &bundle]].concat();
    let refused = said_by(other, "enrol", &enrol).unwrap_err().to_string();
    assert!(refused.contains("PEER_EXISTS"), "{refused}");
    let said = tool(other, &[&enrol[..], &["--replace"]].concat());
    let fingerprint = told(&said, "fingerprint");
    run(lost, "init", &["--join", "--bundle", &bundle, "--fingerprint", &fingerprint]);
    let _a = lost.start().unwrap();
    pair.until_proved(other).unwrap();
    for n in 1..4 {
        assert_eq!(opens(lost, n).await, Verdict::Ok, "{n}");
    }
    // What the old token made is nothing any more.
    let from = ["--verify-only", "--from", backup.to_str().unwrap()].map(OsStr::new);
    let Err(ServerError::Failed { output, .. }) = lost.run("restore", &from) else {
        panic!("a backup of a token that is gone was opened");
    };
    println!("{output}");
    // And it becomes the primary again, in order.
    let both = pair.client_toml(Role::AmiAdmin).unwrap();
    let tool = softhsm_tests::AmiTool::new(&lost.programs().ami_tool, &both);
    println!("{}", tool.succeed(&["site", "switchover", "site-a", "--yes"]).unwrap());
    add(&client(lost).await, &[line(4)]).await;
    assert_eq!(opens(lost, 4).await, Verdict::Ok);
}
