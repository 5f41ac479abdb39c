//! Invariant 8 through the whole service: whatever bit of an authenticated APDU is changed, nothing
//! of it comes back, and the verdict says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use common::{
    client,
    fleet::{
        GAK, GUEK, PLAIN, add, apdu, id, import_with, line, line_in_hsm, push, push_with, title,
        value,
    },
    home,
};
use dlms::SystemTitle;
use kms_client::Verdict as V;
use kms_client::{Apdu, Checked, ImportRules, KmsClient, MeterId, Opened, StreamOptions, Verdict};
use softhsm_tests::{Role, fleet as published_fleet, vectors};
use tokio_stream::StreamExt as _;

/// Where the parts of a ciphered APDU begin. Before SC: tag, title (if any), length.
struct Layout {
    /// Of the title, where the APDU carries it.
    title: Option<usize>,
    security_control: usize,
    len: usize,
}

impl Layout {
    /// Of general-glo-ciphering and of the services' own tags.
    fn of(bytes: &[u8]) -> Self {
        let title = (bytes[0] == 0xDB).then_some(2);
        let length = title.map_or(1, |title| title + 8);
        let security_control = match bytes[length] {
            short if short < 0x80 => length + 1,
            long => length + 1 + usize::from(long & 0x7F),
        };
        Self { title, security_control, len: bytes.len() }
    }

    /// The verdicts that a flip of this bit may have. `control`: SC as it was.
    fn expected(&self, bit: usize, control: u8) -> &'static [Verdict] {
        let (byte, bit) = (bit / 8, bit % 8);
        if let Some(title) = self.title
            && (title..title + 8).contains(&byte)
        {
            return &[V::UnknownMeter];
        }
        if byte > self.security_control {
            return &[V::MicFailure]; // IC, ciphertext, tag
        }
        if byte < self.security_control {
            // Tag and lengths: another kind of APDU, or none.
            return &[V::Malformed, V::Unsupported, V::UnknownMeter, V::NoUsableKey, V::MicFailure];
        }
        match (bit, control & 0x20 != 0) {
            (4, true) => &[V::PolicyRefused],
            (4, false) => &[V::Unsupported, V::PolicyRefused, V::Malformed], // neither: unprotected
            (5, _) => &[V::MicFailure],
            (6, _) => &[V::NoUsableKey], // the broadcast key, which it has not
            (7, _) if self.title.is_none() => &[V::Malformed], // services have no compression
            (7, _) => &[V::Unsupported],
            (0, _) => &[V::MicFailure],  // suite 0 ↔ 1: both AES-128
            (1, _) => &[V::NoUsableKey], // suite 2: AES-256
            _ => &[V::Unsupported],      // no such suite
        }
    }
}

/// All APDUs that differ in one bit.
fn one_bit_off(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len() * 8).map(|bit| {
        let mut forged = bytes.to_vec();
        forged[bit / 8] ^= 1 << (bit % 8);
        forged
    })
}

/// The same APDU with its tag cut to `len` bytes and its length put right.
fn with_tag_of(bytes: &[u8], len: usize) -> Vec<u8> {
    let layout = Layout::of(bytes);
    assert!(layout.len < 0x80, "the length is one byte");
    let mut short = bytes[..bytes.len() - (12 - len)].to_vec();
    short[layout.security_control - 1] = (short.len() - layout.security_control) as u8;
    short
}

fn refused(opened: &Opened, expected: &[Verdict], what: &str) {
    assert!(expected.contains(&opened.verdict()), "{what}: {opened:?}");
    assert!(opened.plaintext.as_ref().is_none_or(|plain| plain.is_empty()), "{what}: {opened:?}");
    refused_check(&opened.checked, expected, what);
}

fn refused_check(checked: &Checked, expected: &[Verdict], what: &str) {
    assert!(expected.contains(&checked.verdict), "{what}: {checked:?}");
    assert!(!checked.authenticated, "{what}: {checked:?}");
}

