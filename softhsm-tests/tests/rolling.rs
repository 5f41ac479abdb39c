//! A rolling upgrade by the real programs: two servers of one site over one PostgreSQL and one of the other site are
//! stopped and started one at a time under load, then the other site is promoted; and a database that a newer release
//! has brought to its schema, under servers of this one.
//!
//! There is one release yet, so the same program comes in the place of the one that was stopped. What is proved is that the
//! order of the handbook costs no read and no acknowledged write, and how this release meets a newer schema. How it meets
//! records of a newer release is `a_site_with_records_of_a_newer_release_keeps_them_says_so_and_is_not_promoted`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;
#[path = "../../kms-server/tests/postgres_common/mod.rs"]
mod postgres_common;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use common::{
    client, copy, eventually,
    fleet::{add, apdu, line, parsed, push},
    free_address, programs, warm,
};
use kms_client::{ClientConfig, ImportRules, KmsClient, Verdict};
use postgres_common::{Cluster, USER};
use softhsm_tests::{
    Authority, PeerOptions, Role, Running, Setting, Site, SiteOptions,
    pair::{enrol_into, said_by},
    settings::quoted,
};
use tokio_stream::StreamExt as _;

/// Meters that are read all the time.
const FLEET: u64 = 60;

/// Where everybody listens.
struct Ports {
    first: u16,
    second: u16,
    other: u16,
}

fn peer(site: &str, port: u16, even: bool) -> PeerOptions {
    PeerOptions { site: site.to_owned(), port, even, read_only: false, second: None }
}

fn set(section: &'static str, key: &'static str, value: String) -> Setting {
    Setting { section, key, value }
}

/// A server of the site of even epochs, over `cluster`.
fn node(dir: &Path, authority: &Authority, cluster: &Cluster, ports: (u16, u16)) -> Site {
    let settings = vec![
        set("store", "kind", quoted("postgresql")),
        set("store", "path", String::new()),
        set("store", "host", quoted(&cluster.sockets().display().to_string())),
        set("store", "port", cluster.port().to_string()),
        set("store", "database", quoted("ami")),
        set("store", "user", quoted(USER)),
        set("store", "allow_no_tls", "true".to_owned()),
        set("peer", "heartbeat_ms", "300".to_owned()),
    ];
    let options = SiteOptions {
        port: Some(ports.0),
        peer: Some(peer("site-b", ports.1, true)),
        settings,
        ..SiteOptions::default()
    };
    Site::make_under(authority, dir, programs(), options).unwrap()
}

/// A further server: its own data directory and port; the first one's token and PIN.
fn further(
    dir: &Path,
    authority: &Authority,
    cluster: &Cluster,
    first: &Site,
    ports: (u16, u16),
) -> Site {
    let site = node(dir, authority, cluster, ports);
    let secrets = site.places().dir.join("secrets");
    fs::remove_dir_all(&secrets).unwrap();
    copy(&first.places().dir.join("secrets"), &secrets);
    fs::copy(&first.places().softhsm_conf, &site.places().softhsm_conf).unwrap();
    let toml = fs::read_to_string(&site.places().kms_toml).unwrap();
    let [own, its] = [&site, first].map(|site| site.places().tokens.display().to_string());
    fs::write(&site.places().kms_toml, toml.replace(&own, &its)).unwrap();
    site
}

/// The other site, which knows both servers of the first one.
fn other(dir: &Path, authority: &Authority, ports: &Ports) -> Site {
    let endpoints = [ports.first, ports.second].map(|port| format!("\"https://localhost:{port}\""));
    let settings = vec![
        set("peer", "endpoints", format!("[{}]", endpoints.join(", "))),
        set("peer", "heartbeat_ms", "300".to_owned()),
    ];
    let options = SiteOptions {
        name: "site-b".to_owned(),
        port: Some(ports.other),
        peer: Some(peer("site-a", ports.first, false)),
        settings,
        ..SiteOptions::default()
    };
    Site::make_under(authority, dir, programs(), options).unwrap()
}

/// A client as an operator would set it up: it knows both servers of the site, and tries again.
async fn client_of_all(site: &Site, ports: &Ports) -> KmsClient {
    let text = fs::read_to_string(site.client_toml(Role::Dev)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("endpoints"));
    let rest: String = lines.map(|line| format!("{line}\n")).collect();
    let endpoints = [ports.first, ports.second].map(|port| format!("\"https://localhost:{port}\""));
    let path = site.client_toml(Role::Dev).with_extension("all.toml");
    fs::write(&path, format!("endpoints = [{}]\n{rest}", endpoints.join(", "))).unwrap();
    KmsClient::connect(ClientConfig::load(&path).unwrap()).await.unwrap()
}

/// Reads all the time, each of which must succeed; and imports, of which those that were acknowledged count.
struct Load {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<u64>>>,
}

