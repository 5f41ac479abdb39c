//! `ami-tool hls` against a service in the same process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use fake::World;
use serde_json::{Value, json};

async fn tool(config: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ami-tool"));
    command.arg("--config").arg(config).args(arguments.split_whitespace());
    tokio::task::spawn(async move { command.output().unwrap() }).await.unwrap()
}

fn object(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_association_is_begun_answered_and_verified() {
    let world = World::new();
    let config = world.config(&[world.serve(Arc::default()).await], "");
    let pair = "--encryption-version 2 --authentication-version 1";
    let begin = format!("hls challenge --meter m-1 --challenge-length 8 {pair} --json");
    let begun = object(&tool(&config, &begin).await);
    let handle = begun["association"].as_str().unwrap().to_owned();
    assert_eq!((handle.len(), &begun["challenge"]), (64, &json!("6363636363636363")));
    assert_eq!(begun["expires_in_ms"], 120_000);
    let answered =
        object(&tool(&config, &format!("hls answer {handle} 53746F43 {pair} --json")).await);
    assert_eq!((&answered["answer"], &answered["apdu"]), (&json!("53746F43"), &Value::Null));
    assert_eq!(answered["encryption_key_version"], 2);
    for given in ["--answer", "--apdu"] {
        let verify = format!("hls verify {handle} {given} 676F6F64 --json");
        assert_eq!(object(&tool(&config, &verify).await)["verdict"], "OK");
    }
    let bad = tool(&config, &format!("hls verify {handle} --answer 00")).await;
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stdout).contains("MIC_FAILURE"), "{bad:?}");
    for wrong in [
        "hls challenge",
        "hls challenge --meter m-1 --encryption-version 2",
        "hls answer 00 53746F43",
        &format!("hls answer {handle} XY"),
        &format!("hls verify {handle}"),
        &format!("hls verify {handle} --answer 00 --apdu 00"),
    ] {
        assert_eq!(tool(&config, wrong).await.status.code(), Some(2), "{wrong}");
    }
}