/// Every one of these through `DecryptBatch`, `DecryptStream`, `VerifyMicBatch` and `VerifyMicStream`.
async fn all_refused_in_batches(
    client: &KmsClient,
    apdus: &[Apdu],
    expected: impl Fn(usize) -> &'static [Verdict],
    what: &str,
) {
    let batch = client.decrypt_batch(apdus.to_vec()).await.unwrap();
    let stream: Vec<_> = client.decrypt_stream(tokio_stream::iter(apdus.to_vec())).collect().await;
    let stream: Vec<_> = stream.into_iter().map(|opened| opened.unwrap()).collect();
    let checks = client.verify_mic_batch(apdus.to_vec()).await.unwrap();
    let checked: Vec<_> =
        client.verify_mic_stream(tokio_stream::iter(apdus.to_vec())).collect().await;
    let checked: Vec<_> = checked.into_iter().map(|checked| checked.unwrap()).collect();
    for answers in [batch.len(), stream.len(), checks.len(), checked.len()] {
        assert_eq!(answers, apdus.len(), "{what}");
    }
    for index in 0..apdus.len() {
        let (what, expected) = (format!("{what}, {index}"), expected(index));
        refused(&batch[index], expected, &what);
        refused(&stream[index], expected, &what);
        refused_check(&checks[index], expected, &what);
        refused_check(&checked[index], expected, &what);
    }
}

/// And these one by one through `Decrypt` and `VerifyMic`, too.
async fn all_refused(client: &KmsClient, apdus: &[Apdu], expected: &'static [Verdict], what: &str) {
    all_refused_in_batches(client, apdus, |_| expected, what).await;
    for (index, apdu) in apdus.iter().enumerate() {
        let what = format!("{what}, {index}, unary");
        refused(&client.decrypt(apdu).await.unwrap(), expected, &what);
        refused_check(&client.verify_mic(apdu).await.unwrap(), expected, &what);
    }
}