impl Load {
    fn start(client: &KmsClient) -> Self {
        let (stop, reads) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let read = {
            let (client, stop, reads) = (client.clone(), Arc::clone(&stop), Arc::clone(&reads));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let batch: Vec<_> = (0..FLEET).map(|n| apdu(push(n))).collect();
                    for opened in client.decrypt_batch(batch).await.expect("no read fails") {
                        assert_eq!(opened.verdict(), Verdict::Ok, "{opened:?}");
                    }
                    reads.fetch_add(FLEET, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Vec::new()
            })
        };
        let write = {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 1_000.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let lines = tokio_stream::iter(parsed(&line(n)));
                    let mut results = client.meters().import(lines, ImportRules::default());
                    // One that a stop cut off is sent again by who sent it: the next number stands for that here.
                    if let Some(Ok(result)) = results.next().await
                        && result.code.is_empty()
                    {
                        acknowledged.push(n);
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                acknowledged
            })
        };
        Self { stop, reads, tasks: vec![read, write] }
    }

    /// Waits for more reads.
    async fn go_on(&self) {
        let until = self.reads.load(Ordering::Relaxed) + 5 * FLEET;
        eventually("reads go on", async || self.reads.load(Ordering::Relaxed) >= until).await;
    }

    /// The numbers of the meters whose import was acknowledged.
    async fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for task in self.tasks {
            acknowledged.extend(task.await.unwrap());
        }
        acknowledged
    }
}

/// One server is stopped, and comes back: the new release in the place of the old one.
async fn replace(site: &Site, running: Running) -> Running {
    assert!(running.stop().unwrap().success());
    let running = site.start().unwrap();
    warm(&client(site, Role::Dev).await).await;
    running
}

async fn all_open(site: &Site, meters: &[u64]) {
    let at_site = client(site, Role::Dev).await;
    eventually("all that was acknowledged opens", async || {
        let pushes: Vec<_> = meters.iter().map(|n| apdu(push(*n))).collect();
        let opened = at_site.decrypt_batch(pushes).await.unwrap();
        opened.iter().all(|opened| opened.verdict() == Verdict::Ok)
    })
    .await;
}

/// A newer release has brought the database to its schema: it only adds.
fn migrate_as_a_newer_release_would(cluster: &Cluster) {
    cluster.sql(
        "ami",
        "SET search_path = ami_kms; \
         CREATE TABLE of_a_newer_release (n bigint PRIMARY KEY); \
         ALTER TABLE records ADD COLUMN of_a_newer_release bigint NOT NULL DEFAULT 0; \
         UPDATE schema_version SET version = version + 1",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_two_sites_are_replaced_one_at_a_time_and_no_read_fails_and_no_write_is_lost() {
    let cluster = Cluster::new(&[]);
    cluster.database("ami");
    let dir = tempfile::Builder::new().prefix("kms-rolling-").tempdir_in("/dev/shm").unwrap();
    let authority = Authority::make("rolling CA").unwrap();
    let free = || free_address().port();
    let ports = Ports { first: free(), second: free(), other: free() };
    let at = |name: &str| dir.path().join(name);
    let first = node(&at("a1"), &authority, &cluster, (ports.first, ports.other));
    first.init().unwrap();
    let mut first_runs = first.start().unwrap();
    let b = other(&at("b"), &authority, &ports);
    enrol_into(&first, &b).unwrap();
    let second = further(&at("a2"), &authority, &cluster, &first, (ports.second, ports.other));
    let mut second_runs = second.start().unwrap();
    let mut b_runs = b.start().unwrap();
    add(&client(&first, Role::Dev).await, &(0..FLEET).map(line).collect::<Vec<_>>()).await;
    all_open(&b, &(0..FLEET).collect::<Vec<_>>()).await;
    all_open(&second, &(0..FLEET).collect::<Vec<_>>()).await;

    // The site that follows, then the one that writes, server by server.
    let load = Load::start(&client_of_all(&first, &ports).await);
    load.go_on().await;
    b_runs = replace(&b, b_runs).await;
    load.go_on().await;
    first_runs = replace(&first, first_runs).await;
    load.go_on().await;
    second_runs = replace(&second, second_runs).await;
    load.go_on().await;
    let acknowledged = load.end().await;
    assert!(acknowledged.len() > 10, "{acknowledged:?}");
    for site in [&first, &second, &b] {
        all_open(site, &acknowledged).await;
    }

    // A newer server has started: older ones that run go on, and take changes; one that starts is refused by name.
    migrate_as_a_newer_release_would(&cluster);
    let at_second = client(&second, Role::Dev).await;
    add(&at_second, &[line(500)]).await;
    for site in [&first, &second, &b] {
        all_open(site, &[500]).await;
    }
    assert!(first_runs.stop().unwrap().success());
    let output = first.command("serve").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("the database has schema"), "{said}");
    add(&at_second, &[line(501)]).await;
    all_open(&b, &[501]).await;

    // And the other site takes over: it was upgraded, too.
    said_by(&second, "demote", &["site", "demote", "--yes"]).unwrap();
    eventually("the other site takes over", async || {
        let promoted = b.ami_tool(Role::AmiAdmin).run(&["site", "promote", "--yes"], "");
        promoted.unwrap().status.success()
    })
    .await;
    add(&client(&b, Role::Dev).await, &[line(502)]).await;
    all_open(&second, &[502]).await;
    b_runs.stop().unwrap();
    second_runs.stop().unwrap();
}
