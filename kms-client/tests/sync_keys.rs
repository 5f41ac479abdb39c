//! `sync-keys` and `ami-tool --sync-meter` against a service in the same process: words, exit codes, what is asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use fake::{Script, World};
use kms_proto::v1;
use serde_json::Value;

const SYNC_KEYS: &str = env!("CARGO_BIN_EXE_sync-keys");
const AMI_TOOL: &str = env!("CARGO_BIN_EXE_ami-tool");

async fn world(progress: Vec<v1::SyncProgress>) -> (World, Arc<Script>, PathBuf) {
    let world = World::new();
    let script = Arc::new(Script::default());
    *script.progress.lock().unwrap() = progress;
    let address = world.serve(Arc::clone(&script)).await;
    let config = world.config(&[address], "");
    (world, script, config)
}

async fn run(program: &'static str, config: &Path, arguments: &str) -> (i32, String) {
    let Output { status, stdout, stderr } = output(program, config, arguments).await;
    let said = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    (status.code().unwrap(), said.into_owned())
}

async fn output(program: &'static str, config: &Path, arguments: &str) -> Output {
    let mut command = Command::new(program);
    command.arg("--config").arg(config).args(arguments.split_whitespace()).stdin(Stdio::null());
    tokio::task::spawn(async move { command.output().unwrap() }).await.unwrap()
}

fn step(in_step: u32, proved: u32, written: u32) -> v1::SyncProgress {
    v1::SyncProgress {
        source: "north".into(),
        target: "south".into(),
        blocks: 64,
        in_step,
        proved,
        blocks_written: written,
        records_written: u64::from(written) * 10,
        bytes_written: u64::from(written) * 1_000,
        ..Default::default()
    }
}

fn differing(block: u32) -> v1::SyncDifference {
    let system_titles = vec![vec![0x4D; 8].into()];
    v1::SyncDifference {
        block,
        reason: "it is behind".into(),
        records: 3,
        bytes: 900,
        system_titles,
    }
}

fn end(progress: v1::SyncProgress) -> v1::SyncProgress {
    v1::SyncProgress { done: true, ..progress }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_mode_than_secure_is_refused_and_told_why() {
    let (_world, script, config) = world(vec![]).await;
    for mode in ["fast", "plain", "SECURE", ""] {
        let arguments = format!("--mode={mode} --target=south");
        let (code, said) = run(SYNC_KEYS, &config, &arguments).await;
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("only mode") && said.contains("token"), "{said}");
    }
    for arguments in ["--target=south", "--mode=secure"] {
        assert_eq!(run(SYNC_KEYS, &config, arguments).await.0, 2, "{arguments}");
    }
    assert!(script.syncs.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_brought_in_step_and_proved_is_said_with_what_was_written() {
    let behind = v1::SyncProgress { differences: vec![differing(5)], ..step(63, 0, 0) };
    let all = vec![behind, step(64, 30, 1), end(step(64, 64, 1))];
    let (_world, script, config) = world(all).await;
    let (code, said) = run(SYNC_KEYS, &config, "--mode=secure --target=south").await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("block 5 differs: it is behind; 3 records, 900 bytes"), "{said}");
    assert!(said.contains("4D4D4D4D4D4D4D4D"), "{said}");
    assert!(said.contains("south is proved equal to north"), "{said}");
    assert!(said.contains("1 blocks, 10 records, 1000 bytes were written"), "{said}");
    let asked = script.syncs.lock().unwrap()[0].clone();
    assert_eq!(asked, v1::SyncNowRequest { target: "south".into(), ..Default::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_says_that_nothing_was_written() {
    let (_world, _script, config) = world(vec![end(step(64, 64, 0))]).await;
    let (code, said) = run(SYNC_KEYS, &config, "--mode=secure --target=south").await;
    assert!(code == 0 && said.contains("nothing was written"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_proved_ends_with_one_and_is_named() {
    let reason = "its token does not open it".to_owned();
    let failures = vec![v1::SyncFailure { block: 9, reason }];
    let last = v1::SyncProgress { failures, ..end(step(64, 63, 0)) };
    let (_world, _script, config) = world(vec![last]).await;
    let (code, said) = run(SYNC_KEYS, &config, "--mode=secure --target=south --force").await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("block 9: its token does not open it"), "{said}");
    assert!(said.contains("NOT proved equal"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_lists_what_differs_and_ends_with_one_if_anything_does() {
    let differs = v1::SyncProgress { differences: vec![differing(5)], ..end(step(63, 0, 0)) };
    let (_world, script, config) = world(vec![differs]).await;
    let arguments = "--mode=secure --target=south --dry-run";
    let (code, said) = run(SYNC_KEYS, &config, arguments).await;
    assert!(code == 1 && said.contains("nothing was changed"), "{said}");
    assert!(script.syncs.lock().unwrap()[0].dry_run);
    let output = output(SYNC_KEYS, &config, &format!("{arguments} --json")).await;
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["differences"][0]["block"], 5);
    *script.progress.lock().unwrap() = vec![end(step(64, 0, 0))];
    let (code, said) = run(SYNC_KEYS, &config, arguments).await;
    assert!(code == 0 && said.contains("is in step"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_target_is_refused_with_the_known_ones() {
    let (_world, _script, config) = world(vec![]).await;
    let (code, said) = run(SYNC_KEYS, &config, "--mode=secure --target=west").await;
    // As `--help` says.
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("north and south") && said.contains("site status"), "{said}");
    let (_, help) = run(SYNC_KEYS, &config, "--help").await;
    assert!(help.contains("2  the command line is wrong") && help.contains("unknown target"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_in_the_middle_is_not_taken_for_a_proof() {
    let (_world, _script, config) = world(vec![step(64, 64, 0)]).await;
    let (code, said) = run(SYNC_KEYS, &config, "--mode=secure --target=south").await;
    assert!(code == 1 && said.contains("without saying how it went"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runbooks_flag_asks_for_the_block_of_one_meter() {
    let one = v1::SyncProgress { blocks: 1, ..end(step(1, 1, 1)) };
    let (_world, script, config) = world(vec![one]).await;
    let (code, said) = run(AMI_TOOL, &config, "--sync-meter m-7 --dry-run").await;
    assert_eq!(code, 0, "{said}");
    let (code, said) = run(AMI_TOOL, &config, "--sync-meter m-7").await;
    assert!(code == 0 && said.contains("proved equal"), "{said}");
    let asked = script.syncs.lock().unwrap().clone();
    assert_eq!(asked.iter().map(|it| it.dry_run).collect::<Vec<_>>(), [true, false]);
    assert!(asked.iter().all(|it| it.blocks == [7] && it.target.is_empty()), "{asked:?}");
    assert_eq!(run(AMI_TOOL, &config, "--sync-meter nobody").await.0, 1);
    assert_eq!(run(AMI_TOOL, &config, "--sync-meter m-7 site status").await.0, 2);
    assert_eq!(run(AMI_TOOL, &config, "--dry-run site status").await.0, 2);
}
