//! The token's directory is taken away under load and put back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    blank_home, client, eventually,
    fleet::{PLAIN, add, apdu, line, line_in_hsm, parsed, push},
    home, warm, wire,
};
use kms_client::{CallError, ImportRules, KmsClient, Verdict};
use softhsm_tests::{Role, Site};
use tokio_stream::StreamExt as _;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const RESIDENT: u64 = 60;
/// Meters of these numbers are in blocks that are closed when the token goes.
const COLD: std::ops::Range<u64> = 1_000..1_020;
const IN_HSM: std::ops::Range<u64> = 2_000..2_005;

/// A stream of decrypts that goes on until it is told to stop: every answer must be OK.
fn load(
    client: KmsClient,
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let asking = stop.clone();
        let pushes: Vec<_> = (1..=RESIDENT).map(|n| apdu(push(n))).collect();
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
    let began = Instant::now();
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(began.elapsed() < Duration::from_secs(2), "health took {:?}", began.elapsed());
    answer.status == 1
}

/// Meters that the running server has not opened: another process writes them into its database.
async fn add_behind_its_back(site: &Site, lines: &[String]) {
    let other = blank_home(&[]);
    let text = fs::read_to_string(&site.places().kms_toml).unwrap();
    let port = |site: &Site| format!("127.0.0.1:{}", site.port());
    fs::write(&other.places().kms_toml, text.replace(&port(site), &port(&other))).unwrap();
    fs::copy(&site.places().softhsm_conf, &other.places().softhsm_conf).unwrap();
    for part in ["certificates", "secrets"] {
        let target = other.places().dir.join(part);
        fs::remove_dir_all(&target).unwrap();
        common::copy(&site.places().dir.join(part), &target);
    }
    let running = other.start().unwrap();
    add(&client(&other, Role::AmiAdmin).await, lines).await;
    assert!(running.stop().unwrap().success());
}

async fn verdicts(client: &KmsClient, meters: impl Iterator<Item = u64>) -> Vec<(Verdict, String)> {
    let apdus: Vec<_> = meters.map(|n| apdu(push(n))).collect();
    let opened = client.decrypt_batch(apdus).await.unwrap();
    opened.into_iter().map(|one| (one.verdict(), one.reason.clone().unwrap_or_default())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_goes_away_stops_new_blocks_only_and_is_taken_back_without_a_restart() {
    let home = home();
    let running = home.start().unwrap();
    let (admin, hes) = (client(&home, Role::AmiAdmin).await, client(&home, Role::Hes).await);
    let lines: Vec<String> = (1..=RESIDENT).map(line).chain(IN_HSM.map(line_in_hsm)).collect();
    add(&admin, &lines).await;
    warm(&admin).await;
    add_behind_its_back(&home, &COLD.map(line).collect::<Vec<_>>()).await;

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

    // Away.
    let away = home.places().tokens.with_extension("away");
    fs::rename(&home.places().tokens, &away).unwrap();
    let gone = Instant::now();
    let cold = verdicts(&hes, COLD).await;
    let mut unavailable = 0;
    for (verdict, reason) in &cold {
        // A few of these meters live in blocks that were open before.
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
    let new: Vec<_> = (3_000..3_040).map(line).collect();
    let mut results =
        admin.meters().import(tokio_stream::iter(parsed(&new.join("\n"))), ImportRules::default());
    let mut refused = 0;
    while let Some(result) = results.next().await {
        match result {
            Err(error) => {
                assert!(matches!(error, CallError::Unreachable { .. }), "{error:?}");
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
    const TIMES: u32 = 10;
    let home = home();
    let running = home.start().unwrap();
    let (admin, hes) = (client(&home, Role::AmiAdmin).await, client(&home, Role::Hes).await);
    add(&admin, &IN_HSM.map(line_in_hsm).collect::<Vec<_>>()).await;
    let away = home.places().tokens.with_extension("away");
    for round in 0..TIMES {
        fs::rename(&home.places().tokens, &away).unwrap();
        for (verdict, reason) in verdicts(&hes, IN_HSM).await {
            assert_eq!(verdict, Verdict::Unavailable, "round {round}: {reason}");
        }
        fs::rename(&away, &home.places().tokens).unwrap();
        eventually("the token is taken back", async || {
            verdicts(&hes, IN_HSM).await.iter().all(|(verdict, _)| *verdict == Verdict::Ok)
        })
        .await;
    }
    let epoch = admin.site_status().await.unwrap().token.connection_epoch;
    println!("gone and back {TIMES} times; the connection was made anew {epoch} times");
    assert!(epoch >= u64::from(TIMES));
    assert!(running.stop().unwrap().success());
}
