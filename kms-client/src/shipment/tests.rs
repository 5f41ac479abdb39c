//! Files that other programs made (`tests/shipments/make.sh`), and what becomes of them when they are changed.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{
    c14n::{Canonical, canonicalize},
    *,
};
use crate::meter::KeyKind;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shipments")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(dir().join(name)).unwrap()
}

fn text(name: &str) -> String {
    String::from_utf8(file(name)).unwrap()
}

const KEYS: &str = r#"
    system_title = "MAC"
    [keys.GUEK_MC]
    kind = "GUEK"
    [keys.GAK_MC]
    kind = "GAK"
    [keys.MK]
    kind = "KEK"
"#;

const KEM: &str = r#"
    password_file = "password"
    system_title = "SystemTitle"
    titles = "titles.csv"
    [keys.DEK]
    kind = "GUEK"
    [keys.GPK60]
    kind = "GUEK"
    [keys.GPK61]
    kind = "GAK"
    [keys.KEK]
    kind = "KEK"
"#;

/// Settings of these lines, in a directory that has the test keys.
fn supplier(lines: &str) -> Result<Supplier, ShipmentError> {
    let dir = tempfile::tempdir().unwrap();
    for name in ["anchor.pem", "stranger.pem", "ec-signer.pem", "unwrap.key", "rsa-1-5.key"] {
        std::fs::write(dir.path().join(name), file(name)).unwrap();
    }
    std::fs::write(dir.path().join("password"), "customer-4711\n").unwrap();
    let titles = "meter_id;title\n68000001;4B414D0000000001\n68000002;4B414D0000000002\n";
    std::fs::write(dir.path().join("titles.csv"), titles).unwrap();
    let path = dir.path().join("supplier.toml");
    std::fs::write(&path, lines).unwrap();
    Supplier::load(&path)
}

fn signed_by(anchor: &str) -> Supplier {
    let anchor = format!("trust_anchor = \"{anchor}\"\nunwrap_key = \"unwrap.key\"\n{KEYS}");
    supplier(&anchor).unwrap()
}

fn shipment(text: &str) -> Result<Consignment, ShipmentError> {
    open_as(text, signed_by("anchor.pem"))
}

fn open_as(text: &str, supplier: Supplier) -> Result<Consignment, ShipmentError> {
    open(Zeroizing::new(text.as_bytes().to_vec()), ShipmentFormat::Shipment, supplier)
}

fn kem(bytes: Vec<u8>) -> Result<Consignment, ShipmentError> {
    open(Zeroizing::new(bytes), ShipmentFormat::Kem, supplier(KEM).unwrap())
}

fn code(outcome: Result<Consignment, ShipmentError>) -> &'static str {
    outcome.map_or_else(|error| error.code(), |_| "taken")
}

/// The meters of a file as text, keys included, and what was left out.
fn told(consignment: &Consignment) -> Vec<String> {
    let one = |delivered: Result<Delivered, crate::BadRecord>| match delivered {
        Err(bad) => bad.to_string(),
        Ok(Delivered { record, left_out }) => {
            let meter = record.meter;
            let mut said = format!("{} {}", meter.meter_id, crate::title_text(&meter.system_title));
            for key in &meter.keys {
                said += &format!(" {}={}", key.kind, hex::encode(key.value.expose_key_bytes()));
            }
            for left in left_out {
                said += &format!(" -{}", left.name);
            }
            said
        }
    };
    consignment.deliveries().map(one).collect()
}

/// As `make.sh` makes values.
fn key(of: &str) -> String {
    hex::encode(Sha256::digest(of))[..32].to_owned()
}

fn meter(n: u8, kek: bool) -> String {
    let (guek, gak, kek_value) =
        (key(&format!("GUEK_MC {n}")), key(&format!("GAK_MC {n}")), key(&format!("MK {n}")));
    let kek = if kek { format!(" KEK={kek_value} -PSK") } else { " -MK -PSK".to_owned() };
    format!("SN-{n} 4D4D4D000000000{n} GUEK={guek} GAK={gak}{kek}")
}

#[test]
fn canonical_forms_are_those_of_another_program() {
    let text = text("canonical.xml");
    let document = xml::parse(&text).unwrap();
    for (way, file) in [
        (Canonical::Inclusive, "canonical.c14n"),
        (Canonical::Exclusive(Vec::new()), "canonical.exc-c14n"),
    ] {
        let ours = canonicalize(document.root_element(), None, &way).unwrap();
        assert_eq!(String::from_utf8(ours).unwrap(), self::text(file).trim_end(), "{file}");
    }
}

