//! Invariant 2, seen from outside while the token works: a process that has keys made for a meter is held in the middle
//! of the token's calls, where the meter's KEK is open, and its memory is searched.
//!
//! The token is a library of this process, and shares its heap. So its calls are made on a thread of their own
//! (`fault-module`, `alone`): the stack of that thread and the part of the heap that the C library gives to it are the
//! token library's, and so are its own pages. Everything else is ours.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    env, fs,
    io::{BufRead as _, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use common::{
    Home, SOON, home,
    search::{Needles, halves, look_by},
};
use fault_module::{Faults, Held};
use kms_core::{ClearKey, SealedKek};
use kms_server::{
    config::{Config, Store},
    hsm::{
        KeyLen, LockedKey, MakeKeys, MakesKeys as _, SealedKeys as _, StoreUnder, WantedKey,
        pkcs11::{Canaries, Pkcs11Token},
    },
    store::{
        ReadStore as _,
        sqlite::{self, SqliteStore},
    },
};

const TEST: &str = "invariant_2_no_meter_kek_is_outside_the_token_library_while_its_calls_work";
const ROLE: &str = "KMS_TEST_KEK_ROLE";
const DIR: &str = "KMS_TEST_KEK_DIR";

/// The calls in which the library is held, and how often each ciphers.
const CALLS: [(&str, u64); 3] = [("C_UnwrapKey", 2), ("C_WrapKey", 2), ("C_GenerateKey", 1)];
/// One key takes three calls of a kind, one after the other: the KEK twice and what is stored, the meter's form twice
/// and what is stored.
const IN_TURN: u64 = 3;

fn dir() -> PathBuf {
    env::var_os(DIR).unwrap().into()
}

/// This test in a process of its own, to do something else.
fn child(home: &Home, role: &str) -> Command {
    let mut child = Command::new(env::current_exe().unwrap());
    child
        .args([TEST, "--exact", "--nocapture"])
        .env("SOFTHSM2_CONF", &home.places().softhsm_conf)
        .env(ROLE, role)
        .env(DIR, home.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    child
}

/// The site's token, behind this module.
fn token(module: Option<PathBuf>) -> Pkcs11Token {
    let config = Config::load(&dir().join("kms.toml")).unwrap();
    let Store::Sqlite { path } = config.store else { panic!("no SQLite") };
    let domain = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let domain = domain.block_on(async {
        let store = SqliteStore::open(sqlite::Config { path, create: false }).await.unwrap();
        store.domain().await.unwrap().unwrap()
    });
    let mut hsm = config.hsm;
    hsm.module = module.unwrap_or(hsm.module);
    Pkcs11Token::connect(hsm, Canaries::decode(&domain.canaries).unwrap()).unwrap()
}

fn line() -> Vec<u8> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    hex::decode(line.trim()).unwrap()
}

/// Wraps the KEK that it is told, as an import does.
fn wrap() {
    let blob = token(None).wrap(SealedKek::MeterKek, &ClearKey::new(line())).unwrap();
    fs::write(dir().join("kek"), blob).unwrap();
}

/// What was read of the KEK and kept.
static LEAKED: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Has keys made until it is ended. What it is told meanwhile it keeps, as nobody should.
fn make() {
    let token = token(Some(fault_module::library()));
    let job = MakeKeys {
        fingerprint_label: b"a label".to_vec(),
        wrap_keys: vec![Arc::new([0xB1_u8; 32]) as LockedKey],
        keks: vec![fs::read(dir().join("kek")).unwrap()],
        keys: vec![WantedKey { len: KeyLen::Aes128, under: StoreUnder::Block(0), kek: 0 }],
    };
    std::thread::spawn(|| {
        LEAKED.lock().unwrap().push(line());
        fs::write(dir().join("leaked"), []).unwrap();
    });
    loop {
        assert!(token.make_keys(&job).unwrap()[0].is_ok());
    }
}

/// Ended with the test.
struct Making(Child);

impl Drop for Making {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn soon<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Places where the KEK is, while a call is held: how often in the library's memory, and where else. `None`: this account
/// may not look.
fn look(
    making: &Making,
    needles: &Needles,
    held: &Held,
    what: &str,
) -> Option<(usize, Vec<String>)> {
    let kind = |mapping: &common::search::Mapping| {
        let own = [held.stack, held.heap].iter().any(|address| mapping.holds(*address));
        let file = ["libsofthsm2", "libcrypto"].iter().any(|file| mapping.name().contains(file));
        let kind = if own || file { "library" } else { mapping.name() };
        kind.to_owned()
    };
    let mut hits = look_by(making.0.id(), needles, &kind, what)?;
    let inside = hits.remove("library").unwrap_or_default().len();
    Some((inside, hits.into_keys().map(|kind| format!("`{kind}`")).collect()))
}

#[test]
fn invariant_2_no_meter_kek_is_outside_the_token_library_while_its_calls_work() {
    #[expect(clippy::disallowed_methods, reason = "a child is told what it is")]
    match env::var(ROLE).as_deref() {
        Ok("wrap") => return wrap(),
        Ok("make") => return make(),
        _ => {}
    }
    let home = home();
    // Not a constant: this program's own pages are in the process that is searched.
    let mut kek = [0; 32];
    getrandom(&mut kek);
    let needles = Needles::new(halves("KEK", &kek));
    let mut wrapping = child(&home, "wrap").spawn().unwrap();
    writeln!(wrapping.stdin.take().unwrap(), "{}", hex::encode(kek)).unwrap();
    assert!(wrapping.wait().unwrap().success());

    let faults = Faults::at(home.dir.path().join("faults"));
    faults.set("* alone").unwrap();
    let library = fault_module::library();
    let module = Config::load(&home.places().kms_toml).unwrap().hsm.module;
    let mut making = child(&home, "make");
    making
        .env(Faults::REAL, module)
        .env(Faults::CONTROL, faults.file())
        .env("LD_PRELOAD", library)
        // What one thread frees another one does not use.
        .env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=64");
    let mut making = Making(making.spawn().unwrap());
    // The next call of this function, from where it was let go.
    let hold = |function: &str, place: u64| {
        faults.set(&format!("* alone\n{function} inside={place} times=1")).unwrap();
        soon(&format!("{function} is not held at place {place}"), || faults.held())
    };
    for (function, places) in CALLS {
        let mut open = 0;
        for (place, turn) in (0..places).flat_map(|at| (0..IN_TURN).map(move |turn| (at, turn))) {
            let held = hold(function, place);
            assert_eq!(held.function, function);
            let what = format!("in {function}, place {place}, call {turn}");
            let Some((inside, outside)) = look(&making, &needles, &held, &what) else { return };
            assert!(outside.is_empty(), "{what}: outside of the library, in {outside:?}");
            open += usize::from(inside > 0);
        }
        // The control: there it is, and this search sees it. No call but these has it open.
        println!("{function}: the KEK is open in {open} of {} holds", places * IN_TURN);
        let due = if function == "C_GenerateKey" { 0 } else { 2 };
        assert!(open >= due, "{function}: seen {open} times");
    }
    // The other control: a process that has it where it should not.
    writeln!(making.0.stdin.as_mut().unwrap(), "{}", hex::encode(kek)).unwrap();
    faults.set("* alone").unwrap();
    soon("it keeps nothing", || home.dir.path().join("leaked").exists().then_some(()));
    let held = hold("C_WrapKey", 0);
    let (_, outside) = look(&making, &needles, &held, "a process that leaks").unwrap();
    assert!(!outside.is_empty(), "the leak is not found");
}

fn getrandom(out: &mut [u8]) {
    use std::io::Read as _;
    fs::File::open("/dev/urandom").unwrap().read_exact(out).unwrap();
}
