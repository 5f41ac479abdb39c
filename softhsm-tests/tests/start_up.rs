//! A server that cannot start says why in one sentence, names the cure, and ends with its exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use common::{Home, blank_home, home, home_with};
use rustix::process::{Pid, Signal, kill_process};
use softhsm_tests::{Authority, Role, Site};
use sqlx::{Connection as _, SqliteConnection};

const CONFIGURATION: i32 = 3;
const TOKEN: i32 = 4;
const STORE: i32 = 5;
/// The unit starts it again.
const AWAY: i32 = 6;

/// Runs a verb that must end by itself, and soon.
fn ends(mut command: Command) -> Output {
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    let (done, waited) = mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    waited.recv_timeout(Duration::from_secs(30)).map(Result::unwrap).unwrap_or_else(|_| {
        kill_process(pid, Signal::KILL).unwrap();
        panic!("it goes on: {:?}", waited.recv())
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Refused with this code, in one sentence that has all these words: what is wrong, and the cure.
fn refused(what: &str, output: &Output, code: i32, words: &[&str]) {
    let stderr = text(&output.stderr);
    println!("{what}: {}", stderr.trim());
    assert_eq!(output.status.code(), Some(code), "{what}: {output:?}");
    let sentences: Vec<&str> =
        stderr.lines().filter(|line| line.starts_with("kms-server: ")).collect();
    assert_eq!(sentences.len(), 1, "{what}: {stderr}");
    // Nothing after it, and no other error before it.
    assert_eq!(stderr.lines().last(), Some(sentences[0]), "{what}: {stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains(" ERROR "), "{what}: {stderr}");
    for word in words {
        assert!(sentences[0].contains(word), "{what}: no {word:?} in {}", sentences[0]);
    }
}

fn serve_refused(what: &str, site: &Site, code: i32, words: &[&str]) {
    refused(what, &ends(site.command("serve")), code, words);
}

/// `check-config` finds it, too, under this key.
fn found(what: &str, site: &Site, key: &str, words: &[&str]) {
    let mut command = site.command("check-config");
    command.arg("--json");
    let output = ends(command);
    assert_eq!(output.status.code(), Some(CONFIGURATION), "{what}: {output:?}");
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = findings["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["key"] == key);
    let sentence = finding.unwrap_or_else(|| panic!("{what}: {findings:?}"))["sentence"].as_str();
    for word in words {
        assert!(sentence.unwrap().contains(word), "{what}: no {word:?} in {sentence:?}");
    }
    assert!(!text(&output.stderr).contains("panicked"), "{what}");
}

/// Does something to the database.
fn sql(site: &Site, statement: &'static str) {
    let url = format!("sqlite://{}", site.places().data.join("kms.db").display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
}

#[test]
fn a_good_site_is_not_found_fault_with() {
    let home = home();
    let output = ends(home.command("check-config"));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stdout).trim(), "nothing is wrong");
    let running = home.start().unwrap();
    assert!(running.stop().unwrap().success());
}

#[test]
fn probe_hsm_prints_a_table_in_which_every_required_row_is_ok() {
    let home = home();
    let output = ends(home.command("probe-hsm"));
    let table = text(&output.stdout);
    println!("{table}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(table.lines().count() > 20, "{table}");
    let mut command = home.command("probe-hsm");
    command.arg("--json");
    let output = ends(command);
    assert_eq!(output.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let not_ok: Vec<_> = rows.iter().filter(|row| row["ok"] != true).collect();
    let required = |row: &&serde_json::Value| row["required"] == true;
    println!("{} rows, {} of them not ok: {not_ok:?}", rows.len(), not_ok.len());
    assert!(rows.iter().filter(required).count() > 20, "{}", rows.len());
    assert!(rows.iter().filter(required).all(|row| row["ok"] == true), "{not_ok:?}");
}

#[test]
fn a_wrong_pin_is_tried_once_and_named() {
    let home = home();
    fs::write(&home.places().pin, "00000000").unwrap();
    let words = ["refused the user PIN", "correct hsm.pin_file"];
    let began = Instant::now();
    serve_refused("wrong PIN", &home, TOKEN, &words);
    println!("refused after {:?}", began.elapsed());
    found("wrong PIN", &home, "hsm", &words);
    for verb in ["probe-hsm", "serve"] {
        refused("wrong PIN", &ends(home.command(verb)), TOKEN, &words);
    }
}

#[test]
fn a_pin_that_others_can_read_or_that_is_missing_is_not_used() {
    let home = home();
    fs::set_permissions(&home.places().pin, fs::Permissions::from_mode(0o644)).unwrap();
    serve_refused("PIN of mode 644", &home, CONFIGURATION, &["hsm.pin_file", "chmod 600"]);
    found("PIN of mode 644", &home, "file", &["chmod 600"]);
    fs::remove_file(&home.places().pin).unwrap();
    serve_refused("no PIN file", &home, CONFIGURATION, &["hsm.pin_file", "create it", "mode 600"]);
    fs::write(&home.places().pin, "").unwrap();
    fs::set_permissions(&home.places().pin, fs::Permissions::from_mode(0o600)).unwrap();
    serve_refused("empty PIN", &home, CONFIGURATION, &["PIN", "empty", "write it on one line"]);
    // Another PIN to the token, and one try less: not even asked.
    for (what, bytes) in [
        ("UTF-8 with a mark", &b"\xEF\xBB\xBF12345678\n"[..]),
        ("UTF-16", b"\xFF\xFE1\x002\x003\x004\x00"),
    ] {
        fs::write(&home.places().pin, bytes).unwrap();
        serve_refused(what, &home, CONFIGURATION, &["PIN", "byte order mark"]);
    }
}

#[test]
fn a_module_that_is_missing_or_no_library_is_named() {
    let home_of = |module: &str| home_with(&[("hsm", "module", module)]);
    let words = ["/nowhere/libpkcs11.so", "install the token's software"];
    let home = home_of("\"/nowhere/libpkcs11.so\"");
    serve_refused("no module", &home, TOKEN, &words);
    found("no module", &home, "hsm.module", &words);
    let home = home_of("\"/etc/passwd\"");
    serve_refused("a module that is none", &home, TOKEN, &["/etc/passwd", "hsm.module"]);
}

#[test]
fn a_token_that_is_not_there_is_named() {
    let home = home();
    fs::remove_dir_all(&home.places().tokens).unwrap();
    fs::create_dir(&home.places().tokens).unwrap();
    let words = ["ami-site-a", "correct hsm.token_label"];
    serve_refused("no token", &home, AWAY, &words);
    found("no token", &home, "hsm", &words);
}

#[test]
fn a_token_that_comes_back_is_found_by_the_next_start() {
    let home = home();
    let aside = home.places().tokens.with_extension("aside");
    fs::rename(&home.places().tokens, &aside).unwrap();
    // The library says no more than a code: what to look at stands behind it.
    let words = ["the token is not reachable", "C_Initialize", "SOFTHSM2_CONF", "hsm.token_dir"];
    serve_refused("token away", &home, AWAY, &words);
    fs::rename(&aside, &home.places().tokens).unwrap();
    let conf = &home.places().softhsm_conf;
    let aside = conf.with_extension("aside");
    fs::rename(conf, &aside).unwrap();
    serve_refused("no SOFTHSM2_CONF", &home, AWAY, &words);
    fs::rename(&aside, conf).unwrap();
    assert!(home.start().unwrap().stop().unwrap().success());
}

/// The unit starts again from what passes, and never from what would lock a token.
#[test]
fn the_unit_leaves_down_what_a_restart_cannot_mend_and_nothing_else() {
    let unit =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/ami-kms.service");
    let unit = fs::read_to_string(unit).unwrap();
    let of = |key: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key}")).to_owned()
    };
    let left_down = of("RestartPreventExitStatus=");
    assert_eq!(left_down, format!("2 {CONFIGURATION} {TOKEN} {STORE}"));
    assert_eq!(of("Restart="), "on-failure");
    // However long it takes: no number of tries after which it stays down.
    assert_eq!(of("StartLimitIntervalSec="), "0");
}

#[test]
fn a_data_directory_that_cannot_be_written_is_named() {
    // Not by permissions, which the superuser does not heed.
    for (dir, database) in [("/proc", "/proc/kms.db"), ("/etc/passwd", "/etc/passwd/kms.db")] {
        let home = blank_home(&[
            ("site", "data_dir", &format!("{dir:?}")),
            ("store", "path", &format!("{database:?}")),
        ]);
        let what = format!("data in {dir}");
        refused(&what, &ends(home.command("init")), STORE, &[dir, "store"]);
        serve_refused(&what, &home, STORE, &[database, "store"]);
        let mut check = home.command("check-config");
        check.arg("--json");
        let output = ends(check);
        assert_eq!(output.status.code(), Some(CONFIGURATION), "{output:?}");
        // The superuser may write to /proc, in theory.
        assert!(dir == "/proc" || text(&output.stdout).contains(dir), "{output:?}");
    }
}

#[test]
fn a_memlock_limit_that_is_too_small_is_named_with_the_one_that_is_needed() {
    let home = home_with(&[("keyring", "arena_mib", "8"), ("keyring", "allow_unlocked", "false")]);
    let limited = |verb: &str| {
        let command = home.command(verb);
        let mut limited = Command::new("setpriv");
        if rustix::process::geteuid().is_root() {
            limited.args(["--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock"]);
        }
        limited
            .args(["prlimit", "--memlock=65536:65536"])
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(&home.places().dir)
            .env("SOFTHSM2_CONF", &home.places().softhsm_conf);
        limited
    };
    if let Err(error) = limited("check-config").arg("--help").output() {
        println!("skipped: setpriv and prlimit of util-linux are needed: {error}");
        return;
    }
    let words = ["65536", "keyring.arena_mib", "LimitMEMLOCK"];
    refused("memlock", &ends(limited("serve")), CONFIGURATION, &words);
    let mut check = limited("check-config");
    check.arg("--json");
    let output = ends(check);
    assert_eq!(output.status.code(), Some(CONFIGURATION), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains("keyring.arena_mib") && said.contains("LimitMEMLOCK"), "{said}");
}

#[test]
fn certificates_that_cannot_serve_are_named() {
    let home = home();
    let (certificate, key) =
        (home.places().certificate("server"), home.places().private_key("server"));
    let (good_certificate, good_key) = (fs::read(&certificate).unwrap(), fs::read(&key).unwrap());
    let authority: Authority = home.authority().unwrap();

    fs::write(&key, authority.server().unwrap().private_key_pem).unwrap();
    let words = ["server.pem", "server.key"];
    serve_refused("another's private key", &home, CONFIGURATION, &words);
    found("another's private key", &home, "rpc.tls.certificate", &words);

    let expired = authority.expired_server().unwrap();
    fs::write(&key, &expired.private_key_pem).unwrap();
    fs::write(&certificate, &expired.certificate_pem).unwrap();
    serve_refused("expired", &home, CONFIGURATION, &["server.pem", "expired", "renew"]);
    found("expired", &home, "rpc.tls.certificate", &["expired"]);

    fs::write(&key, &good_key).unwrap();
    fs::write(&certificate, "no certificate").unwrap();
    serve_refused("no certificate", &home, CONFIGURATION, &["server.pem", "CERTIFICATE"]);
    fs::remove_file(&certificate).unwrap();
    serve_refused("no file", &home, CONFIGURATION, &["server.pem", "can't be read"]);
    fs::write(&certificate, &good_certificate).unwrap();
    fs::write(home.places().certificate("ca"), "").unwrap();
    serve_refused("no client CA", &home, CONFIGURATION, &["ca.pem"]);
}

#[test]
fn a_setting_that_there_is_not_or_that_is_out_of_range_is_named_with_its_line() {
    for (section, key, value, words) in [
        ("rpc.limits", "batch_itms_max", "9", &["batch_itms_max", "line"][..]),
        ("hsm", "pin", "\"1234\"", &["pin", "line"]),
        ("keyring", "arena_mib", "0", &["keyring.arena_mib", "1 to 65536"]),
        ("rpc.limits", "batch_items_max", "0", &["batch_items_max", "1 to"]),
        ("site", "single_site", "false", &["site.single_site", "set it to true"]),
        ("hsm", "pin_file", "", &["hsm.pin_file", "exactly one"]),
        ("site", "name", "12", &["name", "line"]),
    ] {
        let home = home_with(&[(section, key, value)]);
        let what = format!("{section}.{key} = {value}");
        serve_refused(&what, &home, CONFIGURATION, words);
        found(&what, &home, "file", words);
        let said = ends(home.command("serve")).stderr;
        assert!(!text(&said).contains("1234"), "the PIN is repeated");
    }
}

#[test]
fn a_database_of_a_newer_program_is_not_touched() {
    let home = home();
    newer_schema(&home);
    let before = fs::read(home.places().data.join("kms.db")).unwrap();
    let words = ["schema", "start the version that wrote it"];
    serve_refused("newer schema", &home, STORE, &words);
    found("newer schema", &home, "store", &words);
    assert_eq!(fs::read(home.places().data.join("kms.db")).unwrap(), before);
}

fn newer_schema(site: &Site) {
    sql(site, "PRAGMA user_version = 9999");
}

#[test]
fn a_file_that_is_no_database_of_ours_is_not_touched() {
    let home = home();
    let path = home.places().data.join("kms.db");
    let contents = "not a database, but long enough for one ".repeat(100);
    fs::write(&path, &contents).unwrap();
    serve_refused("text", &home, STORE, &["kms.db is not a database of this service", "store"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), contents);
    fs::remove_file(&path).unwrap();
    let words = ["kms.db", "kms-server init"];
    serve_refused("no database", &home, STORE, &words);
    assert!(!path.exists(), "an empty database was made");
}

#[test]
fn a_server_without_init_says_to_run_it() {
    let home = blank_home(&[]);
    serve_refused("no init", &home, STORE, &["kms-server init"]);
    found("no init", &home, "site", &["kms-server init"]);
}

#[test]
fn a_second_init_changes_nothing() {
    let home = home();
    let again = |home: &Home| {
        let mut command = home.command("init");
        command.args(["--create-token", "--so-pin-file"]).arg(&home.places().so_pin);
        ends(command)
    };
    let before = fs::read(home.places().data.join("kms.db")).unwrap();
    refused("init twice", &again(&home), STORE, &["key domain already", "fresh token"]);
    refused("init twice", &ends(home.command("init")), STORE, &["key domain already"]);
    assert_eq!(fs::read(home.places().data.join("kms.db")).unwrap(), before);
    // The database was moved away, the token is the old one: its keys are not made twice.
    let aside = home.places().data.with_extension("aside");
    fs::rename(&home.places().data, &aside).unwrap();
    fs::create_dir(&home.places().data).unwrap();
    refused("init on a used token", &ends(home.command("init")), TOKEN, &["keys already"]);
    fs::remove_dir_all(&home.places().data).unwrap();
    fs::rename(&aside, &home.places().data).unwrap();
    assert!(home.start().unwrap().stop().unwrap().success(), "it is as it was");
}

#[test]
fn a_database_of_another_token_is_refused() {
    let (home, other) = (home(), blank_home(&[]));
    other.init().unwrap();
    fs::copy(other.places().data.join("kms.db"), home.places().data.join("kms.db")).unwrap();
    let words = ["ami-site-kek", "use the token that the database was made with"];
    serve_refused("another token's database", &home, TOKEN, &words);
    found("another token's database", &home, "hsm", &words);
}

#[test]
fn an_address_in_use_is_named() {
    let home = home();
    let _other = TcpListener::bind(("127.0.0.1", home.port())).unwrap();
    let address = format!("127.0.0.1:{}", home.port());
    serve_refused("address in use", &home, AWAY, &[&address, "choose another"]);
    found("address in use", &home, "rpc.listen", &[&address, "cannot listen"]);
}

#[test]
fn a_second_server_over_one_database_is_refused_and_the_first_goes_on() {
    let home = home();
    let first = home.start().unwrap();
    let database = home.places().data.join("kms.db").display().to_string();
    serve_refused(
        "second server",
        &home,
        AWAY,
        &["another server", &database, "SQLite serves one"],
    );
    refused(
        "migrate beside it",
        &ends(home.command("migrate")),
        AWAY,
        &["another server", &database],
    );
    assert!(first.stop().unwrap().success());
    // The lock is the process's: nothing is left to clear away, however it ended.
    let killed = home.start().unwrap();
    killed.signal(Signal::KILL).unwrap();
    drop(killed);
    assert!(home.start().unwrap().stop().unwrap().success());
}

#[test]
fn a_signal_that_comes_with_the_first_connection_is_not_lost_and_does_not_kill() {
    let home = home();
    for _ in 0..15 {
        let running = home.start().unwrap(); // returns as soon as somebody listens
        running.signal(Signal::HUP).unwrap();
        let status = running.stop().unwrap();
        assert!(status.success(), "{status}");
    }
}

#[test]
fn no_secret_stands_in_what_a_start_says() {
    let home = home();
    let running = home.start().unwrap();
    home.ami_tool(Role::AmiAdmin).status().unwrap();
    assert!(running.stop().unwrap().success());
    let log = fs::read_to_string(&home.places().log).unwrap();
    assert!(log.contains("serving") && log.contains("stopping"), "{log}");
    for secret in [&home.places().pin, &home.places().so_pin] {
        assert!(!log.contains(fs::read_to_string(secret).unwrap().trim()));
    }
}