#[test]
fn shipments_that_another_program_signed_give_their_keys() {
    for name in ["exclusive.xml", "inclusive.xml"] {
        let taken = shipment(&text(name)).unwrap();
        assert_eq!(told(&taken), [1, 2, 3].map(|n| meter(n, true)), "{name}");
        assert_eq!(taken.origin().manufacturer.as_deref(), Some("MMM & Söhne"));
        assert_eq!(taken.origin().batch.as_deref(), Some("B-17"));
        assert_eq!(taken.origin().signed_by.as_ref().map(String::len), Some(64));
    }
}

#[test]
fn rsa_1_5_takes_its_own_key_pair_and_gives_no_kek() {
    let file = text("rsa-1-5.xml");
    let permitted = "trust_anchor = \"ec-signer.pem\"\nrsa_1_5_key = \"rsa-1-5.key\"\n";
    let permitted = supplier(&format!("{permitted}{KEYS}")).unwrap();
    let taken = open_as(&file, permitted).unwrap();
    assert_eq!(told(&taken), [1, 2, 3].map(|n| meter(n, false)));
    let error = open_as(&file, signed_by("ec-signer.pem")).unwrap_err();
    assert!(error.to_string().contains("permitted by rsa_1_5_key"), "{error}");
    let both = "unwrap_key = \"unwrap.key\"\nrsa_1_5_key = \"unwrap.key\"\n";
    let error = supplier(&format!("{both}{KEYS}")).err().unwrap();
    assert!(error.to_string().contains("one key pair"), "{error}");
}

#[test]
fn who_is_not_named_by_the_anchor_is_not_believed() {
    assert_eq!(code(shipment(&text("stranger.xml"))), "SHIPMENT_UNTRUSTED");
    // With a key of his own in the file, which verifies.
    assert_eq!(code(shipment(&text("own-key.xml"))), "SHIPMENT_SIGNATURE");
    let by_stranger = signed_by("stranger.pem");
    assert_eq!(code(open_as(&text("stranger.xml"), by_stranger)), "taken");
    assert_eq!(
        code(open_as(&text("exclusive.xml"), signed_by("stranger.pem"))),
        "SHIPMENT_UNTRUSTED"
    );
    assert_eq!(
        code(open_as(&text("exclusive.xml"), signed_by("ec-signer.pem"))),
        "SHIPMENT_SIGNATURE"
    );
    let none = supplier(&format!("unwrap_key = \"unwrap.key\"\n{KEYS}")).unwrap();
    assert_eq!(code(open_as(&text("exclusive.xml"), none)), "SUPPLIER_SETTINGS");
}

/// A signature that stays whole while what is read is something else.
#[test]
fn what_is_wrapped_around_a_signature_is_not_read() {
    let good = text("exclusive.xml");
    let start = good.find("<s:Shipment").unwrap();
    let (head, signed) = good.split_at(start);
    let body = signed.find("<s:Body>").unwrap()..signed.find("</s:Body>").unwrap() + 9;
    let signature = signed.find("<ds:Signature ").unwrap()..signed.find("</s:Shipment>").unwrap();
    let forged = signed[body.clone()].replace("SN-1", "SN-9");
    for attack in [
        // The signed one within another.
        format!("{head}<Shipment><Header/>{forged}<Was>{signed}</Was></Shipment>"),
        // The signature moved, its shipment with it, into an object of its own.
        format!(
            "{head}<s:Shipment xmlns:s=\"http://example.com/shipment\">{forged}{}</s:Shipment>",
            &signed[signature.clone()]
        ),
        // A second body before and after the signed one.
        format!("{head}{}", signed.replacen("<s:Body>", &format!("{forged}<s:Body>"), 1)),
        // Whatever stands within the signature, which does not cover itself.
        format!("{head}{}", signed.replace("</ds:Signature>", &format!("{forged}</ds:Signature>"))),
        format!(
            "{head}{}",
            signed.replace(
                "</ds:Signature>",
                &format!("<ds:Object>{forged}</ds:Object></ds:Signature>")
            )
        ),
        format!(
            "{head}{}",
            signed
                .replace("<ds:X509Data>", &format!("<Body>{forged}</Body><ds:X509Data>"))
                .replace("SN-1", "SN-9")
        ),
        // Two signatures.
        format!(
            "{head}{}",
            signed
                .replace("</s:Shipment>", &format!("{}</s:Shipment>", &signed[signature.clone()]))
        ),
        // A reference to a part.
        format!(
            "{head}{}",
            signed.replace("<s:Body>", "<s:Body Id=\"b\">").replace("URI=\"\"", "URI=\"#b\"")
        ),
        format!("{head}{}", signed.replace("#enveloped-signature", "#base64")),
    ] {
        let outcome = shipment(&attack);
        let refused = code(outcome);
        assert!(
            matches!(refused, "SHIPMENT_SIGNATURE" | "SHIPMENT_MALFORMED"),
            "{refused}: {}",
            &attack[..200]
        );
    }
}

