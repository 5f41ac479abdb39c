//! A sealed import by the command line: where its keys are while it runs and afterwards (nowhere but in
//! the arena), and what becomes of it when it is cut.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufReader, Read as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use common::{
    Home, client_of, fleet, home_with,
    relay::{Recording, Relay},
    search::{Needles, base64, halves, look, spellings},
};
use kms_client::{ImportRules, SealedParts};
use prost::Message as _;
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use softhsm_tests::{
    AmiTool, DecryptRequest, Role, Site,
    sealing::{MadeUp, Signing, made_up},
};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

const METERS: u64 = 2_000;
const ARENA_MIB: u64 = 3;
const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";

/// Name and bytes of a key → named forms of it.
type Forms = fn(&str, &[u8]) -> Vec<(String, Vec<u8>)>;

/// A site that knows a signer, and the meters that he has.
struct Delivery {
    home: Home,
    signing: Signing,
    meters: Vec<MadeUp>,
    /// With keys in clear.
    clear: PathBuf,
    sealed: PathBuf,
    _dir: TempDir,
}

impl Delivery {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let signing = Signing::make(dir.path()).unwrap();
        let setting = signing.setting();
        let home = home_with(&[
            (setting.section, setting.key, &setting.value),
            ("import", "allow_clear", "false"),
            ("keyring", "arena_mib", &ARENA_MIB.to_string()),
            ("keyring", "allow_unlocked", "false"),
            ("log", "level", "\"trace\""),
        ]);
        let (clear, sealed) = (dir.path().join("meters.jsonl"), dir.path().join("sealed.jsonl"));
        let meters = made_up(METERS, &clear).unwrap();
        Self { home, signing, meters, clear, sealed, _dir: dir }
    }

    fn seal(&self, tool: &AmiTool) {
        self.signing.seal(tool, &self.clear, &self.sealed).unwrap();
    }

    /// All keys, in the forms that `forms` gives each.
    fn needles(&self, forms: Forms) -> Needles {
        let keys = self.meters.iter().flat_map(|MadeUp { number, guek, gak }| {
            [forms(&format!("{number}/GUEK"), guek), forms(&format!("{number}/GAK"), gak)]
        });
        Needles::new(keys.flatten().collect())
    }

    /// Titles, as they are sent, and ids: no secrets.
    fn names(&self) -> Needles {
        let names = self.meters.iter().flat_map(|meter| {
            let id = format!("SEA-{}", meter.number);
            [(id.clone(), meter.title().as_bytes().to_vec()), (id.clone(), id.into_bytes())]
        });
        Needles::new(names.collect())
    }
}

/// What is found in any of these, once each.
fn found<'a>(needles: &'a Needles, hays: &[Vec<u8>]) -> BTreeSet<&'a str> {
    hays.iter().flat_map(|hay| needles.found(hay)).collect()
}

fn decrypt(site: &Site, meters: &[MadeUp]) {
    let requests: Vec<DecryptRequest> = meters
        .iter()
        .map(|meter| DecryptRequest { apdu: hex::encode(meter.push(PLAIN)), ..Default::default() })
        .collect();
    let results = site.ami_tool(Role::Hes).decrypt(&requests).unwrap();
    assert!(results.iter().all(|result| result.verdict == "OK"), "{:?}", results.first());
    // Nobody has a second version of a key that came once.
    assert!(results.iter().all(|result| result.encryption_key_version == Some(1)));
}

