//! Two sites as the library meets them, each a service in the same process: late reads, writes and who takes
//! them, streams that move. Processes that are killed or frozen are in `softhsm-tests/tests/client_sites.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::{Script, World};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kms_client::{
    Apdu, CallError, CallReport, ClientConfig, ImportFormat, ImportRecords, ImportRules, KmsClient,
    MeterId, Outcome, StreamOptions, Verdict,
};
use tonic::Code;

/// Nobody listens there.
const GONE: &str = "127.0.0.1:1";

struct Pair {
    _world: World,
    north: Arc<Script>,
    south: Arc<Script>,
    client: KmsClient,
    report: CallReport,
}

impl Pair {
    async fn new(more: &str) -> Self {
        Self::with(Script::default(), Script::default(), more).await
    }

    async fn with(north: Script, south: Script, more: &str) -> Self {
        let world = World::new();
        let (north, south) = (Arc::new(north), Arc::new(south));
        let at = [world.serve(Arc::clone(&north)).await, world.serve(Arc::clone(&south)).await];
        let report = CallReport::default();
        let client = client(&world, at, more).reporting_to(&report);
        Self { _world: world, north, south, client, report }
    }

    fn calls(&self) -> [u32; 2] {
        [&self.north, &self.south].map(|script| script.calls.load(Ordering::SeqCst))
    }
}

fn client(world: &World, [north, south]: [SocketAddr; 2], more: &str) -> KmsClient {
    let path = world.two_sites(north, south, more);
    KmsClient::connect_lazy(ClientConfig::load(&path).unwrap()).unwrap()
}

fn slow(delay: Duration) -> Script {
    let script = Script::default();
    *script.delay.lock().unwrap() = delay;
    script
}

fn not_primary() -> Script {
    let script = Script::default();
    script.not_primary.store(true, Ordering::SeqCst);
    script
}

fn apdu(number: u32) -> Apdu {
    Apdu::new(number.to_be_bytes().to_vec()).unwrap()
}

fn meter() -> MeterId {
    MeterId::new("m").unwrap()
}

#[tokio::test]
async fn the_preferred_site_answers_and_the_caller_learns_which_it_was() {
    let pair = Pair::new("").await;
    assert_eq!(pair.client.site_names(), ["north", "south"]);
    assert_eq!(pair.report.site(), None);
    for _ in 0..5 {
        pair.client.decrypt(&apdu(1)).await.unwrap();
    }
    assert_eq!(pair.calls(), [5, 0]);
    assert_eq!(pair.report.answers_by_site(), [("north".to_owned(), 5)]);
    let south = pair.client.at_site("south").unwrap();
    south.site_status().await.unwrap();
    assert_eq!(pair.report.site().as_deref(), Some("south"));
    assert!(pair.client.at_site("west").is_none());
}

