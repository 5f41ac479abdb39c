//! `ami-tool triage` against a service in the same process, and `meter check-keys`, which needs none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod fake;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use dlms::{
    Envelope, FreshCounter, GeneralCipheringAad, Keys, Protection, SecurityControl, SystemTitle,
    protect,
};
use fake::World;
use serde_json::Value;

const GUEK: [u8; 16] = *b"one meter's GUEK";
const GAK: [u8; 16] = *b"one meter's GAK.";
const OTHER: [u8; 16] = *b"somebody else's.";
const PLAIN: &[u8] = b"\x0F\0\0\0\x01\0quite a secret reading";

fn title(n: u8) -> SystemTitle {
    SystemTitle::new([b'A', b'M', b'I', 0, 0, 0, 0, n])
}

fn frame(n: u8, sc: u8, counter: u32) -> String {
    let protection = Protection {
        envelope: Envelope::GeneralGlo(Some(title(n))),
        security_control: SecurityControl::from_byte(sc).unwrap(),
        originator: title(n),
        keys: Keys { encryption: &GUEK, authentication: &GAK },
        gc_aad: GeneralCipheringAad::Spec,
    };
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(counter);
    let mut out = Vec::new();
    protect(&protection, counter, PLAIN, &mut out).unwrap();
    hex::encode_upper(out)
}

fn line(n: u8, guek: &[u8], gak: &[u8]) -> String {
    let (title, guek, gak) =
        (hex::encode_upper(title(n).as_bytes()), hex::encode_upper(guek), hex::encode_upper(gak));
    format!(
        r#"{{"meter_id":"m-{n}","system_title":"{title}","keys":[{{"kind":"GUEK","value":"{guek}"}},{{"kind":"GAK","value":"{gak}"}}]}}"#
    )
}

