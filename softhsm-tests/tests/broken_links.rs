//! Endpoints that hang and connections that break, as the library and `ami-tool` meet them: nobody hangs,
//! whoever can go on goes on, and whoever can't is told what is known.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    Home, eventually,
    fleet::{add, apdu, id, line, parsed, push},
    free_address, home, home_with, metrics_of,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use kms_client::{
    CallError, ClientConfig, ImportRules, KmsClient, MeterId, Outcome, StreamOptions, Verdict,
};
use rustix::process::Signal;
use softhsm_tests::{
    AmiTool, Role,
    proxy::{Manner, Plan, Proxy, Way},
};
use tokio::net::{TcpListener, TcpStream};

/// A client's deadline here, in milliseconds.
const DEADLINE_MS: u64 = 10_000;
/// Longer than a deadline, with a busy machine's slack: who takes longer, hangs.
const HANGS: Duration = Duration::from_millis(DEADLINE_MS + 10_000);

/// A listener that accepts and then says nothing.
async fn mute() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            kept.push(socket);
        }
    });
    address
}

/// One that shakes hands as the site's server does, and then says nothing.
async fn mute_behind_tls(home: &Home) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = common::relay::server_side(home);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            if let Ok(tls) = acceptor.accept(socket).await {
                kept.push(tls);
            }
        }
    });
    address
}

fn server(home: &Home) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], home.port()))
}

/// A client's configuration with these endpoints.
fn config(home: &Home, endpoints: &[SocketAddr], role: Role) -> PathBuf {
    let text = fs::read_to_string(home.client_toml(role)).unwrap();
    let list: Vec<_> =
        endpoints.iter().map(|at| format!("\"https://localhost:{}\"", at.port())).collect();
    let text = text.replace(&format!("\"https://localhost:{}\"", home.port()), &list.join(", "));
    let name = endpoints.iter().map(|at| at.port().to_string()).collect::<Vec<_>>().join("-");
    let path = home.places().dir.join(format!("client-{}-{name}.toml", role.caller()));
    fs::write(&path, text).unwrap();
    path
}

fn client(home: &Home, endpoints: &[SocketAddr], role: Role) -> KmsClient {
    let config = ClientConfig::load(&config(home, endpoints, role)).unwrap();
    KmsClient::connect_lazy(config).unwrap()
}

/// What `work` comes to, unless it hangs.
async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    let in_time = tokio::time::timeout(HANGS, work).await;
    in_time.unwrap_or_else(|_| panic!("{what}: hangs for more than {HANGS:?}"))
}

