//! A supplier's key file from its signature to the site's records: sealed with a receipt, imported, and the same again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use common::home_with;
use serde_json::Value;
use softhsm_tests::{
    AmiTool, Role,
    sealing::{SIGNER, Signing},
};
use tempfile::TempDir;

const SUPPLIER: &str = r#"
trust_anchor = "anchor.pem"
unwrap_key = "unwrap.key"
system_title = "MAC"
[keys.GUEK_MC]
kind = "GUEK"
protection = "HSM"
[keys.GAK_MC]
kind = "GAK"
[keys.MK]
kind = "KEK"
[policy]
minimum_protection = "AUTHENTICATED_ENCRYPTED"
"#;

/// The machine that seals.
struct Machine {
    dir: TempDir,
    signing: Signing,
}

impl Machine {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn objects(&self, file: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Seals the delivery of `tests/shipments` anew, and imports it; gives what was said of it.
    fn deliver(&self, admin: &AmiTool, name: &str) -> Value {
        let (sealed, receipt) = (self.path(name), self.path(&format!("{name}.receipt")));
        let settings = self.path("supplier.toml");
        let more = [
            "--supplier",
            &settings.to_string_lossy(),
            "--receipt",
            &receipt.to_string_lossy(),
            "--allow-unlocked",
        ]
        .map(str::to_owned);
        self.signing.seal_with(admin, &self.path("exclusive.xml"), &sealed, &more).unwrap();
        let said =
            admin.succeed(&["meter", "import", &sealed.to_string_lossy(), "--json"]).unwrap();
        let last = said.lines().last().unwrap();
        serde_json::from_str(last).unwrap()
    }
}

#[test]
fn a_delivery_comes_from_its_signature_to_the_records_and_again_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let signing = Signing::make(dir.path()).unwrap();
    let machine = Machine { dir, signing };
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kms-client/tests/shipments");
    for name in ["anchor.pem", "unwrap.key", "exclusive.xml"] {
        fs::copy(made.join(name), machine.path(name)).unwrap();
    }
    fs::write(machine.path("supplier.toml"), SUPPLIER).unwrap();
    // The signer owns what the maker's titles begin with, and nothing else.
    let setting = machine.signing.setting();
    let value = setting.value.replace(" }]", ", titles = [\"4D4D4D\"] }]");
    let home =
        home_with(&[(setting.section, setting.key, &value), ("import", "allow_clear", "false")]);
    let running = home.start().unwrap();
    let admin = home.ami_tool(Role::AmiAdmin);
    let first = machine.deliver(&admin, "first.jsonl");
    assert_eq!(
        (first["created"].as_u64(), first["refused"].as_u64()),
        (Some(3), Some(0)),
        "{first}"
    );
    // What the receipt says of each key, the service says, too.
    for line in machine.objects("first.jsonl.receipt").iter().filter(|it| it["outcome"] == "TAKEN")
    {
        let id = line["meter_id"].as_str().unwrap();
        let meter = admin.succeed(&["meter", "get", id, "--json"]).unwrap();
        let meter: Value = serde_json::from_str(meter.trim()).unwrap();
        let kcvs = |keys: &Value| -> BTreeMap<String, (String, String)> {
            let text = |key: &Value, name: &str| key[name].as_str().unwrap_or("MEMORY").to_owned();
            let keys = keys.as_array().unwrap().iter();
            keys.map(|key| (text(key, "kind"), (text(key, "kcv"), text(key, "protection"))))
                .collect()
        };
        assert_eq!(kcvs(&meter["keys"]), kcvs(&line["keys"]), "{id}");
        assert_eq!(kcvs(&meter["keys"]).len(), 3);
        assert_eq!(meter["policy"]["minimum_protection"], "AUTHENTICATED_ENCRYPTED");
        assert_eq!(meter["system_title"], line["system_title"]);
    }
    // The same delivery, sealed once more; then both files again.
    let again = machine.deliver(&admin, "again.jsonl");
    assert_eq!(
        (again["unchanged"].as_u64(), again["nothing_changed"].as_bool()),
        (Some(3), Some(true)),
        "{again}"
    );
    for name in ["first.jsonl", "again.jsonl", "first.jsonl"] {
        let path = machine.path(name);
        let said = admin.succeed(&["meter", "import", &path.to_string_lossy(), "--json"]).unwrap();
        let sum: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(sum["nothing_changed"].as_bool(), Some(true), "{name}: {sum}");
    }
    // Another maker's titles are not this signer's.
    let other = machine.path("other.jsonl");
    let line = r#"{"meter_id":"x","system_title":"4E4E4E0000000001","keys":[{"kind":"GUEK","value":"D491470F47126332B07D1923B3504188"}]}"#;
    fs::write(machine.path("x.jsonl"), line).unwrap();
    machine.signing.seal(&admin, &machine.path("x.jsonl"), &other).unwrap();
    let output = admin.run(&["meter", "import", &other.to_string_lossy()], "").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("NOT_SIGNERS_METER") && said.contains(SIGNER), "{said}");
    running.stop().unwrap();
}
