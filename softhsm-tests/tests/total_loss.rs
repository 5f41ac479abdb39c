//! A site that lost its token and its database is recovered from the other one, step by step as the handbook says it:
//! real servers, two SoftHSM tokens, two SQLite databases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{cell::Cell, ffi::OsStr, fs, path::Path};

use common::fleet::{add, apdu, line, push, title};
use kms_client::{
    ClientConfig, CounterDeclaration, KmsClient, MeterName, PlainApdu, Protecting, Verdict,
};
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
    let former = dir.path().join("former");
    for (place, name) in [(&lost.places().tokens, "tokens"), (&lost.places().data, "data")] {
        common::copy(place, &former.join(name));
        empty(place);
    }
    tool(other, &["site", "promote", "--primary-is-lost", "--yes"]);
    add(&client(other).await, &[line(3)]).await;

    joins_anew(lost, other);
    let a = lost.start().unwrap();
    pair.until_proved(other).unwrap();
    assert!(a.stop().unwrap().success());
    an_old_copy_comes_back(lost, other, &former).await;
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
    // And it becomes the primary again, in order, above all epochs that it may have been in.
    let both = pair.client_toml(Role::AmiAdmin).unwrap();
    let tool = softhsm_tests::AmiTool::new(&lost.programs().ami_tool, &both);
    let back = ["site", "switchover", "site-a", "--yes", "--above-epoch", "3"];
    println!("{}", tool.succeed(&back).unwrap());
    pair.until_it_is(lost, "PRIMARY", 4).unwrap();
    add(&client(lost).await, &[line(4)]).await;
    assert_eq!(opens(lost, 4).await, Verdict::Ok);
}

/// Somebody starts what was left of the lost site, in the place of the rebuilt one. Both sites say what it is.
async fn an_old_copy_comes_back(lost: &Site, other: &Site, former: &Path) {
    let places = [(&lost.places().tokens, "tokens"), (&lost.places().data, "data")];
    for (place, name) in places {
        fs::rename(place, place.with_extension("rebuilt")).unwrap();
        common::copy(&former.join(name), place);
    }
    let old = lost.start().unwrap();
    for (site, what) in [
        (other, "an old copy of site site-a answers in its place"),
        (lost, "this is an old copy of it, to be stopped for good"),
    ] {
        common::eventually(what, async || {
            let status = client(site).await.site_status().await.unwrap();
            status.faults.iter().any(|fault| fault.contains(what))
        })
        .await;
    }
    assert!(old.stop().unwrap().success());
    for (place, _) in places {
        fs::remove_dir_all(place).unwrap();
        fs::rename(place.with_extension("rebuilt"), place).unwrap();
    }
}

/// A site whose token and database are gone joins with new ones.
fn joins_anew(lost: &Site, other: &Site) {
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
    let said = run(lost, "init", &["--join", "--bundle", &bundle, "--fingerprint", &fingerprint]);
    assert!(said.contains("it was rebuilt"), "{said}");
}

const CLIENT: &str = "414D494845530001";

/// A meter that is sent to.
fn talking(n: u64) -> String {
    let line = line(n);
    let head = line.strip_suffix('}').unwrap();
    format!(r#"{head},"policy":{{"client_title":"{CLIENT}"}}}}"#)
}

async fn declare(client: &KmsClient, n: u64) {
    let declaration = CounterDeclaration {
        meter: MeterName::Title(title(n)),
        security_setup: 0,
        client: 0,
        broadcast: false,
        last_invocation_counter: Some(0x1234),
    };
    client.meters().declare_counter(&declaration).await.unwrap();
}

/// The counter of what is sent to a meter, once something is.
async fn sent(client: &KmsClient, n: u64) -> u32 {
    let apdu =
        PlainApdu { bytes: [0xC0, 1, 0xC1].as_slice().into(), meter: MeterName::Title(title(n)) };
    let counter = Cell::new(None);
    common::eventually("something is sent", || async {
        let all = client.encrypt_batch(std::slice::from_ref(&apdu), Protecting::default()).await;
        let protected = all.unwrap().remove(0);
        if let Some(reason) = protected.reason {
            println!("{reason}");
        }
        counter.set(protected.invocation_counter);
        counter.get().is_some()
    })
    .await;
    counter.get().unwrap()
}

#[tokio::test]
async fn invariant_3_a_site_that_was_promoted_unheard_of_and_lost_takes_no_epoch_of_then_again() {
    let dir = tempfile::Builder::new().prefix("kms-loss-").tempdir_in("/dev/shm").unwrap();
    let pair = Pair::make(dir.path(), &Programs::find().unwrap(), &SiteOptions::default()).unwrap();
    let (a, b) = pair.start().unwrap();
    let (lost, other) = (&pair.a, &pair.b);
    let both = pair.client_toml(Role::AmiAdmin).unwrap();
    let both = softhsm_tests::AmiTool::new(&lost.programs().ami_tool, &both);
    let at_lost = client(lost).await;
    add(&at_lost, &[talking(1)]).await;
    declare(&at_lost, 1).await;
    pair.until_proved(lost).unwrap();
    // The second site, which is new, is asked for no epoch.
    both.succeed(&["site", "switchover", "site-b", "--yes"]).unwrap();
    pair.until_proved(other).unwrap();
    // Cut off, the first one is promoted, and sends at once. The other one writes in 3 and never hears of it.
    b.kill_9().unwrap();
    tool(lost, &["site", "promote", "--primary-is-lost", "--yes"]);
    pair.until_it_is(lost, "PRIMARY", 4).unwrap();
    let before = sent(&client(lost).await, 1).await;
    a.kill_9().unwrap();
    empty(&lost.places().tokens);
    empty(&lost.places().data);
    let _b = other.start().unwrap();
    pair.until_it_is(other, "PRIMARY", 3).unwrap();
    joins_anew(lost, other);
    let _a = lost.start().unwrap();
    pair.until_proved(other).unwrap();
    let faults = client(lost).await.site_status().await.unwrap().faults.join("; ");
    assert!(faults.contains("is a new one (rebuilt: site site-b knew"), "{faults}");
    // Nobody is demoted before somebody names the epoch.
    let switchover = ["site", "switchover", "site-a", "--yes"];
    let refused = both.succeed(&switchover).unwrap_err().to_string();
    assert!(refused.contains("rebuilt: site site-b knew a site site-a before"), "{refused}");
    pair.until_it_is(other, "PRIMARY", 3).unwrap();
    both.succeed(&[&switchover[..], &["--above-epoch", "4"]].concat()).unwrap();
    pair.until_it_is(lost, "PRIMARY", 6).unwrap();
    // Two people tell the other site of an epoch that is more than one step ahead: of records that a lost token signed, too.
    let admit = ["site", "admit-epoch", "6"];
    let asked = other.ami_tool(Role::AmiAdmin).succeed(&admit).unwrap_err().to_string();
    let (_, rest) = asked.split_once("approvals approve ").expect(&asked);
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    other.ami_tool(Role::Approver).succeed(&["approvals", "approve", &number, "--yes"]).unwrap();
    other.ami_tool(Role::AmiAdmin).succeed(&admit).unwrap();
    pair.until_it_is(other, "SECONDARY", 6).unwrap();
    let after = sent(&client(lost).await, 1).await;
    println!("{before:08X} in epoch 4, {after:08X} in epoch 6");
    assert!(after >> 24 > before >> 24, "{after:08X} after {before:08X}");
    let faults = client(lost).await.site_status().await.unwrap().faults.join("; ");
    assert!(!faults.contains("rebuilt"), "{faults}");
}
