//! The token's directory is taken away under load and put back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    fs,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    Home, blank_home, client, eventually,
    fleet::{PLAIN, add, apdu, line, line_in_hsm, parsed, push},
    home, wire,
};
use kms_client::{CallError, ImportRules, KmsClient, Verdict};
use softhsm_tests::{Role, Site};
use tokio_stream::StreamExt as _;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Meters that are asked about all the time.
const RESIDENT: Range<u64> = 1..40;
/// Meters whose blocks wait for their turn, most of them, when the token goes.
const COLD: Range<u64> = 1_000..2_500;
const IN_HSM: Range<u64> = 4_000..4_005;

/// A stream of decrypts that goes on until it is told to stop: every answer must be OK.
fn load(
    client: KmsClient,
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let asking = stop.clone();
        let pushes: Vec<_> = RESIDENT.map(|n| apdu(push(n))).collect();
        let apdus = tokio_stream::iter((0..).map(move |i| pushes[i % pushes.len()].clone()))
            .take_while(move |_| !asking.load(Ordering::Relaxed))
            .throttle(Duration::from_micros(200));
        let mut answers = client.decrypt_stream(apdus);
        while let Some(answer) = answers.next().await {
            let answer = answer.unwrap();
            assert_eq!(answer.verdict(), Verdict::Ok, "{answer:?}");
            assert_eq!(answer.plaintext.as_deref(), Some(PLAIN));
            opened.fetch_add(1, Ordering::Relaxed);
        }
    })
}

async fn is_healthy(site: &Site) -> bool {
    let mut health = HealthClient::new(wire::channel_as(site, Role::Hes));
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    answer.status == 1
}

/// A site of so many blocks that it takes a while to open them all after a start.
async fn site_of_many_blocks() -> Home {
    let home =
        blank_home(&[("site", "block_count", "16384"), ("keyring", "warm_up_parallelism", "1")]);
    home.init().unwrap();
    let running = home.start().unwrap();
    let admin = client(&home, Role::AmiAdmin).await;
    add(&admin, &RESIDENT.chain(COLD).map(line).collect::<Vec<_>>()).await;
    add(&admin, &IN_HSM.map(line_in_hsm).collect::<Vec<_>>()).await;
    assert!(running.stop().unwrap().success());
    home
}

