//! Made-up meters: what an import says of them, and what they send.

use std::sync::atomic::{AtomicU32, Ordering};

use dlms::{
    Envelope, FreshCounter, GeneralCipheringAad, Keys, Protection as Seal, SecurityControl,
    SystemTitle,
};
use kms_client::{
    Apdu, ImportFormat, ImportRecords, ImportResult, ImportRules, KmsClient, MeterRecord,
};
use tokio_stream::StreamExt as _;

pub const PLAIN: &[u8] = b"\x0F\x00\x00\x00\x01data notification";
pub const GUEK: u8 = 1;
pub const GAK: u8 = 2;

/// The n-th meter.
pub fn title(n: u64) -> SystemTitle {
    SystemTitle::new((0x414D_4900_0000_0000 | n).to_be_bytes())
}

pub fn id(n: u64) -> String {
    format!("meter-{n}")
}

/// A key value that nobody else has; `salt` tells kinds and versions apart.
pub fn value(n: u64, salt: u8) -> [u8; 16] {
    let first = super::Numbers(n << 8 | u64::from(salt)).next();
    let second = super::Numbers(first).next();
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_be_bytes());
    bytes[8..].copy_from_slice(&second.to_be_bytes());
    bytes
}

fn line_with(n: u64, guek: &[u8], gak: &[u8], protection: &str) -> String {
    let (title, guek, gak) =
        (hex::encode_upper(title(n).as_bytes()), hex::encode_upper(guek), hex::encode_upper(gak));
    format!(
        r#"{{"meter_id":"{}","system_title":"{title}","keys":[{{"kind":"GUEK","value":"{guek}"{protection}}},{{"kind":"GAK","value":"{gak}"}}]}}"#,
        id(n)
    )
}

/// Its line in an import file: GUEK and GAK.
pub fn line(n: u64) -> String {
    line_with(n, &value(n, GUEK), &value(n, GAK), "")
}

/// The same, its GUEK of protection HSM.
pub fn line_in_hsm(n: u64) -> String {
    line_with(n, &value(n, GUEK), &value(n, GAK), r#","protection":"HSM""#)
}

/// The parsed lines of a file.
pub fn parsed(text: &str) -> Vec<MeterRecord> {
    ImportRecords::new(std::io::Cursor::new(text.as_bytes().to_vec()), ImportFormat::JsonLines)
        .map(|line| line.unwrap())
        .collect()
}

/// Imports these lines and expects a result for each.
pub async fn import(client: &KmsClient, lines: &[String]) -> Vec<ImportResult> {
    import_with(client, lines, ImportRules::default()).await
}

pub async fn import_with(
    client: &KmsClient,
    lines: &[String],
    rules: ImportRules,
) -> Vec<ImportResult> {
    let results = client.meters().import(tokio_stream::iter(parsed(&lines.join("\n"))), rules);
    let results: Vec<_> = results.map(|result| result.unwrap()).collect().await;
    assert_eq!(results.len(), lines.len());
    results
}

/// Imports these lines and expects each to be accepted.
pub async fn add(client: &KmsClient, lines: &[String]) {
    for result in import(client, lines).await {
        assert!(result.code.is_empty(), "{result:?}");
    }
}

/// A fresh counter for each APDU of a test.
static COUNTER: AtomicU32 = AtomicU32::new(1);

pub fn counter() -> u32 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

pub fn push_with(n: u64, sc: u8, guek: &[u8], gak: &[u8], plain: &[u8]) -> Vec<u8> {
    let counter = counter();
    let protection = Seal {
        envelope: Envelope::GeneralGlo(Some(title(n))),
        security_control: SecurityControl::from_byte(sc).unwrap(),
        originator: title(n),
        keys: Keys { encryption: guek, authentication: gak },
        gc_aad: GeneralCipheringAad::Spec,
    };
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(counter);
    let mut out = Vec::new();
    dlms::protect(&protection, counter, plain, &mut out).unwrap();
    out
}

/// A push of meter `n` as it comes every quarter of an hour.
pub fn push(n: u64) -> Vec<u8> {
    push_with(n, 0x30, &value(n, GUEK), &value(n, GAK), PLAIN)
}

pub fn apdu(bytes: Vec<u8>) -> Apdu {
    Apdu::new(bytes).unwrap()
}
