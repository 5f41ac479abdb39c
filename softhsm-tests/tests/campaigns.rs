//! A campaign from end to end, by the real programs over SoftHSM: begun and watched with `ami-tool`, driven through the client
//! as a head-end system would. The meter is the test's: it opens and answers with `dlms`, and knows its KEK.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use common::{
    client,
    fleet::{GAK, GUEK, PLAIN, add, id, push_with, title, value},
    home,
};
use dlms::{CipheredApdu, GeneralCipheringAad, Keys, SystemTitle};
use kms_client::{
    CallError, CampaignStatus, CounterDeclaration, KeyKind, KeyPair, KeyPlace, KmsClient,
    MeterName, TransferOptions, TransportOutcome, Verdict, Work, WorkAction, WorkReport,
    WorkVerdict,
};
use serde_json::Value;
use softhsm_tests::Role;

const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");
const KEK: u8 = 3;
const N: u64 = 7;
/// action-response-normal, success.
const TAKEN: &[u8] = &[0xC7, 0x01, 0xC1, 0x00, 0x00];

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

    /// The key that a transfer brings.
    fn brought_by(&self, bytes: &[u8]) -> Vec<u8> {
        let apdu = CipheredApdu::parse(bytes).unwrap();
        let keys = Keys { encryption: &self.guek, authentication: &self.gak };
        let mut plain = Vec::new();
        apdu.open(&keys, &CLIENT, GeneralCipheringAad::Spec, &mut plain).unwrap();
        let mut key = vec![0; 16];
        let wrapped = &plain[plain.len() - 24..];
        dlms::key_wrap::unwrap(&value(N, KEK), wrapped, &mut key).unwrap();
        key
    }

    fn send(&self, plain: &[u8]) -> Vec<u8> {
        push_with(N, 0x30, &self.guek, &self.gak, plain)
    }
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

async fn report(
    hes: &KmsClient,
    lease: u64,
    outcome: TransportOutcome,
    apdu: Vec<u8>,
) -> WorkVerdict {
    let report = WorkReport {
        meter_id: id(N).parse().unwrap(),
        lease,
        outcome,
        apdus: vec![apdu.into()],
        pairs_tried: Vec::new(),
        end: false,
    };
    hes.rotation().report_work(&[report]).await.unwrap().remove(0)
}

fn next(verdict: WorkVerdict) -> Work {
    verdict.next.unwrap_or_else(|| panic!("{:?} {:?}", verdict.code, verdict.reason))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_is_begun_driven_to_its_end_and_watched() {
    let home = home();
    let running = home.start().unwrap();
    let (dev, hes) = (client(&home, Role::Dev).await, client(&home, Role::Rotator).await);
    let mut meter = Meter::new();
    import(&dev, &meter).await;
    let tool = home.ami_tool(Role::Dev);

    let dry = ["rotate", "start", "spring", "--kinds", "guek", "--all", "--dry-run"];
    let said = tool.succeed(&dry).unwrap();
    assert!(said.contains("1 meters would come in, 0 are left out"), "{said}");
    assert!(said.contains("label ") && said.contains("nothing was begun"), "{said}");
    assert!(tool.succeed(&["rotate", "list"]).unwrap().contains("no campaign is remembered"));
    let said = tool.succeed(&dry[..6]).unwrap();
    assert!(said.contains("1 meters came in") && said.contains("spring is RUNNING"), "{said}");

    // The meter goes first of its label.
    let work = hes.rotation().take_work(Some("spring"), "hes-1", 16).await.unwrap().work.remove(0);
    assert_eq!(
        (work.action, work.canary, work.version),
        (WorkAction::Transfer, true, 2),
        "{work:?}"
    );
    let one = KeyPair { encryption_key_version: 1, authentication_key_version: 1 };
    assert_eq!(work.pairs, [one]);
    let place =
        KeyPlace { meter_id: id(N).parse().unwrap(), kind: KeyKind::Guek, security_setup: 0 };
    let under = TransferOptions {
        encryption_key_version: 1,
        authentication_key_version: 1,
        invoke_id_and_priority: 0xC1,
        lease: work.lease,
        ..TransferOptions::default()
    };
    let another = TransferOptions { lease: work.lease ^ 2, ..under };
    let refused = hes.rotation().next_transfer(&place, another).await.unwrap_err();
    assert!(
        matches!(&refused, CallError::Refused { code, .. } if code == "LEASE_OVER"),
        "{refused}"
    );
    let sent = hes.rotation().next_transfer(&place, under).await.unwrap();
    assert_eq!(sent.protected.verdict, Verdict::Ok, "{sent:?}");
    let key = meter.brought_by(sent.protected.apdu.as_ref().unwrap());

    // It answers under its former key, which proves nothing.
    let (lease, answered) = (work.lease, TransportOutcome::Answered);
    let probe = next(report(&hes, lease, answered, meter.send(TAKEN)).await);
    assert_eq!(probe.action, WorkAction::Probe, "{probe:?}");
    assert_eq!(probe.pairs[0].encryption_key_version, 2, "{probe:?}");
    let stuck = tool.succeed(&["rotate", "meter", &id(N)]).unwrap();
    assert!(
        stuck.contains("campaign spring") && stuck.contains("SENT, canary, exposed"),
        "{stuck}"
    );
    assert!(stuck.contains("tried  ") && stuck.contains("  1/1  ANSWERED  DB"), "{stuck}");
    assert!(stuck.contains("next  ami-tool key next-transfer "), "{stuck}");

    meter.guek = key;
    let restart = next(report(&hes, lease, answered, meter.send(PLAIN)).await);
    assert_eq!(restart.action, WorkAction::Restart, "{restart:?}");
    let over = report(&hes, lease, TransportOutcome::Restarted, meter.send(PLAIN)).await;
    assert_eq!(over.state.map(|state| state.word()), Some("DONE"), "{over:?}");
    let late = report(&hes, lease, answered, meter.send(PLAIN)).await;
    assert_eq!(late.code.as_deref(), Some("LEASE_OVER"), "{late:?}");

    let watched = json(&tool.succeed(&["rotate", "watch", "spring", "--json"]).unwrap());
    assert_eq!((&watched["status"], &watched["progress"]["done"]), (&"FINISHED".into(), &1.into()));
    let shown = dev.rotation().campaign("spring").await.unwrap();
    assert_eq!((shown.status, shown.progress.exposed), (CampaignStatus::Finished, 0));
    let said = tool.succeed(&["rotate", "members", "spring", "--state", "done"]).unwrap();
    assert!(said.starts_with(&id(N)) && said.contains("DONE, canary"), "{said}");
    running.stop().unwrap();
}
