//! The command line as a script sees it: exit codes, one sentence on stderr, JSON on stdout.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::process::{Command, Output};

fn kms_server(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kms-server")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &[][..],
        &["dance"],
        &["serve", "--json"],
        &["init", "--create-token"],
        &["init", "--so-pin-file", "/x"],
    ] {
        assert_eq!(kms_server(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_tells_the_exit_codes() {
    let help = kms_server(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("3  the configuration is refused"));
}

#[test]
fn a_refused_configuration_is_3_and_one_sentence() {
    for verb in ["serve", "init", "probe-hsm"] {
        let output = kms_server(&[verb, "--config", "/nowhere/kms.toml"]);
        assert_eq!(output.status.code(), Some(3), "{verb}");
        let sentence = text(&output.stderr);
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
        assert!(
            sentence.contains("/nowhere/kms.toml") && sentence.contains("No such file"),
            "{sentence}"
        );
    }
}

#[test]
fn check_config_says_what_is_wrong_for_people_and_for_machines() {
    let people = kms_server(&["--config", "/nowhere/kms.toml", "check-config"]);
    assert_eq!(people.status.code(), Some(3));
    assert!(text(&people.stdout).starts_with("file: cannot read /nowhere/kms.toml"));

    let machines = kms_server(&["check-config", "--json", "--config", "/nowhere/kms.toml"]);
    assert_eq!(machines.status.code(), Some(3));
    let value: serde_json::Value = serde_json::from_slice(&machines.stdout).unwrap();
    assert_eq!(value["findings"][0]["key"], "file");
}

#[test]
fn a_fault_of_the_file_is_said_before_what_is_wrong_around_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.toml");
    let example = include_str!("../../deploy/kms.toml");
    let example = example.replace("/var/lib/ami", "/nowhere").replace("/etc/ami", "/nowhere");
    std::fs::write(&path, example.replace("single_site = true", "single_site = false")).unwrap();
    let output = kms_server(&["check-config", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    let said = text(&output.stdout);
    assert!(said.starts_with("file: `site.single_site` is false"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let help = kms_server(&["check-config", "--help"]);
    assert!(text(&help.stdout).contains("first fault of the configuration"));
}
