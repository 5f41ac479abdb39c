//! A stream of 200 messages through a proxy that resets, closes, goes silent or swallows after byte n, in
//! either direction: each item is answered once, rightly, and within its deadline.
//!
//! `make breaks` goes through every n; the suite takes each in one of 20 places.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{
    Home, Numbers,
    fleet::{GAK, GUEK, add, line, push, push_with, value},
    home,
};
use futures_util::StreamExt as _;
use kms_client::{Apdu, CallError, ClientConfig, KmsClient, StreamOptions, Verdict};
use softhsm_tests::{
    Role,
    proxy::{Manner, Plan, Proxy, Way},
};

const MESSAGES: usize = 200;
const METERS: u64 = 20;
/// As in `client.toml`.
const DEADLINE: Duration = Duration::from_secs(10);
/// For the test itself, on a busy machine.
const SLACK: Duration = Duration::from_secs(2);
/// Streams at a time. Most of them wait for a silent peer.
const AT_A_TIME: usize = 24;

/// One item, and what must become of it.
struct Due {
    apdu: Vec<u8>,
    verdict: Verdict,
    plaintext: Option<Vec<u8>>,
}

fn due(index: usize) -> Due {
    let meter = index as u64 % METERS + 1;
    let plain = format!("\x0F\0\0\0\x01message {index}").into_bytes();
    let apdu = push_with(meter, 0x30, &value(meter, GUEK), &value(meter, GAK), &plain);
    match index % 11 {
        3 => {
            let mut forged = apdu;
            *forged.last_mut().unwrap() ^= 1;
            Due { apdu: forged, verdict: Verdict::MicFailure, plaintext: None }
        }
        7 => Due { apdu: push(10_000 + meter), verdict: Verdict::UnknownMeter, plaintext: None },
        _ => Due { apdu, verdict: Verdict::Ok, plaintext: Some(plain) },
    }
}

/// What a stream through one proxy came to.
struct Run {
    /// Items answered, until an error, if there was one.
    answered: usize,
    error: Option<CallError>,
    /// From handing an item in to its answer.
    slowest: Duration,
    connections: usize,
    passed: (u64, u64),
}

struct Bench {
    home: Home,
    due: Vec<Due>,
    server: SocketAddr,
}

impl Bench {
    async fn client(&self, port: u16, more: &str) -> KmsClient {
        let text = std::fs::read_to_string(self.home.client_toml(Role::Dev)).unwrap();
        let text = text.replace(&format!(":{}", self.home.port()), &format!(":{port}"));
        let path = self.home.places().dir.join(format!("client-{port}.toml"));
        std::fs::write(&path, text.replace("retries = 2", more)).unwrap();
        KmsClient::connect_lazy(ClientConfig::load(&path).unwrap()).unwrap()
    }

    /// The stream, message by message. Panics at a wrong answer.
    async fn run(&self, retries: &str, plan: impl Fn(usize) -> Plan + Send + 'static) -> Run {
        let proxy = Proxy::start(self.server, plan).await.unwrap();
        let client = self.client(proxy.address().port(), retries).await;
        let options = StreamOptions { batch_size: 1, ..StreamOptions::default() };
        let handed_in = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&handed_in);
        let apdus: Vec<_> =
            self.due.iter().map(|due| Apdu::new(due.apdu.clone()).unwrap()).collect();
        let apdus = futures_util::stream::iter(apdus)
            .inspect(move |_| taken.lock().unwrap().push(Instant::now()));
        let mut opened = client.with_options(options).decrypt_stream(apdus);
        let mut run = Run {
            answered: 0,
            error: None,
            slowest: Duration::ZERO,
            connections: 0,
            passed: (0, 0),
        };
        while let Some(opened) = opened.next().await {
            let opened = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    run.error = Some(error);
                    break;
                }
            };
            let due = &self.due[run.answered];
            assert_eq!(opened.verdict(), due.verdict, "item {}", run.answered);
            assert_eq!(
                opened.plaintext.as_deref(),
                due.plaintext.as_deref(),
                "item {}",
                run.answered
            );
            let handed_in = handed_in.lock().unwrap()[run.answered];
            run.slowest = run.slowest.max(handed_in.elapsed());
            run.answered += 1;
        }
        assert!(opened.next().await.is_none(), "something came after the end");
        (run.connections, run.passed) = (proxy.connections(), proxy.passed(0));
        run
    }
}

