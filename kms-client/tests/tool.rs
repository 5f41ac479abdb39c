//! `ami-tool` against a service in the same process: output, exit codes, silence about keys.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, atomic::Ordering};

use fake::{Script, World};
use kms_proto::v1;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tonic::Code;

const GUEK: &str = "D491470F47126332B07D1923B3504188";

fn line(id: &str) -> String {
    format!(
        r#"{{"meter_id":"{id}","system_title":"4D4D4D0000BC614E","keys":[{{"kind":"GUEK","value":"{GUEK}"}}]}}"#
    )
}

async fn tool(config: &Path, arguments: &str, input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ami-tool"));
    command.arg("--config").arg(config).args(arguments.split_whitespace());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let output = tokio::task::spawn(async move {
        let mut child = command.spawn().unwrap();
        // A tool that refuses its command line does not read its input.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    });
    output.await.unwrap()
}

fn objects(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn all_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn world(script: Arc<Script>) -> (World, std::path::PathBuf) {
    let world = World::new();
    let address = world.serve(script).await;
    let config = world.config(&[address], "");
    (world, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apdu_is_protected_and_a_counter_declared() {
    let (_world, config) = world(Arc::default()).await;
    let output = tool(&config, "encrypt --meter m-1 --apdu C001:C1 --form glo --json", "").await;
    assert_eq!(output.status.code(), Some(0), "{}", all_text(&output));
    let result = &objects(&output)[0];
    assert_eq!((&result["apdu"], &result["invocation_counter"]), (&json!("C001C1"), &json!(0)));
    let said = all_text(&tool(&config, "encrypt --meter m-1 --apdu C001", "").await);
    assert!(said.contains("invocation counter") && said.contains("C001"), "{said}");
    let declare = "meter declare-counter --meter m-1 --last 0xFF --json";
    let output = tool(&config, declare, "").await;
    assert_eq!(objects(&output)[0]["at_least"], 256, "{}", all_text(&output));
    for wrong in [
        "encrypt --apdu C0",
        "encrypt --meter m-1 --apdu XY",
        "meter declare-counter --meter m-1",
        "meter declare-counter --meter m-1 --last 1 --never-used",
    ] {
        assert_eq!(tool(&config, wrong, "").await.status.code(), Some(2), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_apdu_is_opened_as_json_and_for_people() {
    let (_world, config) = world(Arc::default()).await;
    let output = tool(&config, "decrypt --meter m-1 --apdu 0001FFab --json", "").await;
    assert_eq!(output.status.code(), Some(0), "{}", all_text(&output));
    let result = &objects(&output)[0];
    assert_eq!(result["verdict"], "OK");
    assert_eq!(result["plaintext"], "0001FFAB");
    assert_eq!(result["meter"], "m-1");
    assert_eq!(result["invocation_counter"], 7);
    assert_eq!(result["security_setup"], 0);
    let output = tool(&config, "decrypt --meter m-1 --apdu 0001FFab", "").await;
    assert!(
        all_text(&output).contains("plaintext                   0001FFAB"),
        "{}",
        all_text(&output)
    );
    let output = tool(&config, "verify --meter m-1 --apdu 00 --json", "").await;
    assert_eq!(objects(&output)[0].get("plaintext"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_apdu_ends_with_one_and_says_how_to_name_the_meter() {
    let (_world, config) = world(Arc::default()).await;
    let output = tool(&config, "decrypt --apdu FF00 --json", "").await;
    assert_eq!(output.status.code(), Some(1));
    let result = &objects(&output)[0];
    assert_eq!(result.get("plaintext"), None);
    assert!(result["reason"].as_str().unwrap().contains("--system-title"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_answered_in_order_and_bad_ones_do_not_stop_the_others() {
    let (_world, config) = world(Arc::default()).await;
    let input = "{\"apdu\":\"0001\",\"id\":1}\nnot json\n{\"apdu\":\"FF\",\"id\":{\"n\":3}}\n\n{\"apdu\":\"x\",\"id\":4}\n{\"meter\":\"m\",\"apdu\":\"00 05\"}";
    let output = tool(&config, "decrypt -", input).await;
    assert_eq!(output.status.code(), Some(1));
    let results = objects(&output);
    let verdicts: Vec<_> =
        results.iter().map(|result| result["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["OK", "MALFORMED_LINE", "MIC_FAILURE", "MALFORMED_LINE", "OK"]);
    assert_eq!(results[1]["line"], 2);
    assert_eq!(results[2]["id"]["n"], 3);
    assert_eq!(results[3]["id"], 4);
    assert_eq!(results[4]["plaintext"], "0005");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_reports_each_refused_line_and_never_a_key() {
    let (world, config) = world(Arc::default()).await;
    let file = world.dir.path().join("meters.jsonl");
    let text = format!("{}\n{{\"{GUEK}\":\"{GUEK}\"}}\n{}\n", line("new-1"), line("old-1"));
    std::fs::write(&file, text).unwrap();
    let output = tool(&config, &format!("meter import {}", file.display()), "").await;
    let said = all_text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("line 2: MALFORMED_LINE"), "{said}");
    assert!(said.contains("same value as the one on line 1"), "{said}");
    let counted = "1 created, 0 updated, 1 unchanged, 1 refused, 1 with warnings; ";
    assert!(said.contains(counted), "{said}");
    assert!(!said.contains(GUEK), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_what_is_known_says_that_nothing_changed() {
    let (_world, config) = world(Arc::default()).await;
    let text = format!("meter_id,system_title,GUEK\nold-1,4D4D4D0000BC614E,{GUEK}\n");
    let output = tool(&config, "meter import - --format csv", &text).await;
    assert_eq!(output.status.code(), Some(0), "{}", all_text(&output));
    assert!(all_text(&output).contains("nothing changed"));
    let output = tool(&config, "--json meter import - --format csv", &text).await;
    let results = objects(&output);
    assert_eq!(results[0]["outcome"], "UNCHANGED");
    assert_eq!(results[0]["line"], 2);
    assert_eq!(results[1]["unchanged"], 1);
    assert_eq!(results[1]["nothing_changed"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_tells_what_kind_of_trouble_it_is() {
    let (world, config) = world(Script::failing(Code::PermissionDenied, 1)).await;
    let code = |output: Output| output.status.code().unwrap();
    assert_eq!(code(tool(&config, "site status", "").await), 5);
    assert_eq!(code(tool(&config, "site status", "").await), 0);
    assert_eq!(code(tool(&config, "meter get nobody", "").await), 1);
    assert_eq!(code(tool(&config, "meter delete m", "").await), 2);
    assert_eq!(code(tool(&config, "meter delete m --yes", "").await), 0);
    assert_eq!(code(tool(&config, "decrypt", "").await), 2);
    assert_eq!(code(tool(&config, "meter import /nowhere.csv", "").await), 3);
    assert_eq!(code(tool(Path::new("/nowhere.toml"), "site status", "").await), 3);
    let gone = world.config(&["127.0.0.1:1".parse().unwrap()], "");
    assert_eq!(code(tool(&gone, "site status", "").await), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_is_created_from_standard_input_and_meters_are_listed() {
    let (_world, config) = world(Arc::default()).await;
    let output = tool(&config, "meter create --from - --json", &line("m-7")).await;
    assert_eq!(objects(&output)[0]["meter"]["meter_id"], "m-7", "{}", all_text(&output));
    let output = tool(&config, "meter list --limit 2 --json", "").await;
    assert_eq!(objects(&output).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_that_the_other_site_has_not_is_said_to_be_lost_with_this_one() {
    let script = Arc::new(Script::default());
    script.replicated.store(v1::Replicated::Unreplicated as i32, Ordering::SeqCst);
    let (_world, config) = world(script).await;
    let title = "--system-title 4D4D4D0000BC614E";
    let digits = "00".repeat(32);
    let changes = [
        ("meter set-policy m --from -".to_owned(), "{}"),
        (format!("meter bury {title} --yes"), ""),
        (format!("meter readmit m {title}"), ""),
        ("meter delete m --yes".to_owned(), ""),
        (format!("site forget-list --authority {digits} --number 09 --from 01"), ""),
    ];
    for (change, input) in changes {
        let said = all_text(&tool(&config, &change, input).await);
        assert!(said.contains("changes are here and"), "{change}: {said}");
        let output = tool(&config, &format!("{change} --json"), input).await;
        assert!(all_text(&output).contains(r#""replicated":"UNREPLICATED""#), "{change}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tool_says_what_its_request_was_called() {
    let script = Script::failing(Code::Internal, 1);
    let (_world, config) = world(Arc::clone(&script)).await;
    let failed = tool(&config, "site status --request-id spring-7", "").await;
    assert!(all_text(&failed).contains("request: spring-7"), "{}", all_text(&failed));
    let good = tool(&config, "site status --verbose --json", "").await;
    assert_eq!(good.status.code(), Some(0), "{}", all_text(&good));
    let ids = script.request_ids.lock().unwrap().clone();
    assert_eq!(ids[0], "spring-7");
    assert_eq!(String::from_utf8_lossy(&good.stderr).trim(), format!("request {}", ids[1]));
    assert_eq!(objects(&good).len(), 1, "standard output is the answer's alone");
    let bad = tool(&config, "site status --request-id two{words}", "").await;
    assert_eq!(bad.status.code(), Some(2), "{}", all_text(&bad));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_for_a_deleted_meter_is_sent_to_the_audit_log() {
    let (_world, config) = world(Script::failing(Code::NotFound, 1)).await;
    let readmit = "meter readmit m --system-title 4D4D4D0000BC614E";
    let said = all_text(&tool(&config, readmit, "").await);
    assert!(said.contains("next: `audit list` shows"), "{said}");
    let output = tool(&config, readmit, "").await;
    let said = all_text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("sealed after") && said.contains("a line in clear"), "{said}");
    assert!(!said.contains("given up"), "{said}");
}

/// A site's import key, as `site import-key --out` writes it, and its fingerprint. Nobody can open what is
/// sealed to it.
fn import_key() -> (String, String) {
    let modulus = [0xFF_u8; 384];
    let head = "308201A2300D06092A864886F70D01010105000382018F003082018A0282018100";
    let public_key = format!("{head}{}0203010001", hex::encode(modulus));
    let key = json!({
        "site": "site-a", "domain_id": "00".repeat(16), "public_key": public_key, "oaep_hash": "sha256",
    });
    let fingerprint: [u8; 32] = Sha256::digest(modulus).into();
    (key.to_string(), hex::encode(fingerprint))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sealed_of_a_file_without_a_meter_or_over_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (key, fingerprint) = import_key();
    std::fs::write(path("key"), key).unwrap();
    let signer = rcgen::KeyPair::generate().unwrap();
    std::fs::write(path("signer"), signer.serialize_pem()).unwrap();
    std::fs::write(path("meters.jsonl"), line("m-1") + "\n").unwrap();
    std::fs::write(path("empty.csv"), "meter_id,system_title\n\n").unwrap();
    std::fs::write(path("bad.jsonl"), "{}\n").unwrap();
    let seal = async |file: &str| {
        let (file, out, key, signer) = (path(file), path("sealed"), path("key"), path("signer"));
        let arguments = format!(
            "meter seal {file} --out {out} --import-key {key} --import-key-fingerprint {fingerprint} \
             --signer s --signing-key {signer}"
        );
        let output = tool(Path::new("/nowhere.toml"), &arguments, "").await;
        (output.status.code(), all_text(&output))
    };
    let (code, said) = seal("empty.csv").await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("there is no meter in the file: nothing was sealed"), "{said}");
    // No request was made, so none is named.
    let (code, said) = seal("bad.jsonl").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("1 bad lines, 0 good ones") && !said.contains("request:"), "{said}");
    let (code, said) = seal("meters.jsonl").await;
    assert_eq!(code, Some(0), "{said}");
    let sealed = std::fs::read(path("sealed")).unwrap();
    let (code, said) = seal("meters.jsonl").await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("exists already, and nothing is overwritten: choose another"), "{said}");
    assert_eq!(std::fs::read(path("sealed")).unwrap(), sealed);
}
