//! What `check-config` finds before the product's own clients do, and files as people really have them;
//! a machine whose clock is wrong; an `init` that was interrupted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
    time::{Duration, Instant},
};

use common::{Home, blank_home, client, eventually, fleet, home, home_with, warm};
use softhsm_tests::{Identity, Role};

/// What `check-config` says, by key.
fn findings(home: &Home) -> Vec<(String, String)> {
    let mut command = home.command("check-config");
    let output = command.arg("--json").output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {output:?}");
    });
    let findings = value["findings"].as_array().unwrap();
    assert_eq!(output.status.code(), Some(if findings.is_empty() { 0 } else { 3 }));
    let text = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().to_owned();
    findings.iter().map(|it| (text(it, "key"), text(it, "sentence"))).collect()
}

#[track_caller]
fn only(home: &Home, key: &str, words: &str) {
    let found = findings(home);
    assert!(
        matches!(&found[..], [(at, said)] if at == key && said.contains(words)),
        "{key}, {words}: {found:?}"
    );
}

fn install(home: &Home, identity: &Identity) {
    fs::write(home.places().certificate("server"), &identity.certificate_pem).unwrap();
    fs::write(home.places().private_key("server"), &identity.private_key_pem).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_our_own_clients_refuse_is_found_first() {
    let home = home();
    assert_eq!(findings(&home), []);
    let authority = home.authority().unwrap();

    install(&home, &authority.client("kms-server").unwrap());
    only(&home, "rpc.tls.certificate", "not for servers");
    // It is true: the server starts, warns, and no client comes through.
    let running = home.start().unwrap();
    // What it says may reach us after that it listens.
    eventually("it warns", async || running.log_tail().contains("not for servers")).await;
    let refused = home.ami_tool(Role::Dev).status();
    assert!(refused.is_err(), "{refused:?}");
    drop(running);

    let ca = authority.identity();
    install(&home, &ca);
    let found = findings(&home);
    let said = |words: &str| found.iter().any(|(_, sentence)| sentence.contains(words));
    assert!(said("CA:TRUE") && said("names no host"), "{found:?}");
    install(&home, &authority.server().unwrap());
    assert_eq!(findings(&home), []);
}

#[test]
fn what_this_server_needs_as_a_client_of_others_is_found() {
    let home = home();
    let missing = home.places().dir.join("no-such-ca.pem");
    let nodes = |ca: &std::path::Path| {
        let id = "0123456789abcdef0123456789abcdef";
        format!(
            "[[nodes]]\nnode = \"{id}\"\nendpoint = \"https://localhost:1\"\nca = \"{}\"\n",
            ca.display()
        )
    };
    let toml = fs::read_to_string(&home.places().kms_toml).unwrap();
    let with = |more: &str| fs::write(&home.places().kms_toml, format!("{toml}\n{more}")).unwrap();
    // Good for servers only: enough for one that calls nobody.
    assert_eq!(findings(&home), []);
    with(&nodes(&home.places().certificate("ca")));
    only(&home, "rpc.tls.certificate", "is not for clients");
    install(&home, &home.authority().unwrap().site("kms-server").unwrap());
    assert_eq!(findings(&home), []);
    with(&nodes(&missing));
    only(&home, "nodes.ca", "can't be read");
    with(&nodes(&home.places().pin));
    only(&home, "nodes.ca", "holds no PEM certificate");

    let peer = |ca: &std::path::Path| {
        let ca = ca.display();
        let toml = toml.replace("single_site = true", "single_site = false");
        let peer = "[peer]\nsite = \"site-b\"\nendpoints = [\"https://localhost:1\"]";
        fs::write(&home.places().kms_toml, format!("{toml}\n{peer}\nca = \"{ca}\"\n")).unwrap();
    };
    peer(&home.places().certificate("ca"));
    // Nothing is wrong with the certificates; but the key domain knows no such site.
    only(&home, "peer.site", "knows no site \"site-b\"");
    peer(&missing);
    let found = findings(&home);
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["peer.ca", "peer.site"], "{found:?}");
    assert!(found[0].1.contains("can't be read"), "{found:?}");
    // A site that is to join is not told to found a domain of its own.
    fs::remove_file(home.places().data.join("kms.db")).unwrap();
    peer(&home.places().certificate("ca"));
    let found = findings(&home);
    let told = |(key, said): &(String, String)| key == "site" && said.contains("init --join");
    assert!(found.iter().any(told), "{found:?}");
}

