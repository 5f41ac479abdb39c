//! A token of SoftHSM for one test.
//!
//! SoftHSM reads its configuration from the environment when it is initialised, one for each process,
//! and a process may not change its environment safely. So each test runs itself again in a child that
//! was given a directory of its own. Making keys takes a second: it is done once for each build of the
//! tests, and every child gets a copy.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may")]
#![allow(missing_docs, reason = "not a library")]

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    session::UserType,
    types::AuthPin,
};
use fault_module::Faults;
use kms_server::hsm::{
    Config, OaepHash, Pin, Token,
    pkcs11::{Canaries, Pkcs11Token, init},
};

pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
pub const LABEL: &str = "ami-test";
pub const PIN: &str = "271828";
const SO_PIN: &str = "31415926";
const HOME: &str = "AMI_TEST_TOKEN_HOME";
const ROLE: &str = "AMI_TEST_TOKEN_ROLE";

/// Defines tests whose body runs in a process of its own, with a token of its own.
#[macro_export]
macro_rules! on_a_token {
    ($($(#[$meta:meta])* fn $name:ident($home:ident) $body:block)*) => {$(
        #[test]
        $(#[$meta])*
        fn $name() {
            $crate::hsm_common::alone(stringify!($name), true, |$home| $body)
        }
    )*};
}

/// The same, with a blank token.
#[macro_export]
macro_rules! on_a_blank_token {
    ($($(#[$meta:meta])* fn $name:ident($home:ident) $body:block)*) => {$(
        #[test]
        $(#[$meta])*
        fn $name() {
            $crate::hsm_common::alone(stringify!($name), false, |$home| $body)
        }
    )*};
}

/// The directory of one test's token.
pub struct Home(PathBuf);

impl Home {
    pub fn config(&self) -> Config {
        Config {
            module: MODULE.into(),
            token_label: LABEL.into(),
            pin: Pin::new(PIN.into()),
            sessions_max: 4,
            call_timeout: Duration::from_secs(5),
            patience: Duration::from_secs(1),
            unwrapped_keys_max: 8,
            oaep_hash: OaepHash::Sha1,
            sync_dir: Some(self.tokens()),
        }
    }

    /// The same token, behind the module that makes faults.
    pub fn faulty(&self) -> Config {
        Config { module: fault_module::library(), ..self.config() }
    }

    /// What the faults of [`Home::faulty`] are.
    pub fn faults(&self) -> Faults {
        Faults::at(self.0.join("faults"))
    }

    pub fn tokens(&self) -> PathBuf {
        self.0.join("tokens")
    }

    pub fn so_pin() -> Pin {
        Pin::new(SO_PIN.into())
    }

    pub fn canaries(&self) -> Canaries {
        Canaries::decode(&fs::read(self.0.join("canaries")).unwrap()).unwrap()
    }

    pub fn token(&self) -> Pkcs11Token {
        Pkcs11Token::connect(self.config(), self.canaries()).unwrap()
    }

    pub fn any_token(&self) -> Arc<dyn Token> {
        Arc::new(self.token())
    }
}

pub fn alone(test: &str, with_keys: bool, body: impl FnOnce(&Home)) {
    if env::var_os(ROLE).is_some_and(|role| role == "make") {
        return make_template();
    }
    if env::var_os(ROLE).is_some_and(|role| role == "lock") {
        return hold_lock(&Home(env::var_os(HOME).unwrap().into()));
    }
    if env::var_os(ROLE).is_some_and(|role| role == "connect") {
        return drop(Home(env::var_os(HOME).unwrap().into()).token());
    }
    if env::var_os(ROLE).is_some_and(|role| role == "log in") {
        return log_in_again_and_again(&Home(env::var_os(HOME).unwrap().into()));
    }
    if let Some(home) = env::var_os(HOME) {
        return body(&Home(home.into()));
    }
    let home = tempfile::tempdir_in(memory()).unwrap();
    if with_keys {
        copy(&template(test), home.path());
    }
    run_again(test, home.path(), "use");
}

/// On disk a token object costs 100 ms; in memory 1 ms.
fn memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { env::temp_dir() }
}

fn run_again(test: &str, home: &Path, role: &str) {
    let tokens = home.join("tokens");
    fs::create_dir_all(&tokens).unwrap();
    let conf = home.join("softhsm2.conf");
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    fs::write(&conf, text).unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env("SOFTHSM2_CONF", conf)
        .env(Faults::REAL, MODULE)
        .env(Faults::CONTROL, home.join("faults"))
        .env(HOME, home)
        .env(ROLE, role)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "{test} failed in its child");
}

/// The token that every test gets a copy of, made by the first test of this build that wants it.
fn template(test: &str) -> PathBuf {
    let exe = env::current_exe().unwrap();
    let mut hasher = DefaultHasher::new();
    fs::metadata(&exe).unwrap().modified().unwrap().hash(&mut hasher);
    let build = format!("{:016x}", hasher.finish());
    let made = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let template = made.join(format!("token-{}", exe.file_stem().unwrap().display()));
    let lock = fs::File::create(template.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    // Written last: it says that the template is whole, and whose.
    let stamp = template.join("build");
    if fs::read_to_string(&stamp).ok().as_deref() != Some(&build) {
        let _ = fs::remove_dir_all(&template);
        fs::create_dir_all(&template).unwrap();
        run_again(test, &template, "make");
        fs::write(stamp, build).unwrap();
    }
    template
}

fn make_template() {
    let home = Home(env::var_os(HOME).unwrap().into());
    let report = init(&Config { sync_dir: None, ..home.config() }, Some(&Home::so_pin())).unwrap();
    fs::write(home.0.join("canaries"), report.canaries.encode()).unwrap();
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A token with PINs and nothing else, as an operator makes it.
pub fn blank_token() {
    let done = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", SO_PIN])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// How long another process holds the token's lock.
pub const LOCKED: Duration = Duration::from_secs(4);

/// Starts a process that holds the token's lock for [`LOCKED`]; returns once it has it.
pub fn lock_token(test: &str, home: &Home) -> std::process::Child {
    let child = Command::new(env::current_exe().unwrap())
        .args([test, "--exact"])
        .env(ROLE, "lock")
        .spawn()
        .unwrap();
    while !home.0.join("locked").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// SoftHSM takes record locks (fcntl), which belong to a process: so another process it must be.
fn hold_lock(home: &Home) {
    let token = fs::read_dir(home.tokens()).unwrap().next().unwrap().unwrap().path();
    let generation = fs::OpenOptions::new().write(true).open(token.join("generation")).unwrap();
    rustix::fs::fcntl_lock(&generation, rustix::fs::FlockOperation::LockExclusive).unwrap();
    fs::write(home.0.join("locked"), []).unwrap();
    std::thread::sleep(LOCKED);
}

/// Has a fresh process connect to the token; whether it could.
pub fn connects_anew(test: &str) -> bool {
    let mut connect = Command::new(env::current_exe().unwrap());
    connect.args([test, "--exact", "--nocapture"]).env(ROLE, "connect").status().unwrap().success()
}

/// Has another process log in to the token again and again, as servers do that start.
pub fn with_logins_beside(test: &str, home: &Home, body: impl FnOnce()) {
    let mut beside = Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--include-ignored"])
        .env(ROLE, "log in")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    while !home.0.join("logs in").exists() {
        assert!(began.elapsed() < Duration::from_secs(20), "nobody logs in");
        std::thread::sleep(Duration::from_millis(10));
    }
    body();
    assert!(beside.try_wait().unwrap().is_none(), "nobody logged in any more");
    beside.kill().unwrap();
    beside.wait().unwrap();
}

fn log_in_again_and_again(home: &Home) {
    let module = Pkcs11::new(MODULE).unwrap();
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let labelled = |slot: &_| {
        module
            .get_token_info(*slot)
            .is_ok_and(|info| info.token_initialized() && info.label() == LABEL)
    };
    let slot = module.get_slots_with_token().unwrap().into_iter().find(labelled).unwrap();
    let pin = AuthPin::new(PIN.into());
    loop {
        let session = module.open_rw_session(slot).unwrap();
        // Who connects logs in too, and hides the token from this one.
        if session.login(UserType::User, Some(&pin)).is_ok() {
            fs::write(home.0.join("logs in"), []).unwrap();
            let _ = session.logout();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
