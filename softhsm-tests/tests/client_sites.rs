//! A client of two sites, each a real server with a token and a database of its own: one is killed, frozen, or
//! vanishes without a word in mid-load. No read fails, none takes longer than a second more, each item is
//! answered exactly once, and the preferred site has its callers back when it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    Home, copy, eventually,
    fleet::{add, apdu, id, line, push},
    home, warm,
};
use kms_client::{CallReport, ClientConfig, KmsClient, MeterName, StreamOptions, Verdict};
use rustix::process::Signal;
use softhsm_tests::{
    Role, Running,
    proxy::{Manner, Plan, Proxy, Way},
};

/// Meters that both sites know.
const FLEET: u64 = 20;
/// Callers at a time.
const CALLERS: u64 = 8;
/// What a call may take on a busy machine while its site goes: a second, and slack.
const BOUND: Duration = Duration::from_secs(5);

/// Two sites of one domain, both with the same meters: copies stand for what replication does.
struct Sites {
    homes: [Home; 2],
    running: [Option<Running>; 2],
}

impl Sites {
    async fn start() -> Self {
        let homes = [home(), home()];
        // One authority for the callers of both.
        let [north, south] =
            [0, 1].map(|site: usize| homes[site].places().dir.join("certificates"));
        fs::remove_dir_all(&south).unwrap();
        copy(&north, &south);
        let running = [Some(homes[0].start().unwrap()), Some(homes[1].start().unwrap())];
        let lines: Vec<_> = (0..FLEET).map(line).collect();
        for home in &homes {
            let alone = ClientConfig::load(&home.client_toml(Role::Dev)).unwrap();
            let alone = KmsClient::connect(alone).await.unwrap();
            warm(&alone).await;
            add(&alone, &lines).await;
        }
        Self { homes, running }
    }

    fn address(&self, site: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.homes[site].port()))
    }

    /// A client of both, the first one preferred; it reaches that one at `north`.
    fn client(&self, north: SocketAddr) -> KmsClient {
        let site = |name: &str, home: &Home, at: SocketAddr| {
            let ca = home.places().certificate("ca").display().to_string();
            let port = at.port();
            format!(
                "[[sites]]\nname = \"{name}\"\nca = \"{ca}\"\nendpoints = [\"https://localhost:{port}\"]\n"
            )
        };
        let certificates = self.homes[0].places();
        let text = format!(
            "certificate = \"{}\"\nprivate_key = \"{}\"\nserver_name = \"localhost\"\n{}{}",
            certificates.certificate("dev").display(),
            certificates.private_key("dev").display(),
            site("north", &self.homes[0], north),
            site("south", &self.homes[1], self.address(1)),
        );
        let path: PathBuf = self.homes[0].places().dir.join("client-of-both.toml");
        fs::write(&path, text).unwrap();
        KmsClient::connect_lazy(ClientConfig::load(&path).unwrap()).unwrap()
    }
}

/// Callers that read one after the other, and the longest that any of them waited.
struct Load {
    stop: Arc<AtomicBool>,
    worst: Arc<Mutex<Duration>>,
    callers: Vec<tokio::task::JoinHandle<u64>>,
}

impl Load {
    fn start(client: &KmsClient) -> Self {
        let (stop, worst) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Duration>>::default());
        let caller = |n: u64| {
            let (client, stop, worst) = (client.clone(), Arc::clone(&stop), Arc::clone(&worst));
            tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    read(&client, (n + calls) % FLEET, calls).await;
                    let mut worst = worst.lock().unwrap();
                    *worst = worst.max(begun.elapsed());
                    calls += 1;
                }
                calls
            })
        };
        let callers = (0..CALLERS).map(caller).collect();
        Self { stop, worst, callers }
    }

    /// The longest wait since it was last asked.
    fn worst(&self) -> Duration {
        std::mem::take(&mut self.worst.lock().unwrap())
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut calls = 0;
        for caller in self.callers {
            calls += caller.await.unwrap();
        }
        calls
    }
}

/// One read of one of the kinds there are; each must succeed.
async fn read(client: &KmsClient, meter: u64, kind: u64) {
    match kind % 4 {
        0 => {
            let opened = client.decrypt(&apdu(push(meter))).await.unwrap();
            assert_eq!(opened.verdict(), Verdict::Ok);
        }
        1 => {
            let checked = client.verify_mic(&apdu(push(meter))).await.unwrap();
            assert_eq!(checked.verdict, Verdict::Ok);
        }
        2 => {
            let batch = (0..FLEET).map(|n| apdu(push(n)));
            let opened = client.decrypt_batch(batch).await.unwrap();
            assert_eq!(opened.len(), FLEET as usize);
            assert!(opened.iter().all(|one| one.verdict() == Verdict::Ok));
        }
        _ => {
            let name = MeterName::Id(id(meter).parse().unwrap());
            assert_eq!(client.meters().get(&name).await.unwrap().meter_id, id(meter));
        }
    }
}

