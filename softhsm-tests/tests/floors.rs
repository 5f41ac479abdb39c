//! Receive floors of a real service: what was sent once is not taken twice, over a kill and a start.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

mod common;

use std::{fs, time::Duration};

use common::{
    fleet::{GAK, GUEK, id, push, title, value},
    home_with,
};
use serde_json::Value;
use softhsm_tests::{AmiTool, Role};

fn hex_of(bytes: &[u8]) -> String {
    hex::encode_upper(bytes)
}

fn ran(tool: &AmiTool, arguments: &[&str], input: &str, code: i32) -> (String, String) {
    let output = tool.run(arguments, input).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (said, complaints) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said} {complaints}");
    (said, complaints)
}

fn json(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().unwrap()
}

/// Verdicts, and whether each is said to have been opened before.
fn told(hes: &AmiTool, apdus: &[&Vec<u8>], code: i32) -> Vec<(String, bool)> {
    let line = |apdu: &&Vec<u8>| format!("{{\"apdu\":\"{}\"}}\n", hex_of(apdu));
    let lines: String = apdus.iter().map(line).collect();
    let answers = json(&ran(hes, &["decrypt", "-"], &lines, code).0);
    let told = |answer: &Value| {
        let replayed = answer["verdict"] == "REPLAYED";
        assert_eq!(replayed, answer.get("plaintext").is_none(), "{answer}");
        (answer["verdict"].as_str().unwrap().to_owned(), answer["duplicate"] == true)
    };
    answers.iter().map(told).collect()
}

#[test]
fn invariant_5_what_a_meter_sent_once_is_not_taken_twice_over_a_kill_and_a_start() {
    let profiles = tempfile::tempdir().unwrap();
    let deployed = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/profiles");
    for name in ["dlms.toml", "gbcs.toml"] {
        fs::copy(format!("{deployed}/{name}"), profiles.path().join(name)).unwrap();
    }
    let dir = format!("{:?}", profiles.path().to_str().unwrap());
    let settings = [("profiles", "dir", dir.as_str()), ("receive_floors", "flush_interval_s", "1")];
    let home = home_with(&settings);
    let running = home.start().unwrap();
    let (admin, hes) = (home.ami_tool(Role::AmiAdmin), home.ami_tool(Role::Hes));
    let meter = |n| {
        format!(
            r#"{{"meter_id":"{}","system_title":"{}","keys":[{{"kind":"GUEK","value":"{}"}},{{"kind":"GAK","value":"{}"}}]}}"#,
            id(n),
            hex_of(title(n).as_bytes()),
            hex_of(&value(n, GUEK)),
            hex_of(&value(n, GAK))
        )
    };
    let create = |n, profile, code| {
        ran(&admin, &["meter", "create", "--from", "-", "--profile", profile], &meter(n), code)
    };
    let (said, _) = create(1, "dlms", 0);
    assert!(said.contains("profile") && said.contains("dlms"), "{said}");
    create(2, "gbcs", 0);
    let (_, refused) = create(3, "nobodys", 1);
    assert!(refused.contains("UNKNOWN_PROFILE") && refused.contains("dlms, gbcs"), "{refused}");
    let (status, _) = ran(&admin, &["site", "status"], "", 0);
    assert!(status.contains("dlms, gbcs (digest "), "{status}");

    let (old, new, free) = (push(1), push(1), push(2));
    let verdict = |word: &str, duplicate| (word.to_owned(), duplicate);
    let (fresh, known, old_one) =
        (verdict("OK", false), verdict("OK", true), verdict("REPLAYED", false));
    // One after the other: a stream may have several batches under way.
    assert_eq!(told(&hes, &[&new], 0), std::slice::from_ref(&fresh));
    assert_eq!(told(&hes, &[&old], 1), std::slice::from_ref(&old_one));
    assert_eq!(told(&hes, &[&free, &free], 0), [fresh.clone(), fresh.clone()]);
    let again = [known.clone(), old_one.clone(), fresh.clone()];
    assert_eq!(told(&hes, &[&new, &old, &free], 1), again);
    // Once it is stored, a kill does not take it back.
    std::thread::sleep(Duration::from_millis(2_500));
    running.kill_9().unwrap();
    let running = home.start().unwrap();
    assert_eq!(told(&hes, &[&old, &new, &free], 1), [old_one.clone(), known, fresh.clone()]);
    assert_eq!(told(&hes, &[&push(1)], 0), [fresh]);
    let (status, _) = ran(&admin, &["site", "status"], "", 0);
    assert!(status.contains("ended without storing its receive floors"), "{status}");
    running.stop().unwrap();
    // An orderly end forgets nothing.
    let _running = home.start().unwrap();
    let (status, _) = ran(&admin, &["site", "status"], "", 0);
    assert!(!status.contains("receive floors"), "{status}");
    assert_eq!(told(&hes, &[&new], 1), [old_one]);
}
