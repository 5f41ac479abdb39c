//! The keys of a meter rotated from end to end, by the real programs over SoftHSM. The meter is the test's: it opens and
//! answers with `dlms`, and knows its KEK.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::time::Duration;

use common::{
    client, eventually,
    fleet::{GAK, GUEK, PLAIN, add, apdu, id, push_with, title, value},
    home, programs,
};
use dlms::{CipheredApdu, GeneralCipheringAad, Keys, SystemTitle};
use kms_client::{
    CallError, CounterDeclaration, CounterPurpose, KeyInfo, KeyKind, KeyPlace, KeyState, KmsClient,
    MeterName, NextTransfer, Opened, PlainApdu, PromoteOptions, Protecting, StageOptions,
    StateReason, TransferOptions, TransferResult, Verdict,
};
use softhsm_tests::{Pair, Role, Running, Setting, SiteOptions};
use tempfile::TempDir;

const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");
const KEK: u8 = 3;
const N: u64 = 7;
const INVOKE: u8 = 0xC1;
/// action-response-normal, success.
const TAKEN: &[u8] = &[0xC7, 0x01, INVOKE, 0x00, 0x00];
const GET: &[u8] = b"\xC0\x01\xC1\x00\x08\x00\x00\x01\x00\x00\xFF\x02\x00";

/// What the meter has.
struct Meter {
    guek: Vec<u8>,
    gak: Vec<u8>,
}

impl Meter {
    fn new() -> Self {
        Self { guek: value(N, GUEK).to_vec(), gak: value(N, GAK).to_vec() }
    }

    fn line(&self) -> String {
        let hex = |bytes: &[u8]| hex::encode_upper(bytes);
        let (own, guek, gak) = (hex(title(N).as_bytes()), hex(&self.guek), hex(&self.gak));
        let (kek, client) = (hex(&value(N, KEK)), hex(CLIENT.as_bytes()));
        format!(
            r#"{{"meter_id":"{}","system_title":"{own}","keys":[{{"kind":"GUEK","value":"{guek}"}},{{"kind":"GAK","value":"{gak}"}},{{"kind":"KEK","value":"{kek}"}}],"policy":{{"client_title":"{client}"}}}}"#,
            id(N)
        )
    }

    /// Opens what the utility sent: its counter, and the plain APDU.
    fn open(&self, bytes: &[u8]) -> (u32, Vec<u8>) {
        let apdu = CipheredApdu::parse(bytes).unwrap();
        let keys = Keys { encryption: &self.guek, authentication: &self.gak };
        let mut plain = Vec::new();
        apdu.open(&keys, &CLIENT, GeneralCipheringAad::Spec, &mut plain).unwrap();
        (apdu.invocation_counter(), plain)
    }

    /// Takes a transfer: its counter, the wrapped key, and the key that it brings.
    fn take(&self, next: &NextTransfer) -> (u32, Vec<u8>, Vec<u8>) {
        assert_eq!(next.protected.verdict, Verdict::Ok, "{next:?}");
        let (counter, plain) = self.open(next.protected.apdu.as_ref().unwrap());
        let (head, wrapped) = plain.split_at(plain.len() - 24);
        // key_transfer of class 64, 0.0.43.0.0.255: one structure of key_id 0 (GUEK) and 24 bytes.
        let due =
            b"\xC3\x01\xC1\x00\x40\x00\x00\x2B\x00\x00\xFF\x02\x01\x01\x01\x02\x02\x16\x00\x09\x18";
        assert_eq!(head, due);
        let mut key = vec![0; 16];
        dlms::key_wrap::unwrap(&value(N, KEK), wrapped, &mut key).unwrap();
        (counter, wrapped.to_vec(), key)
    }

    fn send(&self, plain: &[u8]) -> Vec<u8> {
        push_with(N, 0x30, &self.guek, &self.gak, plain)
    }
}

fn guek() -> KeyPlace {
    KeyPlace { meter_id: id(N).parse().unwrap(), kind: KeyKind::Guek, security_setup: 0 }
}

async fn import(client: &KmsClient, meter: &Meter) {
    add(client, &[meter.line()]).await;
    let declaration = CounterDeclaration {
        meter: MeterName::Title(title(N)),
        security_setup: 0,
        client: 0,
        broadcast: false,
        last_invocation_counter: None,
    };
    client.meters().declare_counter(&declaration).await.unwrap();
}