#[test]
fn any_change_of_what_is_signed_is_seen() {
    let good = text("inclusive.xml");
    for (from, to) in [
        ("SN-2", "SN-4"),
        ("4D4D4D0000000002", "4D4D4D0000000009"),
        ("name=\"GUEK_MC\"", "name=\"GAK_MC\""),
        ("WrapKeyLabel=\"W1\"", "WrapKeyLabel=\"W2\""),
        ("B-17", "B-18"),
        ("a comment", "a comment"),
        ("<s:Body>", "<s:Body>\n"),
        ("kw-aes256", "aes256-cbc"),
        ("</s:Header>", "</s:Header><!-- -->"),
    ] {
        let changed = good.replace(from, to);
        let due = match from {
            // Neither is signed, nor read.
            "a comment" | "</s:Header>" => "taken",
            _ => "SHIPMENT_SIGNATURE",
        };
        assert_eq!(code(shipment(&changed)), due, "{from}");
    }
    let (before, _) = good.split_once("<ds:Signature ").unwrap();
    assert_eq!(code(shipment(&format!("{before}</s:Shipment>"))), "SHIPMENT_UNSIGNED");
    let sha1 = good.replace("xmldsig-more#rsa-sha256", "x#rsa-sha1");
    assert_eq!(code(shipment(&sha1)), "SHIPMENT_ALGORITHM");
}

#[test]
fn a_file_that_is_cut_anywhere_gives_nothing() {
    let good = file("exclusive.xml");
    for len in (0..good.len() - 1).step_by(97).chain([good.len() - 2]) {
        let cut = Zeroizing::new(good[..len].to_vec());
        let outcome = open(cut, ShipmentFormat::Shipment, signed_by("anchor.pem"));
        assert!(matches!(code(outcome), "SHIPMENT_MALFORMED"), "{len}");
    }
}

#[test]
fn entities_and_what_has_no_end_are_refused_before_they_unfold() {
    let bomb = r#"<!DOCTYPE s [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><Shipment>&b;</Shipment>"#;
    let error = shipment(bomb).unwrap_err();
    assert!(error.to_string().contains("DOCTYPE"), "{error}");
    let outside = r#"<!DOCTYPE s SYSTEM "file:///etc/passwd"><Shipment/>"#;
    assert_eq!(code(shipment(outside)), "SHIPMENT_MALFORMED");
    assert_eq!(code(shipment("<Shipment>&b;</Shipment>")), "SHIPMENT_MALFORMED");
    let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
    assert_eq!(code(shipment(&deep)), "SHIPMENT_TOO_LARGE");
    let twice = text("exclusive.xml").replace("<s:Body>", "<s:Body Id=\"x\"><a ID=\"x\"/>");
    assert!(shipment(&twice).unwrap_err().to_string().contains("one Id"));
    assert_eq!(code(shipment("no XML at all")), "SHIPMENT_MALFORMED");
    assert_eq!(code(shipment("<Shipment/>")), "SHIPMENT_UNSIGNED");
}

#[test]
fn a_kem_file_gives_its_keys_and_a_warning() {
    let taken = kem(file("meters.kem")).unwrap();
    assert_eq!(
        told(&taken),
        [1, 2].map(|n| format!("6800000{n} 4B414D000000000{n} GUEK={}", key(&format!("DEK {n}"))))
    );
    assert!(taken.origin().warnings[0].contains("nothing in a KEM file is authenticated"));
    assert_eq!(taken.origin().signed_by, None);
    for name in ["devices.kem2", "devices.zip"] {
        let taken = kem(file(name)).unwrap();
        let due = |n| {
            let [guek, gak] = ["GPK60", "GPK61"].map(|of| key(&format!("{of} {n}")));
            format!("3600000{n} 4B414D450100000{n} GUEK={guek} GAK={gak} -KEK")
        };
        assert_eq!(told(&taken), [1, 2].map(due), "{name}");
    }
}