fn is_tls(recording: &Recording) -> bool {
    // The relay is on the way: the hello, in clear, names the server and HTTP/2.
    recording.wire.iter().all(|wire| {
        wire.windows(9).any(|window| window == b"localhost")
            && wire.windows(3).any(|window| window == b"\x02h2")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_1_a_sealed_import_shows_no_key_on_the_wire_in_memory_log_or_files() {
    let delivery = Delivery::new();
    let Delivery { home, clear, sealed, .. } = &delivery;
    let keys = delivery.needles(halves);
    let spelt = delivery.needles(spellings);
    let names = delivery.names();
    let all = 2 * delivery.meters.len();

    // The tool asks before it sends a key in clear: refused, and none crossed.
    let running = home.start().unwrap();
    let asked = Relay::start(home, Role::AmiAdmin).await;
    let tool = asked.ami_tool(home, Role::AmiAdmin);
    let refused = tool.run(&["meter", "import", &clear.to_string_lossy()], "").unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("CLEAR_IMPORT_OFF"));
    assert_eq!(found(&keys, &asked.recording().all()).len(), 0, "a key was sent in clear");
    // The control of the capture: a client that does not ask is refused, but its keys crossed the relay, and
    // all of them are found.
    let control = Relay::start(home, Role::AmiAdmin).await;
    control.ami_tool(home, Role::AmiAdmin);
    let careless = client_of(&home.places().dir.join("client-relay.toml")).await;
    let lines = fleet::parsed(&fs::read_to_string(clear).unwrap());
    let results = careless.meters().import(tokio_stream::iter(lines), ImportRules::default());
    let results: Vec<_> = results.map(|result| result.unwrap().code).collect().await;
    assert_eq!(results, vec!["CLEAR_IMPORT_OFF"; METERS as usize]);
    let recording = control.recording();
    assert!(is_tls(&recording));
    assert_eq!(found(&keys, &recording.all()).len(), all);
    assert_eq!(found(&keys, &recording.wire).len(), 0, "TLS lets keys through");
    let shown = look(&running, &keys, ARENA_MIB, "a server that refused keys in clear");
    drop(running);

    // Sealed, all comes in; a second time nothing is new.
    let running = home.start().unwrap();
    let relay = Relay::start(home, Role::AmiAdmin).await;
    let admin = relay.ami_tool(home, Role::AmiAdmin);
    delivery.seal(&admin);
    let said = admin.import(sealed, false).unwrap();
    let told = format!("{METERS} created, 0 updated, 0 unchanged, 0 refused");
    assert!(said.contains(&told), "{said}");
    let again = admin.import(sealed, false).unwrap();
    assert!(again.contains(&format!("{METERS} of {METERS} meters were already there")), "{again}");

    // The capture: on the wire, and out of TLS in both directions, as the server saw it.
    let recording = relay.recording();
    assert!(is_tls(&recording));
    let captured = recording.all();
    let bytes: usize = captured.iter().map(Vec::len).sum();
    assert_eq!(found(&names, &captured).len(), delivery.meters.len(), "the capture has gaps");
    assert_eq!(found(&spelt, &captured), BTreeSet::new(), "keys in the capture");
    println!("{} connections, {} KiB captured: no key", recording.wire.len(), bytes >> 10);

    // What is sent, by itself; the file, and the other file beside it.
    let sent: Vec<u8> = SealedParts::new(BufReader::new(File::open(sealed).unwrap()))
        .flat_map(|part| part.unwrap().to_wire().encode_to_vec())
        .collect();
    assert!(sent.len() > all * 24, "all wrapped keys are in it");
    assert_eq!(found(&spelt, &[sent, fs::read(sealed).unwrap()]), BTreeSet::new());
    assert_eq!(found(&spelt, &[fs::read(clear).unwrap()]).len(), all);

    // The server's memory: before any key was used, and afterwards.
    if let Some(mut hits) = look(&running, &keys, ARENA_MIB, "after a sealed import") {
        hits.remove("arena");
        assert!(hits.is_empty(), "keys outside the arena after the import: {hits:?}");
        let ids = look(&running, &names, ARENA_MIB, "the meters' names").unwrap();
        assert!(ids.iter().any(|(kind, _)| kind != "arena"), "the heap was not searched");
        decrypt(home, &delivery.meters);
        let mut hits = look(&running, &keys, ARENA_MIB, "after all keys were used").unwrap();
        let inside: BTreeSet<String> = hits.remove("arena").unwrap().into_iter().collect();
        assert_eq!(inside.len(), all, "the scan misses keys where they must be");
        assert!(hits.is_empty(), "keys outside the arena after their use: {hits:?}");
        // What keys in clear leave behind, where the same search finds them: told, not asserted.
        println!("in clear: {:?}", shown.map(|hits| hits.into_keys().collect::<Vec<_>>()));
    }

    // Everything that the server wrote, while it runs; its log is as fine as can be.
    let log = fs::read(&home.places().log).unwrap();
    let text = String::from_utf8_lossy(&log);
    assert!(text.contains("DEBUG") && text.contains("Meters/ImportMeters"), "it says little");
    let database = fs::read_dir(&home.places().data).unwrap();
    let mut written: Vec<Vec<u8>> =
        database.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert_ne!(found(&names, &written).len(), 0, "the database was not read");
    written.push(log.clone());
    assert_eq!(found(&spelt, &written), BTreeSet::new(), "keys in the log or the database");
    // The control: planted in the log in each spelling, one is found.
    let key = delivery.meters[7].gak;
    for planted in [
        key[..8].to_vec(),
        key[8..].to_vec(),
        hex::encode(key).into_bytes(),
        hex::encode_upper(key).into_bytes(),
        base64(&key[..15]).into_bytes(),
        base64(&[&[0, 0], &key[..13]].concat()).into_bytes(),
        format!("{key:?}").into_bytes(),
    ] {
        let with_a_key = [&log[..999], &planted, &log[999..]].concat();
        assert_eq!(found(&spelt, &[with_a_key]), BTreeSet::from(["8/GAK"]));
    }
    assert!(running.stop().unwrap().success());
}

/// The number before `word` where it last stands.
fn number_before(text: &str, word: &str) -> Option<u64> {
    let digits = text[..text.rfind(word)?].trim_end().rsplit(|c: char| !c.is_ascii_digit()).next();
    digits?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_6_an_import_whose_client_was_killed_starts_again_and_brings_no_meter_twice() {
    let delivery = Delivery::new();
    let Delivery { home, sealed, .. } = &delivery;
    let running = home.start().unwrap();
    let admin = home.ami_tool(Role::AmiAdmin);
    delivery.seal(&admin);

    // Two thirds of the file get through, then nothing more: the client waits, its progress on a terminal.
    let relay = Relay::start(home, Role::AmiAdmin).await;
    // In the file it is hexadecimal.
    let bytes = usize::try_from(fs::metadata(sealed).unwrap().len()).unwrap() / 2;
    relay.hold_after(bytes * 2 / 3);
    let _ = relay.ami_tool(home, Role::AmiAdmin);
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let screen = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut client = Command::new(&home.programs().ami_tool)
        .arg("--config")
        .arg(home.places().dir.join("client-relay.toml"))
        .args(["meter", "import"])
        .arg(sealed)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(screen)
        .spawn()
        .unwrap();
    let (mut shown, mut buffer) = (String::new(), [0; 4096]);
    let mut terminal = File::from(terminal);
    let progress = loop {
        let len = terminal.read(&mut buffer).unwrap();
        shown += &String::from_utf8_lossy(&buffer[..len]);
        match number_before(&shown, " created") {
            Some(created) if created > 0 => break created,
            _ => assert!(len > 0, "the client ended: {shown}"),
        }
    };
    client.kill().unwrap();
    client.wait().unwrap();
    drop(relay);
    assert!(progress < METERS, "{shown}");

    // What it had been told of is there.
    let said = admin.import(sealed, false).unwrap();
    let created = number_before(&said, " created").unwrap();
    let unchanged = number_before(&said, " unchanged").unwrap();
    assert!(unchanged >= progress && created > 0, "{progress} were shown, then: {said}");
    assert_eq!(created + unchanged, METERS, "{said}");
    assert!(said.contains(&format!("{unchanged} of {METERS} meters were already there")), "{said}");
    println!("killed at {progress} meters; then {unchanged} were there and {created} came");
    let again = admin.import(sealed, false).unwrap();
    assert!(again.contains(&format!("0 created, 0 updated, {METERS} unchanged")), "{again}");

    // Each once, and with one version of each key.
    let list = admin.succeed(&["meter", "list", "--json"]).unwrap();
    let ids: Vec<String> = list
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["meter_id"].to_string()
        })
        .collect();
    let distinct: BTreeSet<&String> = ids.iter().collect();
    assert_eq!((ids.len() as u64, distinct.len() as u64), (METERS, METERS));
    decrypt(home, &delivery.meters);
    assert!(running.stop().unwrap().success());
}

#[test]
fn a_sealed_file_is_in_the_order_in_which_a_site_stores_its_meters() {
    for blocks in [1, 7, 64, 4_096, 65_536] {
        let count = kms_core::BlockCount::new(blocks).unwrap();
        let mut meters: Vec<_> = (0..2_000)
            .map(|n| common::fleet::parsed(&common::fleet::line(n)).remove(0).meter)
            .collect();
        meters.sort_by_key(kms_client::NewMeter::storage_order);
        let block = |meter: &kms_client::NewMeter| count.block_of(&meter.system_title);
        assert!(meters.is_sorted_by_key(block), "{blocks} blocks");
    }
}
