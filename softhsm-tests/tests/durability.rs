//! Invariant 4: what was acknowledged is there, whenever the process is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{
    Home, Numbers, client,
    fleet::{PLAIN, add, apdu, id, import, line, line_in_hsm, parsed, push},
    home, warm,
};
use kms_client::{ImportRules, KmsClient, Listed, Outcome, Place, Verdict};
use softhsm_tests::Role;
use sqlx::{Connection as _, SqliteConnection};
use tokio_stream::StreamExt as _;

const KILLS: u64 = 18;
/// More than is ever sent before the kill.
const A_ROUND: u64 = 3_000;

/// Every tenth has its key in the token.
fn some_line(n: u64) -> String {
    if n.is_multiple_of(10) { line_in_hsm(n) } else { line(n) }
}

/// Imports these meters until the server is gone; the numbers of those that it was asked to import,
/// and of those that it acknowledged.
async fn import_until_killed(
    client: KmsClient,
    meters: Vec<u64>,
    count: Arc<AtomicUsize>,
) -> (Vec<u64>, BTreeSet<u64>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    // Made as they are asked for, a few at a time: many small writes to be killed in.
    let lines = meters.clone().into_iter().zip(1..).map(move |(n, line)| {
        counter.fetch_add(1, Ordering::Relaxed);
        let mut parsed = parsed(&some_line(n)).remove(0);
        parsed.place = Place::Line(line);
        parsed
    });
    let lines = tokio_stream::iter(lines).throttle(Duration::from_micros(300));
    let mut results = client.meters().import(lines, ImportRules::default());
    let mut acknowledged = BTreeSet::new();
    while let Some(Ok(result)) = results.next().await {
        assert!(matches!(result.outcome, Outcome::Created | Outcome::Unchanged), "{result:?}");
        acknowledged.insert(meters[result.line as usize - 1]);
        count.store(acknowledged.len(), Ordering::Relaxed);
    }
    (meters[..sent.load(Ordering::Relaxed)].to_vec(), acknowledged)
}

/// A moment to be killed at: by the clock each sixth time, so that it may be before anything is acknowledged; else when
/// so many lines are acknowledged and a little later, however fast the machine is.
async fn wait_for_a_moment(round: u64, acknowledged: &AtomicUsize, numbers: &mut Numbers) {
    if round.is_multiple_of(6) {
        return tokio::time::sleep(Duration::from_millis(numbers.below(370))).await;
    }
    let enough = 1 + numbers.below(60) as usize;
    let until = tokio::time::Instant::now() + Duration::from_secs(5);
    while acknowledged.load(Ordering::Relaxed) < enough && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_micros(numbers.below(20_000))).await;
}

async fn all_open(client: &KmsClient, meters: &BTreeSet<u64>, what: &str) {
    let apdus: Vec<_> = meters.iter().map(|n| apdu(push(*n))).collect();
    for (n, opened) in meters.iter().zip(client.decrypt_batch(apdus).await.unwrap()) {
        assert_eq!(opened.verdict(), Verdict::Ok, "{what}: meter {n}: {opened:?}");
        assert_eq!(opened.plaintext.as_deref(), Some(PLAIN));
    }
}

/// What SQLite itself says of the file, nobody else having it open.
async fn check_integrity(home: &Home) {
    let url = format!("sqlite://{}", home.places().data.join("kms.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    for pragma in ["PRAGMA integrity_check", "PRAGMA foreign_key_check"] {
        let said: Vec<String> =
            sqlx::query_scalar(pragma).fetch_all(&mut connection).await.unwrap();
        assert!(said.is_empty() || said == ["ok"], "{pragma}: {said:?}");
    }
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_4_an_acknowledged_meter_survives_a_kill_at_any_moment() {
    let home = home();
    let mut numbers = Numbers::fresh();
    println!("seed {:#018x}", numbers.0);
    let (mut acknowledged, mut asked) = (BTreeSet::new(), BTreeSet::new());
    let (mut killed_within, mut unacknowledged) = (0, 0);
    for round in 0..KILLS {
        let running = home.start().unwrap();
        let hes = client(&home, Role::Hes).await;
        all_open(&hes, &acknowledged, &format!("after {round} kills")).await;
        let admin = client(&home, Role::AmiAdmin).await;
        // What was not acknowledged before the last kill comes first.
        let again: Vec<u64> = asked.difference(&acknowledged).copied().collect();
        let fresh = round * A_ROUND + 1..(round + 1) * A_ROUND + 1;
        let meters: Vec<u64> = again.into_iter().chain(fresh).collect();
        let count = Arc::new(AtomicUsize::new(0));
        let importing = tokio::spawn(import_until_killed(admin, meters, Arc::clone(&count)));
        wait_for_a_moment(round, &count, &mut numbers).await;
        running.kill_9().unwrap();
        let (sent, now) = importing.await.unwrap();
        if !now.is_empty() && now.len() < sent.len() {
            killed_within += 1;
        }
        unacknowledged += sent.len() - now.len();
        asked.extend(sent);
        acknowledged.extend(now);
        if round.is_multiple_of(5) {
            check_integrity(&home).await;
        }
    }
    check_integrity(&home).await;
    let running = home.start().unwrap();
    let (admin, hes) = (client(&home, Role::AmiAdmin).await, client(&home, Role::Hes).await);
    warm(&admin).await;
    let before = admin.site_status().await.unwrap().store.meters;
    assert!(before >= acknowledged.len() as u64);
    // The rest, imported again, gives each meter once.
    let rest: Vec<u64> = asked.difference(&acknowledged).copied().collect();
    add(&admin, &rest.iter().map(|n| some_line(*n)).collect::<Vec<_>>()).await;
    let status = admin.site_status().await.unwrap();
    assert_eq!(status.store.meters, asked.len() as u64);
    assert!(status.faults.is_empty(), "{:?}", status.faults);
    let listed: Vec<String> = admin
        .meters()
        .list(None, None)
        .map(|listed| match listed.unwrap() {
            Listed::Meter(meter) => meter.meter_id.to_string(),
            Listed::Damaged(damaged) => panic!("{damaged:?}"),
        })
        .collect()
        .await;
    let distinct: BTreeSet<&String> = listed.iter().collect();
    assert_eq!((listed.len(), distinct.len()), (asked.len(), asked.len()));
    assert!(asked.iter().all(|n| distinct.contains(&id(*n))));
    all_open(&hes, &asked, "at the end").await;
    let lines: Vec<String> = asked.iter().map(|n| some_line(*n)).collect();
    for result in import(&admin, &lines).await {
        assert_eq!(result.outcome, Outcome::Unchanged, "{result:?}");
    }
    assert!(running.stop().unwrap().success());
    check_integrity(&home).await;
    println!(
        "{KILLS} kills, {killed_within} in the middle of an import; {} meters, {} acknowledged before a \
         kill, {unacknowledged} lines cut off; none lost, none twice",
        asked.len(),
        acknowledged.len()
    );
    assert!(killed_within >= 15, "{killed_within} kills hit an import");
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_4_a_kill_right_after_an_acknowledgement_loses_nothing() {
    let home = home();
    for n in 1..=8 {
        let running = home.start().unwrap();
        let admin = client(&home, Role::AmiAdmin).await;
        add(&admin, &[some_line(n)]).await;
        running.kill_9().unwrap();
    }
    let _running = home.start().unwrap();
    let hes = client(&home, Role::Hes).await;
    all_open(&hes, &(1..=8).collect(), "at the end").await;
    let log = fs::read_to_string(&home.places().log).unwrap();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
}
