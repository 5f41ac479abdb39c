//! What people hand in: telegrams with their frames, files of spreadsheets, keys in each other's place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{fs, process::Output};

use common::{
    fleet::{GAK, GUEK, PLAIN, id, push, push_with, title, value},
    home,
};
use serde_json::Value;
use softhsm_tests::{AmiTool, Role};

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

/// As a spreadsheet saves it; `more` stands behind the keys.
fn row(n: u64, guek: &[u8], gak: &[u8], more: &str) -> String {
    let title = hex_of(title(n).as_bytes());
    format!("{};{title};{};{};{more}\r\n", id(n), hex_of(guek), hex_of(gak))
}

const HEAD: &str = "sep=;\r\nMeter ID;System Title; GUEK;gak;allow_encryption_only\r\n";
const IMPORT: [&str; 5] = ["meter", "import", "-", "--format", "csv"];

#[test]
fn a_template_is_imported_as_it_is_printed() {
    for (format, name) in [("csv", "template.csv"), ("json", "template.jsonl")] {
        let home = home();
        let _running = home.start().unwrap();
        let admin = home.ami_tool(Role::AmiAdmin);
        let nowhere = AmiTool::new(&home.programs().ami_tool, "/nowhere/client.toml".as_ref());
        let (template, _) = ran(&nowhere, &["meter", "import", "--template", format], "", 0);
        let path = home.dir.path().join(name);
        fs::write(&path, &template).unwrap();
        let path = path.to_str().unwrap();
        let (said, complaints) = ran(&admin, &["meter", "import", path], "", 1);
        assert!(said.starts_with("0 created, 0 updated, 0 unchanged, 2 refused"), "{said}");
        assert_eq!(complaints.matches("TEST_KEY").count(), 2, "{complaints}");
        let (said, _) = ran(&admin, &["meter", "import", path, "--allow-test-keys"], "", 0);
        assert!(said.starts_with("2 created, 0 updated, 0 unchanged, 0 refused"), "{said}");
        let (said, _) = ran(&admin, &["meter", "get", "METER-0001"], "", 0);
        assert!(said.contains("4D4D4D0000BC614E"), "{said}");
    }
}

#[test]
fn keys_in_each_others_place_are_told_from_forgery() {
    let home = home();
    let _running = home.start().unwrap();
    let admin = home.ami_tool(Role::AmiAdmin);
    let file = [
        HEAD.to_owned(),
        row(1, &value(1, GAK), &value(1, GUEK), ""),
        row(2, &value(2, GUEK), &value(2, GAK), ""),
        ";;;;\r\n".to_owned(),
    ];
    ran(&admin, &IMPORT, &file.concat(), 0);
    let hes = home.ami_tool(Role::Hes);
    let (exchanged, mut forged) = (hex_of(&push(1)), push(2));
    *forged.last_mut().unwrap() ^= 1;
    for verb in ["decrypt", "verify"] {
        let (said, _) = ran(&hes, &[verb, "--apdu", &exchanged, "--json"], "", 1);
        let answer = &json(&said)[0];
        assert_eq!(answer["verdict"], "MIC_FAILURE");
        assert!(answer["reason"].as_str().unwrap().contains("in each other's place"), "{answer}");
        assert!(answer.get("plaintext").is_none(), "{answer}");
        let (said, _) = ran(&hes, &[verb, "--apdu", &hex_of(&forged)], "", 1);
        assert!(said.contains("MIC_FAILURE") && !said.contains("place"), "{said}");
    }
}

#[test]
fn garbage_of_a_wrong_key_is_warned_of() {
    let home = home();
    let _running = home.start().unwrap();
    let file = HEAD.to_owned() + &row(1, &value(1, GUEK), &value(1, GAK), "TRUE");
    ran(&home.ami_tool(Role::AmiAdmin), &IMPORT, &file, 0);
    let hes = home.ami_tool(Role::Hes);
    let plain = b"\x0F\x00\x00\x00\x01\x00\x02\x00";
    let good = hex_of(&push_with(1, 0x20, &value(1, GUEK), &value(1, GAK), plain));
    let wrong = hex_of(&push_with(1, 0x20, &value(9, GUEK), &value(1, GAK), plain));
    let (said, complaint) = ran(&hes, &["decrypt", "--apdu", &good], "", 0);
    assert!(said.contains("OK_UNAUTHENTICATED") && said.contains(&hex_of(plain)), "{said}");
    assert_eq!(complaint, "");
    let (said, complaint) = ran(&hes, &["decrypt", "--apdu", &wrong, "--json"], "", 0);
    let warning = json(&said)[0]["warning"].as_str().unwrap().to_owned();
    assert!(warning.contains("wrong key") && complaint.contains(&warning), "{complaint}");
    let lines = format!("{{\"apdu\":\"{good}\"}}\n{{\"apdu\":\"{wrong}\"}}\n");
    // A byte order mark before the lines, as some editors put it.
    let (said, complaint) = ran(&hes, &["decrypt", "-"], &format!("\u{feff}{lines}"), 0);
    let warned: Vec<_> = json(&said).iter().map(|line| line.get("warning").is_some()).collect();
    assert_eq!(warned, [false, true]);
    assert!(complaint.contains("1 of 2 plaintexts"), "{complaint}");
}