async fn bench() -> Bench {
    let home = home();
    let running = home.start().unwrap();
    let client = common::client(&home, Role::Dev).await;
    add(&client, &(1..=METERS).map(line).collect::<Vec<_>>()).await;
    // Ends with the test's process.
    std::mem::forget(running);
    let server = format!("127.0.0.1:{}", home.port()).parse().unwrap();
    Bench { home, due: (0..MESSAGES).map(due).collect(), server }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_item_of_a_broken_stream_is_answered_once_and_in_time() {
    // One switch of this one test, not a setting of the product.
    #[expect(clippy::disallowed_methods, reason = "`make breaks` asks for all of them")]
    let all = std::env::var("BREAKS").is_ok_and(|which| which == "all");
    let step = if all { 1 } else { 20 };
    let bench = bench().await;
    let whole = bench.run("retries = 2", |_| Plan::PASS).await;
    assert_eq!((whole.answered, whole.connections, whole.error), (MESSAGES, 1, None));
    let (up, down) = whole.passed;
    let mut numbers = Numbers(7);
    let mut cases = Vec::new();
    for (way, bytes) in [(Way::Up, up), (Way::Down, down)] {
        let message = bytes / MESSAGES as u64;
        for manner in Manner::ALL {
            for n in (0..MESSAGES as u64).step_by(step) {
                cases.push((way, manner, n * message + numbers.below(message)));
            }
        }
    }
    let runs = futures_util::stream::iter(&cases).map(async |&(way, manner, at)| {
        let plan = move |connection| match connection {
            0 => Plan::fault(way, at, manner),
            _ => Plan::PASS,
        };
        ((way, manner, at), bench.run("retries = 2", plan).await)
    });
    let runs: Vec<_> = runs.buffer_unordered(AT_A_TIME).collect().await;
    let mut rows = BTreeMap::<String, (usize, usize, usize, Duration)>::new();
    let mut wrong = Vec::new();
    for ((way, manner, at), run) in runs {
        let row = rows.entry(format!("{way:?} {manner:?}")).or_default();
        row.0 += 1;
        row.1 += usize::from(run.connections > 1);
        row.2 += run.answered;
        row.3 = row.3.max(run.slowest);
        if run.answered != MESSAGES || run.error.is_some() || run.slowest > DEADLINE + SLACK {
            wrong.push(format!(
                "{way:?} {manner:?} at byte {at}: {} of {MESSAGES} answered, slowest {:?}, {:?}",
                run.answered, run.slowest, run.error
            ));
        }
    }
    println!("{MESSAGES} messages; up {up} bytes, down {down} bytes");
    println!("{:14} {:>6} {:>8} {:>9} {:>12}", "", "runs", "resumed", "answered", "slowest item");
    for (name, (runs, resumed, answered, slowest)) in rows {
        println!(
            "{name:14} {runs:>6} {resumed:>8} {answered:>9} {:>10.2} s",
            slowest.as_secs_f64()
        );
    }
    println!("{} of {} streams went wrong", wrong.len(), cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_over_connections_that_break_again_and_again_comes_through() {
    let bench = bench().await;
    for seed in 0..4 {
        let plan = move |connection: usize| match connection {
            0..6 => Plan {
                delay: Duration::from_millis(1),
                ..Plan::by_seed(seed * 10 + connection as u64, 12_000)
            },
            _ => Plan::PASS,
        };
        let run = bench.run("retries = 9", plan).await;
        assert_eq!((run.answered, run.error), (MESSAGES, None), "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_does_break_what_is_not_resumed() {
    let bench = bench().await;
    for (way, manner) in [(Way::Up, Manner::Reset), (Way::Down, Manner::Close)] {
        let run = bench.run("retries = 0", move |_| Plan::fault(way, 9_000, manner)).await;
        assert!(run.answered < MESSAGES && run.error.is_some(), "{way:?} {manner:?}");
    }
}
