//! Two sites by the real programs: each with a token and a database of its own, enrolled by the ceremony, following
//! each other over TLS, and killed with -9.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{fs, path::Path, time::Duration};

use common::{
    Home, Numbers, client, eventually,
    fleet::{PLAIN, add, apdu, line, line_in_hsm, parsed, push},
    free_address, programs,
};
use kms_client::{ImportRules, Verdict};
use softhsm_tests::{Identity, Role, Setting, Site, SiteOptions};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

/// Kills of the site that follows, and of the one that writes.
const KILLS: u64 = 6;

struct Plan {
    name: &'static str,
    dir: TempDir,
    port: u16,
}

impl Plan {
    fn new(name: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("kms-site-").tempdir_in("/dev/shm").unwrap();
        Self { name, dir, port: free_address().port() }
    }

    fn file(&self, path: &str) -> String {
        let file = self.dir.path().canonicalize().unwrap().join(path);
        format!("{:?}", file.display().to_string())
    }

    /// A site whose peer is `other`.
    fn site(&self, other: &Self) -> Site {
        let set = |section, key, value: &str| Setting { section, key, value: value.to_owned() };
        let endpoint = format!("[\"https://localhost:{}\"]", other.port);
        let settings = vec![
            set("site", "single_site", "false"),
            set("site", "even", if self.name == "site-a" { "true" } else { "false" }),
            set("rpc.tls", "client_ca", &self.file("certificates/clients.pem")),
            set("peer", "site", &format!("{:?}", other.name)),
            set("peer", "endpoints", &endpoint),
            set("peer", "ca", &other.file("certificates/ca.pem")),
            set("peer", "heartbeat_ms", "300"),
            set("peer", "write_wait_ms", "5000"),
            set("peer", "compare_interval_s", "5"),
            set("peer", "prove_interval_s", "1"),
        ];
        let options = SiteOptions {
            name: self.name.to_owned(),
            port: Some(self.port),
            settings,
            ..SiteOptions::default()
        };
        Site::make(self.dir.path(), programs(), options).unwrap()
    }
}

/// Two sites of one domain, enrolled; none runs.
fn pair() -> (Home, Home) {
    let (a, b) = (Plan::new("site-a"), Plan::new("site-b"));
    let (site_a, site_b) = (a.site(&b), b.site(&a));
    for site in [&site_a, &site_b] {
        let Identity { certificate_pem, private_key_pem } =
            site.authority().unwrap().server_and_client("peer-1").unwrap();
        fs::write(site.places().certificate("server"), certificate_pem).unwrap();
        fs::write(site.places().private_key("server"), private_key_pem).unwrap();
        let authorities = [&site_a, &site_b]
            .map(|site| fs::read_to_string(site.places().certificate("ca")).unwrap());
        fs::write(site.places().certificate("clients"), authorities.concat()).unwrap();
    }
    let first = Home { site: site_a, dir: a.dir };
    let second = Home { site: site_b, dir: b.dir };
    first.init().unwrap();
    let running = first.start().unwrap();
    enrol(&first, &second);
    running.stop().unwrap();
    (first, second)
}

/// The ceremony, from the request to the founding.
fn enrol(first: &Home, second: &Home) {
    let path = |home: &Home, name: &str| home.places().dir.join(name).display().to_string();
    let so_pin = |home: &Home| home.places().so_pin.display().to_string();
    let (asked, bundle) = (path(second, "join.request"), path(first, "bundle"));
    let so = so_pin(second);
    let create = ["--join", "--request", &asked, "--create-token", "--so-pin-file", &so];
    let fingerprint = told(&run(&second.site, "init", &create), "fingerprint");
    let so = so_pin(first);
    let trust = ["--request", &asked, "--fingerprint", &fingerprint, "--so-pin-file", &so];
    run(&first.site, "trust-peer", &trust);
    let arguments =
        ["site", "enrol", "--request", &asked, "--fingerprint", &fingerprint, "--out", &bundle];
    let output = first.ami_tool(Role::AmiAdmin).run(&arguments, "").unwrap();
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    let confirmed = told(&said, "fingerprint");
    run(&second.site, "init", &["--join", "--bundle", &bundle, "--fingerprint", &confirmed]);
}

fn run(site: &Site, verb: &str, arguments: &[&str]) -> String {
    let output = site.command(verb).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{verb} {arguments:?}: {said}");
    said
}

/// A line of a report.
fn told(report: &str, what: &str) -> String {
    let begin = format!("{what} ");
    let line = report.lines().find(|line| line.starts_with(&begin));
    line.unwrap_or_else(|| panic!("{what} is not in {report}"))[what.len()..].trim().to_owned()
}

/// Heads and records as they are stored, byte for byte.
async fn contents(home: &Home) -> Vec<Vec<u8>> {
    let url = format!("sqlite://{}", database(home.places().data.as_path()));
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

fn database(data: &Path) -> String {
    data.join("kms.db").display().to_string()
}

async fn in_step(first: &Home, second: &Home) {
    eventually("the sites are in step", || async {
        contents(first).await == contents(second).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_site_imports_opens_at_the_other_under_a_token_of_its_own() {
    let (first, second) = pair();
    let (a, b) = (first.start().unwrap(), second.start().unwrap());
    let (at_a, at_b) = (client(&first, Role::Dev).await, client(&second, Role::Dev).await);
    let lines: Vec<String> =
        (1..=60).map(|n| if n % 5 == 0 { line_in_hsm(n) } else { line(n) }).collect();
    add(&at_a, &lines).await;
    in_step(&first, &second).await;
    let pushes: Vec<_> = (1..=60).map(|n| apdu(push(n))).collect();
    for opened in at_b.decrypt_batch(pushes).await.unwrap() {
        assert_eq!(opened.verdict(), Verdict::Ok, "{opened:?}");
        assert_eq!(opened.plaintext.as_deref(), Some(PLAIN));
    }
    // The site that follows takes no change.
    let late = tokio_stream::iter(parsed(&line(99)));
    let mut results = at_b.meters().import(late, ImportRules::default());
    let refused = results.next().await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("changes go to the primary site"), "{refused}");
    b.stop().unwrap();
    a.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_4_a_kill_of_either_site_in_mid_copy_loses_nothing_and_both_end_alike() {
    let (first, second) = pair();
    let mut numbers = Numbers::fresh();
    let mut a = first.start().unwrap();
    let mut imported = 0;
    for round in 0..KILLS {
        let b = second.start().unwrap();
        let at_a = client(&first, Role::Dev).await;
        let lines: Vec<String> = (imported + 1..=imported + 300).map(line).collect();
        imported += 300;
        let loading = async { add(&at_a, &lines).await };
        let killing = async {
            tokio::time::sleep(Duration::from_millis(numbers.below(1_500))).await;
        };
        tokio::join!(loading, killing);
        b.kill_9().unwrap();
        if round % 2 == 1 {
            a.kill_9().unwrap();
            a = first.start().unwrap();
        }
    }
    let b = second.start().unwrap();
    in_step(&first, &second).await;
    let at_b = client(&second, Role::Dev).await;
    let pushes: Vec<_> = (1..=imported).map(|n| apdu(push(n))).collect();
    for (opened, n) in at_b.decrypt_batch(pushes).await.unwrap().iter().zip(1..) {
        assert_eq!(opened.verdict(), Verdict::Ok, "meter {n}: {opened:?}");
    }
    b.stop().unwrap();
    a.stop().unwrap();
}