#[test]
fn a_telegram_is_opened_with_its_frame_and_a_damaged_frame_is_named() {
    let home = home();
    let _running = home.start().unwrap();
    let file = HEAD.to_owned() + &row(1, &value(1, GUEK), &value(1, GAK), "");
    ran(&home.ami_tool(Role::AmiAdmin), &IMPORT, &file, 0);
    let hes = home.ami_tool(Role::Hes);
    let apdu = push(1);
    let half = apdu.len() / 2;
    let block = |control: u8, number: u8, data: &[u8]| {
        [&[0xE0, control, 0, number, 0, 0, data.len() as u8], data].concat()
    };
    let blocks = [block(0x40, 1, &apdu[..half]), block(0xC0, 2, &apdu[half..])].concat();
    let wrapped = [&[0, 1, 0, 1, 0, 16, 0, blocks.len() as u8], &blocks[..]].concat();
    let telegram = hex_of(&wrapped);
    for arguments in [&["decrypt", "--apdu", &telegram, "--json"][..], &["decrypt", "-"]] {
        let line = format!("{{\"apdu\":\"{telegram}\"}}\n");
        let answer = json(&ran(&hes, arguments, &line, 0).0).remove(0);
        assert_eq!(answer["plaintext"], hex_of(PLAIN));
        assert_eq!(answer["frame"], serde_json::json!(["wrapper", "general-block-transfer"]));
    }
    let (said, _) = ran(&hes, &["verify", "--apdu", &telegram, "--frame", "wrapper"], "", 0);
    assert!(said.contains("wrapper, general-block-transfer"), "{said}");
    // As it is: the service says what it is.
    let (said, _) = ran(&hes, &["decrypt", "--apdu", &telegram, "--frame", "none"], "", 1);
    assert!(said.contains("MALFORMED") && said.contains("begins as wrapper"), "{said}");
    assert!(!said.contains("--meter"), "{said}");
    let cut = &telegram[..telegram.len() - 2];
    let (_, complaint) = ran(&hes, &["decrypt", "--apdu", cut], "", 2);
    assert!(complaint.contains("wrapper, frame 1: the bytes end inside it"), "{complaint}");
}

#[test]
fn what_is_refused_of_many_lines_is_said_once_and_each_for_machines() {
    let home = home();
    let _running = home.start().unwrap();
    let admin = home.ami_tool(Role::AmiAdmin);
    let file = |salt| {
        let rows = (1..=1_200).map(|n| row(n, &value(n, salt), &value(n, GAK), ""));
        HEAD.to_owned() + &rows.collect::<String>()
    };
    ran(&admin, &IMPORT, &file(GUEK), 0);
    let (said, complaints) = ran(&admin, &IMPORT, &file(7), 1);
    assert!(said.contains("1200 refused"), "{said}");
    assert_eq!(complaints.lines().count(), 4, "{complaints}");
    let sum = complaints.lines().last().unwrap();
    assert!(sum.starts_with("1,200 lines: KEY_DIFFERS: "), "{sum}");
    assert!(sum.ends_with("first at lines 3, 4, 5"), "{sum}");
    let (said, _) = ran(&admin, &[&IMPORT[..], &["--json"]].concat(), &file(7), 1);
    assert_eq!(json(&said).len(), 1_201);
}

#[test]
fn the_chains_of_a_site_are_listed() {
    let home = home();
    let _running = home.start().unwrap();
    let auditor = home.ami_tool(Role::Auditor);
    let (said, _) = ran(&auditor, &["audit", "nodes", "--json"], "", 0);
    let chains = json(&said);
    assert_eq!(chains.len(), 1);
    let node = chains[0]["node_id"].as_str().unwrap();
    assert_eq!(chains[0]["answers"], true);
    assert!(chains[0]["last_ms"].as_u64().is_some_and(|at| at > 1_700_000_000_000));
    let (said, _) = ran(&auditor, &["audit", "nodes"], "", 0);
    assert!(said.starts_with(node) && said.contains("(this node)"), "{said}");
    ran(&auditor, &["audit", "verify", "--node", node], "", 0);
}
