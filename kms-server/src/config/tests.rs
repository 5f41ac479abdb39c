use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use tempfile::TempDir;

use super::*;
use crate::rpc::{CallerName, Role, Verb};

mod peer;
mod schedule_tests;

const EXAMPLE: &str = include_str!("../../../deploy/kms.toml");

/// A directory with the example in it, its paths moved there, and a PIN.
struct Folder {
    directory: TempDir,
    text: String,
}

impl Folder {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().display().to_string();
        let text = EXAMPLE
            .replace("/var/lib/ami", &here)
            .replace("/etc/ami", &here)
            .replace("/usr/lib/softhsm", &here)
            .replace("#data_dir", "data_dir")
            .replace("0.0.0.0:7443", "127.0.0.1:0")
            .replace("#arena_mib = 256", "arena_mib = 1");
        let folder = Self { directory, text };
        folder.write("pin", b"1234\n", 0o600);
        folder
    }

    fn write(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// The example with `from` replaced by `to`, which must have been there.
    fn with(&self, from: &str, to: &str) -> Result<Config, ConfigError> {
        assert!(self.text.contains(from), "{from} is not in the example");
        Config::load(&self.write("kms.toml", self.text.replace(from, to).as_bytes(), 0o644))
    }

    fn config(&self) -> Config {
        self.with("", "").unwrap()
    }

    fn refusal(&self, from: &str, to: &str) -> String {
        self.with(from, to).map(|_| ()).unwrap_err().to_string()
    }

    /// Everything that the outside must have for the example.
    fn furnish(&self) {
        fs::create_dir(self.directory.path().join("tokens")).unwrap();
        fs::create_dir(self.directory.path().join("tls")).unwrap();
        self.write("libsofthsm2.so", b"", 0o644);
        let pair = self_signed(|_| {});
        self.write("tls/server.pem", pair.0.as_bytes(), 0o644);
        self.write("tls/server.key", pair.1.as_bytes(), 0o600);
        self.write("tls/clients.pem", pair.0.as_bytes(), 0o644);
    }

    fn findings(&self) -> Vec<String> {
        check(&self.config(), NOW_MS).iter().map(ToString::to_string).collect()
    }
}

/// 2026-01-01.
const NOW_MS: u64 = 1_767_225_600_000;

fn self_signed(change: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String) {
    let mut params = rcgen::CertificateParams::new(vec!["kms.example.org".into()]).unwrap();
    change(&mut params);
    let key = rcgen::KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[track_caller]
fn says(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in: {sentence}");
    }
    assert!(!sentence.contains('\n'), "one sentence: {sentence}");
}

/// Settings of which the example shows no default, or that these tests move.
const NO_DEFAULTS: &str =
    "hes =|listen =|public_key =|meters =|titles =|may_change =|profiles|pin_env|arena_mib";

#[test]
fn the_example_in_deploy_is_accepted_and_its_comments_tell_the_defaults() {
    let folder = Folder::new();
    let written = folder.config();
    assert_eq!(written.hsm.token_label, "ami-kms");
    assert_eq!(written.hsm.pin.expose_pin(), "1234");
    let hes = CallerName::new("hes.example.org").unwrap();
    assert_eq!(written.rpc.policy.roles(&hes).unwrap(), &BTreeSet::from([Role::Hes]));
    // Every commented-out setting, put in force, changes nothing.
    let is_setting = |line: &&str| line.starts_with('#') && line[1..].contains(" = ");
    for line in schedule_tests::all_else().lines().filter(is_setting) {
        let setting = line.split("  ").next().unwrap();
        if setting.contains("data_dir")
            || setting.contains("\"provisioning\"")
            || NO_DEFAULTS.split('|').any(|name| setting.contains(name))
            || of_postgresql(setting)
            || peer::of_peer(setting)
        {
            continue; // Moved by the test; the other of two; moved; not a default.
        }
        let spelt_out = folder.with(setting, &setting[1..]).unwrap();
        assert_eq!(format!("{spelt_out:?}"), format!("{written:?}"), "{setting}");
    }
}

