//! A broadcast group of meters that share no line with the service, over a real token and the wire: each broadcast is heard
//! by all of them before, during and after a rotation of their GBEK, and no (key, nonce) comes twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use common::{
    client,
    fleet::{GAK, GUEK, add, apdu, id, title, value},
    home,
};
use kms_client::{
    CipheringForm, CounterDeclaration, KeyKind, KeyPlace, KmsClient, MemberState, MeterId,
    MeterName, NewGroup, StageOptions, TransferOptions, TransferResult, Verdict,
};
use simulated_meter::{
    Association, Dialect, Keys, Ledger, Mechanism, Meter, Ordered, SetupOf, Value,
    service::{LABEL, Request},
};
use softhsm_tests::Role;

const FLEET: u64 = 4;
const CLIENT: [u8; 8] = *b"AMIHES\x00\x01";
/// Address of the one client.
const HES: u16 = 1;
/// Whose values of GBEK and GAK all members have.
const SHARED: u64 = 500;
const GBEK: u8 = 8;
const KEK: u8 = 9;
const GROUP: &str = "north-street";

fn line(n: u64) -> String {
    let hex = |bytes: &[u8]| hex::encode_upper(bytes);
    let key =
        |kind: &str, value: [u8; 16]| format!(r#"{{"kind":"{kind}","value":"{}"}}"#, hex(&value));
    let keys = [
        key("GUEK", value(n, GUEK)),
        key("GBEK", value(SHARED, GBEK)),
        key("GAK", value(SHARED, GAK)),
        key("KEK", value(n, KEK)),
    ];
    format!(
        r#"{{"meter_id":"{}","system_title":"{}","keys":[{}],"policy":{{"client_title":"{}"}}}}"#,
        id(n),
        hex(title(n).as_bytes()),
        keys.join(","),
        hex(&CLIENT)
    )
}

fn meter(n: u64) -> Meter {
    let keys = Keys {
        unicast: value(n, GUEK).to_vec(),
        broadcast: value(SHARED, GBEK).to_vec(),
        authentication: value(SHARED, GAK).to_vec(),
        kek: value(n, KEK).to_vec(),
    };
    Meter::new(Ordered {
        title: *title(n).as_bytes(),
        dialect: Dialect::BY_THE_BOOK,
        setups: vec![SetupOf { instance: 0, suite: 0, keys, first_counter: 1 }],
        associations: vec![Association {
            client: HES,
            title: CLIENT,
            setup: Some(0),
            mechanism: Mechanism::PreEstablished,
            manages: true,
        }],
        seed: n,
        clock: 1_795_910_400,
    })
}

fn ids() -> Vec<MeterId> {
    (1..=FLEET).map(|n| id(n).parse().unwrap()).collect()
}

fn gbek(n: u64) -> KeyPlace {
    KeyPlace { meter_id: id(n).parse().unwrap(), kind: KeyKind::Gbek, security_setup: 0 }
}

async fn declare(client: &KmsClient, n: u64, broadcast: bool) {
    let declaration = CounterDeclaration {
        meter: MeterName::Title(title(n)),
        security_setup: 0,
        client: 0,
        broadcast,
        last_invocation_counter: Some(0),
    };
    client.meters().declare_counter(&declaration).await.unwrap();
}

/// Meters, and who reads the wire.
struct Field {
    meters: Vec<Meter>,
    ledger: Ledger,
    said: u32,
}

impl Field {
    /// Sends one broadcast, all of its messages to all meters: each hears just one of them.
    async fn hears(&mut self, client: &KmsClient) -> usize {
        self.said += 1;
        let text = format!("broadcast {}", self.said).into_bytes();
        let set = Request::Set { id: 0xc1, at: LABEL, value: Value::Text(text.clone()) };
        let form = [CipheringForm::GeneralGlo, CipheringForm::Glo]
            [usize::from(self.said.is_multiple_of(2))];
        let sent = client.groups().broadcast(GROUP, set.write().into(), form).await.unwrap();
        assert_eq!((&sent.not_reached[..], sent.members), (&[][..], FLEET as u32));
        for message in &sent.messages {
            let bytes = message.protected.apdu.as_ref().unwrap_or_else(|| panic!("{message:?}"));
            self.ledger.read(*title(1).as_bytes(), CLIENT, bytes);
            for meter in &mut self.meters {
                assert_eq!(meter.receive(HES, bytes), None, "nobody answers a broadcast");
            }
        }
        for (n, meter) in (1..).zip(&self.meters) {
            assert_eq!(meter.label(), text, "meter {n} has not heard it");
        }
        sent.messages.len()
    }

    /// Brings a meter what is staged for it.
    async fn changes(&mut self, client: &KmsClient, n: u64) {
        let options = TransferOptions { invoke_id_and_priority: 0xC1, ..Default::default() };
        let next = client.rotation().next_transfer(&gbek(n), options).await.unwrap();
        assert_eq!(next.protected.verdict, Verdict::Ok, "{next:?}");
        let meter = &mut self.meters[n as usize - 1];
        let before = meter.keys(0).unwrap().broadcast.clone();
        let said = meter.receive(HES, next.protected.apdu.as_ref().unwrap()).unwrap();
        let now = meter.keys(0).unwrap().broadcast.clone();
        assert_ne!(now, before);
        // The one who reads the wire knows what the meter knows.
        self.ledger.learn_encryption(*title(1).as_bytes(), &now);
        let opened = client.decrypt(&apdu(said).of_system_title(title(n))).await.unwrap();
        assert_eq!(opened.verdict(), Verdict::Ok);
    }
}

async fn states(client: &KmsClient) -> Vec<MemberState> {
    let view = client.groups().get(GROUP).await.unwrap();
    view.members.into_iter().map(|member| member.gbek).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_broadcast_is_heard_by_all_members_before_during_and_after_a_rotation() {
    let home = home();
    let mut running = home.start().unwrap();
    let dev = client(&home, Role::Dev).await;
    add(&dev, &(1..=FLEET).map(line).collect::<Vec<_>>()).await;
    for n in 1..=FLEET {
        declare(&dev, n, false).await;
    }
    let new = NewGroup {
        name: GROUP.into(),
        security_setup: 0,
        client: 0,
        client_title: kms_client::SystemTitle::new(CLIENT),
        authenticated: true,
        class_version: 1,
        carrier: None,
    };
    dev.groups().create(&new).await.unwrap();
    let added = dev.groups().add(GROUP, &ids(), false).await.unwrap();
    assert_eq!((added.added, added.staged, &added.refused[..]), (FLEET as u32, 0, &[][..]));
    declare(&dev, 1, true).await;
    let mut ledger = Ledger::default();
    ledger.learn_encryption(*title(1).as_bytes(), &value(SHARED, GBEK));
    ledger.learn_authentication(*title(1).as_bytes(), &value(SHARED, GAK));
    let mut field = Field { meters: (1..=FLEET).map(meter).collect(), ledger, said: 0 };
    assert_eq!(field.hears(&dev).await, 1);

    let rotated = dev.groups().rotate(GROUP, KeyKind::Gbek, false).await.unwrap();
    assert_eq!((rotated.staged, rotated.left, rotated.already), (FLEET as u32, 0, false));
    let again = dev.groups().rotate(GROUP, KeyKind::Gbek, false).await.unwrap();
    assert_eq!((again.staged, again.already, &again.value), (0, true, &rotated.value));
    assert_eq!(field.hears(&dev).await, 1, "nobody was sent it");
    // A GAK of one member alone would end all this.
    let gak = KeyPlace { kind: KeyKind::Gak, ..gbek(2) };
    let refused = dev.rotation().stage(&gak, StageOptions::default()).await.unwrap_err();
    let said = refused.to_string();
    assert!(said.contains("BREAKS_BROADCAST") || said.contains(GROUP), "{said}");
    assert!((1..=FLEET).all(|n| said.contains(&id(n))), "{said}");

    for n in 1..=FLEET {
        field.changes(&dev, n).await;
        // The answer is not told yet: both values go out.
        assert_eq!(field.hears(&dev).await, 2, "{n}");
        if n == 2 {
            running.kill_9().unwrap();
            running = home.start().unwrap();
            common::eventually("the server is back", async || dev.site_status().await.is_ok())
                .await;
        }
        dev.rotation().confirm(&gbek(n), TransferResult::Success).await.unwrap();
        assert_eq!(field.hears(&dev).await, if n == FLEET { 1 } else { 2 });
    }
    assert_eq!(states(&dev).await, [MemberState::ConfirmedByResult; FLEET as usize]);
    let first = field.meters[0].keys(0).unwrap().broadcast.clone();
    assert!(field.meters.iter().all(|meter| meter.keys(0).unwrap().broadcast == first));
    let done = dev.groups().finish(GROUP, KeyKind::Gbek, &[]).await.unwrap();
    assert_eq!(done.group.wants_gbek_since_ms, None);
    assert_eq!(field.hears(&dev).await, 1);
    let (pairs, ledger) = (field.ledger.pairs(), &field.ledger);
    println!("{} broadcasts, {pairs} pairs of key and nonce", field.said);
    assert_eq!((ledger.reused(), ledger.unread()), (0, 0));

    // A member that leaves knows the key.
    let left = dev.groups().remove(GROUP, &ids()[..1], &[]).await.unwrap();
    assert_eq!((left.removed, left.wants_gbek), (1, true));
    let listed = dev.groups().list().await.unwrap();
    assert_eq!((listed.len(), listed[0].members), (1, FLEET as u32 - 1));
    assert!(listed[0].wants_gbek_since_ms.is_some());
    running.stop().unwrap();
}
