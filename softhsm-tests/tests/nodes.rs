//! Several servers of one site over one PostgreSQL, as real processes: what one of them acknowledged
//! counts at the others a second later; one that lost the database goes on with what it has; a standby
//! reads; the way to the database is encrypted or not taken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;
#[path = "../../kms-server/tests/postgres_common/mod.rs"]
mod postgres_common;
mod several_nodes;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    Home, client, eventually,
    fleet::{GAK, GUEK, PLAIN, add, apdu, id, line, push, push_with, value},
    warm,
};
use futures_util::StreamExt as _;
use kms_client::{
    CallError, ClientConfig, KmsClient, MeterId, MeterName, MeterPolicy, MinimumProtection, Verdict,
};
use postgres_common::{Cluster, USER};
use several_nodes::{blank, cluster, first_node, further_node, store};
use softhsm_tests::{Authority, Role, Running, settings::quoted};

/// What is promised of the other nodes, counted from the acknowledgement.
const PROMISED: Duration = Duration::from_secs(1);
/// Meters that the load asks for.
const FLEET: u64 = 200;

/// A node that runs, and a client that is everything to it.
struct Node {
    home: Home,
    running: Running,
    client: KmsClient,
}

impl Node {
    async fn start(home: Home) -> Arc<Self> {
        let running = home.start().unwrap();
        let client = client(&home, Role::Dev).await;
        warm(&client).await;
        Arc::new(Self { home, running, client })
    }

    async fn verdict(&self, bytes: &[u8]) -> Verdict {
        self.client.decrypt(&apdu(bytes.to_vec())).await.unwrap().verdict()
    }

