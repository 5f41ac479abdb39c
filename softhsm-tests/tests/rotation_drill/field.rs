//! The meters of a drill, what lies between them and the head-end, and the reader of the wire.

use std::collections::BTreeMap;

use simulated_meter::{
    Association, Dialect, Direction, KeyId, Keys, Ledger, Link, Losses, Mechanism, Meter, Ordered,
    Policy, SetupOf, Title, Value,
    cuts::Cut,
    frame::{Envelope, Frame, Under, seal},
    service::Request,
    wrap,
};

use super::common::fleet::{GAK, GUEK, id, title, value};

/// The utility's title.
pub(crate) const CLIENT: Title = *b"AMIHES\x00\x01";
/// Address of the client whose association is always there, and of the one that authenticates.
pub(crate) const ALWAYS: u16 = 1;
pub(crate) const BY_HLS: u16 = 2;
/// One meter in so many has its transfers over an association that authenticates.
const HLS_EVERY: u64 = 6;
const GBEK: u8 = 8;
const KEK: u8 = 9;
const EXCEPTION: u8 = 0xd8;

/// One meter, and what the reader of the wire knows of its keys.
pub(crate) struct Device {
    pub(crate) dialect: Dialect,
    pub(crate) by_hls: bool,
    pub(crate) meter: Meter,
    link: Link,
    encryption: Vec<Vec<u8>>,
    authentication: Vec<Vec<u8>>,
    /// What was sent under a key that nobody has read yet.
    unread: Vec<(Title, Vec<u8>)>,
    /// The counter of the last message to it.
    last: Option<u32>,
}

impl Device {
    fn new(n: u64, dialect: Dialect, losses: Losses) -> Self {
        let keys = Keys {
            unicast: value(n, GUEK).to_vec(),
            broadcast: value(n, GBEK).to_vec(),
            authentication: value(n, GAK).to_vec(),
            kek: value(n, KEK).to_vec(),
        };
        let (encryption, authentication) =
            (vec![keys.unicast.clone()], vec![keys.authentication.clone()]);
        let association = |client, mechanism| Association {
            client,
            title: CLIENT,
            setup: Some(0),
            mechanism,
            manages: true,
        };
        let meter = Meter::new(Ordered {
            title: *title(n).as_bytes(),
            dialect,
            setups: vec![SetupOf { instance: 0, suite: 0, keys, first_counter: 1 }],
            associations: vec![
                association(ALWAYS, Mechanism::PreEstablished),
                association(BY_HLS, Mechanism::Gmac),
            ],
            seed: n,
            clock: 1_795_910_400,
        });
        Self {
            dialect,
            by_hls: n.is_multiple_of(HLS_EVERY),
            meter,
            link: Link::new(n, losses),
            encryption,
            authentication,
            unread: Vec::new(),
            last: None,
        }
    }

    /// Whether its keys are those of the import, or came from the service on the wire.
    pub(crate) fn holds_what_was_brought(&self) -> bool {
        let keys = self.meter.keys(0).unwrap();
        self.encryption.contains(&keys.unicast)
            && self.authentication.contains(&keys.authentication)
    }

    /// What is in a message, if it is under keys that are known.
    fn opened(&self, from: Title, frame: &Frame) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
        self.encryption.iter().rev().find_map(|encryption| {
            self.authentication.iter().rev().find_map(|authentication| {
                let plain = frame.open(Under { encryption, authentication, originator: from })?;
                Some((plain, encryption.clone(), authentication.clone()))
            })
        })
    }
}

/// All of them.
pub(crate) struct Field {
    pub(crate) devices: BTreeMap<u64, Device>,
    pub(crate) ledger: Ledger,
    /// Somebody on the wire seals every message anew with the counter of the one before: a head-end that retries so.
    pub(crate) reuses_counters: bool,
}

impl Field {
    pub(crate) fn new(dialects: impl IntoIterator<Item = (u64, Dialect)>, losses: Losses) -> Self {
        let devices = dialects.into_iter();
        let devices = devices.map(|(n, dialect)| (n, Device::new(n, dialect, losses))).collect();
        Self { devices, ledger: Ledger::default(), reuses_counters: false }
    }

    /// All meters of another field come to this one.
    pub(crate) fn join(&mut self, other: Self) {
        for (n, device) in other.devices {
            self.ledger.learn_encryption(*title(n).as_bytes(), &value(n, GUEK));
            self.ledger.learn_authentication(*title(n).as_bytes(), &value(n, GAK));
            self.devices.insert(n, device);
        }
    }

