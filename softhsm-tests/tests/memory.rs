//! Invariants 1 and 2, seen from outside: where in the server's memory, and where in its files and
//! logs, the bytes of keys are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::Path};

use common::{
    Home, client,
    fleet::{GAK, GUEK, add, apdu, line, line_in_hsm, push, value},
    home_with,
    search::{self, Hits, Needles, base64, halves, spellings},
    warm,
};
use kms_client::Verdict;
use softhsm_tests::{Role, Running};

const IN_MEMORY: std::ops::Range<u64> = 1..201;
const IN_HSM: std::ops::Range<u64> = 201..221;
const ARENA_MIB: u64 = 3;

/// Each key as bytes.
fn keys(meters: impl Iterator<Item = u64>, salts: &[u8]) -> Needles {
    let mut needles = Vec::new();
    for n in meters {
        for salt in salts {
            needles.extend(halves(&format!("{n}/{salt}"), &value(n, *salt)));
        }
    }
    Needles::new(needles)
}

/// The same, and as text.
fn as_text(meters: impl Iterator<Item = u64>) -> Needles {
    let mut needles = Vec::new();
    for n in meters {
        for salt in [GUEK, GAK] {
            needles.extend(spellings(&format!("{n}/{salt}"), &value(n, salt)));
        }
    }
    Needles::new(needles)
}

fn files_below(dir: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, files) } else { files.push(path) }
    }
}

fn a_home() -> Home {
    home_with(&[
        ("keyring", "arena_mib", &ARENA_MIB.to_string()),
        ("keyring", "allow_unlocked", "false"),
        ("log", "level", "\"debug\""),
    ])
}

async fn open_all(home: &Home) {
    let hes = client(home, Role::Hes).await;
    let apdus = IN_MEMORY.chain(IN_HSM).map(|n| apdu(push(n)));
    for opened in hes.decrypt_batch(apdus).await.unwrap() {
        assert_eq!(opened.verdict(), Verdict::Ok, "{opened:?}");
    }
    // Errors, too: none may keep or show a key.
    let forged = IN_MEMORY.map(|n| {
        let mut forged = push(n);
        *forged.last_mut().unwrap() ^= 1;
        apdu(forged)
    });
    for opened in hes.decrypt_batch(forged).await.unwrap() {
        assert_eq!(opened.verdict(), Verdict::MicFailure);
    }
}