#[test]
fn a_kem_file_of_another_password_or_another_form_is_refused() {
    let other = KEM.replace("\"password\"", "\"titles.csv\"");
    let bytes = || Zeroizing::new(file("meters.kem"));
    let error = open(bytes(), ShipmentFormat::Kem, supplier(&other).unwrap()).unwrap_err();
    assert!(error.to_string().contains("1 to 16 bytes"), "{error}");
    let dir = KEM.replace("password_file = \"password\"", "password_file = \"password2\"");
    assert!(supplier(&dir).is_err());
    let good = text("meters.kem");
    let at = good.find("<CipherValue>").unwrap() + 13;
    // Its first blocks: CBC changes one block and leaves the rest whole.
    for nth in [0, 8, 22, 44] {
        let mut changed = good.clone().into_bytes();
        changed[at + nth] = if changed[at + nth] == b'A' { b'B' } else { b'A' };
        assert_eq!(code(kem(changed)), "SHIPMENT_DOES_NOT_OPEN", "{nth}");
    }
    let mut cut = good.clone();
    cut.replace_range(at..at + 24, "");
    assert_eq!(code(kem(cut.into_bytes())), "SHIPMENT_DOES_NOT_OPEN");
    assert_eq!(
        code(kem(good.replace("aes128-cbc", "tripledes-cbc").into_bytes())),
        "SHIPMENT_ALGORITHM"
    );
    assert_eq!(code(kem(b"PK\x03\x04 no zip".to_vec())), "SHIPMENT_MALFORMED");
    let mut zip = file("devices.zip");
    let middle = zip.len() / 2;
    zip[middle] ^= 1;
    assert_eq!(code(kem(zip)), "SHIPMENT_MALFORMED");
}

/// Whoever makes files and sees the answers learns one thing: that it does not open.
#[test]
fn whatever_is_wrong_with_what_is_encrypted_is_told_alike() {
    use encryption::{KeyMethod, ValueMethod, WrapKeys};
    let pem = text("rsa-1-5.key");
    let keys = WrapKeys::from_pem(None, Some(&pem)).unwrap();
    let mut answers = Vec::new();
    for wrapped in [vec![], vec![0; 256], vec![1; 256], vec![0xFF; 256], vec![2; 999]] {
        // There is a key, each time another one.
        answers.push(keys.unwrap(KeyMethod::Rsa15, &wrapped).unwrap().to_vec());
        answers.push(keys.unwrap(KeyMethod::Rsa15, &wrapped).unwrap().to_vec());
    }
    answers.sort();
    answers.dedup();
    assert_eq!(answers.len(), 10);
    assert!(answers.iter().all(|key| key.len() == 32));
    let oaep = WrapKeys::from_pem(Some(&text("unwrap.key")), None).unwrap();
    for wrapped in [vec![], vec![0; 256], vec![1; 256], vec![0xFF; 256]] {
        let method =
            KeyMethod::of(Some("http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p"), None, None);
        assert_eq!(oaep.unwrap(method.unwrap(), &wrapped), Err(ShipmentError::DoesNotOpen));
    }
    for method in [ValueMethod::Cbc(Some(32)), ValueMethod::Gcm(32), ValueMethod::KeyWrap(32)] {
        for len in [0, 1, 15, 16, 17, 24, 31, 33, 40, 48] {
            // A key that fits no value: no padding that would say more.
            assert_eq!(
                method.open(&[0x5A; 32], &vec![0; len]),
                Err(encryption::DoesNotOpen),
                "{method:?} {len}"
            );
        }
        assert_eq!(method.open(&[0x5A; 16], &[0; 48]), Err(encryption::DoesNotOpen));
    }
}

#[test]
fn a_cbc_file_of_which_one_value_does_not_open_gives_nothing() {
    let permitted = "trust_anchor = \"ec-signer.pem\"\nrsa_1_5_key = \"rsa-1-5.key\"\n";
    let supplier = || supplier(&format!("{permitted}{KEYS}")).unwrap();
    let mut taken = open_as(&text("rsa-1-5.xml"), supplier()).unwrap();
    let check = opening::check_values;
    assert!(check(&taken).is_ok());
    if let Some((_, value::Value::Wrapped { encrypted, .. })) = taken.devices[1].keys.first_mut() {
        encrypted.truncate(32);
    }
    assert_eq!(check(&taken), Err(ShipmentError::DoesNotOpen));
}

#[test]
fn a_bad_device_is_told_and_leaves_the_others_alone() {
    let mut taken = shipment(&text("exclusive.xml")).unwrap();
    taken.devices[0].meter_id = "two words".to_owned();
    taken.devices[1].system_title = None;
    let said = told(&taken);
    assert!(said[0].starts_with("element 1: its id"), "{}", said[0]);
    assert!(said[1].starts_with("element 2: meter SN-2: neither the file"), "{}", said[1]);
    assert_eq!(said[2], meter(3, true));
    if let Some((_, value::Value::Wrapped { encrypted, .. })) = taken.devices[2].keys.first_mut() {
        encrypted[7] ^= 1;
    }
    assert_eq!(
        told(&taken)[2],
        "element 3: meter SN-3: a value does not open to a key of 16 or 32 bytes"
    );
    let kek =
        |(name, value): &(String, value::Value)| taken.may_take(name, value).map(|it| it.kind);
    let kinds: Vec<_> = taken.devices[2].keys.iter().filter_map(|it| kek(it).ok()).collect();
    assert_eq!(kinds, [KeyKind::Guek, KeyKind::Gak, KeyKind::Kek]);
}