    /// Its line in an import file.
    pub(crate) fn line(&self, n: u64) -> String {
        let hex = |bytes: &[u8]| hex::encode_upper(bytes);
        let dialect = self.devices[&n].dialect;
        let key =
            |kind: &str, salt| format!(r#"{{"kind":"{kind}","value":"{}"}}"#, hex(&value(n, salt)));
        let keys = [key("GUEK", GUEK), key("GAK", GAK), key("KEK", KEK)].join(",");
        let profile = profile(&dialect);
        let (own, client) = (hex(title(n).as_bytes()), hex(&CLIENT));
        let weak = if dialect.policy == Policy::Encrypted {
            r#","allow_encryption_only":true"#
        } else {
            ""
        };
        format!(
            r#"{{"meter_id":"{}","system_title":"{own}","keys":[{keys}],"policy":{{"client_title":"{client}","profile":"{profile}"{weak}}}}}"#,
            id(n)
        )
    }

    pub(crate) fn device(&mut self, n: u64) -> &mut Device {
        self.devices.get_mut(&n).unwrap()
    }

    /// A message to a meter, what befalls it, and what is back when it was waited for. Late answers come with another
    /// one's.
    pub(crate) fn exchange(
        &mut self,
        n: u64,
        (client, asked): (u16, &[u8]),
        cut: Option<Cut>,
    ) -> Vec<Vec<u8>> {
        let asked = if self.reuses_counters { self.sealed_again(n, asked) } else { asked.to_vec() };
        self.saw(n, CLIENT, &asked);
        self.learn(n, &asked);
        let mut back = Vec::new();
        if cut != Some(Cut::RequestLost) {
            // The client's address travels with it.
            let message = [&client.to_be_bytes()[..], &asked].concat();
            self.device(n).link.send(Direction::ToMeter, message);
        }
        for _ in 0..2 {
            back.extend(self.step(n));
        }
        match cut {
            Some(Cut::AnswerLost | Cut::HeadEndKilled) => back.clear(),
            Some(Cut::PowerLost) => self.device(n).meter.lose_power(),
            Some(Cut::Rebooted) => self.device(n).meter.reboot(),
            _ => {}
        }
        back
    }

    fn step(&mut self, n: u64) -> Vec<Vec<u8>> {
        let mut back = Vec::new();
        for (direction, bytes) in self.device(n).link.step() {
            if direction == Direction::FromMeter {
                back.push(bytes);
                continue;
            }
            let (client, apdu) = bytes.split_at(2);
            let client = u16::from_be_bytes([client[0], client[1]]);
            let Some(said) = self.device(n).meter.receive(client, apdu) else { continue };
            self.saw(n, *title(n).as_bytes(), &said);
            self.device(n).link.send(Direction::FromMeter, said);
        }
        back
    }

    /// A message that a meter sends by itself.
    pub(crate) fn push(&mut self, n: u64) -> Vec<u8> {
        let pushed = self.device(n).meter.push(0).unwrap();
        self.saw(n, *title(n).as_bytes(), &pushed);
        pushed
    }

    /// From now on nothing befalls what is sent; what was late arrives.
    pub(crate) fn heal(&mut self) {
        let all: Vec<u64> = self.devices.keys().copied().collect();
        for n in all {
            self.device(n).link.heal();
            while !self.device(n).link.is_idle() {
                self.step(n);
            }
        }
    }

    /// Has the ledger read a message, now or when its keys are known.
    fn saw(&mut self, n: u64, from: Title, apdu: &[u8]) {
        let device = self.devices.get_mut(&n).unwrap();
        let frame = Frame::read(apdu);
        let can_read = frame.is_none_or(|frame| device.opened(from, &frame).is_some());
        if can_read {
            self.ledger.read(*title(n).as_bytes(), from, apdu);
        } else {
            device.unread.push((from, apdu.to_vec()));
        }
    }

    /// The keys that a transfer brings: the reader of the wire has the meter's KEK.
    pub(crate) fn learn(&mut self, n: u64, apdu: &[u8]) {
        let (own, device) = (*title(n).as_bytes(), self.devices.get_mut(&n).unwrap());
        let opened = Frame::read(apdu).and_then(|frame| device.opened(CLIENT, &frame));
        let Some(Request::Act { at, argument: Some(Value::Array(items)), .. }) =
            opened.and_then(|(plain, _, _)| Request::read(&plain))
        else {
            return;
        };
        assert_eq!(
            (at.class, at.index),
            (64, 2),
            "the drill sends transfers and nothing like them"
        );
        for item in items {
            let Value::Structure(fields) = item else { panic!("{item:?}") };
            let [Value::Enum(kind), Value::Octets(wrapped)] = &fields[..] else {
                panic!("{fields:?}")
            };
            let key = wrap::unwrap(&value(n, KEK), wrapped).expect("wrapped under the meter's KEK");
            let (known, is_new) = match KeyId::of(*kind) {
                Some(KeyId::Unicast) => {
                    self.ledger.learn_encryption(own, &key);
                    (&mut device.encryption, true)
                }
                Some(KeyId::Authentication) => {
                    self.ledger.learn_authentication(own, &key);
                    (&mut device.authentication, true)
                }
                other => panic!("no campaign brings {other:?}"),
            };
            if is_new && !known.contains(&key) {
                known.push(key);
            }
        }
        for (from, apdu) in std::mem::take(&mut device.unread) {
            self.saw(n, from, &apdu);
        }
    }

    /// Meters of which something is not read yet.
    pub(crate) fn with_unread(&self) -> Vec<u64> {
        let some = self.devices.iter().filter(|(_, device)| !device.unread.is_empty());
        some.map(|(n, _)| *n).collect()
    }

    /// The message, sealed anew with the counter of the one before.
    fn sealed_again(&mut self, n: u64, asked: &[u8]) -> Vec<u8> {
        let device = self.device(n);
        let Some(frame) = Frame::read(asked) else { return asked.to_vec() };
        let Some((plain, encryption, authentication)) = device.opened(CLIENT, &frame) else {
            return asked.to_vec();
        };
        let Some(counter) = device.last.replace(frame.counter) else { return asked.to_vec() };
        let under =
            Under { encryption: &encryption, authentication: &authentication, originator: CLIENT };
        let head = (frame.control, counter);
        seal(&Envelope::GeneralGlo, head, under, *title(n).as_bytes(), &plain).unwrap()
    }
}

/// The device profile that says of the meter what the service has to know.
pub(crate) fn profile(dialect: &Dialect) -> &'static str {
    match dialect.counter {
        simulated_meter::CounterOnNewKey::Reset => "resets",
        simulated_meter::CounterOnNewKey::Keep => "keeps",
    }
}

/// Whether a meter said that it can't take a message.
pub(crate) fn is_exception(apdu: &[u8]) -> bool {
    apdu.first() == Some(&EXCEPTION)
}