#[test]
fn a_private_key_that_others_can_read_is_found() {
    let home = home();
    let key = home.places().private_key("server");
    for (mode, is_found) in [(0o640, false), (0o600, false), (0o644, true), (0o604, true)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let found = findings(&home);
        assert_eq!(!found.is_empty(), is_found, "{mode:o}: {found:?}");
        if is_found {
            only(&home, "rpc.tls.private_key", &format!("mode {mode:o}): run `chmod o="));
        }
    }
}

#[test]
fn files_in_another_form_are_named_for_what_they_are() {
    let home = home();
    let (certificate, key, ca) = (
        home.places().certificate("server"),
        home.places().private_key("server"),
        home.places().certificate("ca"),
    );
    let openssl = |arguments: &[&str], out: &std::path::Path| {
        let mut command = Command::new("openssl");
        let output = command.args(arguments).arg("-out").arg(out).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let other = home.places().dir.join("other");
    let pem = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let passphrase = ["pkey", "-in", &pem(&key), "-aes256", "-passout", "pass:sesame"];

    let mut forms = Vec::new();
    openssl(&passphrase, &other);
    forms.push((&key, fs::read(&other).unwrap(), "passphrase"));
    openssl(&["ec", "-in", &pem(&key), "-aes256", "-passout", "pass:sesame"], &other);
    forms.push((&key, fs::read(&other).unwrap(), "passphrase"));
    openssl(&["pkey", "-in", &pem(&key), "-outform", "DER"], &other);
    forms.push((&key, fs::read(&other).unwrap(), "is DER, not PEM"));
    openssl(&["x509", "-in", &pem(&certificate), "-outform", "DER"], &other);
    forms.push((&certificate, fs::read(&other).unwrap(), "is DER, not PEM"));
    openssl(&["x509", "-in", &pem(&ca), "-outform", "DER"], &other);
    forms.push((&ca, fs::read(&other).unwrap(), "is DER, not PEM"));
    for path in [&certificate, &key, &ca] {
        let marked = [b"\xEF\xBB\xBF".to_vec(), fs::read(path).unwrap()].concat();
        forms.push((path, marked, "byte order mark"));
        let text = fs::read_to_string(path).unwrap();
        let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        forms.push((path, [b"\xFF\xFE".to_vec(), wide].concat(), "byte order mark"));
    }
    for (path, bytes, words) in forms {
        let good = fs::read(path).unwrap();
        fs::write(path, bytes).unwrap();
        let found = findings(&home);
        let said = found.iter().any(|(_, said)| said.contains(words) && said.contains(&pem(path)));
        assert!(said, "{words}: {found:?}");
        fs::write(path, good).unwrap();
    }
    assert_eq!(findings(&home), []);

    // The settings, too: a mark is read over, UTF-16 is named.
    let toml = fs::read(&home.places().kms_toml).unwrap();
    fs::write(&home.places().kms_toml, [b"\xEF\xBB\xBF".to_vec(), toml.clone()].concat()).unwrap();
    assert_eq!(findings(&home), []);
    let text = String::from_utf8(toml).unwrap();
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&home.places().kms_toml, [b"\xFF\xFE".to_vec(), wide].concat()).unwrap();
    only(&home, "file", "not UTF-8 text");
}

