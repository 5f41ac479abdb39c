//! `ami-tool rotate` against a service in the same process: what it sends, what it says of the answer, how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, atomic::Ordering};

use fake::campaigns::{campaign, member};
use fake::{Script, World};
use kms_proto::v1;
use serde_json::{Value, json};

async fn serve(script: &Arc<Script>) -> (World, PathBuf) {
    let world = World::new();
    let address = world.serve(Arc::clone(script)).await;
    let config = world.config(&[address], "");
    (world, config)
}

async fn tool(config: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ami-tool"));
    command.arg("--config").arg(config).arg("rotate").args(arguments.split_whitespace());
    command.stdin(Stdio::null());
    tokio::task::spawn(async move { command.output().unwrap() }).await.unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn objects(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(count: usize) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut text = String::new();
    (0..count).for_each(|number| writeln!(text, "m-{number}").unwrap());
    std::fs::write(file.path(), text).unwrap();
    file
}

/// How many meters each call named, and whether more were to come.
fn calls(script: &Script) -> Vec<(usize, bool)> {
    let asked = script.campaigns.starts.lock().unwrap();
    let named =
        |start: &v1::StartCampaignRequest| start.selection.as_ref().unwrap().meter_ids.len();
    asked.iter().map(|start| (named(start), start.more)).collect()
}

fn left_out() -> v1::LeftOut {
    let (meter_id, code) = ("m-9".into(), "NO_KEK".into());
    v1::LeftOut { meter_id, code, reason: "it has no KEK".into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_begins_as_the_flags_say_and_all_meters_only_if_they_say_so() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    for bad in ["start spring --kinds guek", "start spring --all", "start spring --kinds kek --all"]
    {
        assert_eq!(tool(&config, bad).await.status.code(), Some(2), "{bad}");
    }
    assert_eq!(script.calls.load(Ordering::SeqCst), 0);
    let start = "start spring --kinds gak,guek --where profile=acme-2,older-than=365d --window 22:00-05:00/mon --lease 30s";
    let output = tool(&config, start).await;
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("4 meters came in, 0 are left out"), "{text}");
    assert!(text.contains("spring is RUNNING: 4: 1 waiting, 1 sent, 1 done, 1 failed"), "{text}");
    assert!(text.contains("`rotate watch spring`"), "{text}");
    assert_eq!(tool(&config, "start spring --kinds guek --all").await.status.code(), Some(0));
    let asked = script.campaigns.starts.lock().unwrap();
    let selection = v1::MeterSelection {
        profile: "acme-2".into(),
        older_than_days: 365,
        ..v1::MeterSelection::default()
    };
    assert_eq!(asked[0].selection, Some(selection));
    let policy = asked[0].policy.as_ref().unwrap();
    let window = v1::CampaignWindow { from_minute: 1_320, to_minute: 300, weekdays: 1 };
    assert_eq!((&policy.kinds[..], &policy.windows[..]), (&[3, 1][..], &[window][..]));
    assert_eq!((policy.lease_s, policy.canaries, policy.carrier), (30, None, None));
    assert!(!asked[0].more && !asked[0].dry_run);
    assert_eq!(asked[1].selection, Some(v1::MeterSelection::default()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_file_comes_in_with_several_calls_of_which_the_last_one_begins_it() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    let file = ids(20_001);
    let start = format!("start spring --kinds guek --meters {}", file.path().display());
    let output = tool(&config, &start).await;
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("20001 meters came in"), "{}", said(&output));
    assert_eq!(calls(&script), [(10_000, true), (10_000, true), (1, false)]);
    let empty = ids(0);
    let start = format!("start spring --kinds guek --meters {}", empty.path().display());
    let output = tool(&config, &start).await;
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert_eq!(calls(&script).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_who_would_come_in_and_who_not_and_why() {
    let script = Arc::new(Script::default());
    script.campaigns.left_out.lock().unwrap().push(left_out());
    let (_world, config) = serve(&script).await;
    // What is in already is not counted twice: here all of it.
    let dry = "start spring --kinds guek --all --dry-run";
    let output = tool(&config, dry).await;
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "somebody is left out: {text}");
    assert!(text.contains("4 meters would come in, 1 are left out"), "{text}");
    assert!(text.contains("left out  m-9  NO_KEK: it has no KEK"), "{text}");
    assert!(text.contains("nothing was begun") && !text.contains("label MMM"), "{text}");
    let result = &objects(&tool(&config, &format!("{dry} --json")).await)[0];
    assert_eq!((&result["dry_run"], &result["added"]), (&json!(true), &json!(4)));
    assert_eq!(result["left_out"][0]["code"], "NO_KEK");
    assert!(script.campaigns.starts.lock().unwrap().iter().all(|start| start.dry_run));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_is_shown_with_its_labels_its_forecast_and_its_orphans() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    let text = said(&tool(&config, "status spring").await);
    assert!(text.contains("campaign   spring\nstatus     RUNNING\n"), "{text}");
    assert!(text.contains("driven by  node-1") && text.contains("asked for by alice"), "{text}");
    assert!(text.contains("the rest is done at 1970-01-02T00:00:00Z"), "{text}");
    assert!(text.contains("2, of which 1 are orphans"), "{text}");
    assert!(text.contains("label MMM") && text.contains("canaries through"), "{text}");
    assert!(text.contains("label acme-2") && text.contains("waits for its canaries"), "{text}");
    let list = said(&tool(&config, "list").await);
    assert!(
        list.starts_with("spring  RUNNING  1 of 4 done, 1 failed, 2 exposed, 1 orphans"),
        "{list}"
    );
    let shown = &objects(&tool(&config, "status spring --json").await)[0];
    assert_eq!((&shown["status"], &shown["progress"]["orphans"]), (&json!("RUNNING"), &json!(1)));
    *script.campaigns.members.lock().unwrap() = (1..=3).map(member).collect();
    let members = said(&tool(&config, "members spring --state failed --exposed").await);
    assert_eq!(members.lines().count(), 3, "{members}");
    assert!(members.contains("m-1  0101010101010101  MMM  FAILED, canary, exposed, 5 failures"));
    let asked = script.campaigns.asked_members.lock().unwrap();
    assert!(asked[0].exposed && asked[0].state == v1::MemberState::Failed as i32);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_says_a_line_a_look_and_ends_with_the_campaign() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    let running = campaign(v1::CampaignStatus::Running);
    let mut finished = campaign(v1::CampaignStatus::Finished);
    let said_of_it = |last: &v1::Campaign| {
        *script.campaigns.watched.lock().unwrap() = vec![running.clone(), last.clone()];
    };
    said_of_it(&finished);
    let output = tool(&config, "watch spring --every 1").await;
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "one has failed: {text}");
    assert!(text.starts_with("spring RUNNING  4: 1 waiting, 1 sent"), "{text}");
    assert!(text.contains("\nspring FINISHED  4: ") && text.contains("\ncampaign   spring\n"));
    finished.progress.as_mut().unwrap().failed = 0;
    said_of_it(&finished);
    let output = tool(&config, "watch spring --json").await;
    let status: Vec<Value> = objects(&output).iter().map(|it| it["status"].clone()).collect();
    assert_eq!(
        (status, output.status.code()),
        (vec![json!("RUNNING"), json!("FINISHED")], Some(0))
    );
    said_of_it(&campaign(v1::CampaignStatus::Cancelled));
    assert_eq!(tool(&config, "watch spring").await.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_decide_reaches_the_service_and_nobody_ends_a_campaign_by_a_slip() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    *script.campaigns.shown.lock().unwrap() =
        Some(v1::Campaign { reason: "storm".into(), ..campaign(v1::CampaignStatus::Paused) });
    let text = said(&tool(&config, "pause spring --reason storm").await);
    assert!(text.contains("spring is PAUSED: storm: 4: "), "{text}");
    assert!(text.contains("`rotate resume spring`"), "{text}");
    assert_eq!(tool(&config, "resume spring --retry-failed").await.status.code(), Some(0));
    let output = tool(&config, "cancel spring").await;
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("--yes"), "{}", said(&output));
    assert_eq!(tool(&config, "cancel spring --yes --reason over").await.status.code(), Some(0));
    let decided = script.campaigns.decided.lock().unwrap();
    let decided: Vec<(&str, &str)> =
        decided.iter().map(|(call, _, more)| (*call, more.as_str())).collect();
    assert_eq!(decided, [("pause", "storm"), ("resume", "true"), ("get", ""), ("cancel", "over")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_meter_shows_its_keys_what_was_tried_and_what_may_be_done() {
    let script = Arc::new(Script::default());
    let pair = |encryption_key_version| v1::KeyPair {
        encryption_key_version,
        authentication_key_version: 1,
    };
    let action = v1::NextAction {
        command: "ami-tool key next-transfer m-1 GUEK".into(),
        reason: "version 2 is staged".into(),
    };
    let key = v1::Key {
        key_id: vec![9; 16].into(),
        kind: v1::KeyKind::Guek as i32,
        version: 2,
        state: v1::KeyState::PreActive as i32,
        reason: v1::KeyStateReason::Staged as i32,
        protection: v1::ProtectionLevel::Memory as i32,
        kcv: vec![1, 2, 3, 4, 5].into(),
        ..v1::Key::default()
    };
    *script.campaigns.meter.lock().unwrap() = v1::GetMeterRotationResponse {
        keys: vec![key],
        campaign: "spring".into(),
        member: Some(member(1)),
        pairs: vec![pair(2), pair(1)],
        actions: vec![action],
    };
    let (_world, config) = serve(&script).await;
    let text = said(&tool(&config, "meter m-1").await);
    assert!(text.contains("v2    PRE_ACTIVE") && text.contains("KCV 0102030405"), "{text}");
    assert!(text.contains("tried  1970-01-01T00:01:00Z  2/1  ANSWERED  DB08…"), "{text}");
    assert!(text.contains("(GUEK/GAK): 2/1, 1/1"), "{text}");
    assert!(text.contains("next  ami-tool key next-transfer m-1 GUEK\n"), "{text}");
    let shown = &objects(&tool(&config, "meter m-1 --json").await)[0];
    assert_eq!(shown["member"]["tried"][0]["frame"], "DB08");
    assert_eq!(shown["pairs"][0]["encryption_key_version"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_names_the_command_that_leads_on() {
    let script = Arc::new(Script::default());
    let (_world, config) = serve(&script).await;
    for (command, word, hint) in [
        ("status none", "NO_SUCH_CAMPAIGN", "rotate list"),
        ("start spring --kinds guek --all", "CAMPAIGN_STATE", "rotate status NAME"),
        ("start spring --kinds guek --all", "TOO_MANY_CAMPAIGNS", "rotate cancel NAME"),
        ("start spring --kinds guek --all", "TOO_MANY_MEMBERS", "--where profile="),
        ("pause spring", "DRIVEN_ELSEWHERE", "within a minute"),
    ] {
        *script.rotation.refuses.lock().unwrap() = Some(word);
        let output = tool(&config, &format!("{command} --json")).await;
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{word}");
        let next = error["error"]["next_step"].as_str().unwrap();
        assert!(error["error"]["code"] == word && next.contains(hint), "{word}: {next}");
    }
}