/// Asked for a few blocks at a time: what a call may last is for the blocks of one batch, on a busy machine, too.
async fn verdicts(client: &KmsClient, meters: impl Iterator<Item = u64>) -> Vec<(Verdict, String)> {
    let apdus: Vec<_> = meters.map(|n| apdu(push(n))).collect();
    let mut verdicts = Vec::with_capacity(apdus.len());
    for some in apdus.chunks(100) {
        let opened = client.decrypt_batch(some.to_vec()).await.unwrap();
        let of = |one: kms_client::Opened| (one.verdict(), one.reason.clone().unwrap_or_default());
        verdicts.extend(opened.into_iter().map(of));
    }
    verdicts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_goes_away_stops_new_blocks_only_and_is_taken_back_without_a_restart() {
    let home = site_of_many_blocks().await;
    let running = home.start().unwrap();
    let (admin, hes) = (client(&home, Role::AmiAdmin).await, client(&home, Role::Hes).await);

    let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let loads: Vec<_> =
        (0..2).map(|_| load(hes.clone(), Arc::clone(&stop), Arc::clone(&opened))).collect();
    let progress = |what: &'static str| {
        let (opened, before) = (Arc::clone(&opened), opened.load(Ordering::Relaxed));
        async move {
            eventually(what, async || opened.load(Ordering::Relaxed) > before + 200).await;
        }
    };
    progress("decrypts before").await;

    // Away, while most blocks are closed.
    let away = home.places().tokens.with_extension("away");
    let warm_up = admin.site_status().await.unwrap().warm_up;
    fs::rename(&home.places().tokens, &away).unwrap();
    println!("away with {} of {} blocks open", warm_up.blocks_open, warm_up.blocks_total);
    assert!(!warm_up.done, "the token goes too late: {warm_up:?}");
    let gone = Instant::now();
    let cold = verdicts(&hes, COLD).await;
    let mut unavailable = 0;
    for (verdict, reason) in &cold {
        // Some blocks were open before.
        assert!(matches!(verdict, Verdict::Unavailable | Verdict::Ok), "{verdict} {reason}");
        if *verdict == Verdict::Unavailable {
            assert!(reason.contains("token"), "{reason}");
            unavailable += 1;
        }
    }
    assert!(unavailable > 0, "{cold:?}");
    for (verdict, reason) in verdicts(&hes, IN_HSM).await {
        assert_eq!(verdict, Verdict::Unavailable);
        assert!(reason.contains("token"), "{reason}");
    }
    eventually("the fault in GetStatus", async || {
        let status = admin.site_status().await.unwrap();
        !status.token.reachable && status.faults.iter().any(|fault| fault.contains("token"))
    })
    .await;
    let noticed = gone.elapsed();
    let shown = home.ami_tool(Role::AmiAdmin).status().unwrap();
    assert!(shown.contains("token:") && !shown.contains("none known"), "{shown}");
    assert!(is_healthy(&home).await, "health says that it does not serve");
    // A write needs the token: refused as unavailable, not as wrong.
    let new: Vec<_> = (5_000..5_020).map(line).collect();
    let mut results =
        admin.meters().import(tokio_stream::iter(parsed(&new.join("\n"))), ImportRules::default());
    let mut refused = 0;
    while let Some(result) = results.next().await {
        match result {
            Err(error) => {
                assert!(matches!(error, CallError::Unavailable { .. }), "{error:?}");
                refused += 1;
            }
            Ok(result) if !result.code.is_empty() => {
                assert!(result.reason.contains("token"), "{result:?}");
                refused += 1;
            }
            Ok(_) => {}
        }
    }
    assert!(refused > 0, "all were imported without a token");
    progress("decrypts of resident meters without the token").await;

    // Back.
    fs::rename(&away, &home.places().tokens).unwrap();
    let back = Instant::now();
    eventually("new blocks answer", async || {
        verdicts(&hes, COLD.chain(IN_HSM)).await.iter().all(|(verdict, _)| *verdict == Verdict::Ok)
    })
    .await;
    let healed = back.elapsed();
    eventually("the end of the fault in GetStatus", async || {
        let status = admin.site_status().await.unwrap();
        status.token.reachable && status.faults.is_empty()
    })
    .await;
    assert!(home.ami_tool(Role::AmiAdmin).status().unwrap().contains("none known"));
    add(&admin, &new).await;
    progress("decrypts after").await;
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    assert!(is_healthy(&home).await);
    println!(
        "{} decrypts, all OK; {unavailable} of {} meters in closed blocks UNAVAILABLE meanwhile; the \
         fault showed within {noticed:?}, new blocks opened {healed:?} after the return",
        opened.load(Ordering::Relaxed),
        cold.len(),
    );
    assert!(running.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_and_goes_is_taken_back_each_time() {
    const TIMES: u64 = 10;
    let home = home();
    let running = home.start().unwrap();
    let (admin, hes) = (client(&home, Role::AmiAdmin).await, client(&home, Role::Hes).await);
    add(&admin, &(0..TIMES).map(line_in_hsm).collect::<Vec<_>>()).await;
    let away = home.places().tokens.with_extension("away");
    for round in 0..TIMES {
        // One that was not unwrapped yet: those that were need the token's files no more.
        let key = round..round + 1;
        fs::rename(&home.places().tokens, &away).unwrap();
        for (verdict, reason) in verdicts(&hes, key.clone()).await {
            assert_eq!(verdict, Verdict::Unavailable, "round {round}: {reason}");
        }
        fs::rename(&away, &home.places().tokens).unwrap();
        eventually("the token is taken back", async || {
            verdicts(&hes, key.clone()).await.iter().all(|(verdict, _)| *verdict == Verdict::Ok)
        })
        .await;
    }
    let epoch = admin.site_status().await.unwrap().token.connection_epoch;
    println!("gone and back {TIMES} times; the connection was made anew {epoch} times");
    assert!(epoch >= TIMES);
    assert!(running.stop().unwrap().success());
}