fn tool(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ami-tool"));
    command.args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Exit code, objects, and all that was said, without a key or a plaintext in it.
fn checked(dir: &Path, keys: &[String], frames: &[String], more: &[&str]) -> (i32, Vec<Value>) {
    let (file, recorded) = (dir.join("keys.jsonl"), dir.join("frames.txt"));
    fs::write(&file, keys.join("\n")).unwrap();
    fs::write(&recorded, frames.join("\n")).unwrap();
    let [file, recorded] = [&file, &recorded].map(|path| path.to_str().unwrap());
    // No configuration: nothing is asked of anybody.
    let start = ["--config", "/nowhere", "meter", "check-keys", file, "--frames", recorded];
    let output = tool(&[&start[..], more, &["--json"]].concat());
    let text = said(&output);
    let people = said(&tool(&[&start[..], more].concat()));
    for secret in [&GUEK[..], &GAK, &OTHER, b"secret"] {
        for text in [&text, &people] {
            assert!(!text.to_lowercase().contains(&hex::encode(secret)), "{text}");
        }
    }
    assert!(!people.contains("secret"), "{people}");
    let objects = text.lines().map(|line| serde_json::from_str(line).expect(&text)).collect();
    (output.status.code().unwrap(), objects)
}

fn numbers(object: &Value) -> [u64; 5] {
    ["frames", "fit", "exchanged", "wrong", "undecidable"]
        .map(|name| object[name].as_u64().unwrap())
}

fn causes(object: &Value) -> Vec<&str> {
    let findings = object["findings"].as_array().unwrap();
    findings.iter().map(|finding| finding["cause"].as_str().unwrap()).collect()
}

#[test]
fn new_keys_are_tried_on_frames_before_they_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let three = |n, sc| (1..4).map(|counter| frame(n, sc, counter)).collect::<Vec<_>>();
    let check = |keys: &[String], frames: &[String]| checked(dir.path(), keys, frames, &[]);
    let one = |guek: &[u8], gak: &[u8], sc| {
        let (code, objects) = check(&[line(1, guek, gak)], &three(1, sc));
        let causes = causes(&objects[0]).join(" ");
        (code, numbers(&objects[0]), causes)
    };
    let row = |code, numbers, causes: &str| (code, numbers, causes.to_owned());
    assert_eq!(one(&GUEK, &GAK, 0x30), row(0, [3, 3, 0, 0, 0], "NOTHING_WRONG"));
    assert_eq!(one(&GAK, &GUEK, 0x30), row(1, [3, 0, 3, 0, 0], "KEYS_EXCHANGED"));
    assert_eq!(one(&GUEK, &OTHER, 0x30), row(1, [3, 0, 0, 3, 0], "GAK_WRONG"));
    assert_eq!(one(&OTHER, &GAK, 0x30), row(1, [3, 0, 0, 3, 0], "GUEK_WRONG"));
    // Without a tag nothing proves a key, and several frames tell a wrong one.
    assert_eq!(one(&GUEK, &GAK, 0x20), row(1, [3, 0, 0, 0, 3], "NOTHING_WRONG"));
    assert_eq!(one(&OTHER, &GAK, 0x20), row(1, [3, 0, 0, 0, 3], "GUEK_WRONG"));

    // A file of several meters, and a collector's log: each frame is tried with its own meter's keys.
    let keys = [line(1, &GUEK, &GAK), line(2, &GAK, &GUEK), line(3, &GUEK, &GAK)];
    let frames = [
        "# recorded at the concentrator".to_owned(),
        frame(1, 0x30, 1),
        format!(r#"{{"apdu":"{}","at":"10:00"}}"#, frame(2, 0x30, 1)),
        frame(9, 0x30, 1),
        format!(r#"{{"meter":"m-1","apdu":"{}"}}"#, frame(1, 0x30, 2)),
    ];
    let (code, objects) = check(&keys, &frames);
    let [first, second, summary] = &objects[..] else { panic!("{objects:?}") };
    assert_eq!(
        (code, first["meter"].as_str(), second["meter"].as_str()),
        (1, Some("m-1"), Some("m-2"))
    );
    assert_eq!((numbers(first), numbers(second)), ([2, 2, 0, 0, 0], [1, 0, 1, 0, 0]));
    assert_eq!(numbers(summary), [3, 2, 1, 0, 0]);
    assert_eq!((&summary["meters"], &summary["frames_of_no_meter"]), (&3.into(), &1.into()));
    // No frame is of a meter in the file: nothing was shown.
    assert_eq!(check(&keys[..1], &[frame(9, 0x30, 1)]).0, 1);
    assert_eq!(check(&keys[..1], &[]).0, 1);
}

#[test]
fn a_bad_file_of_keys_or_frames_is_not_half_used() {
    let dir = tempfile::tempdir().unwrap();
    let (file, recorded) = (dir.path().join("keys.jsonl"), dir.path().join("frames.txt"));
    let [keys, frames] = [&file, &recorded].map(|path| path.to_str().unwrap());
    let run = || tool(&["meter", "check-keys", keys, "--frames", frames]);
    for (line, recording) in [
        (line(1, &GUEK, &GAK), "not hex".to_owned()),
        (line(1, &GUEK, &GAK).replace("GUEK", "XYZ"), frame(1, 0x30, 1)),
    ] {
        fs::write(&file, line).unwrap();
        fs::write(&recorded, recording).unwrap();
        let output = run();
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        assert!(!said(&output).to_lowercase().contains(&hex::encode(GUEK)), "{}", said(&output));
    }
    let renamed = dir.path().join("keys.txt");
    fs::rename(&file, &renamed).unwrap();
    let keys = renamed.to_str().unwrap();
    let output = tool(&["meter", "check-keys", keys, "--frames", frames]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn causes_are_shown_to_people_and_machines_and_newer_ones_are_not_guessed() {
    let world = World::new();
    let address = world.serve(Arc::default()).await;
    let config = world.config(&[address], "");
    let config = config.to_str().unwrap().to_owned();
    let recorded = world.config(&[address], "").with_extension("frames");
    fs::write(
        &recorded,
        "DB08\n\n# two\n{\"apdu\":\"DB09\"}\n{\"meter\":\"m-2\",\"apdu\":\"DB0A\"}\n",
    )
    .unwrap();
    let recorded = recorded.to_str().unwrap().to_owned();
    let run = move |more: Vec<&'static str>| {
        let mut arguments = vec!["--config", &config, "triage", &recorded];
        arguments.extend(more);
        tool(&arguments)
    };
    let outputs = tokio::task::spawn(async move {
        [
            run(vec!["DB0B", "--meter", "m-1", "--json"]),
            run(vec!["--meter", "m-1"]),
            run(vec![]),
            run(vec!["no-such-file", "--meter", "m-1"]),
        ]
    });
    let [json, people, nameless, neither] = outputs.await.unwrap();
    assert_eq!(json.status.code(), Some(1), "{}", said(&json));
    let object: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(object["meter"], "m-1");
    // Two of the file's three are this meter's, and one is from the command line.
    assert_eq!(object["frames"].as_array().unwrap().len(), 3);
    let finding = |n: usize| object["findings"][n]["cause"].clone();
    assert_eq!((finding(0), finding(1)), ("KEYS_EXCHANGED".into(), "UNRECOGNISED".into()));
    let text = said(&people);
    assert!(text.contains("KEYS_EXCHANGED") && text.contains("2 of 2"), "{text}");
    assert_eq!((nameless.status.code(), neither.status.code()), (Some(2), Some(2)));
}
