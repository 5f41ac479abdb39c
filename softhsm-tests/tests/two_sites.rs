//! Two sites by the real programs: each with a token and a database of its own, enrolled by the ceremony, following
//! each other over TLS, and killed with -9.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{net::SocketAddr, time::Duration};

use common::{
    Numbers, client, eventually,
    fleet::{PLAIN, add, apdu, id, line, line_in_hsm, parsed, push},
    free_address, metrics_of, programs,
};
use kms_client::{ImportRules, MeterPolicy, Replicated, Verdict};
use rustix::process::Signal;
use softhsm_tests::{Pair, Role, Running, Setting, Site, SiteOptions, sealing::Signing};
use sqlx::{Connection as _, Row as _, SqliteConnection, sqlite::SqliteRow};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

/// Kills of the site that follows, and of the one that writes.
const KILLS: u64 = 6;

/// Two sites of one domain, enrolled and serving, in memory.
fn pair() -> (TempDir, Pair, (Running, Running)) {
    pair_with(Vec::new())
}

fn pair_with(more: Vec<Setting>) -> (TempDir, Pair, (Running, Running)) {
    pair_of([more.clone(), more])
}

/// The same, each with settings of its own.
fn pair_of(more: [Vec<Setting>; 2]) -> (TempDir, Pair, (Running, Running)) {
    pair_like(more, SiteOptions::default())
}

fn pair_of_blocks(block_count: u32) -> (TempDir, Pair, (Running, Running)) {
    // Writes to blocks that are refused would wait for the other site.
    let wait = Setting { section: "peer", key: "write_wait_ms", value: "0".to_owned() };
    let like = SiteOptions { block_count, ..SiteOptions::default() };
    pair_like([vec![wait.clone()], vec![wait]], like)
}

fn pair_like(more: [Vec<Setting>; 2], like: SiteOptions) -> (TempDir, Pair, (Running, Running)) {
    let dir = tempfile::Builder::new().prefix("kms-pair-").tempdir_in("/dev/shm").unwrap();
    let set = |key, value: &str| Setting { section: "peer", key, value: value.to_owned() };
    let options = more.map(|more| {
        let mut settings = vec![
            set("heartbeat_ms", "300"),
            set("write_wait_ms", "5000"),
            set("compare_interval_s", "5"),
        ];
        settings.extend(more);
        SiteOptions { settings, ..like.clone() }
    });
    let pair = Pair::make_of(dir.path(), &programs(), options.each_ref()).unwrap();
    let running = pair.start().unwrap();
    (dir, pair, running)
}

