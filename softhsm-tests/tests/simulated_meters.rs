//! The service and meters that share no line with it, over links that lose, double and delay: what the service protects
//! the meters read, what they answer and push it opens, and no (key, nonce) is used twice, as seen on the wire.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

mod common;

use std::collections::HashMap;

use common::{
    client, eventually,
    fleet::{GAK, GUEK, add, apdu, id, title, value},
    home,
};
use kms_client::{
    Apdu, CipheringForm, CounterDeclaration, KmsClient, MeterName, PlainApdu, Protecting, Verdict,
};
use simulated_meter::{
    Association, Dialect, Direction, Keys, Ledger, Link, Losses, Mechanism, Meter, Ordered,
    SetupOf, Value,
    service::{LABEL, Request, Response},
};
use softhsm_tests::Role;

const FLEET: u64 = 12;
/// Answers that each meter's reader wants.
const ANSWERS: u32 = 6;
const CLIENT: [u8; 8] = *b"AMIHES\x00\x01";
/// Address of the one client.
const HES: u16 = 1;
const LOSSES: Losses = Losses { lost: 100, doubled: 50, late: 50 };
const GET: Request = Request::Get { id: 0xc1, at: LABEL };

fn line(n: u64) -> String {
    let hex = |bytes: &[u8]| hex::encode_upper(bytes);
    let (own, guek, gak) = (hex(title(n).as_bytes()), hex(&value(n, GUEK)), hex(&value(n, GAK)));
    format!(
        r#"{{"meter_id":"{}","system_title":"{own}","keys":[{{"kind":"GUEK","value":"{guek}"}},{{"kind":"GAK","value":"{gak}"}}],"policy":{{"client_title":"{}"}}}}"#,
        id(n),
        hex(&CLIENT)
    )
}

fn meter(n: u64) -> Meter {
    let keys = Keys {
        unicast: value(n, GUEK).to_vec(),
        broadcast: value(n, 8).to_vec(),
        authentication: value(n, GAK).to_vec(),
        kek: value(n, 9).to_vec(),
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

/// What a meter of this number is asked in.
fn form(n: u64) -> CipheringForm {
    [CipheringForm::GeneralGlo, CipheringForm::Glo, CipheringForm::GeneralCiphering][n as usize % 3]
}

/// Meters, what lies between, and the reader of the wire.
struct Field {
    meters: HashMap<u64, (Meter, Link)>,
    answered: HashMap<u64, u32>,
    ledger: Ledger,
    asked: u32,
}

impl Field {
    fn new() -> Self {
        let mut ledger = Ledger::default();
        for n in 1..=FLEET {
            ledger.learn_encryption(*title(n).as_bytes(), &value(n, GUEK));
            ledger.learn_authentication(*title(n).as_bytes(), &value(n, GAK));
        }
        let meters = (1..=FLEET).map(|n| (n, (meter(n), Link::new(n, LOSSES)))).collect();
        Self { meters, answered: HashMap::new(), ledger, asked: 0 }
    }

    fn waiting(&self) -> Vec<u64> {
        let enough = |n: &u64| self.answered.get(n).is_none_or(|it| *it < ANSWERS);
        (1..=FLEET).filter(enough).collect()
    }

    /// Asks each meter that has not answered often enough, with a counter of its own each time. False if the server is
    /// not there.
    async fn ask(&mut self, client: &KmsClient) -> bool {
        for n in self.waiting() {
            let plain = PlainApdu { bytes: GET.write().into(), meter: MeterName::Title(title(n)) };
            let how = Protecting { form: form(n), ..Protecting::default() };
            let Ok(protected) = client.encrypt(&plain, how).await else { return false };
            let bytes = protected.apdu.unwrap_or_else(|| panic!("{:?}", protected.reason));
            self.asked += 1;
            self.ledger.read(*title(n).as_bytes(), CLIENT, &bytes);
            let (_, link) = self.meters.get_mut(&n).unwrap();
            link.send(Direction::ToMeter, bytes.to_vec());
        }
        true
    }

    /// Time passes on all links; what came back, by meter.
    fn step(&mut self) -> Vec<(u64, Vec<u8>)> {
        let mut back = Vec::new();
        for (n, (meter, link)) in &mut self.meters {
            for (direction, bytes) in link.step() {
                if direction == Direction::FromMeter {
                    back.push((*n, bytes));
                } else if let Some(said) = meter.receive(HES, &bytes) {
                    self.ledger.read(*title(*n).as_bytes(), *title(*n).as_bytes(), &said);
                    link.send(Direction::FromMeter, said);
                }
            }
        }
        back
    }

    /// The service opens what came back. What was late or doubled on its way there was refused by the meter, in plain.
    async fn hear(&mut self, client: &KmsClient, back: Vec<(u64, Vec<u8>)>) -> bool {
        for (n, said) in back {
            if said[0] == 0xd8 {
                assert_eq!(said[..3], [0xd8, 1, 6], "only counters may be wrong: {said:02x?}");
                continue;
            }
            let named: Apdu = apdu(said).of_system_title(title(n));
            let Ok(opened) = client.decrypt(&named).await else { return false };
            assert_eq!(opened.verdict(), Verdict::Ok, "{n}");
            let label = Response::Got { id: 0xc1, got: Ok(Value::Text(b"as delivered".to_vec())) };
            assert_eq!(opened.plaintext.as_deref(), Some(&label.write()[..]));
            *self.answered.entry(n).or_default() += 1;
        }
        true
    }
}

async fn declare(client: &KmsClient, n: u64) {
    let declaration = CounterDeclaration {
        meter: MeterName::Title(title(n)),
        security_setup: 0,
        client: 0,
        broadcast: false,
        last_invocation_counter: Some(0),
    };
    client.meters().declare_counter(&declaration).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_3_on_the_wire_to_meters_of_another_implementation_no_nonce_comes_twice() {
    let home = home();
    let mut running = home.start().unwrap();
    let dev = client(&home, Role::Dev).await;
    add(&dev, &(1..=FLEET).map(line).collect::<Vec<_>>()).await;
    for n in 1..=FLEET {
        declare(&dev, n).await;
    }
    let mut field = Field::new();
    let mut rounds = 0;
    while !field.waiting().is_empty() {
        rounds += 1;
        assert!(rounds < 500, "still waiting for {:?}", field.waiting());
        // Killed while requests and answers are under way.
        if rounds % 4 == 3 && rounds < 12 {
            running.kill_9().unwrap();
            running = home.start().unwrap();
            eventually("the server is back", async || dev.site_status().await.is_ok()).await;
        }
        let _ = field.ask(&dev).await;
        let back = field.step();
        let _ = field.hear(&dev, back).await;
    }
    for n in 1..=FLEET {
        let pushed = field.meters.get_mut(&n).unwrap().0.push(0).unwrap();
        field.ledger.read(*title(n).as_bytes(), *title(n).as_bytes(), &pushed);
        let opened = dev.decrypt(&apdu(pushed)).await.unwrap();
        assert_eq!(opened.verdict(), Verdict::Ok);
        assert_eq!(opened.plaintext.unwrap()[0], 0x0f);
    }
    let (pairs, ledger) = (field.ledger.pairs(), &field.ledger);
    println!("{rounds} rounds, {} asked, {pairs} pairs of key and nonce", field.asked);
    assert_eq!((ledger.reused(), ledger.unread()), (0, 0));
    assert!(field.asked >= FLEET as u32 * ANSWERS && pairs > field.asked as usize);
    running.stop().unwrap();
}
