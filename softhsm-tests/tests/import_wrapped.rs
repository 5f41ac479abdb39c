//! A sealed import by the command line, and where its keys are afterwards: nowhere but in the arena.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests may")]

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufReader, Read as _, Seek as _, SeekFrom},
};

use kms_client::SealedParts;
use prost::Message as _;
use rustix::process::Signal;
use softhsm_tests::{
    DecryptRequest, Programs, Role, Running, Site, SiteOptions, Tokens,
    sealing::{MadeUp, Signing, made_up},
};

const METERS: u64 = 2_000;
const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

/// Finds any of many values of 16 bytes.
struct Finder {
    /// By the first eight bytes.
    values: HashMap<[u8; 8], [u8; 8]>,
    /// By the first two: most places are none.
    starts: Vec<bool>,
}

impl Finder {
    fn of(meters: &[MadeUp]) -> Self {
        let mut finder = Self { values: HashMap::new(), starts: vec![false; 1 << 16] };
        for key in meters.iter().flat_map(|meter| [meter.guek, meter.gak]) {
            let (head, tail) = key.split_at(8);
            finder.values.insert(head.try_into().unwrap(), tail.try_into().unwrap());
            finder.starts[usize::from(u16::from_be_bytes([key[0], key[1]]))] = true;
        }
        finder
    }

    fn count(&self, bytes: &[u8]) -> usize {
        let whole = bytes.windows(16).filter(|window| {
            self.starts[usize::from(u16::from_be_bytes([window[0], window[1]]))]
                && self.values.get(&window[..8]).is_some_and(|tail| tail == &window[8..])
        });
        whole.count()
    }
}

/// Key values in the server's memory: inside the arena, and outside.
fn scan(running: &Running, finder: &Finder) -> (usize, usize) {
    // Frozen: no region goes, and no key moves, while it is looked at.
    running.signal(Signal::STOP).unwrap();
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", running.pid())).unwrap();
    let mut memory = File::open(format!("/proc/{}/mem", running.pid())).unwrap();
    let (mut inside, mut outside, mut ids) = (0, 0, 0);
    let mut region = None;
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-')
            && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        {
            region = line
                .split(' ')
                .nth(1)
                .is_some_and(|mode| mode.starts_with("rw"))
                .then_some((from, to));
        }
        let Some(flags) = line.strip_prefix("VmFlags:") else { continue };
        let Some((from, to)) = region.take() else { continue };
        // Left out of core dumps: nobody else in this process asks for that.
        let is_arena = flags.split(' ').any(|flag| flag == "dd");
        let mut bytes = vec![0; (to - from) as usize];
        memory.seek(SeekFrom::Start(from)).unwrap();
        // What is not read was not searched.
        memory.read_exact(&mut bytes).unwrap();
        let found = finder.count(&bytes);
        if is_arena {
            inside += found;
        } else {
            outside += found;
            ids += bytes.windows(4).filter(|window| window == b"SEA-").count();
        }
    }
    running.signal(Signal::CONT).unwrap();
    // Meters' ids are no secret, and lie in the same heap that their keys must not lie in.
    assert!(ids > 0, "the heap was not searched");
    println!("{inside} keys inside the arena, {outside} outside; {ids} meter ids outside");
    (inside, outside)
}

fn decrypt(site: &Site, meters: &[MadeUp]) {
    let requests: Vec<DecryptRequest> = meters
        .iter()
        .map(|meter| DecryptRequest { apdu: hex::encode(meter.push(PLAIN)), ..Default::default() })
        .collect();
    let results = site.ami_tool(Role::Hes).decrypt(&requests).unwrap();
    assert!(results.iter().all(|result| result.verdict == "OK"), "{:?}", results.first());
}

#[test]
fn invariant_1_a_sealed_import_shows_no_key_outside_the_arena_nor_in_log_or_request() {
    let dir = tempfile::tempdir().unwrap();
    let signing = Signing::make(dir.path()).unwrap();
    let options = SiteOptions {
        tokens: Tokens::SharedMemory,
        allow_clear: false,
        settings: vec![signing.setting()],
        ..SiteOptions::default()
    };
    let site = Site::make(&dir.path().join("site"), Programs::find().unwrap(), options).unwrap();
    site.init().unwrap();
    let running = site.start().unwrap();
    let admin = site.ami_tool(Role::AmiAdmin);

    let clear = dir.path().join("meters.jsonl");
    let sealed = dir.path().join("sealed.jsonl");
    let meters = made_up(METERS, &clear).unwrap();
    let finder = Finder::of(&meters);
    signing.seal(&admin, &clear, &sealed).unwrap();

    // In clear nothing comes in; sealed, all does; a second time nothing is new.
    let refused = admin.run(&["meter", "import", &clear.to_string_lossy()], "").unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("CLEAR_IMPORT_OFF"));
    drop(running);
    let running = site.start().unwrap();
    let said = admin.import(&sealed, false).unwrap();
    assert!(
        said.contains(&format!("{METERS} created, 0 updated, 0 unchanged, 0 refused")),
        "{said}"
    );
    let again = admin.import(&sealed, false).unwrap();
    assert!(again.contains(&format!("{METERS} of {METERS} meters were already there")), "{again}");

    let (_, outside) = scan(&running, &finder);
    assert_eq!(outside, 0, "keys outside the arena after the import");
    decrypt(&site, &meters[..200]);
    let (inside, _) = scan(&running, &finder);
    assert!(inside >= 400, "the scan finds only {inside} keys where they must be");

    // The log, as bytes and as hex; then what the client sent. Beside each, the same search where it
    // must find something.
    let hexed = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
        meters.iter().filter(|meter| text.contains(&hex::encode(meter.guek))).count()
    };
    let log = fs::read(&site.places().log).unwrap();
    assert_eq!((finder.count(&log), hexed(&log)), (0, 0));
    assert!(String::from_utf8_lossy(&log).contains("serving"));
    assert_eq!(hexed(&fs::read(&clear).unwrap()), meters.len());
    let sent: Vec<u8> = SealedParts::new(BufReader::new(File::open(&sealed).unwrap()))
        .flat_map(|part| part.unwrap().to_wire().encode_to_vec())
        .collect();
    // All wrapped keys are in it.
    assert!(sent.len() > 2 * 24 * meters.len());
    assert_eq!((finder.count(&sent), hexed(&fs::read(&sealed).unwrap())), (0, 0));
    let with_a_key = [&sent[..999], &meters[7].gak, &sent[999..]].concat();
    assert_eq!(finder.count(&with_a_key), 1);
}
