//! The audit log of a real server, read and checked by the real tool; the server killed in the middle.

#![expect(clippy::expect_used, reason = "helpers of tests may")]

use std::fs;

use softhsm_tests::{AmiTool, Programs, Role, Site, SiteOptions, Tokens};

const METER: &str = r#"{"meter_id":"m-1","system_title":"4D4D4D0000BC614E","keys":[{"kind":"GUEK","value":"D491470F47126332B07D1923B3504188"}]}"#;

/// Exit code and standard output.
fn ask(tool: &AmiTool, arguments: &[&str]) -> (Option<i32>, String) {
    let output = tool.run(arguments, "").expect("the tool runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), said + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_tool_reads_and_checks_the_log_of_a_server_that_was_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = SiteOptions { tokens: Tokens::SharedMemory, ..SiteOptions::default() };
    let programs = Programs::find().expect("the programs are built");
    let site = Site::make(&dir.path().join("site"), programs, options).expect("a site");
    let told = site.run(
        "init",
        &["--create-token".as_ref(), "--so-pin-file".as_ref(), site.places().so_pin.as_os_str()],
    );
    let told = told.expect("init");
    let key = told.lines().find(|line| line.contains("ami-signing")).expect("a signing key");
    let key = key.rsplit(' ').next().expect("its fingerprint");
    let running = site.start().expect("a server");
    let (admin, auditor) = (site.ami_tool(Role::AmiAdmin), site.ami_tool(Role::Auditor));
    let line = dir.path().join("meter.jsonl");
    fs::write(&line, METER).expect("a file");
    let line = line.to_string_lossy().into_owned();
    admin.succeed(&["meter", "import", &line, "--allow-test-keys"]).expect("an import");
    admin.succeed(&["meter", "get", "m-1"]).expect("a look");
    assert_eq!(ask(&site.ami_tool(Role::Hes), &["meter", "get", "m-1"]).0, Some(5));

    let listed = auditor.succeed(&["audit", "list", "--json"]).expect("a list");
    let verbs: Vec<String> = listed
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .map(|event| format!("{} {}", event["verb"], event["outcome"]).replace('"', ""))
        .collect();
    assert_eq!(
        verbs,
        [
            "Server/Start DONE",
            // What the tool asks before it sends a key, then the line.
            "Meters/ImportMeters DONE",
            "Meters/ImportMeters DONE",
            "Meters/GetMeter DONE",
            "Meters/GetMeter REFUSED"
        ]
    );
    assert!(!listed.contains("D491470F"), "{listed}");
    let last = auditor.succeed(&["audit", "list", "--last", "2"]).expect("a list");
    assert_eq!(last.lines().count(), 2, "{last}");

    let seen = dir.path().join("seen").to_string_lossy().into_owned();
    let verify = ["audit", "verify", "--key-fingerprint", key, "--seen", &seen];
    let (code, said) = ask(&auditor, &verify);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("intact"), "{said}");
    let (code, said) = ask(&auditor, &["audit", "verify", "--key-fingerprint", &"0".repeat(64)]);
    assert_eq!(code, Some(1), "{said}");
    // An operator may look, but not check; a head-end may do neither.
    assert_eq!(ask(&admin, &["audit", "verify"]).0, Some(5));
    assert_eq!(ask(&site.ami_tool(Role::Hes), &["audit", "list"]).0, Some(5));

    running.kill_9().expect("a kill");
    let running = site.start().expect("a server again");
    let (code, said) = ask(&auditor, &verify);
    assert_eq!(code, Some(0), "{said}");
    assert!(running.stop().expect("a stop").success());

    // Somebody gives back an older database with all that stands in it: the witness knows better.
    let data = site.places().data.clone();
    let database = data.join("kms.db");
    let old = fs::read(&database).expect("the database");
    let running = site.start().expect("a server");
    admin.succeed(&["meter", "delete", "m-1", "--yes"]).expect("a deletion");
    assert!(running.stop().expect("a stop").success());
    fs::write(&database, old).expect("the old database");
    let running = site.start().expect("a server");
    let status = admin.succeed(&["site", "status"]).expect("a status");
    assert!(status.contains("audit: ") && status.contains("cut off"), "{status}");
    let (code, said) = ask(&admin, &["meter", "get", "m-1"]);
    assert_eq!(code, Some(4), "{said}");
    assert_eq!(ask(&auditor, &["audit", "list"]).0, Some(0));
    assert!(running.stop().expect("a stop").success());
    // After the inquiry: a new node, with a chain of its own.
    fs::rename(data.join("node-id"), data.join("node-id.broken")).expect("moved away");
    let running = site.start().expect("a server");
    admin.succeed(&["meter", "get", "m-1"]).expect("privileged calls again");
    assert_eq!(ask(&auditor, &["audit", "verify"]).0, Some(0));
    assert!(running.stop().expect("a stop").success());
}
