//! Invariants 1 and 2, seen from outside: where in the server's memory, and where in its files and
//! logs, the bytes of keys are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use common::{
    Home, client,
    fleet::{GAK, GUEK, add, apdu, line, line_in_hsm, push, value},
    home_with, warm,
};
use kms_client::Verdict;
use softhsm_tests::{Role, Running};

const IN_MEMORY: std::ops::Range<u64> = 1..201;
const IN_HSM: std::ops::Range<u64> = 201..221;
const ARENA_MIB: u64 = 3;

/// One mapping of a process.
struct Mapping {
    start: u64,
    end: u64,
    name: String,
    locked: bool,
    dumped: bool,
    /// Nothing of it is in memory or swap: never written.
    untouched: bool,
}

impl Mapping {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    /// The arena: anonymous, locked, left out of dumps, of the size that was asked for.
    fn is_arena(&self) -> bool {
        self.locked && !self.dumped && self.name.is_empty() && self.len() == ARENA_MIB << 20
    }

    fn kind(&self) -> String {
        match self.name.as_str() {
            _ if self.is_arena() => "arena".to_owned(),
            "" => "anonymous (heaps and stacks of threads)".to_owned(),
            name => name.to_owned(),
        }
    }
}

fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((start, end)) = words[0].split_once('-') {
            mappings.push(Mapping {
                start: u64::from_str_radix(start, 16).unwrap(),
                end: u64::from_str_radix(end, 16).unwrap(),
                name: words.get(5).copied().unwrap_or_default().to_owned(),
                locked: false,
                dumped: true,
                untouched: true,
            });
        } else if matches!(words[0], "Rss:" | "Swap:") && words[1] != "0" {
            mappings.last_mut().unwrap().untouched = false;
        } else if words[0] == "VmFlags:" {
            let mapping = mappings.last_mut().unwrap();
            mapping.locked = words.contains(&"lo");
            mapping.dumped = !words.contains(&"dd");
        }
    }
    Ok(mappings)
}

/// Many short needles in much hay.
struct Needles {
    needles: Vec<(String, Vec<u8>)>,
    /// By their first two bytes.
    by_start: Vec<Vec<usize>>,
}

impl Needles {
    fn new(needles: Vec<(String, Vec<u8>)>) -> Self {
        let mut by_start = vec![Vec::new(); 1 << 16];
        for (index, (_, needle)) in needles.iter().enumerate() {
            by_start[usize::from(u16::from_be_bytes([needle[0], needle[1]]))].push(index);
        }
        Self { needles, by_start }
    }

    /// Which are there, as often as they are. Pages without content, which are most, cost little.
    fn found(&self, hay: &[u8]) -> Vec<&str> {
        const PAGE: usize = 4096;
        let mut found = Vec::new();
        let is_blank = |page: usize| {
            let end = hay.len().min((page + 1) * PAGE);
            hay[page * PAGE..end] == [0; PAGE][..end - page * PAGE]
        };
        let pages = hay.len().div_ceil(PAGE);
        let mut page = 0;
        while page < pages {
            let first = page;
            while page < pages && !is_blank(page) {
                page += 1;
            }
            // With a page more: a needle may reach into it, its last bytes zeros.
            found.extend(self.found_in(&hay[first * PAGE..hay.len().min((page + 1) * PAGE)]));
            page += 1;
        }
        found
    }

    fn found_in(&self, hay: &[u8]) -> Vec<&str> {
        let mut found = Vec::new();
        for at in 0..hay.len().saturating_sub(1) {
            let candidates =
                &self.by_start[usize::from(u16::from_be_bytes([hay[at], hay[at + 1]]))];
            for index in candidates {
                let (name, needle) = &self.needles[*index];
                if hay[at..].starts_with(needle) {
                    found.push(name.as_str());
                }
            }
        }
        found
    }
}

/// Where in the process's memory the needles are: kind of mapping → names, one for each hit.
fn scan(pid: u32, needles: &Needles) -> io::Result<(BTreeMap<String, Vec<String>>, u64)> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut hits: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut scanned = 0;
    for mapping in mappings(pid)? {
        if mapping.untouched {
            continue;
        }
        let mut bytes = vec![0; mapping.len() as usize];
        // Guard pages and the kernel's own can't be read.
        if memory.read_exact_at(&mut bytes, mapping.start).is_err() {
            continue;
        }
        scanned += mapping.len();
        let names = needles.found(&bytes).into_iter().map(str::to_owned);
        hits.entry(mapping.kind()).or_default().extend(names);
    }
    hits.retain(|_, names| !names.is_empty());
    Ok((hits, scanned))
}

/// Each key as bytes and both halves of it: a copy that was half overwritten is found, too.
fn keys(meters: impl Iterator<Item = u64>, salts: &[u8]) -> Needles {
    let mut needles = Vec::new();
    for n in meters {
        for salt in salts {
            let value = value(n, *salt);
            needles.push((format!("{n}/{salt}"), value[..8].to_vec()));
            needles.push((format!("{n}/{salt}"), value[8..].to_vec()));
        }
    }
    Needles::new(needles)
}

/// The same as text: hexadecimal in either case, and base64.
fn as_text(meters: impl Iterator<Item = u64>) -> Needles {
    let mut needles = Vec::new();
    for n in meters {
        for salt in [GUEK, GAK] {
            let value = value(n, salt);
            let name = format!("{n}/{salt}");
            needles.push((name.clone(), value[..8].to_vec()));
            needles.push((name.clone(), value[8..].to_vec()));
            needles.push((name.clone(), hex::encode(&value[..8]).into_bytes()));
            needles.push((name.clone(), hex::encode_upper(&value[..8]).into_bytes()));
            needles.push((name, base64(&value[..12]).into_bytes()));
        }
    }
    Needles::new(needles)
}

/// Of a multiple of three bytes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |three: &[u8], shift: u32| {
        let number = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        char::from(DIGITS[(number >> shift & 63) as usize])
    };
    let four = |three| [18, 12, 6, 0].map(|shift| digit(three, shift));
    bytes.chunks_exact(3).flat_map(four).collect()
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

/// `None` where this account may not look: it says so.
fn look(running: &Running, needles: &Needles, what: &str) -> Option<BTreeMap<String, Vec<String>>> {
    match scan(running.pid(), needles) {
        Ok((hits, scanned)) => {
            let counts: BTreeMap<&str, usize> =
                hits.iter().map(|(kind, names)| (kind.as_str(), names.len())).collect();
            println!("{what}: {} MiB scanned, hits {counts:?}", scanned >> 20);
            Some(hits)
        }
        Err(error) => {
            println!("skipped: this account may not read the server's memory: {error}");
            None
        }
    }
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
    match mappings(running.pid()) {
        Ok(mappings) => {
            assert_eq!(mappings.iter().filter(|mapping| mapping.is_arena()).count(), 1);
        }
        Err(error) => println!("skipped: this account may not see the server's mappings: {error}"),
    }
    assert!(running.stop().unwrap().success());
}