async fn opens(client: &KmsClient, apdu: &Apdu, plain: &[u8]) {
    let opened = client.decrypt(apdu).await.unwrap();
    assert_eq!((opened.verdict(), opened.authenticated), (V::Ok, true), "{opened:?}");
    assert_eq!(opened.plaintext.as_deref(), Some(plain));
    assert_eq!(client.verify_mic(apdu).await.unwrap().verdict, V::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_8_a_published_apdu_with_any_bit_flipped_gives_nothing() {
    let home = home();
    let _running = home.start().unwrap();
    let published = vectors::published().unwrap();
    let mut lines = published_fleet::meters(&published);
    // What is published in part is allowed in the demonstration. Here it would hide a downgrade.
    for line in &mut lines {
        line.policy.allow_encryption_only = false;
        line.policy.allow_withheld_authentication_key = false;
    }
    let titles: Vec<(String, SystemTitle)> = lines
        .iter()
        .map(|line| {
            (line.meter_id.clone(), kms_client::parse_system_title(&line.system_title).unwrap())
        })
        .collect();
    let lines: Vec<String> =
        lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
    let admin = client(&home, Role::AmiAdmin).await;
    let rules = ImportRules { allow_test_keys: true, ..ImportRules::default() };
    for result in import_with(&admin, &lines, rules).await {
        assert!(result.code.is_empty(), "{result:?}");
    }
    let hes = client(&home, Role::Hes)
        .await
        .with_options(StreamOptions { batch_size: 500, ..StreamOptions::default() });
    let (mut flips, mut apdus, mut other_services) = (0, 0, 0);
    for (vector, telegram) in published.iter().zip(published_fleet::telegrams(&published)) {
        if !matches!(vector.class.as_bytes()[0], b'1' | b'2') || telegram.verdict != "OK" {
            continue;
        }
        let bytes = hex::decode(&vector.apdu_hex).unwrap();
        let title = titles.iter().find(|(id, _)| *id == telegram.meter_id).unwrap().1;
        let named = |bytes: Vec<u8>| match &telegram.request.meter {
            Some(meter) => apdu(bytes).of_meter(MeterId::new(meter).unwrap()),
            None => apdu(bytes),
        };
        opens(&hes, &named(bytes.clone()), &hex::decode(&vector.plaintext_hex).unwrap()).await;
        let layout = Layout::of(&bytes);
        assert_eq!(bytes[layout.security_control], vector.security_control(), "{}", vector.id);
        assert_eq!(layout.len, bytes.len());
        // The tag of a service stands outside of what DLMS authenticates; it is looked at below.
        let first = if layout.title.is_some() { 0 } else { 8 };
        let forged: Vec<Apdu> = one_bit_off(&bytes).skip(first).map(named).collect();
        let expected = |index| layout.expected(first + index, vector.security_control());
        all_refused_in_batches(&hes, &forged, expected, &vector.id).await;
        flips += forged.len();
        for forged in one_bit_off(&bytes).take(first) {
            let opened = hes.decrypt(&named(forged)).await.unwrap();
            let plain = opened.plaintext.as_deref().unwrap_or_default();
            if opened.verdict() == V::Ok {
                assert_eq!(hex::encode_upper(plain), vector.plaintext_hex, "{}", vector.id);
                other_services += 1;
            } else {
                assert!(plain.is_empty() && !opened.verdict().opened(), "{opened:?}");
            }
        }
        apdus += 1;
        if telegram.request.meter.is_some() {
            // Its title stands beside it: there, too, any bit makes it another meter.
            let wrong: Vec<Apdu> = one_bit_off(title.as_bytes())
                .map(|title| SystemTitle::new(title.try_into().unwrap()))
                .map(|title| apdu(bytes.clone()).of_system_title(title))
                .collect();
            all_refused_in_batches(&hes, &wrong, |_| &[V::UnknownMeter], &vector.id).await;
            flips += wrong.len();
        }
    }
    println!("{apdus} published APDUs, {flips} flipped bits, each through four calls: none opened");
    println!(
        "{other_services} flips of a service's tag, which DLMS does not authenticate: the plaintext, \
         which says what it is, came back as it was sent"
    );
    assert!(apdus >= 20, "{apdus}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_8_a_push_changed_in_any_way_gives_nothing_wherever_its_key_is() {
    let home = home();
    let _running = home.start().unwrap();
    add(&client(&home, Role::AmiAdmin).await, &[line(1), line_in_hsm(2)]).await;
    let hes = client(&home, Role::Hes).await;
    for n in [1, 2] {
        let bytes = push(n);
        opens(&hes, &apdu(bytes.clone()), PLAIN).await;
        let layout = Layout::of(&bytes);
        let forged: Vec<Apdu> = one_bit_off(&bytes).map(apdu).collect();
        let expected = |bit| layout.expected(bit, 0x30);
        all_refused_in_batches(&hes, &forged, expected, &id(n)).await;
        // Each bit of SC and of the tag through the unary calls as well.
        let sc = layout.security_control * 8;
        for bit in (sc..sc + 8).chain((bytes.len() - 12) * 8..bytes.len() * 8) {
            let what = format!("{}, bit {bit}, unary", id(n));
            refused(&hes.decrypt(&forged[bit]).await.unwrap(), expected(bit), &what);
            refused_check(&hes.verify_mic(&forged[bit]).await.unwrap(), expected(bit), &what);
        }
        println!("{}: {} flipped bits: none opened", id(n), forged.len());
        opens(&hes, &apdu(bytes), PLAIN).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_8_a_tag_of_any_other_length_or_under_another_key_gives_nothing() {
    let home = home();
    let _running = home.start().unwrap();
    add(&client(&home, Role::AmiAdmin).await, &[line(1), line_in_hsm(2), line(3)]).await;
    let hes = client(&home, Role::Hes).await;
    for n in [1, 2] {
        let bytes = push(n);
        opens(&hes, &apdu(bytes.clone()), PLAIN).await;
        let short: Vec<Apdu> = (0..12).map(|len| apdu(with_tag_of(&bytes, len))).collect();
        all_refused(&hes, &short, &[V::MicFailure], &format!("{}, short tags", id(n))).await;
        let tags: Vec<Apdu> = [[0; 12], [0xFF; 12]]
            .into_iter()
            .map(|tag| {
                let mut forged = bytes.clone();
                let at = forged.len() - 12;
                forged[at..].copy_from_slice(&tag);
                apdu(forged)
            })
            .collect();
        all_refused(&hes, &tags, &[V::MicFailure], "made-up tags").await;
        let (guek, gak) = (value(n, GUEK), value(n, GAK));
        let wrong = [
            push_with(n, 0x30, &guek, &value(3, GAK), PLAIN),
            push_with(n, 0x30, &guek, &[0; 16], PLAIN),
            push_with(n, 0x10, &guek, &value(3, GAK), PLAIN),
            push_with(n, 0x30, &value(3, GUEK), &gak, PLAIN),
            push_with(n, 0x30, &gak, &guek, PLAIN),
        ];
        all_refused(&hes, &wrong.map(apdu), &[V::MicFailure], "wrong keys").await;
        // Right keys, another meter's title beside it: the nonce is not that one's.
        let borrowed = apdu(push(n)).of_system_title(title(3));
        let opened = hes.decrypt(&borrowed).await.unwrap();
        assert!(!opened.verdict().opened(), "{opened:?}");
        // An APDU without content, tag only: every length below the whole tag.
        let empty = push_with(n, 0x30, &guek, &gak, &[]);
        let short: Vec<Apdu> = (0..12).map(|len| apdu(with_tag_of(&empty, len))).collect();
        all_refused(&hes, &short, &[V::MicFailure, V::Malformed], "short tags of nothing").await;
    }
}
