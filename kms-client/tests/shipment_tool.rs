//! `ami-tool meter seal` of suppliers' key files: what is sealed, what the receipt says, what stays behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64ct::{Base64, Encoding as _};
use p256::{
    ecdsa::{Signature, SigningKey, signature::Signer as _},
    pkcs8::{DecodePrivateKey as _, EncodePublicKey as _, LineEnding},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// The sealing machine: its keys, a supplier's settings, and what comes.
struct Machine {
    dir: TempDir,
    fingerprint: String,
    supplier_key: SigningKey,
}

const SUPPLIER: &str = r#"
trust_anchor = "supplier.pem"
unwrap_key = "unwrap.key"
rsa_1_5_key = "rsa-1-5.key"
password_file = "password"
system_title = "MAC"
[keys.GUEK_MC]
kind = "GUEK"
[keys.GAK_MC]
kind = "GAK"
[keys.MK]
kind = "KEK"
[keys.HLS]
kind = "HLS_SECRET"
"#;

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let modulus = [0xFF_u8; 384];
        let head = "308201A2300D06092A864886F70D01010105000382018F003082018A0282018100";
        let public_key = format!("{head}{}0203010001", hex::encode(modulus));
        let key = json!({
            "site": "site-a", "domain_id": "00".repeat(16), "public_key": public_key, "oaep_hash": "sha256",
        });
        let machine = Self {
            fingerprint: hex::encode(Sha256::digest(modulus)),
            supplier_key: SigningKey::from_slice(&[7; 32]).unwrap(),
            dir,
        };
        machine.write("import.key", key.to_string());
        let signer = rcgen::KeyPair::generate().unwrap();
        assert!(SigningKey::from_pkcs8_pem(&signer.serialize_pem()).is_ok());
        machine.write("signer.key", signer.serialize_pem());
        let public = machine.supplier_key.verifying_key().to_public_key_pem(LineEnding::LF);
        machine.write("supplier.pem", public.unwrap());
        machine.write("supplier.toml", SUPPLIER);
        machine.write("password", "customer-4711");
        for name in ["unwrap.key", "rsa-1-5.key", "anchor.pem", "exclusive.xml", "meters.kem"] {
            fs::copy(made().join(name), machine.path(name)).unwrap();
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn seal(&self, file: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ami-tool"));
        command.current_dir(self.dir.path()).args(["meter", "seal", file, "--out", "sealed.jsonl"]);
        command.args(["--import-key", "import.key", "--import-key-fingerprint", &self.fingerprint]);
        command.args(["--signer", "s", "--signing-key", "signer.key"]).args(more);
        command.output().unwrap()
    }

    /// Sealed as a supplier's file, with a receipt.
    fn take(&self, file: &str) -> Output {
        for name in ["sealed.jsonl", "receipt.jsonl", "receipt.txt"] {
            let _ = fs::remove_file(self.path(name));
        }
        let receipts = ["--receipt", "receipt.jsonl", "--receipt-table", "receipt.txt"];
        let settings = ["--supplier", "supplier.toml", "--allow-unlocked"];
        self.seal(file, &[&receipts[..], &settings].concat())
    }

    fn receipt(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("receipt.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A shipment of such a body, signed by the supplier: canonical as it is written.
    fn shipment(&self, body: &str) -> String {
        let wrapped = fs::read_to_string(made().join("exclusive.xml")).unwrap();
        let start = wrapped.find("<xenc:CipherValue>").unwrap() + 18;
        let wrap_key = wrapped[start..].split("</xenc:CipherValue>").next().unwrap().trim();
        let head = format!(
            "<Shipment><Header><Manufacturer>MMM</Manufacturer><WrapKey Label=\"W\"><SymmetricKey>\
             <EncryptionMethod Algorithm=\"http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p\"></EncryptionMethod>\
             <CipherData><CipherValue>{wrap_key}</CipherValue></CipherData></SymmetricKey></WrapKey></Header>"
        );
        let content = format!("{head}<Body>{body}</Body></Shipment>");
        let digest = Base64::encode_string(&Sha256::digest(&content));
        let exclusive = "http://www.w3.org/2001/10/xml-exc-c14n#";
        let info = format!(
            "<SignedInfo xmlns=\"http://www.w3.org/2000/09/xmldsig#\"><CanonicalizationMethod \
             Algorithm=\"{exclusive}\"></CanonicalizationMethod><SignatureMethod \
             Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256\"></SignatureMethod><Reference \
             URI=\"\"><Transforms><Transform Algorithm=\"http://www.w3.org/2000/09/xmldsig#enveloped-signature\">\
             </Transform><Transform Algorithm=\"{exclusive}\"></Transform></Transforms><DigestMethod \
             Algorithm=\"http://www.w3.org/2001/04/xmlenc#sha256\"></DigestMethod><DigestValue>{digest}\
             </DigestValue></Reference></SignedInfo>"
        );
        let signature: Signature = self.supplier_key.sign(info.as_bytes());
        let signature = Base64::encode_string(&signature.to_bytes());
        let signed = format!(
            "<Signature xmlns=\"http://www.w3.org/2000/09/xmldsig#\">{info}<SignatureValue>{signature}\
             </SignatureValue></Signature></Shipment>"
        );
        content.replace("</Shipment>", &signed)
    }
}

/// Where files are that other programs made.
fn made() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shipments")
}

/// The wrap key of `make.sh`.
fn wrap_key() -> [u8; 32] {
    std::array::from_fn(|at| if at < 16 { 0xC1 } else { 0xA7 })
}

fn value(of: &str, len: usize) -> Vec<u8> {
    Sha256::digest(of)[..len].to_vec()
}

fn key_element(name: &str, value: &[u8]) -> String {
    let mut wrapped = vec![0; value.len() + 8];
    dlms::key_wrap::wrap(&wrap_key(), value, &mut wrapped).unwrap();
    let wrapped = Base64::encode_string(&wrapped);
    format!(
        "<Key WrapKeyLabel=\"W\" name=\"{name}\"><EncryptionMethod \
         Algorithm=\"http://www.w3.org/2001/04/xmlenc#kw-aes256\"></EncryptionMethod><CipherData><CipherValue>\
         {wrapped}</CipherValue></CipherData></Key>"
    )
}

fn device(n: u64, keys: &str) -> String {
    format!("<Device><SerialNumber>SN-{n}</SerialNumber><MAC>4D4D4D{n:010X}</MAC>{keys}</Device>")
}

fn usual(n: u64) -> String {
    let keys =
        ["GUEK_MC", "GAK_MC"].map(|name| key_element(name, &value(&format!("{name} {n}"), 16)));
    device(n, &keys.concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_shipment_is_sealed_and_its_receipt_says_what_became_of_each_line() {
    let machine = Machine::new();
    let guek = key_element("GUEK_MC", &value("a", 16));
    let body = [
        usual(1),
        device(
            2,
            &[
                key_element("MK", &value("kek", 16)),
                guek.clone(),
                key_element("PSK", &value("psk", 16)),
                key_element("HLS", &value("hls", 16)),
            ]
            .concat(),
        ),
        // A key under another wrap key than the file's: it does not open.
        device(3, &guek.replace("<CipherValue>", "<CipherValue>AAAA")),
        "<Device><SerialNumber>SN-4</SerialNumber></Device>".to_owned(),
        "<Device><SerialNumber>SN-5</SerialNumber><SerialNumber>SN-6</SerialNumber></Device>"
            .to_owned(),
        usual(7),
    ];
    machine.write("delivery.xml", machine.shipment(&body.concat()));
    let output = machine.take("delivery.xml");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("3 meters sealed for site-a"), "{text}");
    assert!(text.contains("3 lines refused, 2 keys left out: see the receipt"), "{text}");
    let receipt = machine.receipt();
    let sha256 = hex::encode(Sha256::digest(fs::read(machine.path("delivery.xml")).unwrap()));
    let head = &receipt[0];
    assert_eq!(
        (&head["receipt"], &head["sha256"], &head["format"]),
        (&json!(1), &json!(sha256), &json!("shipment"))
    );
    assert_eq!((&head["source"], &head["manufacturer"]), (&json!("delivery.xml"), &json!("MMM")));
    assert!(head["memory_locked"].is_boolean());
    assert_eq!(head["signed_by"].as_str().map(str::len), Some(64));
    let outcomes: Vec<_> = receipt[1..7]
        .iter()
        .map(|it| {
            (
                it["element"].as_u64().unwrap(),
                it["outcome"].as_str().unwrap(),
                it["code"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(
        outcomes,
        [
            (1, "TAKEN", ""),
            (2, "TAKEN", ""),
            (3, "REFUSED", "VALUE_DOES_NOT_OPEN"),
            (4, "REFUSED", "NO_TITLE"),
            (5, "REFUSED", "MALFORMED_LINE"),
            (6, "TAKEN", ""),
        ]
    );
    let key = kms_client::KeyBytes::from_hex(&hex::encode(value("kek", 16))).unwrap();
    assert_eq!(
        receipt[2]["keys"][0],
        json!({
            "kind": "KEK", "security_setup": 0, "protection": "HSM", "kcv": key.check_value(),
        })
    );
    assert_eq!(receipt[2]["left_out"][0]["reason"], json!("the settings name no such key"));
    assert_eq!(
        receipt[2]["left_out"][1],
        json!({
            "name": "HLS", "kind": "HLS_SECRET", "reason": "a secret of free length can't be sealed",
        })
    );
    let sum = receipt.last().unwrap();
    assert_eq!(
        (&sum["taken"], &sum["refused"], &sum["keys_left_out"]),
        (&json!(3), &json!(3), &json!(2))
    );
    assert_eq!(sum["keys"], json!({ "GAK": 2, "GUEK": 3, "KEK": 1 }));
    assert_eq!((&sum["signer"], &sum["sealed"]), (&json!("s"), &json!(3)));
    let table = fs::read_to_string(machine.path("receipt.txt")).unwrap();
    assert!(table.contains("element 3       REFUSED  VALUE_DOES_NOT_OPEN: meter SN-3"), "{table}");
    // No key in what stays behind, in either spelling.
    let left = [
        fs::read(machine.path("receipt.jsonl")).unwrap(),
        table.into_bytes(),
        fs::read(machine.path("sealed.jsonl")).unwrap(),
    ]
    .concat();
    let left = String::from_utf8_lossy(&left).to_lowercase();
    for value in [value("kek", 16), value("a", 16), value("GUEK_MC 1", 16)] {
        assert!(
            !left.contains(&hex::encode(&value))
                && !left.contains(&Base64::encode_string(&value).to_lowercase())
        );
    }
}

#[test]
fn of_a_file_that_is_not_taken_nothing_stays_behind() {
    let machine = Machine::new();
    let good = machine.shipment(&usual(1));
    for (file, text, code) in [
        ("changed.xml", good.replace("SN-1", "SN-2"), "SHIPMENT_SIGNATURE"),
        (
            "unsigned.xml",
            good.split("<Signature ").next().unwrap().to_owned() + "</Shipment>",
            "SHIPMENT_UNSIGNED",
        ),
        ("cut.xml", good[..good.len() - 20].to_owned(), "SHIPMENT_MALFORMED"),
        ("bomb.xml", format!("<!DOCTYPE a [<!ENTITY b \"bbbb\">]>{good}"), "SHIPMENT_MALFORMED"),
        ("empty.xml", machine.shipment(""), "SHIPMENT_MALFORMED"),
        // The right signature, and no value that opens: a wrong key, or somebody who asks what opens.
        (
            "closed.xml",
            machine.shipment(&usual(1).replace("<CipherValue>", "<CipherValue>AAAA")),
            "SHIPMENT_DOES_NOT_OPEN",
        ),
    ] {
        machine.write(file, text);
        let output = machine.take(file);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{file}: {said}");
        let json = machine.seal(
            file,
            &["--json", "--supplier", "supplier.toml", "--receipt", "r", "--allow-unlocked"],
        );
        let error: Value = serde_json::from_slice(&json.stderr).unwrap();
        assert_eq!(error["error"]["code"], json!(code), "{file}");
        for name in ["sealed.jsonl", "receipt.jsonl", "receipt.txt", "r"] {
            assert!(!machine.path(name).exists(), "{file}: {name}");
        }
    }
    // The key that it names, of somebody else.
    fs::copy(machine.path("exclusive.xml"), machine.path("others.xml")).unwrap();
    assert!(said(&machine.take("others.xml")).contains("does not fit the signer's key"));
}

#[test]
fn a_key_file_takes_its_settings_a_receipt_and_locked_memory() {
    let machine = Machine::new();
    machine.write("delivery.xml", machine.shipment(&usual(1)));
    let output = machine.seal("delivery.xml", &[]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let output = machine.seal("delivery.xml", &["--supplier", "supplier.toml"]);
    assert!(said(&output).contains("takes --receipt"), "{}", said(&output));
    let output = machine
        .seal("delivery.xml", &["--supplier", "supplier.toml", "--receipt", "receipt.jsonl"]);
    // As the system lets it: all of its memory, or not at all.
    match output.status.code() {
        Some(0) => assert_eq!(machine.receipt()[0]["memory_locked"], json!(true)),
        code => {
            assert_eq!(code, Some(3), "{}", said(&output));
            assert!(said(&output).contains("can't be locked against swap"), "{}", said(&output));
        }
    }
}

#[test]
fn a_kem_file_is_sealed_with_a_warning() {
    let machine = Machine::new();
    let settings =
        "password_file = \"password\"\ntitles = \"titles.csv\"\n[keys.DEK]\nkind = \"GUEK\"\n";
    machine.write("supplier.toml", settings);
    machine.write("titles.csv", "meter_id,system_title\n68000001,4B414D0000000001\n");
    let output = machine.take("meters.kem");
    let text = said(&output);
    // The second meter has no title in the list.
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("warning: nothing in a KEM file is authenticated"), "{text}");
    let receipt = machine.receipt();
    assert_eq!(
        (&receipt[1]["outcome"], &receipt[2]["code"]),
        (&json!("TAKEN"), &json!("NO_TITLE"))
    );
    assert_eq!(receipt[0]["signed_by"], Value::Null);
}

#[test]
fn with_a_receipt_a_bad_line_of_a_list_leaves_the_good_ones() {
    let machine = Machine::new();
    let line = |n: u64, kind: &str| {
        let (title, key) = (format!("4D4D4D{n:010X}"), hex::encode(value(&n.to_string(), 16)));
        format!(
            r#"{{"meter_id":"m-{n}","system_title":"{title}","keys":[{{"kind":"{kind}","value":"{key}"}}]}}"#
        )
    };
    let lines = [line(1, "GUEK"), "{".to_owned(), line(3, "HLS_SECRET"), line(4, "GUEK")];
    machine.write("meters.jsonl", lines.join("\n"));
    let output = machine.seal("meters.jsonl", &[]);
    assert!(said(&output).contains("nothing was sealed (with --receipt"), "{}", said(&output));
    let output = machine.seal("meters.jsonl", &["--receipt", "receipt.jsonl"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let told: BTreeMap<u64, String> = machine.receipt()[1..5]
        .iter()
        .map(|it| (it["line"].as_u64().unwrap(), it["code"].as_str().unwrap_or("TAKEN").to_owned()))
        .collect();
    let due = [(1, "TAKEN"), (2, "MALFORMED_LINE"), (3, "SECRET_NOT_SEALABLE"), (4, "TAKEN")];
    assert_eq!(told, due.map(|(line, code)| (line, code.to_owned())).into());
}

/// 2,000 meters; `SHIPMENT_METERS=100000` for as many.
#[test]
fn a_large_shipment_is_sealed_whole() {
    #[expect(clippy::disallowed_methods, reason = "a test that is made longer by hand")]
    let meters = std::env::var("SHIPMENT_METERS").ok();
    let meters: u64 = meters.map_or(2_000, |it| it.parse().unwrap());
    let machine = Machine::new();
    let mut body = String::new();
    for n in 1..=meters {
        write!(body, "{}", usual(n)).unwrap();
    }
    machine.write("delivery.xml", machine.shipment(&body));
    let output = machine.take("delivery.xml");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains(&format!("{meters} meters sealed")), "{}", said(&output));
    assert_eq!(machine.receipt().len() as u64, meters + 2);
}
