//! This crate against a meter that shares no line with it (`simulated-meter`): what one makes the other opens, in every
//! form, suite and protection, both ways. A mistake that making and opening have in common shows here.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may")]

use dlms::{
    CipheredApdu, EncryptionKey, Envelope, FreshCounter, GeneralCipheringAad,
    GeneralCipheringHeader, KeySet, Keys, Protection, SecurityControl, ServiceTag, SystemTitle,
    hls, key_wrap, protect,
};
use simulated_meter::{
    Association, Chance, Dialect, KeyId, Mechanism, Meter, Ordered, Policy, SetupOf, Value, acse,
    service::{LABEL, REPLY_TO_HLS, Request, Response},
};

const METER: [u8; 8] = *b"SIM\x00\x00\x00\x00\x07";
const CLIENT: [u8; 8] = *b"HES\x00\x00\x00\x00\x01";
const CHALLENGE: &[u8] = b"a client's challenge";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Glo,
    Ded,
    GeneralGlo,
    GeneralCiphering,
}

/// This crate as a client of the meter.
struct Client {
    meter: Meter,
    keys: simulated_meter::Keys,
    suite: u8,
    counter: u32,
}

impl Client {
    fn new(suite: u8, policy: Policy, mechanism: Mechanism) -> Self {
        let mut chance = Chance::new(u64::from(suite));
        let mut key = || chance.bytes(if suite == 2 { 32 } else { 16 });
        let keys = simulated_meter::Keys {
            unicast: key(),
            broadcast: key(),
            authentication: key(),
            kek: key(),
        };
        let meter = Meter::new(Ordered {
            title: METER,
            dialect: Dialect { policy, ..Dialect::BY_THE_BOOK },
            setups: vec![SetupOf { instance: 0, suite, keys: keys.clone(), first_counter: 77 }],
            associations: vec![Association {
                client: 1,
                title: CLIENT,
                setup: Some(0),
                mechanism,
                manages: true,
            }],
            seed: 5,
            clock: 1_795_910_400,
        });
        Self { meter, keys, suite, counter: 1 }
    }

    fn fresh(&mut self) -> FreshCounter {
        self.counter += 1;
        FreshCounter::promise_never_used_under_this_key_and_title(self.counter - 1)
    }

    fn protected(&mut self, form: Form, bits: u8, plain: &[u8]) -> Vec<u8> {
        let encryption = match bits & 0x40 {
            0 => self.keys.unicast.clone(),
            _ => self.keys.broadcast.clone(),
        };
        let (client, meter) = (SystemTitle::new(CLIENT), SystemTitle::new(METER));
        let service = |key| Envelope::Service(ServiceTag::for_plain(plain[0], key).unwrap());
        let envelope = match form {
            Form::Glo => service(EncryptionKey::Global),
            Form::Ded => service(EncryptionKey::Dedicated),
            Form::GeneralGlo => Envelope::GeneralGlo(Some(client)),
            Form::GeneralCiphering => Envelope::GeneralCiphering(GeneralCipheringHeader {
                transaction_id: b"01234567",
                originator: Some(client),
                recipient: Some(meter),
                date_time: &[],
                other_information: &[],
                identified_key: KeySet::Unicast,
            }),
        };
        let protection = Protection {
            envelope,
            security_control: SecurityControl::from_byte(bits | self.suite).unwrap(),
            originator: client,
            keys: Keys {
                encryption: &encryption,
                authentication: &self.keys.authentication.clone(),
            },
            gc_aad: GeneralCipheringAad::Spec,
        };
        let counter = self.fresh();
        let mut out = Vec::new();
        protect(&protection, counter, plain, &mut out).unwrap();
        out
    }

    fn opened(&self, apdu: &[u8], encryption: &[u8]) -> Option<Vec<u8>> {
        let parsed = CipheredApdu::parse(apdu).ok()?;
        let keys = Keys { encryption, authentication: &self.keys.authentication };
        let mut out = Vec::new();
        let meter = SystemTitle::new(METER);
        parsed.open(&keys, &meter, GeneralCipheringAad::Spec, &mut out).ok().map(|()| out)
    }

    fn asked(&mut self, form: Form, bits: u8, request: &Request) -> Option<Vec<u8>> {
        let apdu = self.protected(form, bits, &request.write());
        self.meter.receive(1, &apdu)
    }

    fn associated(&mut self) -> acse::Opening {
        let opening = acse::Opening {
            ciphered: true,
            title: Some(CLIENT),
            mechanism: Some(5),
            challenge: CHALLENGE.to_vec(),
            user: acse::INITIATE.to_vec(),
            ..acse::Opening::default()
        };
        acse::Opening::read(&self.meter.receive(1, &opening.write()).unwrap()).unwrap()
    }
}

const GET: Request = Request::Get { id: 9, at: LABEL };

fn label() -> Vec<u8> {
    Response::Got { id: 9, got: Ok(Value::Text(b"as delivered".to_vec())) }.write()
}

