//! `ami-tool` and two sites, each a service in the same process: status of both, promotion, demotion, switchover.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fake::{Script, World};
use kms_proto::v1;
use serde_json::Value;

const PRIMARY: v1::SiteStanding = v1::SiteStanding { role: 1, epoch: 6, writes: true };
const SECONDARY: v1::SiteStanding = v1::SiteStanding { role: 2, epoch: 6, writes: false };

struct Pair {
    _world: World,
    north: Arc<Script>,
    south: Arc<Script>,
    config: PathBuf,
}

async fn pair() -> Pair {
    let world = World::new();
    let script = |standing| {
        let script = Script::default();
        *script.standing.lock().unwrap() = standing;
        Arc::new(script)
    };
    let (north, south) = (script(PRIMARY), script(SECONDARY));
    let at = [world.serve(Arc::clone(&north)).await, world.serve(Arc::clone(&south)).await];
    let config = world.two_sites(at[0], at[1], "deadline_ms = 3000\nretries = 0");
    Pair { _world: world, north, south, config }
}

async fn tool(config: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ami-tool"));
    command.arg("--config").arg(config).args(arguments.split_whitespace()).stdin(Stdio::null());
    tokio::task::spawn(async move { command.output().unwrap() }).await.unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_each_site_says_who_writes_and_one_that_is_away_is_said_to_be() {
    let pair = pair().await;
    let output = tool(&pair.config, "site status").await;
    let text = said(&output);
    assert_eq!(code(&output), 0, "{text}");
    assert!(text.contains("PRIMARY in epoch 6, takes changes"), "{text}");
    assert!(text.contains("SECONDARY in epoch 6, takes NO changes"), "{text}");
    let output = tool(&pair.config, "site status --json --site south").await;
    assert_eq!(object(&output)["standing"]["role"], "SECONDARY");
    let text = std::fs::read_to_string(&pair.config).unwrap();
    let south = text.rsplit("localhost:").next().unwrap().split('"').next().unwrap();
    std::fs::write(&pair.config, text.replace(south, "1")).unwrap();
    let output = tool(&pair.config, "site status").await;
    let text = said(&output);
    assert!(code(&output) == 4 && text.contains("NONE: ") && text.contains("PRIMARY"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_no_more_gets_no_complaint() {
    let pair = pair().await;
    for arguments in ["site status", "site status --json", "site divergence list"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ami-tool"));
        command.arg("--config").arg(&pair.config).args(arguments.split_whitespace());
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let ended = tokio::task::spawn(async move { command.spawn().unwrap().wait_with_output() });
        let output = ended.await.unwrap().unwrap();
        assert_eq!((code(&output), said(&output)), (141, String::new()), "{arguments}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_nobody_knows_or_that_is_not_named_is_a_fault_of_the_command_line() {
    let pair = pair().await;
    for arguments in ["site promote --yes", "site promote west --yes", "site status --site west"] {
        let output = tool(&pair.config, arguments).await;
        let text = said(&output);
        assert!(code(&output) == 2 && text.contains("north, south"), "{arguments}: {text}");
    }
    // Nobody sits at the terminal.
    let output = tool(&pair.config, "site promote south").await;
    assert!(code(&output) == 2 && said(&output).contains("--yes"), "{}", said(&output));
    assert_eq!(*pair.south.standing.lock().unwrap(), SECONDARY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_is_of_the_epoch_that_was_looked_at_and_says_what_to_do_when_refused() {
    let pair = pair().await;
    pair.south.out_of_step.store(1, Ordering::SeqCst);
    let output = tool(&pair.config, "site promote south --yes").await;
    let text = said(&output);
    assert!(code(&output) == 1 && text.contains("let this site catch up"), "{text}");
    let output = tool(&pair.config, "site promote south --yes --expected-epoch 5").await;
    assert!(code(&output) == 1 && said(&output).contains("decide anew"), "{}", said(&output));
    pair.south.out_of_step.store(1, Ordering::SeqCst);
    let output = tool(&pair.config, "site promote south --yes --primary-is-lost --json").await;
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert_eq!(object(&output)["standing"]["epoch"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_waits_until_nothing_would_be_lost_and_goes_on_where_it_stopped() {
    let pair = pair().await;
    pair.south.out_of_step.store(1_000, Ordering::SeqCst);
    let output = tool(&pair.config, "site switchover south --yes --wait 0").await;
    let text = said(&output);
    assert!(code(&output) == 1 && text.contains("nobody writes now"), "{text}");
    assert!(!pair.north.standing.lock().unwrap().writes);
    pair.south.out_of_step.store(3, Ordering::SeqCst);
    let output = tool(&pair.config, "site switchover south --yes --json").await;
    assert_eq!(code(&output), 0, "{}", said(&output));
    let report = object(&output);
    println!("{report}");
    assert!(report["changed"] == true && report["standing"]["writes"] == true, "{report}");
    assert!(pair.south.standing.lock().unwrap().writes);
    let output = tool(&pair.config, "site switchover south --yes").await;
    assert!(code(&output) == 0 && said(&output).contains("nothing to do"), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_switchover_is_told_what_for_and_is_not_sent_to_a_promotion() {
    let pair = pair().await;
    pair.south.out_of_step.store(3, Ordering::SeqCst);
    let text = said(&tool(&pair.config, "site switchover south --yes").await);
    let waits = "can't be promoted yet: it takes over what the other site wrote last";
    assert!(text.contains(waits) && !text.contains("waiting: refused"), "{text}");
    // The primary is dead, or only can't be reached.
    let pair = self::pair().await;
    let text = std::fs::read_to_string(&pair.config).unwrap();
    let north = text.split("localhost:").nth(1).unwrap().split('"').next().unwrap();
    std::fs::write(&pair.config, text.replace(north, "1")).unwrap();
    let output = tool(&pair.config, "site switchover south --yes").await;
    let text = said(&output);
    assert_eq!(code(&output), 4, "{text}");
    let told = ["site north: ", "Find out whether that site still runs", "and stay off"];
    assert!(told.iter().all(|part| text.contains(part)), "{text}");
    assert_eq!(*pair.south.standing.lock().unwrap(), SECONDARY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demotion_says_that_nobody_writes() {
    let pair = pair().await;
    let output = tool(&pair.config, "site demote north --yes").await;
    assert!(code(&output) == 0 && said(&output).contains("takes NO changes"), "{}", said(&output));
    assert!(!pair.north.standing.lock().unwrap().writes);
}

fn aside(n: u8, parting: v1::Parting) -> v1::DivergenceRow {
    let key = v1::DivergentKey {
        key_id: vec![n; 16].into(),
        kind: v1::KeyKind::Guek.into(),
        aside: v1::KeyState::Active.into(),
        ..Default::default()
    };
    v1::DivergenceRow {
        id: vec![n; 20].into(),
        block: n.into(),
        site: "south".into(),
        meter_id: format!("meter-{n}"),
        parting: parting.into(),
        keys: vec![key],
        other_policy: true,
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_is_listed_page_by_page_and_decided_until_no_more_falls_under_the_rule()
{
    let pair = pair().await;
    let rows = [(1, v1::Parting::Keys), (2, v1::Parting::NewMeter), (3, v1::Parting::NewMeter)];
    *pair.north.aside.lock().unwrap() = rows.map(|(n, parting)| aside(n, parting)).to_vec();
    // One that can't be told lies at the other site alone.
    *pair.south.aside.lock().unwrap() = vec![aside(4, v1::Parting::Unreadable)];
    let text = said(&tool(&pair.config, "site divergence list").await);
    let all = ["meter-1", "meter-2", "meter-3", "NEW_METER", "site north: 3 wait for a decision"];
    assert!(all.iter().all(|part| text.contains(part)), "{text}");
    assert!(text.contains("meter-4") && text.contains("site south: 1 wait"), "{text}");
    let output = tool(&pair.config, "site divergence list --json").await;
    let told = |row: &str| serde_json::from_str::<Value>(row).unwrap()["told_by"].clone();
    let by: Vec<Value> = said(&output).lines().map(told).collect();
    assert_eq!(by, ["north", "north", "north", "south"]);
    let output =
        tool(&pair.config, &format!("site divergence show {} --json", "04".repeat(20))).await;
    assert_eq!(object(&output)["parting"], "UNREADABLE");
    pair.south.aside.lock().unwrap().clear();
    let output =
        tool(&pair.config, &format!("site divergence show {} --json", "02".repeat(20))).await;
    let row = object(&output);
    assert_eq!(
        (&row["parting"], &row["keys"][0]["aside"]),
        (&"NEW_METER".into(), &"ACTIVE".into())
    );
    assert_eq!(row["keys"][0]["stands"], Value::Null);
    let text =
        said(&tool(&pair.config, &format!("site divergence show {}", "02".repeat(20))).await);
    assert!(
        text.contains("GUEK of setup 0: ACTIVE here, not there") && text.contains("policy"),
        "{text}"
    );
    let unknown = tool(&pair.config, &format!("site divergence show {}", "09".repeat(20))).await;
    assert_eq!(code(&unknown), 1);
    // Of many at once somebody is asked; one, or nothing, is a fault of the command line.
    for arguments in
        ["accept --rule new_meter", "accept", "accept zz", "discard --rule newest --yes"]
    {
        let output = tool(&pair.config, &format!("site divergence {arguments}")).await;
        assert_eq!(code(&output), 2, "{arguments}: {}", said(&output));
    }
    let output = tool(&pair.config, "site divergence accept --rule new-meter --yes --json").await;
    assert_eq!(object(&output)["outcome"]["decided"], 3, "{}", said(&output));
    let asked = pair.north.decided.lock().unwrap().clone();
    assert_eq!(asked.len(), 3, "until there are no more");
    assert!(asked.iter().all(|it| it.rule == 2 && it.decision == 1 && !it.all), "{asked:?}");
    let text = said(&tool(&pair.config, "site divergence list").await);
    assert!(text.contains("nothing is set aside"), "{text}");
    pair.north.not_primary.store(true, Ordering::SeqCst);
    pair.south.not_primary.store(true, Ordering::SeqCst);
    let output = tool(&pair.config, "site divergence discard --rule all --yes").await;
    let text = said(&output);
    assert!(code(&output) == 1 && text.contains("primary"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_record_is_asked_about_like_many_and_a_decision_that_was_none_is_told() {
    let pair = pair().await;
    *pair.north.aside.lock().unwrap() = vec![aside(1, v1::Parting::Keys)];
    let decide = async |arguments: &str| {
        let output = tool(&pair.config, &format!("site divergence {arguments}")).await;
        (code(&output), said(&output))
    };
    let (known, unknown) = ("01".repeat(20), "09".repeat(20));
    // Nobody sits at the terminal.
    let (code, text) = decide(&format!("discard {known}")).await;
    assert!(code == 2 && text.contains("--yes"), "{text}");
    let (code, text) = decide(&format!("discard {unknown}")).await;
    assert!(code == 1 && text.contains("no record of this id"), "{text}");
    assert!(pair.north.decided.lock().unwrap().is_empty());
    let (code, text) = decide(&format!("discard {known} --yes")).await;
    assert!(code == 0 && text.contains("1 decided"), "{text}");
    // It is gone in this fake: of a real site it stays known, with the decision.
    for verb in ["accept", "discard"] {
        let (code, text) = decide(&format!("{verb} {unknown} --yes --json")).await;
        assert!(code == 1 && text.contains("NOT_SET_ASIDE"), "{text}");
    }
    let decided = v1::DivergenceDecision { decision: 2, at_ms: 1, by: "ann".into() };
    let row = v1::DivergenceRow { decided: Some(decided), ..aside(1, v1::Parting::Keys) };
    *pair.north.aside.lock().unwrap() = vec![row];
    let (code, text) = decide(&format!("discard {known} --yes")).await;
    assert!(code == 0 && text.contains("ann decided about it"), "{text}");
    let (code, text) = decide(&format!("accept {known} --yes")).await;
    assert!(code == 1 && text.contains("DISCARD"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_is_far_ahead_is_taken_in_by_the_site_that_is_named() {
    let pair = pair().await;
    let output = tool(&pair.config, "site admit-epoch 21 --site south").await;
    assert!(said(&output).contains("SECONDARY in epoch 21"), "{}", said(&output));
    assert_eq!(pair.south.standing.lock().unwrap().epoch, 21);
    assert_eq!(*pair.north.standing.lock().unwrap(), PRIMARY);
}