/// `ami-tool` with these endpoints: exit code, and what it said.
async fn tool(home: &Home, endpoints: &[SocketAddr], arguments: &[&str]) -> (i32, String) {
    let program = &home.programs().ami_tool;
    let mut command = tokio::process::Command::new(program);
    command.arg("--config").arg(config(home, endpoints, Role::Dev)).args(arguments);
    command.kill_on_drop(true).stdin(std::process::Stdio::null());
    let output = in_time(&format!("{arguments:?}"), command.output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_stays_silent_is_left_for_the_next_one_at_each_step() {
    let home = home();
    let _running = home.start().unwrap();
    let server = server(&home);
    let swallowed = Proxy::start(server, |_| Plan::fault(Way::Down, 0, Manner::Swallow)).await;
    let swallowed = swallowed.unwrap();
    for (what, silent) in [
        ("accepts and is silent", mute().await),
        ("is silent after TLS", mute_behind_tls(&home).await),
        ("takes everything, answers nothing", swallowed.address()),
    ] {
        let begun = Instant::now();
        let (code, said) = tool(&home, &[silent], &["site", "status"]).await;
        assert_eq!(code, 4, "{what}: {said}");
        assert!(said.contains("silent"), "{what}: {said}");
        println!("alone, {what}: {:?}: {said}", begun.elapsed());
        let begun = Instant::now();
        let (code, said) = tool(&home, &[silent, server], &["site", "status"]).await;
        assert_eq!(code, 0, "{what}: {said}");
        println!("before a live one, {what}: {:?}", begun.elapsed());
        // The library, which makes its connections with the first call; and a write.
        let admin = client(&home, &[silent, server], Role::AmiAdmin);
        let missing = MeterId::new("nobody").unwrap();
        let refused = in_time(what, admin.meters().delete(&missing)).await.unwrap_err();
        assert!(matches!(refused, CallError::NotFound { .. }), "{what}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_ends_no_later_than_the_deadline_and_goes_on_when_it_thaws() {
    let home = home();
    let running = home.start().unwrap();
    let server = server(&home);
    let client = client(&home, &[server], Role::Dev);
    add(&client, &[line(1)]).await;
    running.signal(Signal::STOP).unwrap();
    for arguments in [&["site", "status"][..], &["decrypt", "--apdu", "DB08"]] {
        let (code, said) = tool(&home, &[server], arguments).await;
        assert_eq!(code, 4, "{said}");
    }
    // A stream over the connection that was open before.
    let push = push(1);
    let (hand_in, items) = tokio::sync::mpsc::unbounded_channel();
    let items = tokio_stream::wrappers::UnboundedReceiverStream::new(items);
    let options = StreamOptions { batch_size: 1, ..StreamOptions::default() };
    let mut opened = client.with_options(options).decrypt_stream(items);
    hand_in.send(apdu(push.clone())).unwrap();
    let late = in_time("a frozen server", opened.next()).await.unwrap().unwrap_err();
    println!("a stream to a frozen server: {late}");
    // Frozen for a moment only.
    let mut opened = client.decrypt_stream(futures_util::stream::iter((0..50).map({
        let push = push.clone();
        move |_| apdu(push.clone())
    })));
    tokio::time::sleep(Duration::from_secs(2)).await;
    running.signal(Signal::CONT).unwrap();
    let mut answered = 0;
    while let Some(one) = in_time("after the thaw", opened.next()).await {
        assert_eq!(one.unwrap().verdict(), Verdict::Ok);
        answered += 1;
    }
    assert_eq!(answered, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_breaks_loses_and_repeats_no_line() {
    let home = home();
    let _running = home.start().unwrap();
    let server = server(&home);
    let lines: Vec<_> = (1..=1_200).map(line).collect();
    let text = lines.join("\n");
    for (round, (way, at, manner)) in [
        (Way::Up, 60_000, Manner::Reset),
        (Way::Down, 12_000, Manner::Close),
        (Way::Up, 70_000, Manner::Swallow),
        (Way::Down, 9_000, Manner::Reset),
    ]
    .into_iter()
    .enumerate()
    {
        let plan = move |connection| match connection {
            0 => Plan::fault(way, at, manner),
            _ => Plan::PASS,
        };
        let proxy = Proxy::start(server, plan).await.unwrap();
        let admin = client(&home, &[proxy.address()], Role::AmiAdmin);
        let results = admin
            .meters()
            .import(futures_util::stream::iter(parsed(&text)), ImportRules::default());
        let results: Vec<_> = results.try_collect().await.unwrap();
        let numbers: Vec<_> = results.iter().map(|result| result.line).collect();
        assert_eq!(numbers, (1..=1_200).collect::<Vec<_>>(), "{way:?} {manner:?}");
        assert!(results.iter().all(|result| result.outcome != Outcome::Refused));
        let unchanged = results.iter().filter(|one| one.outcome == Outcome::Unchanged).count();
        println!(
            "{way:?} {manner:?} at {at}: {} connections, {unchanged} unchanged",
            proxy.connections()
        );
        assert!(round == 0 || unchanged == 1_200);
        assert!(proxy.connections() > 1, "{way:?} {manner:?}: it was not broken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_says_that_its_outcome_is_unknown() {
    let metrics = free_address();
    let listen = softhsm_tests::settings::quoted(&metrics.to_string());
    let home = home_with(&[("metrics", "listen", &listen)]);
    let _running = home.start().unwrap();
    let server = server(&home);
    let direct = client(&home, &[server], Role::AmiAdmin);
    add(&direct, &(1..=8).map(line).collect::<Vec<_>>()).await;
    let mut arrived = 0;
    for (n, manner) in [(1, Manner::Reset), (2, Manner::Close), (3, Manner::Swallow)] {
        // What comes down before the first answer does; signatures differ by a byte or two.
        let plain = Proxy::start(server, |_| Plan::PASS).await.unwrap();
        let path = config(&home, &[plain.address()], Role::AmiAdmin);
        let _idle = KmsClient::connect(ClientConfig::load(&path).unwrap()).await.unwrap();
        let setup = settled(&plain).await;
        let proxy = Proxy::start(server, move |_| Plan::fault(Way::Down, setup + 10, manner));
        let proxy = proxy.await.unwrap();
        let once = client(&home, &[proxy.address()], Role::AmiAdmin);
        let meter: MeterId = id(n).parse().unwrap();
        let error = in_time("a delete", once.meters().delete(&meter)).await.unwrap_err();
        println!("{manner:?}: {error}");
        assert!(error.to_string().contains("may have been carried out"), "{manner:?}: {error}");
        // A connection that ends before anything went out on it may be replaced: what arrives counts.
        tokio::time::sleep(Duration::from_millis(500)).await;
        eventually("the write arrives", async || deletes(metrics) > arrived).await;
        let before = std::mem::replace(&mut arrived, deletes(metrics));
        assert_eq!(arrived - before, 1, "{manner:?}: so often a write arrived");
    }
}

/// What has come down over a connection that nobody uses, once half a second adds nothing.
async fn settled(proxy: &Proxy) -> u64 {
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (_, now) = proxy.passed(0);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Deletes that arrived at the server, however they ended.
fn deletes(metrics: SocketAddr) -> u64 {
    let page = metrics_of(metrics);
    let lines = page.lines().filter_map(|line| line.strip_prefix("kms_rpc_requests_total{"));
    let deletes = lines.filter(|line| line.contains("verb=\"Meters/DeleteMeter\""));
    deletes.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_over_a_new_connection_whatever_ended_the_old_one() {
    let home = home();
    let running = home.start().unwrap();
    let server = server(&home);
    let proxy = Arc::new(Proxy::start(server, |_| Plan::PASS).await.unwrap());
    let client = client(&home, &[proxy.address()], Role::Dev);
    add(&client, &[line(1)]).await;
    let push = push(1);
    let cutting = Arc::clone(&proxy);
    let cuts = tokio::spawn(async move {
        // Longer apart than a batch takes: a call that is cut each time it is sent does fail in the end.
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            cutting.reset_all();
        }
    });
    let mut calls = 0;
    while !cuts.is_finished() {
        assert_eq!(client.decrypt(&apdu(push.clone())).await.unwrap().verdict(), Verdict::Ok);
        let batch = (0..3_000).map(|_| apdu(push.clone()));
        assert_eq!(client.decrypt_batch(batch).await.unwrap().len(), 3_000);
        calls += 1;
    }
    println!("{calls} batches over {} connections", proxy.connections());
    assert!(proxy.connections() > 5);
    assert!(running.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlives_its_servers_restart() {
    let home = home();
    let running = home.start().unwrap();
    let client = client(&home, &[server(&home)], Role::Dev);
    add(&client, &[line(1)]).await;
    let push = push(1);
    let (hand_in, items) = tokio::sync::mpsc::unbounded_channel();
    let items = tokio_stream::wrappers::UnboundedReceiverStream::new(items);
    let options = StreamOptions { batch_size: 1, ..StreamOptions::default() };
    let mut opened = client.with_options(options).decrypt_stream(items);
    let mut ask = async |what: &str| {
        hand_in.send(apdu(push.clone())).unwrap();
        let one = in_time(what, opened.next()).await.unwrap();
        assert_eq!(one.unwrap().verdict(), Verdict::Ok, "{what}");
    };
    ask("before").await;
    running.kill_9().unwrap();
    let starting = std::thread::spawn({
        let site = softhsm_tests::Site::open(&home.places().dir, home.programs().clone()).unwrap();
        move || {
            std::thread::sleep(Duration::from_secs(1));
            site.start().unwrap()
        }
    });
    ask("while the server is away").await;
    let running = starting.join().unwrap();
    ask("after").await;
    assert!(running.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_certificate_is_called_so_and_has_its_own_exit_code() {
    let home = home();
    let _running = home.start().unwrap();
    let authority = softhsm_tests::Authority::make("somebody else's CA").unwrap();
    let stranger = home.ami_tool_as("stranger", &authority.client("admin-1").unwrap()).unwrap();
    let expired = home.authority().unwrap().expired_client("admin-1").unwrap();
    let expired = home.ami_tool_as("expired", &expired).unwrap();
    let said = |tool: &AmiTool| {
        let output = tool.run(&["site", "status"], "").unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // Often: whether the alert or the end of the connection is seen first is a race.
    for _ in 0..20 {
        for (tool, word) in [(&stranger, "authority"), (&expired, "expired")] {
            let (code, text) = said(tool);
            assert_eq!(code, 6, "{text}");
            assert!(text.contains("certificate was refused") && text.contains(word), "{text}");
        }
    }
    // A server that the client does not trust.
    let path = config(&home, &[server(&home)], Role::Dev);
    let other_ca = home.places().dir.join("other-ca.pem");
    fs::write(&other_ca, authority.identity().certificate_pem).unwrap();
    let text = fs::read_to_string(&path).unwrap().replace("certificates/ca.pem", "other-ca.pem");
    fs::write(&path, text).unwrap();
    let (code, text) = said(&AmiTool::new(&home.programs().ami_tool, &path));
    assert_eq!(code, 6, "{text}");
    assert!(text.contains("not accepted here") && text.contains("`ca`"), "{text}");
}

/// The name resolves, and nothing listens: said at once.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_listens_is_said_at_once() {
    let home = home();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(TcpStream::connect(free).await.is_err());
    let begun = Instant::now();
    let (code, said) = tool(&home, &[free], &["site", "status"]).await;
    assert_eq!(code, 4, "{said}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