/// Whether it is one of the settings of the other kind of store.
fn of_postgresql(setting: &str) -> bool {
    let (_, store) = EXAMPLE.split_once("#kind = \"postgresql\"").unwrap();
    let (store, _) = store.split_once("[keyring]").unwrap();
    setting.contains("\"postgresql\"") || store.contains(setting)
}

/// The example with PostgreSQL's settings in force; `change` edits them.
fn on_postgresql(folder: &Folder, change: impl Fn(&str) -> String) -> Result<Config, ConfigError> {
    folder.write("db-password", b"hunter2\n", 0o600);
    let (start, rest) = folder.text.split_once("kind = \"sqlite\"").unwrap();
    let (_, rest) = rest.split_once("#kind").unwrap();
    let (store, end) = rest.split_once("\n[keyring]").unwrap();
    let store = format!("#kind{store}").replace('\n', "\n#").replace("\n##", "\n#");
    let store = store.replace("#password_env", "-").replace("#allow_no_tls", "-");
    let store: String = store
        .lines()
        .filter(|line| !line.starts_with('-'))
        .map(|line| format!("{}\n", line.trim_start_matches('#')))
        .collect();
    let text = format!("{start}{}\n[keyring]{end}", change(&store));
    Config::load(&folder.write("kms.toml", text.as_bytes(), 0o644))
}