/// A stream that asks for one meter after the other, and says when each answer came.
struct Streaming {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u64, Duration)>,
}

impl Streaming {
    fn start(client: &KmsClient) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let options = StreamOptions { batch_size: 8, ..StreamOptions::default() };
        let (client, stopped) = (client.with_options(options), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let (hand_in, items) = tokio::sync::mpsc::unbounded_channel();
            let items = tokio_stream::wrappers::UnboundedReceiverStream::new(items);
            let mut opened = client.decrypt_stream(items);
            let (mut count, mut worst) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                for n in 0..FLEET {
                    hand_in.send(apdu(push(n))).unwrap();
                }
                // Each item's answer is its own meter's: in order, none lost, none doubled.
                for n in 0..FLEET {
                    let one = tokio_stream::StreamExt::next(&mut opened).await.unwrap().unwrap();
                    assert_eq!(one.verdict(), Verdict::Ok);
                    assert_eq!(one.checked.system_title, Some(common::fleet::title(n)));
                    count += 1;
                }
                worst = worst.max(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            drop(hand_in);
            assert!(tokio_stream::StreamExt::next(&mut opened).await.is_none());
            (count, worst)
        });
        Self { stop, task }
    }

    async fn end(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn answered_by(client: &KmsClient, site: &str) {
    eventually(&format!("answers come from {site}"), async || {
        let report = CallReport::default();
        let client = client.reporting_to(&report);
        client.decrypt(&apdu(push(1))).await.unwrap();
        report.site().as_deref() == Some(site)
    })
    .await;
}

/// What is done to the preferred site, and how it is undone.
async fn through(
    what: &str,
    sites: &mut Sites,
    client: &KmsClient,
    fault: impl FnOnce(&mut Sites),
    mend: impl FnOnce(&mut Sites),
) {
    answered_by(client, "north").await;
    let (load, streaming) = (Load::start(client), Streaming::start(client));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let calm = load.worst();
    fault(sites);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let during = load.worst();
    let begun = Instant::now();
    mend(sites);
    answered_by(client, "north").await;
    let back = begun.elapsed();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (items, stream_worst) = streaming.end().await;
    let calls = load.end().await;
    println!(
        "{what}: {calls} reads and {items} items of a stream, none failed; longest read before \
         {calm:?}, through the fault {during:?}, of the stream (a round of {FLEET}) {stream_worst:?}; \
         back {back:?} after it was mended"
    );
    assert!(during < BOUND && stream_worst < BOUND, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_is_killed_or_frozen_in_mid_load_fails_no_read_and_has_its_callers_back() {
    let mut sites = Sites::start().await;
    let client = sites.client(sites.address(0));
    through(
        "killed with -9",
        &mut sites,
        &client,
        |sites| sites.running[0].take().unwrap().kill_9().unwrap(),
        |sites| sites.running[0] = Some(sites.homes[0].start().unwrap()),
    )
    .await;
    through(
        "frozen",
        &mut sites,
        &client,
        |sites| sites.running[0].as_ref().unwrap().signal(Signal::STOP).unwrap(),
        |sites| sites.running[0].as_ref().unwrap().signal(Signal::CONT).unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_vanishes_without_a_word_fails_no_read_and_has_its_callers_back() {
    let mut sites = Sites::start().await;
    // Connections that are made while it is gone are swallowed from their first byte on.
    let gone = Arc::<AtomicBool>::default();
    let plan = {
        let gone = Arc::clone(&gone);
        move |_| match gone.load(Ordering::Relaxed) {
            true => Plan::fault(Way::Up, 0, Manner::Swallow),
            false => Plan::PASS,
        }
    };
    let proxy = Arc::new(Proxy::start(sites.address(0), plan).await.unwrap());
    let client = sites.client(proxy.address());
    let (vanishing, back) = (Arc::clone(&proxy), Arc::clone(&proxy));
    let (set, unset) = (Arc::clone(&gone), gone);
    through(
        "vanished",
        &mut sites,
        &client,
        move |_| {
            set.store(true, Ordering::Relaxed);
            vanishing.swallow_all();
        },
        move |_| {
            unset.store(false, Ordering::Relaxed);
            back.reset_all();
        },
    )
    .await;
}