/// Heads and records as they are stored, byte for byte.
async fn contents(site: &Site) -> Vec<Vec<u8>> {
    let url = format!("sqlite://{}", site.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let mut all = Vec::new();
    for query in [
        "SELECT CAST(block || '/' || secret_version || '/' || epoch || '/' || sequence || '/' || count || '/' || \
         hex(digest) || '/' || hex(mac) AS BLOB) FROM blocks ORDER BY block",
        "SELECT CAST(block || '/' || epoch || '/' || sequence || '/' || secret_version || '/' || hex(mac) || '/' || \
         hex(body) AS BLOB) FROM records ORDER BY block, sequence, mac",
    ] {
        let rows = sqlx::query(query).fetch_all(&mut database).await.unwrap();
        all.extend(rows.iter().map(|row| row.get::<Vec<u8>, _>(0)));
    }
    database.close().await.unwrap();
    all
}

async fn in_step(first: &Site, second: &Site) {
    eventually("the sites are in step", || async {
        contents(first).await == contents(second).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_site_imports_opens_at_the_other_under_a_token_of_its_own() {
    let (_dir, pair, (a, b)) = pair();
    let (first, second) = (&pair.a, &pair.b);
    let (at_a, at_b) = (client(first, Role::Dev).await, client(second, Role::Dev).await);
    let lines: Vec<String> =
        (1..=60).map(|n| if n % 5 == 0 { line_in_hsm(n) } else { line(n) }).collect();
    add(&at_a, &lines).await;
    in_step(first, second).await;
    let pushes: Vec<_> = (1..=60).map(|n| apdu(push(n))).collect();
    for opened in at_b.decrypt_batch(pushes).await.unwrap() {
        assert_eq!(opened.verdict(), Verdict::Ok, "{opened:?}");
        assert_eq!(opened.plaintext.as_deref(), Some(PLAIN));
    }
    // A policy is a change like others: it says whether the other site has it.
    let set = async || {
        let policy = MeterPolicy::default();
        at_a.meters().set_policy(&id(1).parse().unwrap(), &policy).await.unwrap().1
    };
    assert_eq!(set().await, Replicated::Replicated);
    // The site that follows takes no change.
    let late = tokio_stream::iter(parsed(&line(99)));
    let mut results = at_b.meters().import(late, ImportRules::default());
    let refused = results.next().await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("changes go to the primary site"), "{refused}");
    b.stop().unwrap();
    assert_eq!(set().await, Replicated::Unreplicated);
    a.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_the_site_that_writes_says_how_far_its_follower_is_behind() {
    let (_dir, pair, (a, b)) = pair();
    pair.until_proved(&pair.a).unwrap();
    let at_a = client(&pair.a, Role::Dev).await;
    let lag = || async {
        let status = at_a.site_status().await.unwrap();
        let followers = status.replication.unwrap().followers;
        assert!(followers.len() < 2, "{followers:?}");
        followers.into_iter().next()
    };
    eventually("the follower has everything", || async {
        lag().await.is_some_and(|it| it.site == "site-b" && it.behind_ms.is_none())
    })
    .await;
    b.signal(Signal::STOP).unwrap();
    add(&at_a, &[line(1), line(2)]).await;
    eventually("it is behind by what was imported", || async {
        let lag = lag().await;
        lag.is_some_and(|it| {
            it.behind_ms.is_some() && it.changes_behind >= 2 && it.blocks_behind > 0
        })
    })
    .await;
    let said = pair.a.ami_tool(Role::Dev).status().unwrap();
    assert!(said.contains("site-b is BEHIND by "), "{said}");
    b.signal(Signal::CONT).unwrap();
    eventually("it has caught up", || async {
        lag().await.is_some_and(|it| it.behind_ms.is_none())
    })
    .await;
    b.stop().unwrap();
    a.stop().unwrap();
}

/// More blocks than may be on their way are damaged at the site that follows, and each changes twice.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_are_refused_keep_none_of_the_others_waiting_however_many_they_are() {
    const BLOCKS: u32 = 1_024;
    const DAMAGED: u32 = 700;
    let (_dir, pair, (a, b)) = pair_of_blocks(BLOCKS);
    let (first, second) = (&pair.a, &pair.b);
    b.stop().unwrap();
    let mut database = database(second).await;
    let damage = "UPDATE blocks SET mac = zeroblob(16) WHERE block < ?";
    sqlx::query(damage).bind(DAMAGED).execute(&mut database).await.unwrap();
    let b = second.start().unwrap();
    let at_a = client(first, Role::Dev).await;
    let admin = client(second, Role::Dev).await;
    let refused = || async {
        let replication = admin.site_status().await.unwrap().replication.unwrap();
        replication.following.unwrap().refused_count
    };
    let mut number = 0;
    for round in 1..=3 {
        let lines: Vec<String> = (number + 1..=number + 4_000).map(line).collect();
        number += 4_000;
        add(&at_a, &lines).await;
        let sound = "SELECT block, epoch, sequence FROM blocks WHERE block >= ? ORDER BY block";
        eventually("the sound blocks are in step", || async {
            let mut both = Vec::new();
            for site in [first, second] {
                let mut database = self::database(site).await;
                let rows = sqlx::query(sound).bind(DAMAGED).fetch_all(&mut database).await.unwrap();
                let row = |row: &SqliteRow| (row.get::<i64, _>(1), row.get::<i64, _>(2));
                both.push(rows.iter().map(row).collect::<Vec<_>>());
            }
            both[0] == both[1]
        })
        .await;
        eventually("the damaged ones are refused", || async { refused().await >= DAMAGED - 20 })
            .await;
        assert!(round == 1 || refused().await <= DAMAGED);
    }
    b.stop().unwrap();
    a.stop().unwrap();
}

async fn database(site: &Site) -> SqliteConnection {
    let url = format!("sqlite://{}", site.places().data.join("kms.db").display());
    SqliteConnection::connect(&url).await.unwrap()
}

/// The entry by which the other site is let in.
const LETS_IN: &str = "[[rpc.callers]]\nname = \"site-b\"\nroles = [\"peer\"]\n\n";

/// As the site that writes says it: the colour, its sentence about nobody who follows, its figure.
async fn told(site: &Site, metrics: SocketAddr) -> (String, Option<String>, String) {
    let status = client(site, Role::Dev).await.site_status().await.unwrap();
    let replication = status.replication.unwrap();
    let fault = status.faults.into_iter().find(|it| it.contains("does not follow this site"));
    assert_eq!(fault.is_some(), replication.unfollowed_ms.is_some(), "{fault:?}");
    let page = metrics_of(metrics);
    let figure = page.lines().find(|line| line.starts_with("kms_followed "));
    (replication.colour, fault, figure.unwrap_or_default().to_owned())
}

/// All blocks stay proved meanwhile: proofs go the other way.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_nobody_follows_says_so_by_name_and_a_short_reconnect_is_no_alarm() {
    let metrics = free_address();
    let address = Setting { section: "metrics", key: "listen", value: format!("\"{metrics}\"") };
    let (_dir, pair, (a, b)) = pair_of([vec![address], Vec::new()]);
    let (first, second) = (&pair.a, &pair.b);
    pair.until_proved(first).unwrap();
    let green = ("GREEN".to_owned(), None, "kms_followed 1".to_owned());
    eventually("it is followed", || async { told(first, metrics).await == green }).await;
    // A restart of the follower, and of the site that writes.
    b.stop().unwrap();
    let b = second.start().unwrap();
    eventually("it is followed again", || async {
        let (_, fault, figure) = told(first, metrics).await;
        assert_eq!((fault, figure.as_str()), (None, "kms_followed 1"));
        followers(first).await == 1
    })
    .await;
    a.stop().unwrap();
    let text = std::fs::read_to_string(&first.places().kms_toml).unwrap();
    assert!(text.contains(LETS_IN), "{text}");
    std::fs::write(&first.places().kms_toml, text.replace(LETS_IN, "")).unwrap();
    let a = first.start().unwrap();
    assert_eq!(told(first, metrics).await.1, None, "it has just started");
    eventually("it says whom it turns away", || async {
        let (colour, fault, figure) = told(first, metrics).await;
        fault.is_some_and(|fault| {
            assert_eq!((colour.as_str(), figure.as_str()), ("YELLOW", "kms_followed 0"), "{fault}");
            fault.contains("site-b does not follow this site at all")
                && fault.contains("site-b, was turned away")
                && fault.contains("the policy does not know site-b (UNKNOWN_CALLER)")
        })
    })
    .await;
    let said = first.ami_tool(Role::Dev).status().unwrap();
    assert!(said.contains("site-b does NOT FOLLOW, for "), "{said}");
    a.stop().unwrap();
    std::fs::write(&first.places().kms_toml, text).unwrap();
    let a = first.start().unwrap();
    eventually("it is let in", || async { told(first, metrics).await == green }).await;
    eventually("it follows", || async { followers(first).await == 1 }).await;
    b.kill_9().unwrap();
    eventually("it is missed", || async {
        told(first, metrics).await.1.is_some_and(|fault| {
            fault.contains("does not follow this site any more")
                && fault.contains("does not answer")
        })
    })
    .await;
    a.stop().unwrap();
}

async fn followers(site: &Site) -> usize {
    let status = client(site, Role::Dev).await.site_status().await.unwrap();
    status.replication.unwrap().followers.len()
}

/// The follower's stream never ends by itself: whoever waited for it waited for half of `drain_timeout_ms`.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_is_followed_and_does_nothing_else_ends_at_once() {
    let (_dir, pair, (a, b)) = pair();
    pair.until_proved(&pair.a).unwrap();
    let log = pair.a.places().log.clone();
    a.stop().unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    let last = said.lines().rfind(|line| line.contains("all connections have ended"));
    let last = last.unwrap_or_else(|| panic!("{said}"));
    assert!(["Draining", "Idle"].iter().any(|phase| last.contains(phase)), "{last}");
    b.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_4_a_kill_of_either_site_in_mid_copy_loses_nothing_and_both_end_alike() {
    let (_dir, pair, (mut a, mut b)) = pair();
    let (first, second) = (&pair.a, &pair.b);
    let mut numbers = Numbers::fresh();
    let mut imported = 0;
    for round in 0..KILLS {
        let at_a = client(first, Role::Dev).await;
        let lines: Vec<String> = (imported + 1..=imported + 300).map(line).collect();
        imported += 300;
        let loading = async { add(&at_a, &lines).await };
        let killing = async {
            tokio::time::sleep(Duration::from_millis(numbers.below(1_000))).await;
            b.kill_9().unwrap();
        };
        tokio::join!(loading, killing);
        if round % 2 == 1 {
            a.kill_9().unwrap();
            a = first.start().unwrap();
        }
        b = second.start().unwrap();
    }
    in_step(first, second).await;
    let at_b = client(second, Role::Dev).await;
    let pushes: Vec<_> = (1..=imported).map(|n| apdu(push(n))).collect();
    for (opened, n) in at_b.decrypt_batch(pushes).await.unwrap().iter().zip(1..) {
        assert_eq!(opened.verdict(), Verdict::Ok, "meter {n}: {opened:?}");
    }
    b.stop().unwrap();
    a.stop().unwrap();
}

/// Names a revocation list in `kms.toml`.
fn use_list(site: &Site, list: &str) {
    let path = site.places().dir.join("certificates/clients.crl");
    std::fs::write(&path, list).unwrap();
    let text = std::fs::read_to_string(&site.places().kms_toml).unwrap();
    if !text.contains("client_crl") {
        let named = format!("[rpc.tls]\nclient_crl = \"{}\"\n", path.display());
        std::fs::write(&site.places().kms_toml, text.replace("[rpc.tls]\n", &named)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_list_that_one_site_has_replaced_is_refused_at_the_other_which_never_saw_the_newer_one()
 {
    let (_dir, pair, (a, b)) = pair();
    let (first, second) = (&pair.a, &pair.b);
    a.stop().unwrap();
    let authority = first.authority().unwrap();
    let older = authority.empty_revocation_list().unwrap();
    let (_, newer) = authority.revoked_client("nobody-1").unwrap();
    use_list(first, &newer);
    let a = first.start().unwrap();
    // The list is the only record of the domain.
    eventually("the list is remembered", || async {
        contents(first).await.len() > SiteOptions::default().block_count as usize
    })
    .await;
    in_step(first, second).await;
    b.stop().unwrap();
    use_list(second, &older);
    let refused = second.start().unwrap_err().to_string();
    assert!(refused.contains("older than one that a site of this domain has used"), "{refused}");
    use_list(second, &newer);
    let b = second.start().unwrap();
    // A list that was put back while it runs is refused as before.
    use_list(second, &older);
    b.signal(rustix::process::Signal::HUP).unwrap();
    let admin = client(second, Role::AmiAdmin).await;
    eventually("the older one is named", || async {
        let faults = admin.site_status().await.unwrap().faults;
        faults.iter().any(|fault| fault.contains("clients.crl is an older one"))
    })
    .await;
    b.stop().unwrap();
    a.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_that_take_files_of_other_signers_name_that_and_a_promotion_says_it() {
    let (dir, pair, (a, b)) = pair();
    let (first, second) = (&pair.a, &pair.b);
    let admin = client(first, Role::AmiAdmin).await;
    let named = async || {
        let status = admin.site_status().await.unwrap();
        let replication = status.replication;
        format!("{:?}", replication.map(|it| it.differences)).contains("SIGNERS")
    };
    assert!(!named().await);
    // The second site knows one more.
    b.stop().unwrap();
    let Setting { value, .. } = Signing::make(dir.path()).unwrap().setting();
    let text = std::fs::read_to_string(&second.places().kms_toml).unwrap();
    let with = match text.contains("[import]\n") {
        true => text.replace("[import]\n", &format!("[import]\nsigners = {value}\n")),
        false => format!("{text}\n[import]\nsigners = {value}\n"),
    };
    std::fs::write(&second.places().kms_toml, with).unwrap();
    let b = second.start().unwrap();
    eventually("the difference is named", named).await;
    // Who plans to promote reads it there, too, with what to do.
    let (_, plan) = said(second, Role::AmiAdmin, &["site", "plan"]);
    assert!(plan.contains("[[import.signers]]"), "{plan}");
    b.stop().unwrap();
    a.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_promote_a_site_whose_primary_is_dead() {
    let set = |section, key, value: &str| Setting { section, key, value: value.to_owned() };
    let (_dir, pair, (a, b)) = pair_with(vec![set("rpc", "dual_control", "[\"Site/Promote\"]")]);
    let (first, second) = (&pair.a, &pair.b);
    let at_a = client(first, Role::Dev).await;
    add(&at_a, &[line(1)]).await;
    in_step(first, second).await;
    pair.until_proved(first).unwrap();
    a.kill_9().unwrap();
    let promote = ["site", "promote", "--primary-is-lost", "--yes"];
    let (code, refused) = said(second, Role::AmiAdmin, &promote);
    assert!(code == Some(1) && refused.contains("needs a second person"), "{refused}");
    let (_, rest) = refused.split_once("ami-tool approvals approve ").unwrap();
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let (_, listed) = said(second, Role::Approver, &["approvals", "list"]);
    assert!(listed.contains(&number) && listed.contains("Site/Promote"), "{listed}");
    let (code, text) = said(second, Role::Approver, &["approvals", "approve", &number, "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    // Another promise is another call.
    let (code, text) = said(second, Role::AmiAdmin, &["site", "promote", "--yes"]);
    assert!(code == Some(1) && text.contains("needs a second person"), "{text}");
    let (code, text) = said(second, Role::AmiAdmin, &promote);
    assert_eq!(code, Some(0), "{text}");
    let at_b = client(second, Role::Dev).await;
    add(&at_b, &[line(2)]).await;
    b.stop().unwrap();
}

/// Exit code and what `ami-tool` said, as one of these at this site.
fn said(site: &Site, role: Role, arguments: &[&str]) -> (Option<i32>, String) {
    let output = site.ami_tool(role).run(arguments, "").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), said + &String::from_utf8_lossy(&output.stderr))
}

/// The same as an auditor.
fn auditor(site: &Site, arguments: &[&str]) -> (Option<i32>, String) {
    said(site, Role::Auditor, arguments)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_reads_and_checks_the_log_of_a_site_that_is_lost_at_the_other_one() {
    let (_dir, pair, (a, b)) = pair();
    let (first, second) = (&pair.a, &pair.b);
    let at_a = client(first, Role::Dev).await;
    let lines: Vec<String> = (1..=5).map(line).collect();
    add(&at_a, &lines).await;
    in_step(first, second).await;
    let list = ["audit", "list", "--of", "site-a"];
    eventually("the import is in the copy", || async {
        auditor(second, &list).1.contains("Meters/ImportMeters")
    })
    .await;
    // To verify has the end signed, behind its event: the head is copied too.
    assert_eq!(auditor(first, &["audit", "verify"]).0, Some(0));
    let verify = ["audit", "verify", "--of", "site-a"];
    let of = |said: &str, what: &str| {
        said.lines().find(|line| line.starts_with(what)).unwrap_or_default().to_owned()
    };
    eventually("a signed head is in the copy", || async {
        let heads = of(&auditor(second, &verify).1, "signed heads");
        heads.ends_with(|digit: char| digit.is_ascii_digit()) && !heads.ends_with(" 0")
    })
    .await;
    a.kill_9().unwrap();
    let (code, said) = auditor(second, &verify);
    assert!(code == Some(0) && said.contains("intact"), "{said}");
    // It is that site's log under that site's key, and not this one's.
    let (_, own) = auditor(second, &["audit", "verify"]);
    for what in ["node", "signing key"] {
        assert_ne!(of(&said, what), of(&own, what));
    }
    // Its chain is among those that were copied, and is nobody's who answers.
    let node = of(&said, "node").split_whitespace().last().unwrap().to_owned();
    let (code, copied) = auditor(second, &["audit", "nodes", "--of", "site-a"]);
    assert!(code == Some(0) && copied.starts_with(&node), "{copied}");
    assert!(copied.lines().count() == 1 && !copied.contains("this node"), "{copied}");
    assert!(!auditor(second, &["audit", "nodes"]).1.contains(&node));
    for verb in ["list", "nodes"] {
        let (code, said) = auditor(second, &["audit", verb, "--of", "nowhere"]);
        assert!(code != Some(0) && said.contains("has this name"), "{said}");
    }
    // Nobody changes what was copied without being found out.
    b.stop().unwrap();
    let url = format!("sqlite://{}", second.places().data.join("kms.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let change = "UPDATE peer_audit_events SET body = CAST(substr(body, 1, length(body) - 1) || x'ff' AS BLOB) \
                  WHERE sequence = 2";
    sqlx::query(change).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
    let b = second.start().unwrap();
    let (code, said) = auditor(second, &verify);
    assert!(code == Some(1) && said.contains("BROKEN at event 2"), "{said}");
    b.stop().unwrap();
}