#[test]
fn the_other_store_of_the_example_is_accepted_with_its_defaults() {
    use crate::store::postgres::{Password, Tls};

    let folder = Folder::new();
    let Store::Postgresql(config) = on_postgresql(&folder, str::to_owned).unwrap().store else {
        panic!("not PostgreSQL");
    };
    assert_eq!((config.port, config.connections_max), (5432, 10));
    assert_eq!(config.password, Some(Password::new("hunter2".into())));
    assert!(matches!(config.tls, Tls::VerifyFull { .. }));
    let without = |setting: &str| {
        let keep = |line: &&str| !line.starts_with(setting);
        let change = |store: &str| store.lines().filter(keep).map(|l| format!("{l}\n")).collect();
        on_postgresql(&folder, change)
    };
    for default in ["port", "tls_mode", "connections_max"] {
        let Store::Postgresql(same) = without(default).unwrap().store else { panic!() };
        assert_eq!(same, config, "{default}");
    }
    for needed in ["host", "database", "user"] {
        says(&without(needed).unwrap_err().to_string(), &[needed]);
    }
    says(&without("tls_ca").unwrap_err().to_string(), &["store.tls_ca", "allow_no_tls = true"]);
    let text = format!("{:?}", without("port").unwrap());
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_database_elsewhere_is_not_reached_without_tls_and_its_password_is_not_repeated() {
    let folder = Folder::new();
    let plain = |host: &str| {
        let change = |store: &str| {
            store
                .replace("db1.example.org", host)
                .lines()
                .filter(|line| !line.starts_with("tls_"))
                .fold("allow_no_tls = true\n".to_owned(), |text, line| {
                    // The section's first line names the kind; all others may stand in any order.
                    format!("{text}{line}\n")
                })
        };
        on_postgresql(&folder, change).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(plain("127.0.0.1"), Ok(()));
    assert_eq!(plain("/run/postgresql"), Ok(()));
    says(&plain("10.1.2.3").unwrap_err(), &["10.1.2.3", "without TLS", "store.tls_ca"]);
    let exposed = on_postgresql(&folder, |store| {
        store.replace("password_file = ", "password_env = \"hunter2\" #")
    })
    .unwrap_err()
    .to_string();
    says(&exposed, &["store.password_env"]);
    let mistyped = |store: &str| store.replace("password_file = ", "password_env = 80082 #");
    let mistyped = on_postgresql(&folder, mistyped).unwrap_err().to_string();
    assert!(!mistyped.contains("80082"), "{mistyped}");
    assert!(!exposed.contains("hunter2"), "{exposed}");
}

#[test]
fn a_signer_without_a_key_that_can_be_read_is_refused() {
    let folder = Folder::new();
    let signer = |path: &str| format!("signers = [{{ name = \"p\", public_key = \"{path}\" }}]");
    let sentence = folder.refusal("#signers = []", &signer("/nowhere/p.pem"));
    says(&sentence, &["`import.signers`", "/nowhere/p.pem"]);
    let sentence = folder.refusal("#signers = []", &signer("/dev/null"));
    says(&sentence, &["`import.signers`", "P-256"]);
    let sentence = folder.refusal("#signers = []", &signer("p.pem"));
    says(&sentence, &["`import.signers.public_key`"]);

    // As the example shows it, it is accepted; a second key of that name is not.
    let key = rcgen::KeyPair::generate().unwrap().public_key_pem();
    let path = folder.write("signer.pem", key.as_bytes(), 0o644);
    let signer =
        format!("[[import.signers]]\nname = \"provisioning\"\npublic_key = \"{}\"", path.display());
    let shown = format!("#{}", signer.replace('\n', "\n#"));
    assert!(!folder.with(&shown, &signer).unwrap().import_signers.is_empty());
    let ranges = format!("{signer}\ntitles = [\"4D4D4D\"]");
    let digest = |it: &str| folder.with(&shown, it).unwrap().import_signers.digest();
    assert_ne!(digest(&ranges), digest(&signer));
    let sentence = folder.refusal(&shown, &ranges.replace("4D4D4D", "MMM"));
    says(&sentence, &["`import.signers.titles`", "MMM", "first digits of a system title"]);
    let sentence = folder.refusal(&shown, &format!("{signer}\n{signer}"));
    says(&sentence, &["`import.signers`", "twice"]);
}

#[test]
fn grants_are_data() {
    let folder = Folder::new();
    let config = folder.with("#[rpc.grants]\n#hes = [", "[rpc.grants]\nhes = [").unwrap();
    let hes = CallerName::new("hes.example.org").unwrap();
    assert!(config.rpc.policy.permit(&hes, Verb::VerifyMic).is_ok());
    assert!(config.rpc.policy.permit(&hes, Verb::DecryptStream).is_err());
    let sentence = folder.refusal(
        "#[rpc.grants]\n#hes = [\"Ciphering/Decrypt\"",
        "[rpc.grants]\nhes = [\"decrypt\"",
    );
    says(&sentence, &["`rpc.grants`", "no call \"decrypt\"", "\"Ciphering/Decrypt\""]);
}

#[test]
fn a_missing_file_is_named() {
    let sentence = Config::load(Path::new("/nowhere/kms.toml")).unwrap_err().to_string();
    says(&sentence, &["/nowhere/kms.toml", "--config"]);
}

#[test]
fn an_unknown_setting_is_refused_with_its_line() {
    let folder = Folder::new();
    let sentence = folder.refusal("token_label =", "token_labl =");
    says(&sentence, &["kms.toml, line ", "`token_labl`", "unknown field", "`token_label`"]);
    says(&folder.refusal("[store]", "[database]\n[store]"), &["`database`"]);
    says(&folder.refusal("[rpc.limits]", "[rpc.limits]\nspeed = 1"), &["`speed`"]);
    says(&folder.refusal("roles = [\"hes\"]", "roles = [\"hes\"]\nadmin = true"), &["`admin`"]);
}

#[test]
fn a_missing_or_mistyped_setting_is_refused() {
    let folder = Folder::new();
    says(&folder.refusal("single_site = true", ""), &["missing field `single_site`"]);
    says(
        &folder.refusal("kind = \"sqlite\"", "kind = \"oracle\""),
        &["`kind`", "`oracle`", "`sqlite`"],
    );
    says(&folder.refusal("\"sha1\"", "\"md5\""), &["`oaep_hash`", "`sha1` or `sha256`"]);
    says(
        &folder.refusal("#level = \"info\"", "level = \"loud\""),
        &["`level`", "`loud`", "`info`"],
    );
    says(&folder.refusal("roles = [\"hes\"]", "roles = [\"root\"]"), &["\"root\"", "auditor"]);
}

#[test]
fn a_number_outside_its_bounds_is_refused_with_them() {
    let folder = Folder::new();
    for (line, value, key, bounds) in [
        ("#sessions_max = 8", "sessions_max = 65", "`hsm.sessions_max` is 65", "1 to 64"),
        ("#sessions_max = 8", "sessions_max = 0", "`hsm.sessions_max` is 0", "1 to 64"),
        ("#call_timeout_ms = 5000", "call_timeout_ms = 1", "`hsm.call_timeout_ms`", "10 to 600000"),
        ("#patience_ms = 1000", "patience_ms = 0", "`hsm.patience_ms`", "1 to 60000"),
        ("#unwrapped_keys_max = 1000", "unwrapped_keys_max = 0", "unwrapped_keys_max`", "1 to"),
        ("#block_count = 4096", "block_count = 0", "`site.block_count` is 0", "1 to 65536"),
        ("arena_mib = 1", "arena_mib = 0", "`keyring.arena_mib` is 0", "1 to 65536"),
        ("#block_states_mib = 32", "block_states_mib = 70000", "block_states_mib` is 7", "0 to 65"),
        (
            "#warm_up_parallelism = 4",
            "warm_up_parallelism = 99",
            "`keyring.warm_up_parallelism`",
            "1 to 64",
        ),
        ("#reload_poll_s = 60", "reload_poll_s = 0", "`rpc.reload_poll_s`", "1 to 3600"),
        (
            "#message_bytes_max = 16777216",
            "message_bytes_max = 1",
            "`rpc.limits.message_bytes_max`",
            "65536 to",
        ),
        ("#batch_items_max = 16384", "batch_items_max = 0", "`rpc.limits.batch_items_max`", "1 to"),
        ("#connections_max = 1024", "connections_max = 0", "`rpc.limits.connections_max`", "1 to"),
        (
            "#drain_timeout_ms = 15000",
            "drain_timeout_ms = 300001",
            "`rpc.limits.drain_timeout_ms`",
            "1 to 300000",
        ),
    ] {
        says(&folder.refusal(line, value), &[key, bounds, "set it to"]);
    }
}

#[test]
fn a_full_batch_fits_into_what_may_be_in_flight() {
    let sentence =
        Folder::new().refusal("#in_flight_items_max = 262144", "in_flight_items_max = 9");
    says(
        &sentence,
        &["`rpc.limits.in_flight_items_max` is 9", "`rpc.limits.batch_items_max` (16384)", "raise"],
    );
}

#[test]
fn nonsense_texts_and_relative_paths_are_refused() {
    let folder = Folder::new();
    says(
        &folder.refusal("name = \"north\"", "name = \" \""),
        &["`site.name` is \" \"", "64 or fewer"],
    );
    let long = "x".repeat(33);
    says(
        &folder.refusal("\"ami-kms\"", &format!("{long:?}")),
        &["`hsm.token_label`", "32 or fewer"],
    );
    let sentence = folder.refusal("kind = \"sqlite\"\npath = \"/", "kind = \"sqlite\"\npath = \"");
    says(&sentence, &["`store.path`", "from /"]);
    says(
        &folder.refusal("127.0.0.1:0", "localhost"),
        &["`rpc.listen` is \"localhost\"", "0.0.0.0:7443"],
    );
}

#[test]
fn metrics_have_a_port_of_their_own() {
    let at = |calls: &str, metrics: &str| {
        let mut folder = Folder::new();
        folder.text = folder.text.replace("127.0.0.1:0", calls);
        let text = format!("[metrics]\nlisten = \"{metrics}\"\nallow_remote = true");
        folder.with("[metrics]", &text)
    };
    for (calls, metrics) in [
        ("127.0.0.1:7443", "127.0.0.1:7443"),
        ("0.0.0.0:7443", "127.0.0.1:7443"),
        ("127.0.0.1:7443", "[::]:7443"),
    ] {
        let sentence = at(calls, metrics).unwrap_err().to_string();
        says(&sentence, &["`metrics.listen`", metrics, "`rpc.listen`", "another port"]);
    }
    for (calls, metrics) in [
        ("127.0.0.1:7443", "127.0.0.1:9464"),
        ("127.0.0.1:7443", "127.0.0.2:7443"),
        ("0.0.0.0:7443", "[::1]:7443"),
        ("127.0.0.1:0", "127.0.0.1:0"),
    ] {
        assert!(at(calls, metrics).is_ok());
    }
}

#[test]
fn metrics_are_off_by_default_and_on_the_loopback_address_unless_allowed() {
    let folder = Folder::new();
    assert_eq!(folder.config().rpc.metrics, None);
    let on =
        |listen: &str| folder.with("#listen = \"127.0.0.1:9464\"", &format!("listen = {listen:?}"));
    let local = on("127.0.0.1:9464").unwrap().rpc.metrics.unwrap();
    assert_eq!(local.listen(), "127.0.0.1:9464".parse().unwrap());
    let sentence = on("0.0.0.0:9464").unwrap_err().to_string();
    says(&sentence, &["metrics.listen is 0.0.0.0:9464", "metrics.allow_remote"]);
    says(&on("here").unwrap_err().to_string(), &["`metrics.listen` is \"here\"", "127.0.0.1:9464"]);
    let allowed = "[metrics]\nlisten = \"0.0.0.0:9464\"\nallow_remote = true";
    assert!(folder.with("[metrics]", allowed).unwrap().rpc.metrics.is_some());
}

#[test]
fn a_site_without_peer_says_that_it_is_alone() {
    let sentence = Folder::new().refusal("single_site = true", "single_site = false");
    says(&sentence, &["`site.single_site` is false", "set it to true"]);
}

#[test]
fn callers_are_named_once_and_have_a_role() {
    let folder = Folder::new();
    says(
        &folder.refusal("\"operator.example.org\"", "\"hes.example.org\""),
        &["\"hes.example.org\" twice"],
    );
    says(&folder.refusal("roles = [\"hes\"]", "roles = []"), &["\"hes.example.org\" no role"]);
    let nobody = folder.text.split("[[rpc.callers]]").next().unwrap().to_owned();
    let path = folder.write("kms.toml", nobody.as_bytes(), 0o644);
    says(
        &Config::load(&path).unwrap_err().to_string(),
        &["[[rpc.callers]]", "at least one caller"],
    );
}

#[test]
fn a_pin_that_others_can_read_is_refused_with_the_chmod() {
    let folder = Folder::new();
    for mode in [0o640, 0o604, 0o620, 0o666] {
        folder.write("pin", b"1234\n", mode);
        says(
            &folder.refusal("", ""),
            &["`hsm.pin_file`", "/pin`", &format!("(mode {mode:03o})"), "chmod 600"],
        );
    }
}

#[test]
fn the_pin_has_exactly_one_place() {
    let folder = Folder::new();
    let both = folder.refusal("#pin_env", "pin_env");
    says(&both, &["`hsm.pin_file`", "`hsm.pin_env`", "exactly one"]);
    assert_eq!(folder.refusal("pin_file =", "#pin_file ="), both);
    let unset = folder.text.replace("pin_file =", "#pin_file =");
    let unset = unset.replace("#pin_env = \"KMS_HSM_PIN\"", "pin_env = \"KMS_TEST_NEVER_SET\"");
    let path = folder.write("kms.toml", unset.as_bytes(), 0o644);
    says(&Config::load(&path).unwrap_err().to_string(), &["KMS_TEST_NEVER_SET", "not set"]);
}

#[test]
fn a_pin_is_one_line_and_not_empty() {
    let folder = Folder::new();
    for pin in [&b""[..], b"\n", b"12\n34\n", &[b'9'; 256]] {
        folder.write("pin", pin, 0o600);
        says(
            &folder.refusal("", ""),
            &["/pin is empty, longer than 255 bytes, more than one line or not plain text"],
        );
    }
    folder.write("pin", &[b'9'; 255], 0o600);
    assert_eq!(folder.config().hsm.pin.expose_pin().len(), 255);
    fs::remove_file(folder.directory.path().join("pin")).unwrap();
    says(&folder.refusal("", ""), &["`hsm.pin_file`", "cannot be read", "mode 600"]);
}

#[test]
fn invariant_1_no_message_and_no_debug_repeats_a_pin() {
    let folder = Folder::new();
    folder.write("pin", b"424242\n", 0o600);
    assert!(!format!("{:?}", folder.config()).contains("424242"));
    let line = folder.text.lines().find(|line| line.starts_with("pin_file")).unwrap();
    for wrong in
        ["pin = \"424242\"", "pin_file = 424242", "pin_env = 424242", "pin_env = \"424242\""]
    {
        let sentence = folder.refusal(line, wrong);
        assert!(!sentence.contains("424242"), "{sentence}");
    }
}

#[test]
fn check_finds_nothing_wrong_with_a_furnished_place() {
    let folder = Folder::new();
    folder.furnish();
    assert_eq!(folder.findings(), Vec::<String>::new());
}

#[test]
fn check_tells_everything_at_once() {
    let folder = Folder::new();
    let findings = folder.findings();
    let keys: Vec<_> = findings.iter().map(|finding| finding.split(':').next().unwrap()).collect();
    assert_eq!(keys, ["hsm.module", "hsm.token_dir", "rpc.tls.certificate", "rpc.tls.client_ca"]);
    says(&findings[0], &["libsofthsm2.so", "install the token's software"]);
    says(&findings[1], &["tokens is not a directory", "install -d -o ami_admin"]);
    says(&findings[2], &["server.pem", "can't be read", "let this service read it"]);
    says(&findings[3], &["clients.pem", "can't be read", "let this service read it"]);
}

/// The one finding about a furnished folder that `spoil` spoils.
fn the_finding(spoil: impl FnOnce(&Folder)) -> String {
    let folder = Folder::new();
    folder.furnish();
    spoil(&folder);
    let findings = folder.findings();
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings[0].clone()
}

#[test]
fn check_finds_a_key_of_another_certificate() {
    let found = the_finding(|folder| {
        folder.write("tls/server.key", self_signed(|_| {}).1.as_bytes(), 0o600);
    });
    says(&found, &["server.key is not that of the certificate", "server.pem", "install the two"]);
}

#[test]
fn check_finds_a_certificate_whose_time_is_over_or_has_not_come() {
    let in_years = |from, to| {
        the_finding(|folder| {
            let pair = self_signed(|params| {
                params.not_before = rcgen::date_time_ymd(from, 1, 1);
                params.not_after = rcgen::date_time_ymd(to, 1, 1);
            });
            folder.write("tls/server.pem", pair.0.as_bytes(), 0o644);
            folder.write("tls/server.key", pair.1.as_bytes(), 0o600);
        })
    };
    says(&in_years(2020, 2025), &["server.pem has expired", "renew it"]);
    says(&in_years(2030, 2035), &["server.pem is not valid yet", "check the clock"]);
}

#[test]
fn check_finds_files_that_hold_something_else() {
    let empty = the_finding(|folder| drop(folder.write("tls/clients.pem", b"", 0o644)));
    says(&empty, &["rpc.tls.client_ca", "holds no PEM certificate"]);
    let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_authority = the_finding(|folder| drop(folder.write("tls/clients.pem", garbage, 0o644)));
    says(&no_authority, &["rpc.tls.client_ca", "can't be used: issue it again"]);
    let no_certificate = the_finding(|folder| drop(folder.write("tls/server.pem", garbage, 0o644)));
    says(&no_certificate, &["server.pem", "can't be used: issue it again"]);
    let no_key = the_finding(|folder| drop(folder.write("tls/server.key", garbage, 0o600)));
    says(&no_key, &["server.key holds no PEM private key"]);
    let secret = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0!\n-----END PRIVATE KEY-----\n";
    let torn_key = the_finding(|folder| drop(folder.write("tls/server.key", secret, 0o600)));
    says(&torn_key, &["server.key holds no PEM private key"]);
    assert!(!torn_key.contains("c2Vj"), "{torn_key}");
}

#[test]
fn revocation_lists_are_one_path_or_several_and_all_are_checked() {
    let folder = Folder::new();
    folder.furnish();
    let here = folder.directory.path().display().to_string();
    let [one, two] = ["a.crl", "b.crl"].map(|name| folder.directory.path().join(name));
    let with = |value: &str| folder.with("#client_crl = []", &format!("client_crl = {value}"));
    let lists = |value: &str| with(value).unwrap().rpc.tls.client_crls;
    assert_eq!(lists(&format!("\"{here}/a.crl\"")), std::slice::from_ref(&one));
    assert_eq!(lists(&format!("[\"{here}/a.crl\", \"{here}/b.crl\"]")), [one, two]);
    says(&with("3").unwrap_err().to_string(), &["`client_crl`", "a path, or a list of paths"]);
    says(&with("\"a.crl\"").unwrap_err().to_string(), &["`rpc.tls.client_crl`", "in full"]);
    let many = vec![format!("\"{here}/a.crl\""); 65].join(", ");
    says(&with(&format!("[{many}]")).unwrap_err().to_string(), &["is 65: set it to 0 to 64"]);
    let config = with(&format!("[\"{here}/a.crl\"]")).unwrap();
    let findings = check(&config, NOW_MS);
    assert_eq!(findings.len(), 1, "{findings:?}");
    says(&findings[0].to_string(), &["rpc.tls.client_crl: ", "a.crl can't be read", "let this"]);
}

#[test]
fn two_people_are_asked_for_where_there_are_two_and_refused_with_what_to_do() {
    let folder = Folder::new();
    let with = |calls: &str| folder.with("#dual_control = []", &format!("dual_control = {calls}"));
    let sentence = with("[\"Meters/DeleteMeter\"]").unwrap_err().to_string();
    says(&sentence, &["`rpc.dual_control`: Meters/DeleteMeter needs two people", "role approver"]);
    for (call, problem) in [
        ("Audit/FollowEvents", "is a stream"),
        ("Ciphering/Decrypt", "machines make that call"),
        ("Approvals/ApproveCall", "how the second one answers"),
        ("Meters/Delete", "there is no call"),
    ] {
        let error = with(&format!("[\"{call}\"]")).unwrap_err();
        let sentence = Finding::of("file", &error).sentence;
        says(&sentence, &["`rpc.dual_control`", call, problem]);
        assert_eq!(sentence.matches(problem).count(), 1, "{sentence}");
    }
    let second = "dual_control = [\"Meters/DeleteMeter\"]";
    let text = folder.text.replace("#dual_control = []", second);
    let person = "[[rpc.callers]]\nname = \"second\"\nroles = [\"approver\"]\n";
    let path = folder.write("kms.toml", format!("{text}\n{person}").as_bytes(), 0o644);
    let policy = Config::load(&path).unwrap().rpc.policy;
    assert_eq!(*policy.dual_control(), BTreeSet::from([Verb::DeleteMeter]));
}

#[test]
fn check_finds_an_address_in_use() {
    let folder = Folder::new();
    folder.furnish();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let config = folder.with("127.0.0.1:0", &address).unwrap();
    let findings = check(&config, NOW_MS);
    assert_eq!(findings.len(), 1, "{findings:?}");
    says(&findings[0].to_string(), &["rpc.listen: cannot listen on", &address, "or choose one"]);
}

#[test]
fn check_finds_directories_that_are_not_there() {
    let folder = Folder::new();
    folder.furnish();
    let mut config = folder.config();
    config.site.data_dir = "/nowhere/ami".into();
    let findings = check(&config, NOW_MS);
    // The database's directory is still the furnished one.
    assert_eq!(findings.len(), 1, "{findings:?}");
    says(
        &findings[0].to_string(),
        &["site.data_dir: /nowhere/ami is not a directory", "create it"],
    );
}