#[test]
fn requests_and_answers_open_in_every_form_suite_and_protection() {
    for suite in [0, 1, 2] {
        for form in [Form::Glo, Form::GeneralGlo, Form::GeneralCiphering] {
            for bits in [0x10, 0x30] {
                let mut client = Client::new(suite, Policy::Nothing, Mechanism::PreEstablished);
                let answer = client.asked(form, bits, &GET).unwrap();
                let opened = client.opened(&answer, &client.keys.unicast);
                assert_eq!(opened, Some(label()), "{suite} {form:?} {bits:x}");
            }
        }
        let mut client = Client::new(suite, Policy::Encrypted, Mechanism::PreEstablished);
        let answer = client.asked(Form::Glo, 0x20, &GET).unwrap();
        let mut out = Vec::new();
        let parsed = CipheredApdu::parse(&answer).unwrap();
        let meter = SystemTitle::new(METER);
        parsed.decrypt_without_authentication(&client.keys.unicast, &meter, &mut out).unwrap();
        assert_eq!(out, label());
    }
}

#[test]
fn pushes_open_and_broadcasts_are_heard() {
    for suite in [0, 1, 2] {
        let mut client = Client::new(suite, Policy::Both, Mechanism::PreEstablished);
        let pushed = client.meter.push(0).unwrap();
        let opened = client.opened(&pushed, &client.keys.unicast).unwrap();
        assert_eq!(opened[0], 0x0f);
        assert_eq!(client.opened(&pushed, &client.keys.broadcast), None);
        let set = Request::Set { id: 1, at: LABEL, value: Value::Text(b"to all".to_vec()) };
        assert_eq!(client.asked(Form::GeneralGlo, 0x70, &set), None);
        assert_eq!(client.meter.label(), b"to all");
    }
}

#[test]
fn both_answers_of_mechanism_5_are_taken() {
    for suite in [0, 1, 2] {
        let mut client = Client::new(suite, Policy::Both, Mechanism::Gmac);
        let accepted = client.associated();
        let counter = client.fresh();
        let lent = client.keys.clone();
        let keys = Keys { encryption: &lent.unicast, authentication: &lent.authentication };
        let of = |suite: u8| SecurityControl::from_byte(0x30 | suite).unwrap().suite;
        let ours = SystemTitle::new(CLIENT);
        let answer = hls::compute(of(suite), &ours, counter, &keys, &accepted.challenge).unwrap();
        let argument = Some(Value::Octets(answer.to_vec()));
        let reply = Request::Act { id: 1, at: REPLY_TO_HLS, argument };
        let said = client.asked(Form::Glo, 0x30, &reply).unwrap();
        let plain = client.opened(&said, &client.keys.unicast).unwrap();
        let Some(Response::Acted { result: 0, returned: Some(Value::Octets(given)), .. }) =
            Response::read(&plain)
        else {
            panic!("{plain:02x?}")
        };
        let meter = SystemTitle::new(METER);
        let inner = hls::verify(of(suite), &meter, &keys, CHALLENGE, &given).unwrap();
        // Two counters: that of the answer is the lower one.
        let outer = CipheredApdu::parse(&said).unwrap().invocation_counter();
        assert_eq!((inner, outer), (77, 78));
        assert!(client.meter.is_open(1));
    }
}

#[test]
fn a_dedicated_key_comes_under_the_global_one_and_is_used() {
    for suite in [0, 1, 2] {
        let mut client = Client::new(suite, Policy::Both, Mechanism::Lowest);
        let dedicated = Chance::new(99).bytes(client.keys.unicast.len());
        let initiate = acse::initiate_with(&dedicated);
        let opening = acse::Opening {
            ciphered: true,
            title: Some(CLIENT),
            user: client.protected(Form::Glo, 0x30, &initiate),
            ..acse::Opening::default()
        };
        let accepted = client.meter.receive(1, &opening.write()).unwrap();
        let user = acse::Opening::read(&accepted).unwrap().user;
        assert_eq!(client.opened(&user, &client.keys.unicast).unwrap(), acse::INITIATED);
        let global = std::mem::replace(&mut client.keys.unicast, dedicated);
        let answer = client.asked(Form::Ded, 0x30, &GET).unwrap();
        assert_eq!(client.opened(&answer, &client.keys.unicast), Some(label()));
        assert_eq!(client.opened(&answer, &global), None);
    }
}

#[test]
fn keys_wrapped_here_are_taken_there_and_the_other_way_round() {
    for suite in [0, 1, 2] {
        let mut client = Client::new(suite, Policy::Both, Mechanism::PreEstablished);
        for (number, id) in [KeyId::Unicast, KeyId::Broadcast, KeyId::Authentication, KeyId::Kek]
            .into_iter()
            .enumerate()
        {
            let new = Chance::new(number as u64).bytes(client.keys.unicast.len());
            let mut wrapped = vec![0; new.len() + 8];
            key_wrap::wrap(&client.keys.kek, &new, &mut wrapped).unwrap();
            assert_eq!(simulated_meter::wrap::wrap(&client.keys.kek, &new), Some(wrapped.clone()));
            let mut unwrapped = vec![0; new.len()];
            key_wrap::unwrap(&client.keys.kek, &wrapped, &mut unwrapped).unwrap();
            assert_eq!(unwrapped, new);
            let transfer = Request::transfer(0, &[(id, wrapped)]);
            let answer = client.asked(Form::GeneralGlo, 0x30, &transfer).unwrap();
            let done = Response::Acted { id: 0xc1, result: 0, returned: None };
            assert_eq!(client.opened(&answer, &client.keys.unicast), Some(done.write()));
            client.keys.replace(id, new);
            assert_eq!(client.meter.keys(0), Some(&client.keys));
        }
    }
}