#[tokio::test]
async fn a_read_that_is_late_is_asked_of_the_other_site_and_the_first_answer_counts() {
    let pair = Pair::with(slow(Duration::from_secs(30)), Script::default(), "").await;
    let begun = Instant::now();
    assert_eq!(pair.client.decrypt(&apdu(1)).await.unwrap().verdict(), Verdict::Ok);
    let batch = pair.client.decrypt_batch((0..10).map(apdu)).await.unwrap();
    assert_eq!(batch.len(), 10);
    println!("two late reads: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!((pair.report.site().as_deref(), pair.report.asked_twice()), (Some("south"), 2));
    assert_eq!(pair.calls(), [2, 2]);
}

#[tokio::test]
async fn no_more_than_one_read_in_twenty_is_asked_twice_while_the_site_answers() {
    let (busy, idle) = (slow(Duration::from_millis(120)), Script::default());
    let pair = Pair::with(busy, idle, "hedge_after_ms = 20").await;
    const CALLS: u32 = 400;
    let calls = stream::iter(0..CALLS).map(|number| {
        let client = pair.client.clone();
        async move { client.decrypt(&apdu(number)).await.unwrap() }
    });
    assert_eq!(calls.buffer_unordered(40).count().await, CALLS as usize);
    let [north, south] = pair.calls();
    println!("of {north} calls {south} were asked of the other site, too");
    assert_eq!(u64::from(south), pair.report.asked_twice());
    // Ten are saved up at the beginning.
    assert!(north == CALLS && (10..=10 + CALLS / 20).contains(&south));
}

#[tokio::test]
async fn without_hedges_a_slow_site_is_waited_for() {
    let slow = slow(Duration::from_millis(700));
    let pair = Pair::with(slow, Script::default(), "hedge_after_ms = 0").await;
    pair.client.decrypt(&apdu(1)).await.unwrap();
    assert_eq!(pair.calls(), [1, 0]);
}

#[tokio::test]
async fn a_write_goes_to_the_primary_and_a_refusal_leads_to_the_other_site_once() {
    let pair = Pair::with(not_primary(), Script::default(), "").await;
    pair.client.meters().delete(&meter()).await.unwrap();
    assert_eq!(pair.calls(), [1, 1]);
    // Who took it is remembered; reads go where they went.
    pair.client.meters().delete(&meter()).await.unwrap();
    pair.client.decrypt(&apdu(1)).await.unwrap();
    assert_eq!(pair.calls(), [2, 2]);
    pair.south.not_primary.store(true, Ordering::SeqCst);
    let refused = pair.client.meters().delete(&meter()).await.unwrap_err();
    assert!(matches!(&refused, CallError::Refused { code, .. } if code == "NOT_PRIMARY"));
    assert_eq!(pair.calls(), [3, 3]);
}

#[tokio::test]
async fn a_write_is_never_sent_to_two_sites() {
    let late = slow(Duration::from_secs(30));
    let pair = Pair::with(late, Script::default(), "deadline_ms = 1500").await;
    let unknown = pair.client.meters().delete(&meter()).await.unwrap_err();
    assert!(matches!(unknown, CallError::OutcomeUnknown { .. }), "{unknown}");
    assert_eq!(pair.calls(), [1, 0]);
    let going = Arc::into_inner(Script::failing(Code::Unavailable, 1)).unwrap();
    let pair = Pair::with(going, Script::default(), "").await;
    let told = pair.client.meters().delete(&meter()).await.unwrap_err();
    assert!(matches!(told, CallError::Unavailable { .. }), "{told}");
    assert_eq!(pair.calls(), [1, 0]);
}

#[tokio::test]
async fn a_write_goes_to_the_site_that_can_be_reached_and_is_told_what_is_wrong_if_it_is_not_the_primary()
 {
    let world = World::new();
    let south = Arc::new(Script::default());
    let at = world.serve(Arc::clone(&south)).await;
    let client = client(&world, [GONE.parse().unwrap(), at], "retries = 1");
    client.meters().delete(&meter()).await.unwrap();
    south.not_primary.store(true, Ordering::SeqCst);
    let error = client.meters().delete(&meter()).await.unwrap_err();
    println!("{error}");
    let CallError::Unreachable { reason } = error else { panic!("{error}") };
    assert!(reason.contains(GONE.rsplit(':').next().unwrap()), "{reason}");
    assert!(reason.contains("south answers that it is not the primary"), "{reason}");
}

#[tokio::test]
async fn a_site_that_is_gone_is_left_at_once_and_none_at_all_is_said() {
    let world = World::new();
    let at = world.serve(Arc::default()).await;
    let gone: SocketAddr = GONE.parse().unwrap();
    let client = client(&world, [gone, at], "retries = 0");
    client.decrypt(&apdu(1)).await.unwrap();
    client.decrypt_stream(stream::iter([apdu(1)])).try_collect::<Vec<_>>().await.unwrap();
    let path = world.two_sites(gone, at, "");
    KmsClient::connect(ClientConfig::load(&path).unwrap()).await.unwrap();
    let path = world.two_sites(gone, gone, "");
    let error = KmsClient::connect(ClientConfig::load(&path).unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

fn lines(count: u32) -> Vec<kms_client::MeterRecord> {
    const KEY: &str = r#""keys":[{"kind":"GUEK","value":"D491470F47126332B07D1923B3504188"}]"#;
    let line = |n| format!(r#"{{"meter_id":"m-{n}","system_title":"4D4D4D0000BC614E",{KEY}}}"#);
    let text = (0..count).map(line).collect::<Vec<_>>().join("\n");
    ImportRecords::new(text.as_bytes(), ImportFormat::JsonLines).collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn an_import_goes_to_the_primary() {
    let pair = Pair::with(not_primary(), Script::default(), "").await;
    let results = pair.client.meters().import(stream::iter(lines(700)), ImportRules::default());
    let results: Vec<_> = results.try_collect().await.unwrap();
    let numbers: Vec<_> = results.iter().map(|result| result.line).collect();
    assert_eq!(numbers, (1..=700).collect::<Vec<_>>());
    assert!(results.iter().all(|result| result.outcome == Outcome::Created));
    assert_eq!(pair.report.site().as_deref(), Some("south"));
    assert_eq!(pair.calls(), [1, 1]);
}

#[tokio::test]
async fn an_import_that_broke_goes_on_at_its_own_site_alone() {
    let north = Arc::into_inner(Script::failing(Code::Unavailable, 2)).unwrap();
    *north.code.lock().unwrap() = None;
    north.break_after.store(100, Ordering::SeqCst);
    let pair = Pair::with(north, Script::default(), "").await;
    let results = pair.client.meters().import(stream::iter(lines(300)), ImportRules::default());
    let results: Vec<_> = results.try_collect().await.unwrap();
    assert_eq!(results.len(), 300);
    assert_eq!(pair.calls(), [3, 0]);
}

#[tokio::test]
async fn an_import_that_may_have_arrived_goes_to_no_other_site_although_its_own_writes_no_more() {
    let north = Arc::into_inner(Script::failing(Code::Unavailable, 1)).unwrap();
    *north.code.lock().unwrap() = None;
    north.break_after.store(100, Ordering::SeqCst);
    north.breaks_as_it_is_fenced.store(true, Ordering::SeqCst);
    let pair = Pair::with(north, Script::default(), "").await;
    let results = pair.client.meters().import(stream::iter(lines(300)), ImportRules::default());
    let error = results.try_collect::<Vec<_>>().await.unwrap_err();
    println!("{error}");
    assert!(error.to_string().contains("NOT_PRIMARY"), "{error}");
    assert_eq!(pair.calls(), [2, 0]);
}

#[tokio::test]
async fn a_stream_goes_on_at_the_other_site_and_comes_back_without_losing_or_doubling_an_item() {
    let north = Arc::into_inner(Script::failing(Code::Unavailable, 1)).unwrap();
    *north.code.lock().unwrap() = None;
    north.break_after.store(7, Ordering::SeqCst);
    let pair = Pair::with(north, Script::default(), "").await;
    let options = StreamOptions { batch_size: 4, ..StreamOptions::default() };
    let report = pair.report.clone();
    let (mut number, begun, mut is_back) = (0, Instant::now(), false);
    let (hand_in, items) = tokio::sync::mpsc::unbounded_channel();
    let items = tokio_stream::wrappers::UnboundedReceiverStream::new(items);
    let mut opened = pair.client.with_options(options).decrypt_stream(items);
    let mut seen = Vec::new();
    while !is_back && begun.elapsed() < Duration::from_secs(20) {
        for _ in 0..8 {
            hand_in.send(apdu(number)).unwrap();
            number += 1;
        }
        for _ in 0..8 {
            seen.push(opened.next().await.unwrap().unwrap().plaintext.unwrap());
        }
        let sites = report.answers_by_site().len();
        is_back = sites == 2 && report.site().as_deref() == Some("north");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("back after {:?}: {:?}", begun.elapsed(), report.answers_by_site());
    assert!(is_back, "it never came back");
    drop(hand_in);
    assert!(opened.next().await.is_none());
    assert_eq!(seen.len(), number as usize);
    for (number, plaintext) in (0_u32..).zip(seen) {
        assert_eq!(plaintext[..], number.to_be_bytes());
    }
}