fn look(running: &Running, needles: &Needles, what: &str) -> Option<Hits> {
    search::look(running, needles, ARENA_MIB, what)
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_1_no_key_byte_is_outside_the_locked_arena() {
    let home = a_home();
    let running = home.start().unwrap();
    let admin = client(&home, Role::AmiAdmin).await;
    add(&admin, &IN_MEMORY.map(line).chain(IN_HSM.map(line_in_hsm)).collect::<Vec<_>>()).await;
    open_all(&home).await;
    drop(admin);
    let needles = keys(IN_MEMORY.chain(IN_HSM), &[GUEK, GAK]);
    // Clear import, which production does not allow, passes through buffers of TLS and HTTP/2 that are
    // not ours to wipe: told, not asserted. A server that only ever read its database has none.
    let _ = look(&running, &needles, "after a clear import, keys of the imported meters");
    assert!(running.stop().unwrap().success());

    let running = home.start().unwrap();
    warm(&client(&home, Role::AmiAdmin).await).await;
    open_all(&home).await;
    let in_memory = keys(IN_MEMORY, &[GUEK, GAK]);
    let Some(mut hits) = look(&running, &in_memory, "keys of protection MEMORY") else { return };
    let arena: BTreeSet<String> = hits.remove("arena").unwrap_or_default().into_iter().collect();
    // The control: each of the keys is found where it must be.
    assert_eq!(arena.len(), 2 * IN_MEMORY.count(), "the scan sees {} keys", arena.len());
    assert!(hits.is_empty(), "outside the arena: {hits:?}");
    let in_hsm = look(&running, &keys(IN_HSM, &[GUEK]), "GUEKs of protection HSM").unwrap();
    assert!(in_hsm.is_empty(), "{in_hsm:?}");
    let gaks = look(&running, &keys(IN_HSM, &[GAK]), "their GAKs").unwrap();
    // Elsewhere: told, not asserted. A GAK is additional data, which the token library gets in clear
    // and keeps in buffers of its own.
    let resident: BTreeSet<&String> = gaks["arena"].iter().collect();
    assert_eq!(resident.len(), IN_HSM.count());
    let pin = fs::read(&home.places().pin).unwrap();
    let pin = Needles::new(vec![("PIN".to_owned(), pin.trim_ascii().to_vec())]);
    let _ = look(&running, &pin, "the PIN");
    assert!(running.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_1_no_key_is_in_a_log_a_database_or_an_answer() {
    let home = a_home();
    let running = home.start().unwrap();
    let admin = client(&home, Role::AmiAdmin).await;
    add(&admin, &IN_MEMORY.map(line).chain(IN_HSM.map(line_in_hsm)).collect::<Vec<_>>()).await;
    open_all(&home).await;
    // What is refused is explained: without the value.
    let mut answers = String::new();
    let zeros = line(9_000).replace(&hex::encode_upper(value(9_000, GUEK)), &"0".repeat(32));
    let short = line(9_001).replace(&hex::encode_upper(value(9_001, GUEK)), "0102");
    let differs =
        line(1).replace(&hex::encode_upper(value(1, GUEK)), &hex::encode_upper(value(2, GUEK)));
    let shared = line(9_002)
        .replace(&hex::encode_upper(value(9_002, GUEK)), &hex::encode_upper(value(3, GUEK)));
    for result in common::fleet::import(&admin, &[zeros, short, differs, shared]).await {
        answers += &format!("{result:?}\n");
    }
    for (arguments, input) in [
        (&["meter", "get", "meter-1"][..], ""),
        (&["meter", "get", "meter-1", "--json"], ""),
        (&["meter", "create", "--from", "-"], &*line(1)),
        (&["meter", "create", "--from", "-"], &line(1).replace("GUEK", "GUECK")),
        (&["meter", "import", "-", "--format", "jsonl"], &line(1).replace("\"GAK\"", "GAK")),
    ] {
        let output = home.ami_tool(Role::AmiAdmin).run(arguments, input).unwrap();
        answers += &String::from_utf8_lossy(&output.stdout);
        answers += &String::from_utf8_lossy(&output.stderr);
    }
    assert!(answers.contains("meter-1") && answers.contains("TEST_KEY"), "{answers}");
    let needles = as_text(IN_MEMORY.chain(IN_HSM));
    assert_eq!(needles.found(answers.as_bytes()), [""; 0], "{answers}");

    // While it runs: the write-ahead log is looked at, too.
    let mut files = vec![home.places().log.clone()];
    files_below(&home.places().data, &mut files);
    files_below(&home.places().tokens, &mut files);
    let mut bytes = 0;
    for path in &files {
        let contents = fs::read(path).unwrap();
        bytes += contents.len();
        assert_eq!(needles.found(&contents), [""; 0], "{}", path.display());
    }
    let log = fs::read_to_string(&home.places().log).unwrap();
    assert!(log.contains("DEBUG"), "the log says little");
    // The control: the scan sees a key in each of its spellings.
    let key = value(1, GUEK);
    for spelt in [
        key.to_vec(),
        hex::encode(key).into_bytes(),
        hex::encode_upper(key).into_bytes(),
        base64(&key[..15]).into_bytes(),
    ] {
        assert!(needles.found(&[b"..", &*spelt, b".."].concat()).contains(&"1/1"));
    }
    println!(
        "{} files, {} KiB, and {} bytes of answers: no key",
        files.len(),
        bytes >> 10,
        answers.len()
    );
    assert!(running.stop().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_1_the_process_is_not_dumped_and_its_arena_is_locked() {
    let home = a_home();
    let running = home.start().unwrap();
    let status = client(&home, Role::AmiAdmin).await.site_status().await.unwrap();
    assert!(status.keyring.memory_locked);
    let proc = format!("/proc/{}", running.pid());
    // The kernel gives the files of a process that is not dumpable to root.
    let owner = fs::metadata(format!("{proc}/mem")).unwrap().uid();
    assert_eq!(owner, 0);
    let limits = fs::read_to_string(format!("{proc}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let limits: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(limits[4..6], ["0", "0"], "{core}");
    let words = fs::read_to_string(format!("{proc}/status")).unwrap();
    let kib: u64 = words
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap();
    assert!(kib >= ARENA_MIB << 10, "{kib} KiB are locked");
    match search::mappings(running.pid()) {
        Ok(mappings) => {
            assert_eq!(mappings.iter().filter(|mapping| mapping.is_arena(ARENA_MIB)).count(), 1);
        }
        Err(error) => println!("skipped: this account may not see the server's mappings: {error}"),
    }
    assert!(running.stop().unwrap().success());
}