/// The versions of the GUEK, oldest first.
async fn versions(client: &KmsClient) -> Vec<KeyInfo> {
    let meter = client.meters().get(&MeterName::Title(title(N))).await.unwrap();
    meter.keys.into_iter().filter(|key| key.kind == KeyKind::Guek).collect()
}

async fn next(client: &KmsClient) -> Result<NextTransfer, CallError> {
    let options = TransferOptions { invoke_id_and_priority: INVOKE, ..TransferOptions::default() };
    client.rotation().next_transfer(&guek(), options).await
}

/// The same of a site that has just started: until the other one has confirmed its counters it sends nothing.
async fn first_next(client: &KmsClient) -> NextTransfer {
    eventually("the other site has confirmed the counters", || async {
        next(client).await.unwrap().protected.verdict == Verdict::Ok
    })
    .await;
    next(client).await.unwrap()
}

async fn open(client: &KmsClient, bytes: Vec<u8>) -> Opened {
    client.decrypt(&apdu(bytes)).await.unwrap()
}

/// Whether the second version is proved by what the meter sent.
async fn is_proved(client: &KmsClient) -> bool {
    let versions = versions(client).await;
    assert_eq!(versions.len(), 2, "{versions:?}");
    let newer = &versions[1];
    newer.state == KeyState::Active && newer.reason == StateReason::Evidence && newer.preferred
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meters_key_is_staged_sent_twice_taken_and_proved_by_its_first_push() {
    let home = home();
    let running = home.start().unwrap();
    let (dev, rotator) = (client(&home, Role::Dev).await, client(&home, Role::Rotator).await);
    let mut meter = Meter::new();
    import(&dev, &meter).await;

    let staged = rotator.rotation().stage(&guek(), StageOptions::default()).await.unwrap();
    assert!(staged.proved && !staged.already, "{staged:?}");
    assert_eq!((staged.key.version, staged.key.state), (2, KeyState::PreActive));
    let again = dev.rotation().stage(&guek(), StageOptions::default()).await.unwrap();
    assert!(again.already && again.key == staged.key, "whoever asks: {again:?}");

    // The first one is lost on its way.
    let (first, wrapped, key) = meter.take(&next(&rotator).await.unwrap());
    let (second, the_same, _) = meter.take(&next(&rotator).await.unwrap());
    assert!(wrapped == the_same && second > first, "{first} {second}");
    let kcv = dlms::cmac::compute(&key, &[0; 16]).unwrap();
    assert_eq!(
        staged.key.kcv,
        hex::encode_upper(&kcv[..5]),
        "the service and the meter have one key"
    );
    assert!(
        key != meter.guek && versions(&dev).await[1].transfer.as_ref().unwrap().sent_ms.is_some()
    );

    // It answers under the old key: no more than a hint.
    let opened = open(&dev, meter.send(TAKEN)).await;
    assert_eq!(opened.checked.encryption_key_version, Some(1), "{opened:?}");
    let answer = opened.plaintext.as_deref().unwrap();
    assert_eq!(dlms::class64::action_result(answer), Some((INVOKE, 0)));
    let confirmed = rotator.rotation().confirm(&guek(), TransferResult::Success).await.unwrap();
    assert_eq!(confirmed.key.state, KeyState::PreActive);
    assert!(versions(&dev).await[0].preferred, "until the meter shows the new one");

    meter.guek = key;
    let opened = open(&dev, meter.send(PLAIN)).await;
    assert_eq!((opened.verdict(), opened.checked.encryption_key_version), (Verdict::Ok, Some(2)));
    eventually("the push proves the key", || is_proved(&dev)).await;
    let former = &versions(&dev).await[0];
    assert!(former.state == KeyState::Active && former.usable_until_ms.is_some(), "{former:?}");
    // What is sent from now on is under it, and nobody had to declare a counter.
    let plain = PlainApdu { bytes: GET.into(), meter: MeterName::Title(title(N)) };
    let sent = dev.encrypt(&plain, Protecting::default()).await.unwrap();
    assert_eq!((sent.verdict, sent.encryption_key_version), (Verdict::Ok, 2), "{sent:?}");
    assert_eq!(meter.open(sent.apdu.as_ref().unwrap()).1, GET);
    // Who says that it is something else is not believed.
    for purpose in [CounterPurpose::KeyTransfer, CounterPurpose::Hls] {
        let claimed = Protecting { purpose, ..Protecting::default() };
        let refused = dev.encrypt(&plain, claimed).await.unwrap();
        assert_eq!(refused.verdict, Verdict::PolicyRefused, "{refused:?}");
        assert_eq!(refused.refusal.map(|it| it.word()), Some("PURPOSE_MISMATCH"));
    }

    // For people, too.
    let said = home.ami_tool(Role::Dev).succeed(&["meter", "get", &id(N)]).unwrap();
    let line = said.lines().find(|line| line.contains("GUEK") && line.contains("v2  ")).unwrap();
    assert!(line.contains("EVIDENCE since") && line.ends_with("preferred"), "{said}");
    running.stop().unwrap();
}

fn pair() -> (TempDir, Pair, (Running, Running)) {
    let dir = tempfile::Builder::new().prefix("kms-pair-").tempdir_in("/dev/shm").unwrap();
    let set = |key, value: &str| Setting { section: "peer", key, value: value.to_owned() };
    let settings = vec![set("heartbeat_ms", "300"), set("write_wait_ms", "2000")];
    let options = SiteOptions { settings, ..SiteOptions::default() };
    let pair = Pair::make(dir.path(), &programs(), &options).unwrap();
    let running = pair.start().unwrap();
    (dir, pair, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_goes_to_a_meter_that_one_site_alone_has_unless_somebody_says_so() {
    let (_dir, pair, (a, b)) = pair();
    let at_a = client(&pair.a, Role::Dev).await;
    let meter = Meter::new();
    import(&at_a, &meter).await;
    // The other site has the line of the old key's counters, as of any meter that was sent to.
    let plain = PlainApdu { bytes: GET.into(), meter: MeterName::Title(title(N)) };
    eventually("the other site has confirmed the counters", || async {
        at_a.encrypt(&plain, Protecting::default()).await.unwrap().verdict == Verdict::Ok
    })
    .await;
    b.stop().unwrap();

    let not_proved = |error: CallError| {
        assert!(
            matches!(&error, CallError::Refused { code, .. } if code == "NOT_PROVED"),
            "{error}"
        );
    };
    let staged = at_a.rotation().stage(&guek(), StageOptions::default()).await;
    not_proved(staged.unwrap_err());
    not_proved(next(&at_a).await.unwrap_err());
    let held = versions(&at_a).await.remove(1);
    assert_eq!(held.transfer.as_ref().unwrap().sent_ms, None, "nothing was handed out");

    let risk = StageOptions { allow_unreplicated: true, ..StageOptions::default() };
    let staged = at_a.rotation().stage(&guek(), risk).await.unwrap();
    assert!(staged.already && !staged.proved && staged.reason.is_some(), "{staged:?}");
    assert_eq!(staged.key.key_id, held.key_id);
    meter.take(&next(&at_a).await.unwrap());

    let b = pair.b.start().unwrap();
    eventually("it is caught up and proved", || async {
        let staged = at_a.rotation().stage(&guek(), StageOptions::default()).await;
        staged.is_ok_and(|it| it.proved && it.key.key_id == held.key_id)
    })
    .await;
    b.stop().unwrap();
    a.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_takes_over_in_mid_rotation_opens_the_push_and_takes_it_for_evidence() {
    let (_dir, pair, (a, b)) = pair();
    let (at_a, at_b) = (client(&pair.a, Role::Dev).await, client(&pair.b, Role::Dev).await);
    let mut meter = Meter::new();
    import(&at_a, &meter).await;
    assert!(at_a.rotation().stage(&guek(), StageOptions::default()).await.unwrap().proved);
    let (_, _, key) = meter.take(&first_next(&at_a).await);
    // The meter took it, and its site is gone before anybody heard that.
    a.kill_9().unwrap();
    meter.guek = key;
    let opened = open(&at_b, meter.send(PLAIN)).await;
    assert_eq!((opened.verdict(), opened.checked.encryption_key_version), (Verdict::Ok, Some(2)));
    assert_eq!(
        versions(&at_b).await[1].state,
        KeyState::PreActive,
        "it follows, and writes nothing"
    );

    // By now it has tried to write what it saw, which a site that follows can't.
    tokio::time::sleep(Duration::from_millis(500)).await;

    let standing = at_b.site_status().await.unwrap().standing.unwrap();
    let options = PromoteOptions {
        expected_epoch: standing.epoch,
        primary_is_lost: true,
        // Its first round of proofs takes longer than this test.
        although_unproved: true,
        ..PromoteOptions::default()
    };
    at_b.promote_site(options).await.unwrap();
    // What it opened while it followed is not forgotten.
    eventually("the push proves the key", || is_proved(&at_b)).await;
    b.stop().unwrap();
}
