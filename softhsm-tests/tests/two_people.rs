//! A call that needs two people, by two people with the real tool; a restart between; what the audit log
//! says of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use common::{
    Home, eventually,
    fleet::{id, line},
    home_with,
};
use serde_json::Value;
use softhsm_tests::{AmiTool, Role};

/// Exit code, standard output, standard error.
fn run(tool: &AmiTool, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let output = tool.run(arguments, input).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Asks to delete a meter, hears that a second person is needed, and under which number.
#[track_caller]
fn refused(tool: &AmiTool, meter: &str) -> String {
    let (code, _, said) = run(tool, &["meter", "delete", meter, "--yes"], "");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Meters/DeleteMeter needs a second person"), "{said}");
    assert!(said.contains("next: a second person runs `ami-tool approvals approve ID`"), "{said}");
    let (_, rest) = said.split_once("ami-tool approvals approve ").unwrap();
    rest.chars().take_while(char::is_ascii_digit).collect()
}

#[test]
fn invariant_3_two_people_take_a_healthy_site_above_an_epoch_whatever_the_policy_says() {
    let home = home_with(&[]);
    let _running = home.start().unwrap();
    let [admin, approver] = [Role::AmiAdmin, Role::Approver].map(|role| home.ami_tool(role));
    let promote = ["site", "promote", "--yes", "--above-epoch", "200"];
    let (code, _, said) = run(&admin, &promote, "");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Site/Promote needs a second person"), "{said}");
    let (_, rest) = said.split_once("ami-tool approvals approve ").unwrap();
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    // It is told what it costs.
    let (_, listed, _) = run(&approver, &["approvals", "list"], "");
    assert!(
        listed.contains("takes 199 of every key's 256 counter epochs and leaves at most 57"),
        "{listed}"
    );
    let (code, _, said) = run(&approver, &["approvals", "approve", &number, "--yes"], "");
    assert_eq!(code, Some(0), "{said}");
    let (code, done, said) = run(&admin, &promote, "");
    assert_eq!(code, Some(0), "{said}");
    assert!(done.contains("202"), "{done}");
}

#[test]
fn two_people_delete_a_meter_and_one_does_not() {
    let calls = "[\"Meters/DeleteMeter\", \"Meters/CreateMeter\"]";
    let home = home_with(&[("rpc", "dual_control", calls)]);
    let running = home.start().unwrap();
    let [admin, dev, approver, auditor] =
        [Role::AmiAdmin, Role::Dev, Role::Approver, Role::Auditor].map(|role| home.ami_tool(role));
    // Imports are not named.
    assert_eq!(run(&admin, &["meter", "import", "-", "--format", "jsonl"], &line(1)).0, Some(0));
    let meter = id(1);

    let number = refused(&admin, &meter);
    let (code, _, said) = run(&admin, &["approvals", "approve", &number, "--yes"], "");
    assert_eq!(code, Some(5), "{said}");
    // What waits is no process's memory.
    assert!(running.stop().unwrap().success());
    let running = home.start().unwrap();
    assert_eq!(refused(&admin, &meter), number, "the tool sends the same bytes each time");
    let other = refused(&dev, &meter);
    assert_ne!(other, number, "another person, another call");
    let (code, listed, _) = run(&approver, &["approvals", "list", "--json"], "");
    assert_eq!(code, Some(0));
    let waiting: Vec<Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = waiting.iter().find(|one| one["approval_id"] == number.as_str()).unwrap();
    assert_eq!(first["requester"], Role::AmiAdmin.caller());
    assert_eq!(first["summary"], format!("meter \"{meter}\""));
    let (code, said, _) = run(&approver, &["approvals", "approve", &number, "--yes"], "");
    assert_eq!(code, Some(0));
    assert!(said.contains("admin-1 now makes the same call again"), "{said}");
    // It is not the other person's approval.
    assert_eq!(refused(&dev, &meter), other);
    assert_eq!(run(&admin, &["meter", "get", &meter], "").0, Some(0));
    assert_eq!(run(&admin, &["meter", "delete", &meter, "--yes"], "").0, Some(0));
    assert_eq!(run(&admin, &["meter", "get", &meter], "").0, Some(1));
    refused(&admin, &meter);

    // The log: asked, approved, used, done, under one number.
    let (_, listed, _) = run(&auditor, &["audit", "list", "--json"], "");
    let events: Vec<String> = listed
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| {
            let details = event["details"].as_array().into_iter().flatten();
            let mut numbers = details.filter(|detail| {
                detail["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case("approval"))
            });
            numbers.any(|detail| detail["number"].as_u64() == number.parse().ok())
        })
        .map(|event| {
            let [caller, verb, outcome, meter] =
                ["caller", "verb", "outcome", "meter_id"].map(|key| event[key].as_str().unwrap());
            format!("{caller} {verb} {outcome} {meter}")
        })
        .collect();
    assert_eq!(
        events,
        [
            format!("admin-1 Meters/DeleteMeter REFUSED {meter}"),
            format!("approver-1 Approvals/ApproveCall DONE {meter}"),
            format!("admin-1 Approvals/Use DONE {meter}"),
            format!("admin-1 Meters/DeleteMeter DONE {meter}"),
        ],
        "{listed}"
    );
    let (code, said, _) = run(&auditor, &["audit", "verify"], "");
    assert_eq!(code, Some(0), "{said}");
    assert!(running.stop().unwrap().success());
}

/// The number under which a command waits.
#[track_caller]
fn number(tool: &AmiTool, arguments: &[&str], input: &str) -> String {
    let (code, _, said) = run(tool, arguments, input);
    assert_eq!(code, Some(1), "{said}");
    let (_, rest) = said.split_once("ami-tool approvals approve ").expect(&said);
    rest.chars().take_while(char::is_ascii_digit).collect()
}

/// Approves what waits under this number; what the second person was shown.
#[track_caller]
fn approve(tool: &AmiTool, number: &str) -> String {
    let (_, listed, _) = run(tool, &["approvals", "list", "--json"], "");
    let mut waiting = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let one = waiting.find(|one| one["approval_id"] == number).unwrap();
    assert_eq!(run(tool, &["approvals", "approve", number, "--yes"], "").0, Some(0));
    one["summary"].as_str().unwrap().to_owned()
}

#[test]
fn two_people_import_set_a_policy_and_readmit_a_deleted_meter() {
    let calls = "[\"Meters/ImportMeters\", \"Meters/SetPolicy\"]";
    let home = home_with(&[("rpc", "dual_control", calls)]);
    let running = home.start().unwrap();
    let [admin, approver, auditor] =
        [Role::AmiAdmin, Role::Approver, Role::Auditor].map(|role| home.ami_tool(role));
    let meter = id(1);
    let import: &[&str] = &["meter", "import", "-", "--format", "jsonl"];
    // One person alone brings nothing in; with the second it is exactly these lines, once.
    let lines = line(1);
    let waits = number(&admin, import, &lines);
    // What the tool asks before it sends a key waits for nobody.
    let (_, waiting, _) = run(&approver, &["approvals", "list"], "");
    assert!(waiting.contains(&waits) && !waiting.contains("0 lines"), "{waiting}");
    assert_eq!(run(&admin, &["meter", "get", &meter], "").0, Some(1));
    let shown = approve(&approver, &waits);
    assert!(
        shown.starts_with("1 lines in clear, meters [") && shown.ends_with("no rules"),
        "{shown}"
    );
    assert_ne!(number(&admin, import, &[line(1), line(2)].join("\n")), waits);
    assert_eq!(run(&admin, import, &lines).0, Some(0));
    assert_eq!(run(&admin, &["meter", "get", &meter], "").0, Some(0));

    let policy = "{\"allow_encryption_only\": true}";
    let set: &[&str] = &["meter", "set-policy", &meter, "--from", "-"];
    let waits = number(&admin, set, policy);
    let shown = approve(&approver, &waits);
    assert_eq!(shown, format!("meter \"{meter}\", policy AUTHENTICATED + allow_encryption_only"));
    let (code, said, _) = run(&admin, set, policy);
    assert_eq!(code, Some(0));
    assert!(said.contains("encryption-only allowed"), "{said}");

    // Deleted, and back: never by one person, and not by an import.
    let (_, said, _) = run(&admin, &["meter", "get", &meter, "--json"], "");
    let title =
        serde_json::from_str::<Value>(&said).unwrap()["system_title"].as_str().unwrap().to_owned();
    assert_eq!(run(&admin, &["meter", "delete", &meter, "--yes"], "").0, Some(0));
    let again = number(&admin, import, &lines);
    approve(&approver, &again);
    let (code, _, said) = run(&admin, import, &lines);
    assert_eq!(code, Some(1));
    assert!(said.contains("METER_DELETED") && said.contains("ami-tool meter readmit"), "{said}");
    let readmit: &[&str] = &["meter", "readmit", &meter, "--system-title", &title];
    let waits = number(&admin, readmit, "");
    let shown = approve(&approver, &waits);
    assert_eq!(shown, format!("deleted meter \"{meter}\", title {}", title.to_lowercase()));
    let (code, said, _) = run(&admin, readmit, "");
    assert_eq!(code, Some(0));
    assert!(said.contains("may come back"), "{said}");
    approve(&approver, &number(&admin, import, &lines));
    assert_eq!(run(&admin, import, &lines).0, Some(0));
    let (_, said, _) = run(&admin, &["meter", "get", &meter, "--json"], "");
    let policy = &serde_json::from_str::<Value>(&said).unwrap()["policy"];
    assert_eq!(policy["allow_encryption_only"], false, "{said}");

    let (_, listed, _) = run(&auditor, &["audit", "list", "--json"], "");
    let mut events = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let done =
        events.find(|event| event["verb"] == "Meters/ReadmitMeter" && event["outcome"] == "DONE");
    assert_eq!(done.expect(&listed)["meter_id"], meter.as_str());
    assert!(running.stop().unwrap().success());
}

/// Names a revocation list in `kms.toml`.
fn use_list(home: &Home, list: &str) {
    let path = home.places().dir.join("certificates/clients.crl");
    std::fs::write(&path, list).unwrap();
    let text = std::fs::read_to_string(&home.places().kms_toml).unwrap();
    if !text.contains("client_crl") {
        let named = format!("[rpc.tls]\nclient_crl = \"{}\"\n", path.display());
        std::fs::write(&home.places().kms_toml, text.replace("[rpc.tls]\n", &named)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_take_back_the_number_of_a_revocation_list_that_no_true_list_reaches() {
    let home = home_with(&[("rpc", "reload_poll_s", "1")]);
    let authority = home.authority().unwrap();
    let true_list = authority.empty_revocation_list().unwrap();
    let (_, beyond) = authority.revoked_client("nobody-1").unwrap();
    use_list(&home, &beyond);
    let running = home.start().unwrap();
    let [admin, approver, auditor] =
        [Role::AmiAdmin, Role::Approver, Role::Auditor].map(|role| home.ami_tool(role));
    eventually("the domain remembers its number", async || {
        run(&auditor, &["audit", "list"], "").1.contains("RevocationLists/Remember")
    })
    .await;
    use_list(&home, &true_list);
    let status = || run(&admin, &["site", "status"], "").1;
    let older = "its number is 01, and 02 was used already (authority ";
    eventually("the true list is refused", async || status().contains(older)).await;
    let said = status();
    let (_, rest) = said.split_once(older).unwrap();
    let authority: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    let forget = |number: &'static str, from: &'static str| {
        let authority = authority.clone();
        ["site", "forget-list", "--authority", &authority, "--number", number, "--from", from]
            .map(str::to_owned)
    };
    let arguments = forget("02", "01");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let waits = number(&admin, &arguments, "");
    let shown = approve(&approver, &waits);
    assert!(shown.contains("forget that revocation list 02 was used"), "{shown}");
    let (code, _, said) = run(&admin, &arguments, "");
    assert_eq!(code, Some(0), "{said}");
    eventually("the true list is in use", async || !status().contains("revocation list")).await;
    // Once: the number that was forgotten is remembered no more, and a restart forgets nothing of that.
    assert!(running.stop().unwrap().success());
    let running = home.start().unwrap();
    let waits = number(&admin, &arguments, "");
    approve(&approver, &waits);
    let (code, _, said) = run(&admin, &arguments, "");
    assert!(code == Some(1) && said.contains("another one"), "{said}");
    assert!(running.stop().unwrap().success());
}