#[test]
fn an_oaep_hash_that_the_token_lacks_is_found() {
    // SoftHSM 2.6 has SHA-1 only.
    let home = home_with(&[("hsm", "oaep_hash", "\"sha256\"")]);
    let found = findings(&home);
    let said = found.iter().any(|(key, said)| key == "hsm" && said.contains("OAEP"));
    assert!(said, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_beside_a_nodes_own_files_is_found() {
    let home = home();
    let backup = home.places().dir.join("backup.db");
    let database = home.places().data.join("kms.db");
    fs::copy(&database, &backup).unwrap();
    let running = home.start().unwrap();
    let client = client(&home, Role::Dev).await;
    warm(&client).await;
    fleet::add(&client, &[fleet::line(1), fleet::line(2)]).await;
    assert!(running.stop().unwrap().success());
    assert_eq!(findings(&home), [], "a node that was stopped is well");

    fs::copy(&backup, &database).unwrap();
    only(&home, "site.data_dir", "node-id");
    // What it says is what helps.
    for entry in fs::read_dir(&home.places().data).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name == "node-id" || name.starts_with("audit-") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    assert_eq!(findings(&home), []);
    assert!(home.start().unwrap().stop().unwrap().success());
}

/// The program under a clock that is wrong; `None` where faketime is not installed.
fn under_clock(home: &Home, time: &str, verb: &str) -> Option<Output> {
    if Command::new("faketime").arg("--help").output().is_err() {
        println!("skipped: faketime is not here: run `make bootstrap`");
        return None;
    }
    let command = home.command(verb);
    let mut faked = Command::new("faketime");
    faked.args(["-f", time]).arg(command.get_program()).args(command.get_args());
    faked.current_dir(&home.places().dir).env("SOFTHSM2_CONF", &home.places().softhsm_conf);
    Some(faked.output().unwrap())
}

#[test]
fn a_clock_before_1970_is_named_and_worth_another_start() {
    let home = home();
    let Some(output) = under_clock(&home, "1969-06-01 00:00:00", "serve") else { return };
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("before 1970") && !said.contains("panicked"), "{said}");
    // A machine that has lost its battery begins in 1970: the certificate is not valid yet.
    let Some(output) = under_clock(&home, "1970-06-01 00:00:00", "serve") else { return };
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("not valid yet") && !said.contains("panicked"), "{said}");
}

/// The number of objects in the site's token, as SoftHSM keeps them: a file each.
fn objects_of(home: &Home) -> usize {
    let tokens = fs::read_dir(&home.places().tokens).into_iter().flatten().flatten();
    let files = tokens.flat_map(|token| fs::read_dir(token.path()).into_iter().flatten().flatten());
    files.filter(|file| file.path().extension().is_some_and(|it| it == "object")).count()
}

/// `init` killed at one point after another; then what the handbook says. Each ends in a site that serves.
#[test]
fn an_init_that_was_killed_is_begun_again_as_the_handbook_says() {
    /// Kills, spread over the time that `init` takes here.
    const POINTS: u32 = 14;
    let whole = blank_home(&[]);
    let began = Instant::now();
    whole.init().unwrap();
    let takes = began.elapsed();
    let mut with_keys = 0;
    for n in 0..POINTS {
        // By the clock, and each second time by what is in the token: to make a key takes no certain time.
        let after = takes * n / POINTS;
        let (after_ms, keys) = (after.as_millis(), (n % 2 == 1).then_some(n as usize / 2 + 1));
        let home = blank_home(&[]);
        let init = |home: &Home| {
            let mut command = home.command("init");
            command.args(["--create-token", "--so-pin-file"]).arg(&home.places().so_pin);
            command
        };
        let mut child = init(&home).spawn().unwrap();
        let began = Instant::now();
        let is_time = || keys.map_or(began.elapsed() >= after, |keys| objects_of(&home) >= keys);
        while !is_time() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        child.wait().unwrap();

        let again = init(&home).output().unwrap();
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        match again.status.code() {
            Some(0) => {}
            // Killed after its last step.
            Some(5) if said.contains("key domain already") => {}
            code => {
                assert_eq!(code, Some(4), "after {after_ms} ms: {said}");
                with_keys += 1;
                assert!(
                    !said.contains("keys already") || said.contains("was interrupted"),
                    "{said}"
                );
                let deleted = Command::new("softhsm2-util")
                    .args(["--delete-token", "--token", "ami-site-a"])
                    .env("SOFTHSM2_CONF", &home.places().softhsm_conf)
                    .output()
                    .unwrap();
                assert!(deleted.status.success(), "{deleted:?}");
                let again = init(&home).output().unwrap();
                assert!(again.status.success(), "after {after_ms} ms: {again:?}");
            }
        }
        assert!(home.start().unwrap().stop().unwrap().success(), "after {after_ms} ms");
    }
    println!("{POINTS} points, {with_keys} of them with keys in the token");
    assert!(with_keys > 0, "no kill met a token with keys");
}