    async fn faults(&self) -> String {
        self.client.site_status().await.unwrap().faults.join("; ")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_at_start_is_found_by_a_later_one() {
    let mut cluster = cluster();
    let home = first_node(&cluster);
    cluster.stop();
    let serve = || {
        let output = home.command("serve").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = serve();
    assert!(code == Some(6) && said.contains("cannot open the database"), "{code:?} {said}");
    cluster.start();
    // What it refuses us stays: nobody tries a password again and again.
    cluster.sql("postgres", &format!("ALTER ROLE {USER} NOLOGIN"));
    let (code, said) = serve();
    assert!(code == Some(5) && said.contains("cannot open the database"), "{code:?} {said}");
    cluster.sql("postgres", &format!("ALTER ROLE {USER} LOGIN CONNECTION LIMIT 0"));
    let (code, said) = serve();
    assert!(code == Some(6) && said.contains("cannot open the database"), "{code:?} {said}");
    cluster.sql("postgres", &format!("ALTER ROLE {USER} CONNECTION LIMIT -1"));
    assert!(home.start().unwrap().stop().unwrap().success());
}

async fn three_nodes(cluster: &Cluster) -> [Arc<Node>; 3] {
    let first = first_node(cluster);
    let others = [further_node(&first, cluster), further_node(&first, cluster)];
    let [second, third] = others;
    let first = Node::start(first).await;
    let fleet: Vec<String> = (0..FLEET).map(line).collect();
    add(&first.client, &fleet).await;
    [first, Node::start(second).await, Node::start(third).await]
}

/// How long after now all nodes say `wanted` of `bytes`.
async fn by_all(nodes: &[Arc<Node>], bytes: &[u8], wanted: Verdict) -> Duration {
    let acknowledged = Instant::now();
    for node in nodes {
        loop {
            let found = node.verdict(bytes).await;
            let after = acknowledged.elapsed();
            assert!(after < PROMISED, "{found:?}, due {wanted:?}, after {after:?}");
            if found == wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    acknowledged.elapsed()
}

/// Each node opens batches of the fleet's pushes until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(nodes: &[Arc<Node>]) -> Self {
        let (stop, opened) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let tasks = nodes.iter().map(|node| {
            let (node, stop, opened) = (Arc::clone(node), Arc::clone(&stop), Arc::clone(&opened));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let batch: Vec<_> = (0..FLEET).map(|n| apdu(push(n))).collect();
                    for opened in node.client.decrypt_batch(batch).await.unwrap() {
                        assert_eq!(opened.verdict(), Verdict::Ok, "{opened:?}");
                    }
                    opened.fetch_add(FLEET, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, opened, tasks }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.opened.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_a_policy_and_a_deletion_count_at_three_nodes_within_a_second_under_load() {
    let cluster = cluster();
    let nodes = three_nodes(&cluster).await;
    let load = Load::start(&nodes);
    let mut worst = [Duration::ZERO; 3];
    for n in 1_000..1_009 {
        let writer = &nodes[n as usize % 3].client;
        let good = push(n);
        // Authenticated only: what the policy by default lets through, and the stricter one does not.
        let weak = push_with(n, 0x10, &value(n, GUEK), &value(n, GAK), PLAIN);
        add(writer, &[line(n)]).await;
        let import = by_all(&nodes, &weak, Verdict::Ok).await;
        let minimum_protection = Some(MinimumProtection::AuthenticatedEncrypted);
        let stricter = MeterPolicy { minimum_protection, ..MeterPolicy::default() };
        writer.meters().set_policy(&id(n).parse().unwrap(), &stricter).await.unwrap();
        let policy = by_all(&nodes, &weak, Verdict::PolicyRefused).await;
        by_all(&nodes, &good, Verdict::Ok).await;
        writer.meters().delete(&id(n).parse().unwrap()).await.unwrap();
        let deletion = by_all(&nodes, &good, Verdict::UnknownMeter).await;
        for (worst, now) in worst.iter_mut().zip([import, policy, deletion]) {
            *worst = now.max(*worst);
        }
        // Obeyed is obeyed: what was deleted opens nothing from then on.
        for node in &nodes {
            assert_eq!(node.verdict(&good).await, Verdict::UnknownMeter);
        }
    }
    let opened = load.end().await;
    let [import, policy, deletion] = worst;
    println!(
        "counted at three processes, worst of 9: import {import:?}, policy {policy:?}, deletion \
         {deletion:?}; meanwhile {opened} pushes opened"
    );
    assert!(opened > FLEET, "that was no load");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_database_goes_on_with_what_is_resident_and_says_so() {
    let mut cluster = cluster();
    let [first, second, _] = three_nodes(&cluster).await;
    cluster.kill();
    for n in 0..FLEET {
        assert_eq!(first.verdict(&push(n)).await, Verdict::Ok, "meter {n}");
    }
    eventually("the loss is told", async || {
        let status = first.client.site_status().await.unwrap();
        !status.store.reachable && status.store.not_following_ms > 0 && !status.faults.is_empty()
    })
    .await;
    println!("without a database: {}", first.faults().await);
    let meter_id: MeterId = id(1).parse().unwrap();
    // What would have to be recorded or written is refused, and by name.
    for refused in [
        first.client.meters().get(&MeterName::Id(meter_id.clone())).await.map(|_| ()),
        first.client.meters().delete(&meter_id).await.map(|_| ()),
    ] {
        let refused = refused.unwrap_err();
        println!("without a database: {refused}");
        assert!(matches!(refused, CallError::Unavailable { .. }), "{refused:?}");
    }
    assert_eq!(first.verdict(&push(1)).await, Verdict::Ok);
    cluster.start();
    eventually("it is heard again", async || {
        let status = first.client.site_status().await.unwrap();
        status.store.reachable && status.store.not_following_ms == 0
    })
    .await;
    let delete = async || first.client.meters().delete(&meter_id).await.is_ok();
    eventually("changes are taken again", delete).await;
    by_all(&[first, second], &push(1), Verdict::UnknownMeter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_over_a_standby_reads_refuses_changes_and_takes_them_once_it_is_promoted() {
    let cluster = cluster();
    let first = first_node(&cluster);
    let standby = cluster.standby();
    let second = further_node(&first, &standby);
    let first = Node::start(first).await;
    add(&first.client, &(0..20).map(line).collect::<Vec<_>>()).await;
    let second = Node::start(second).await;
    eventually("the standby has them", async || second.verdict(&push(19)).await == Verdict::Ok)
        .await;
    let status = second.client.site_status().await.unwrap();
    let lag = status.store.standby.expect("it says that it is a standby");
    assert!(lag.receiving, "{lag:?}");
    let tool = second.home.ami_tool(Role::Auditor);
    let output = tool.run(&["site", "status"], "").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("STANDBY, takes no changes"), "{said}");
    let output = second
        .home
        .ami_tool(Role::AmiAdmin)
        .run(&["meter", "delete", "--yes", &id(3)], "")
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("standby"), "{said}");
    assert_eq!(second.verdict(&push(3)).await, Verdict::Ok);

    // The primary is gone; its standby takes over. No restart of the node.
    drop(cluster);
    standby.promote();
    let delete = async || second.client.meters().delete(&id(3).parse().unwrap()).await.is_ok();
    eventually("changes are taken", delete).await;
    assert_eq!(second.verdict(&push(3)).await, Verdict::UnknownMeter);
    assert!(second.client.site_status().await.unwrap().store.standby.is_none());
    drop(second.running.signal(rustix::process::Signal::TERM));
}

/// `[store]` for the way through TLS, as it stands after `check`.
fn over_tls(cluster: &Cluster, host: &str, ca: &Path) -> several_nodes::Settings {
    let mut settings = store(cluster);
    settings.retain(|(_, key, _)| !matches!(*key, "host" | "allow_no_tls"));
    settings.push(("store", "host", quoted(host)));
    settings.push(("store", "tls_ca", quoted(&ca.display().to_string())));
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_the_database_is_encrypted_and_its_certificate_checked() {
    let mut cluster = cluster();
    let authority = Authority::make("database CA").unwrap();
    let identity = authority.server().unwrap();
    cluster.stop();
    cluster.listen_with_tls(&identity.certificate_pem, &identity.private_key_pem);
    cluster.start();
    let dir = tempfile::tempdir().unwrap();
    let [ours, foreign] = ["ours.pem", "foreign.pem"].map(|name| dir.path().join(name));
    fs::write(&ours, authority.identity().certificate_pem).unwrap();
    let other = Authority::make("database CA").unwrap();
    fs::write(&foreign, other.identity().certificate_pem).unwrap();

    // Another authority of the same name: refused, and nothing is sent.
    let refused = blank(&over_tls(&cluster, "127.0.0.1", &foreign)).init().unwrap_err();
    println!("foreign authority: {refused}");
    assert!(refused.to_string().contains("certificate"), "{refused}");

    let home = blank(&over_tls(&cluster, "127.0.0.1", &ours));
    home.init().unwrap();
    let node = Node::start(home).await;
    add(&node.client, &[line(1)]).await;
    assert_eq!(node.verdict(&push(1)).await, Verdict::Ok);
    let tls = "SELECT 1 / count(*)::int FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
               WHERE application_name = 'kms-server' AND ssl AND version = 'TLSv1.3'";
    // Divides by zero, hence fails, where no connection of ours is encrypted.
    cluster.sql("ami", tls);
    let plain = "SELECT 1 / (1 - sign(count(*))::int) FROM pg_stat_ssl JOIN pg_stat_activity \
                 USING (pid) WHERE application_name = 'kms-server' AND NOT ssl";
    cluster.sql("ami", plain);

    // Nobody may go there in clear.
    let mut clear = over_tls(&cluster, "db.example.org", &ours);
    clear.retain(|(_, key, _)| *key != "tls_ca");
    clear.push(("store", "allow_no_tls", "true".to_owned()));
    let refused = blank(&clear).init().unwrap_err().to_string();
    println!("in clear to another machine: {refused}");
    assert!(refused.contains("tls_ca"), "{refused}");

    // A database that was set to speak no TLS is not spoken to.
    cluster.stop();
    cluster.set(&["ssl = off"]);
    cluster.start();
    let refused = blank(&over_tls(&cluster, "127.0.0.1", &ours)).init().unwrap_err().to_string();
    println!("ssl = off: {refused}");
    assert!(refused.contains("TLS") || refused.contains("ssl"), "{refused}");
}

/// A database that would lose acknowledged commits, or that is no superuser's business.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_hold_what_was_acknowledged_is_refused_at_start() {
    let cluster = cluster();
    cluster.sql("ami", "ALTER DATABASE ami SET synchronous_commit = off");
    let home = blank(&store(&cluster));
    let refused = home.init().unwrap_err().to_string();
    println!("{refused}");
    assert!(
        refused.contains("synchronous_commit = off") && refused.contains("set it to"),
        "{refused}"
    );
    cluster.sql("ami", "ALTER DATABASE ami RESET synchronous_commit");
    // The attempt left nothing that stands in the way.
    let first = first_node(&cluster);
    let again = first.run("check-config", &[]).unwrap();
    println!("{again}");
    // What was made once is not made again.
    let refused = further_node(&first, &cluster).init().unwrap_err().to_string();
    assert!(refused.contains("already"), "{refused}");
    let node = Node::start(first).await;
    add(&node.client, &[line(1)]).await;
    assert_eq!(node.verdict(&push(1)).await, Verdict::Ok);
}

/// An auditor's client that knows both servers, and tries again.
async fn auditor_of([first, second]: [&Home; 2]) -> KmsClient {
    let text = |home: &Home| fs::read_to_string(home.client_toml(Role::Auditor)).unwrap();
    let endpoints = |text: &str| {
        let rest = text.split_once("endpoints = [").unwrap().1;
        rest.split_once(']').unwrap().0.to_owned()
    };
    let (one, other) = (text(first), text(second));
    let (one_end, other_end) = (endpoints(&one), endpoints(&other));
    let both = one.replace(&one_end, &format!("{one_end}, {other_end}"));
    let path = first.client_toml(Role::Auditor).with_extension("both.toml");
    fs::write(&path, both).unwrap();
    KmsClient::connect(ClientConfig::load(&path).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_the_audit_log_stays_with_the_chain_that_he_began_with() {
    let cluster = cluster();
    let first = first_node(&cluster);
    let second = further_node(&first, &cluster);
    let second = Node::start(second).await;
    let running = first.start().unwrap();
    let to_first = client(&first, Role::Dev).await;
    warm(&to_first).await;
    add(&to_first, &(0..4).map(line).collect::<Vec<_>>()).await;
    let delete = async |client: &KmsClient, n: u64| {
        let meter_id: MeterId = id(n).parse().unwrap();
        eventually("deleted", async || client.meters().delete(&meter_id).await.is_ok()).await;
    };

    let auditor = auditor_of([&first, &second.home]).await;
    let (node, last) = auditor.audit().last(None).await.unwrap();
    let mut followed = auditor.audit().follow(None, last);
    let mut until_deleted = async |n: u64| loop {
        let next = tokio::time::timeout(Duration::from_secs(60), followed.next()).await;
        let event = next.expect("the event comes").unwrap().unwrap();
        assert_eq!(event.node_id, node, "{event:?}");
        let wanted = (event.verb.as_str(), event.meter_id.as_str());
        if wanted == ("Meters/DeleteMeter", id(n).as_str()) {
            return;
        }
    };
    delete(&to_first, 0).await;
    until_deleted(0).await;
    running.kill_9().unwrap();
    // The stream goes on at the other server, which has a chain of its own.
    delete(&second.client, 1).await;
    delete(&second.client, 2).await;
    let _again = first.start().unwrap();
    let to_first = client(&first, Role::Dev).await;
    delete(&to_first, 3).await;
    until_deleted(3).await;
    // And so does a list, over as many pages as it takes.
    let listed: Vec<_> = auditor.audit().list(None, 0).map(Result::unwrap).collect().await;
    assert!(!listed.is_empty() && listed.iter().all(|event| event.node_id == listed[0].node_id));
}
