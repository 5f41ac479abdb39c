//! `ami-tool` end to end: what an operator types, what comes back, and with which exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{fs, process::Output};

use common::{
    Home,
    fleet::{GAK, GUEK, PLAIN, id, line, push, title, value},
    home, home_with,
};
use serde_json::Value;
use softhsm_tests::{AmiTool, DecryptRequest, Role};

fn ran(tool: &AmiTool, arguments: &[&str], input: &str, code: i32) -> (String, String) {
    let Output { status, stdout, stderr } = tool.run(arguments, input).unwrap();
    let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    assert!(!err.contains("panicked"), "{arguments:?}\n{err}");
    (out, err)
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn hex_of(bytes: &[u8]) -> String {
    hex::encode_upper(bytes)
}

fn csv(meters: std::ops::Range<u64>) -> String {
    let mut text = "meter_id,system_title,GUEK,GAK\n".to_owned();
    for n in meters {
        let (title, guek, gak) =
            (hex_of(title(n).as_bytes()), hex_of(&value(n, GUEK)), hex_of(&value(n, GAK)));
        text += &format!("{},{title},{guek},{gak}\n", id(n));
    }
    text
}

fn file(home: &Home, name: &str, text: &str) -> String {
    let path = home.dir.path().join(name);
    fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn an_import_counts_what_it_did_and_done_again_changes_nothing() {
    let home = home();
    let running = home.start().unwrap();
    let admin = home.ami_tool(Role::AmiAdmin);
    let as_csv = file(&home, "meters.csv", &csv(1..300));
    let jsonl: String = (300..500).map(|n| line(n) + "\n").collect();
    let as_jsonl = file(&home, "meters.jsonl", &jsonl);
    let (dry, _) = ran(&admin, &["meter", "import", &as_csv, "--dry-run"], "", 0);
    assert!(dry.starts_with("299 created") && dry.contains("dry run: nothing changed"), "{dry}");
    assert_eq!(ran(&admin, &["meter", "list"], "", 0).0, "");
    for (path, count) in [(&as_csv, 299), (&as_jsonl, 200)] {
        let (said, complaints) = ran(&admin, &["meter", "import", path], "", 0);
        let counted =
            format!("{count} created, 0 updated, 0 unchanged, 0 refused, 0 with warnings");
        assert!(said.starts_with(&counted) && said.contains("meters/s"), "{said}");
        assert!(!said.contains("nothing changed"), "{said}");
        assert_eq!(complaints, "");
        let (said, _) = ran(&admin, &["meter", "import", path], "", 0);
        let counted = format!("0 created, 0 updated, {count} unchanged, 0 refused");
        assert!(said.starts_with(&counted) && said.contains("\nnothing changed"), "{said}");
    }
    let (said, _) = ran(&admin, &["meter", "import", &as_csv, "--json"], "", 0);
    let answers = json(&said);
    assert_eq!(answers.len(), 300);
    for (answer, line) in answers[..299].iter().zip(2..) {
        assert_eq!(
            (&answer["line"], &answer["outcome"]),
            (&Value::from(line), &"UNCHANGED".into())
        );
    }
    let summary = &answers[299];
    assert_eq!((&summary["summary"], &summary["unchanged"]), (&true.into(), &299.into()));
    assert_eq!(summary["nothing_changed"], true);
    let (said, _) = ran(&admin, &["meter", "import", "-", "--format", "csv"], &csv(1..3), 0);
    assert!(said.starts_with("0 created, 0 updated, 2 unchanged"), "{said}");
    assert!(running.stop().unwrap().success());
}

#[test]
fn a_bad_line_is_named_by_its_number_and_the_others_are_imported() {
    let home = home();
    let _running = home.start().unwrap();
    let admin = home.ami_tool(Role::AmiAdmin);
    let zeros = line(4).replace(&hex_of(&value(4, GUEK)), &"0".repeat(32));
    let published = line(5).replace(&hex_of(&value(5, GUEK)), "000102030405060708090A0B0C0D0E0F");
    let shared = line(6).replace(&hex_of(&value(6, GUEK)), &hex_of(&value(1, GUEK)));
    let taken = line(7).replace(&hex_of(title(7).as_bytes()), &hex_of(title(1).as_bytes()));
    let short = line(8).replace(&hex_of(&value(8, GUEK)), "0102");
    let lines =
        [&line(1), "not JSON", &line(3), &zeros, &published, &shared, &taken, &short, &line(9)];
    let text = lines.map(|line| format!("{line}\n")).concat();
    let path = file(&home, "meters.jsonl", &text);
    let (said, complaints) = ran(&admin, &["meter", "import", &path], "", 1);
    print!("{complaints}{said}");
    assert!(said.starts_with("4 created, 0 updated, 0 unchanged, 5 refused"), "{said}");
    for (line, words) in [
        (2, &["MALFORMED"][..]),
        (4, &["(meter-4)", "TEST_KEY"]),
        (5, &["(meter-5)", "TEST_KEY"]),
        (6, &["(meter-6)", "warning", "GUEK"]),
        (7, &["(meter-7)", "belongs"]),
        (8, &["(meter-8)"]),
    ] {
        let starts = format!("line {line}");
        let complaint = complaints
            .lines()
            .find(|complaint| complaint.starts_with(&starts))
            .unwrap_or_else(|| panic!("nothing of line {line}: {complaints}"));
        for word in words {
            assert!(complaint.contains(word), "{complaint}");
        }
    }
    for secret in [hex_of(&value(1, GUEK)), hex_of(&value(7, GUEK)), "0".repeat(32)] {
        assert!(!complaints.contains(&secret) && !said.contains(&secret));
    }
    let (said, _) = ran(&admin, &["meter", "import", &path, "--allow-test-keys"], "", 1);
    assert!(said.starts_with("2 created, 0 updated, 4 unchanged, 3 refused"), "{said}");
    // Beside the file's own duplicates, the server tells of those it knew before.
    let (_, complaints) = ran(&admin, &["meter", "import", "-", "--format", "jsonl"], &shared, 0);
    assert!(complaints.is_empty() || complaints.contains("warning"), "{complaints}");
    let another = line(10).replace(&hex_of(&value(10, GUEK)), &hex_of(&value(3, GUEK)));
    let (said, complaints) =
        ran(&admin, &["meter", "import", "-", "--format", "jsonl"], &another, 0);
    assert!(complaints.contains("the GUEK is also that of meter-3"), "{complaints}");
    assert!(said.contains("1 with warnings"), "{said}");
    for (text, code) in
        [("meter_id,system_title,GUECK\n", 1), ("", 3), ("meter_id,system_title\n\n", 3)]
    {
        ran(&admin, &["meter", "import", "-", "--format", "csv"], text, code);
    }
}

#[test]
fn a_meter_is_created_shown_listed_and_deleted() {
    let home = home();
    let _running = home.start().unwrap();
    let admin = home.ami_tool(Role::AmiAdmin);
    let one = file(&home, "one.json", &line(1));
    let (said, _) = ran(&admin, &["meter", "create", "--from", &one], "", 0);
    assert!(said.contains("meter-1") && said.contains("GUEK") && said.contains("KCV"), "{said}");
    let (_, complaint) = ran(&admin, &["meter", "create", "--from", &one], "", 1);
    assert!(complaint.contains("meter-1"), "{complaint}");
    ran(&admin, &["meter", "create", "--from", "-", "--json"], &line(2), 0);
    let title = hex_of(title(1).as_bytes());
    for name in [&["meter-1"][..], &["--system-title", &title]] {
        let (said, _) = ran(&admin, &[&["meter", "get", "--json"], name].concat(), "", 0);
        let meter = &json(&said)[0];
        assert_eq!(meter["meter_id"], "meter-1");
        assert_eq!(meter["system_title"], title.as_str());
        let keys = meter["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 2);
        for key in keys {
            assert_eq!((&key["state"], &key["version"]), (&"ACTIVE".into(), &1.into()));
            assert!(key.get("value").is_none());
        }
    }
    ran(&admin, &["meter", "get", "nobody"], "", 1);
    let (said, _) = ran(&admin, &["meter", "list"], "", 0);
    assert_eq!(said.lines().count(), 2, "{said}");
    let (said, _) = ran(&admin, &["meter", "list", "--after", "meter-1", "--json"], "", 0);
    assert_eq!(json(&said)[0]["meter_id"], "meter-2");
    let (_, complaint) = ran(&admin, &["meter", "delete", "meter-1"], "", 2);
    assert!(complaint.contains("--yes"), "{complaint}");
    ran(&admin, &["meter", "delete", "meter-1", "--yes"], "", 0);
    ran(&admin, &["meter", "delete", "meter-1", "--yes"], "", 1);
    ran(&admin, &["meter", "get", "meter-1"], "", 1);
    assert_eq!(ran(&admin, &["meter", "list"], "", 0).0.lines().count(), 1);
    let apdu = hex_of(&push(1));
    let (said, _) = ran(&home.ami_tool(Role::Hes), &["decrypt", "--apdu", &apdu], "", 1);
    assert!(said.contains("UNKNOWN_METER"), "{said}");
}

#[test]
fn a_message_is_opened_and_checked_for_people_and_for_machines() {
    let home = home();
    let _running = home.start().unwrap();
    ran(
        &home.ami_tool(Role::AmiAdmin),
        &["meter", "import", "-", "--format", "csv"],
        &csv(1..3),
        0,
    );
    let hes = home.ami_tool(Role::Hes);
    let (good, plain) = (hex_of(&push(1)), hex_of(PLAIN));
    let mut forged = push(1);
    *forged.last_mut().unwrap() ^= 1;
    let forged = hex_of(&forged);

    let (said, _) = ran(&hes, &["decrypt", "--apdu", &good], "", 0);
    assert!(said.contains(&plain) && said.contains("authenticated"), "{said}");
    let (said, _) = ran(&hes, &["decrypt", "--apdu", &good, "--meter", "meter-1", "--json"], "", 0);
    let answer = &json(&said)[0];
    assert_eq!((&answer["verdict"], &answer["plaintext"]), (&"OK".into(), &plain.as_str().into()));
    assert_eq!(answer["authenticated"], true);
    let (said, _) = ran(&hes, &["verify", "--apdu", &good], "", 0);
    assert!(said.contains("OK") && !said.contains(&plain), "{said}");
    let (said, _) = ran(&hes, &["verify", "--apdu", &good, "--json"], "", 0);
    assert!(json(&said)[0].get("plaintext").is_none());
    for verb in ["decrypt", "verify"] {
        let (said, _) = ran(&hes, &[verb, "--apdu", &forged], "", 1);
        assert!(said.contains("MIC_FAILURE") && !said.contains("plaintext"), "{said}");
        let (said, _) = ran(&hes, &[verb, "--apdu", &forged, "--json"], "", 1);
        let answer = &json(&said)[0];
        assert_eq!(
            (&answer["verdict"], &answer["authenticated"]),
            (&"MIC_FAILURE".into(), &false.into())
        );
        assert!(answer.get("plaintext").is_none());
        // Under another meter's name.
        ran(&hes, &[verb, "--apdu", &good, "--meter", "meter-2"], "", 1);
    }
}

#[test]
fn lines_in_give_one_json_line_each_in_order_whatever_they_are() {
    let home = home();
    let _running = home.start().unwrap();
    ran(
        &home.ami_tool(Role::AmiAdmin),
        &["meter", "import", "-", "--format", "csv"],
        &csv(1..40),
        0,
    );
    let hes = home.ami_tool(Role::Hes);
    let (mut input, mut due) = (String::new(), Vec::new());
    for n in 1..2_000u64 {
        let (bytes, verdict) = match n % 5 {
            0 => (vec![0xDB, 0x08], "MALFORMED"),
            1 => (push(1_000 + n), "UNKNOWN_METER"),
            2 => {
                let mut forged = push(n % 39 + 1);
                *forged.last_mut().unwrap() ^= 0x80;
                (forged, "MIC_FAILURE")
            }
            3 => {
                input += "{\"apdu\":\"no hex\"}\n";
                due.push((None, "MALFORMED_LINE"));
                continue;
            }
            _ => (push(n % 39 + 1), "OK"),
        };
        input += &format!("{{\"apdu\":\"{}\",\"id\":{n}}}\n", hex_of(&bytes));
        due.push((Some(n), verdict));
    }
    for verb in ["decrypt", "verify"] {
        let (said, _) = ran(&hes, &[verb, "-"], &input, 1);
        let answers = json(&said);
        assert_eq!(answers.len(), due.len());
        for (answer, (id, verdict)) in answers.iter().zip(&due) {
            assert_eq!(answer["verdict"], *verdict, "{answer}");
            assert_eq!(answer["id"].as_u64(), *id);
            let has_plaintext = answer.get("plaintext").is_some_and(|text| text != "");
            assert_eq!(has_plaintext, *verdict == "OK" && verb == "decrypt", "{answer}");
        }
    }
    let good = format!("{{\"apdu\":\"{}\"}}\n", hex_of(&push(1)));
    assert_eq!(json(&ran(&hes, &["decrypt", "-"], &good.repeat(3), 0).0).len(), 3);
    assert_eq!(ran(&hes, &["decrypt", "-"], "", 0).0, "");
    // The harness's own reading of the same.
    let request = DecryptRequest { apdu: hex_of(&push(2)), ..DecryptRequest::default() };
    let result = hes.decrypt(&[request]).unwrap().remove(0);
    assert_eq!(result.plaintext, Some(hex_of(PLAIN)));
}

#[test]
fn exit_codes_tell_wrong_usage_files_reach_and_grants_apart() {
    let home = home();
    let admin = home.ami_tool(Role::AmiAdmin);
    let dead = ran(&admin, &["site", "status"], "", 4).1;
    assert!(dead.contains("next: check that the server runs"), "{dead}");
    let running = home.start().unwrap();
    let status = ran(&admin, &["site", "status"], "", 0).0;
    for word in ["site-a", "warm-up", "ami-site-a (SoftHSM v2)", "sqlite", "keyring", "none known"]
    {
        assert!(status.contains(word), "{word}: {status}");
    }
    let answer = &json(&ran(&admin, &["site", "status", "--json"], "", 0).0)[0];
    assert_eq!((&answer["site"], &answer["token"]["reachable"]), (&"site-a".into(), &true.into()));
    assert_eq!(answer["store"]["reachable"], true);
    for arguments in
        [&["decrypt"][..], &["meter", "get"], &["meter", "import", "x.txt"], &["dance"]]
    {
        ran(&admin, arguments, "", 2);
    }
    ran(&admin, &["meter", "import", "/nowhere/meters.csv"], "", 3);
    let nowhere = AmiTool::new(&home.programs().ami_tool, "/nowhere/client.toml".as_ref());
    assert!(ran(&nowhere, &["site", "status"], "", 3).1.contains("/nowhere/client.toml"));
    let denied = ran(&home.ami_tool(Role::Hes), &["meter", "list"], "", 5).1;
    assert!(denied.contains("Meters/ListMeters") && denied.contains("next: "), "{denied}");
    let denied = ran(&admin, &["decrypt", "--apdu", "DB08", "--json"], "", 5).1;
    assert_eq!(json(&denied)[0]["error"]["code"], "PERMISSION_DENIED");
    assert!(running.stop().unwrap().success());
}

#[test]
fn clear_keys_are_not_imported_where_the_configuration_does_not_say_so() {
    let home = home_with(&[("import", "allow_clear", "false")]);
    let _running = home.start().unwrap();
    let admin = home.ami_tool(Role::AmiAdmin);
    let import = ["meter", "import", "-", "--format", "csv"];
    let (said, complaints) = ran(&admin, &import, &csv(1..4), 1);
    assert_eq!(said, "");
    assert_eq!(complaints.matches("takes no keys in clear").count(), 1, "{complaints}");
    assert!(complaints.contains("no line was imported, and no key was sent"), "{complaints}");
    let (_, complaints) = ran(&admin, &[&import[..], &["--json"]].concat(), &csv(1..4), 1);
    assert_eq!(json(&complaints)[0]["error"]["code"], "CLEAR_IMPORT_OFF");
    // Once each, and never a line: the question was refused, and nothing was asked after it.
    let auditor = home.ami_tool(Role::Auditor);
    let events = json(&ran(&auditor, &["audit", "list", "--json"], "", 0).0);
    let refused: Vec<_> =
        events.iter().filter(|event| event["reason"] == "CLEAR_IMPORT_OFF").collect();
    assert_eq!(refused.len(), 2, "{events:?}");
    assert!(refused.iter().all(|event| event.get("meter_id").is_none()), "{refused:?}");
    // Whoever may not import hears that, and nothing of the site.
    let denied = ran(&home.ami_tool(Role::Hes), &import, &csv(1..4), 5).1;
    assert!(denied.contains("no key was sent"), "{denied}");
}
