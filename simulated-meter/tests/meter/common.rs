//! Meters and head-ends that tests begin with.

use simulated_meter::{
    Association, Dialect, HeadEnd, KeyId, Keys, Mechanism, Meter, Ordered, SetupOf, Title,
    service::{Request, Response},
    wrap,
};

pub(crate) const METER: Title = *b"SIM\x00\x00\x00\x00\x07";
pub(crate) const CLIENT: Title = *b"HES\x00\x00\x00\x00\x01";
pub(crate) const CHALLENGE: &[u8] = b"a client's challenge";

/// Address of the client that manages, of one that has its own setup, and of one that has none.
pub(crate) const MANAGES: u16 = 1;
pub(crate) const CUSTOMER: u16 = 2;
pub(crate) const PUBLIC: u16 = 16;

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
    pairs.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
}

pub(crate) fn keys(suite: u8, first: u8) -> Keys {
    let length = if suite == 2 { 32 } else { 16 };
    let key =
        |kind: u8| (0..length).map(|at| first.wrapping_add(16 * kind).wrapping_add(at)).collect();
    Keys { unicast: key(1), broadcast: key(2), authentication: key(3), kek: key(4) }
}

pub(crate) fn one_setup(suite: u8, keys: Keys) -> Vec<SetupOf> {
    vec![SetupOf { instance: 0, suite, keys, first_counter: 1 }]
}

/// A meter with one setup and a client that manages it, authenticates by GMAC, and one without a setup.
pub(crate) fn order(dialect: Dialect, setups: Vec<SetupOf>) -> Ordered {
    let association = |client, setup, mechanism| Association {
        client,
        title: CLIENT,
        setup,
        mechanism,
        manages: client == MANAGES,
    };
    Ordered {
        title: METER,
        dialect,
        setups,
        associations: vec![
            association(MANAGES, Some(0), Mechanism::Gmac),
            association(PUBLIC, None, Mechanism::PreEstablished),
        ],
        seed: 1,
        clock: 1_795_910_400,
    }
}

/// A meter of suite 0 with such a dialect, and a head-end that has its keys.
pub(crate) fn pair(dialect: Dialect) -> (Meter, HeadEnd) {
    pair_of_suite(dialect, 0)
}

pub(crate) fn pair_of_suite(dialect: Dialect, suite: u8) -> (Meter, HeadEnd) {
    let meter = Meter::new(order(dialect, one_setup(suite, keys(suite, 0))));
    (meter, HeadEnd::new(CLIENT, METER, suite, keys(suite, 0)))
}

/// Passes 1 to 4; whether both sides believe each other.
pub(crate) fn associate(meter: &mut Meter, head_end: &mut HeadEnd) -> bool {
    let accepted = meter.receive(MANAGES, &head_end.associate(CHALLENGE)).unwrap();
    let Some(asked) = head_end.answer(&accepted) else { return false };
    let answer = meter.receive(MANAGES, &asked).unwrap();
    head_end.confirmed(CHALLENGE, &answer) && meter.is_open(MANAGES)
}

/// One exchange; None if the answer is not under the head-end's keys.
pub(crate) fn exchange(
    meter: &mut Meter,
    head_end: &mut HeadEnd,
    request: &Request,
) -> Option<Response> {
    let asked = head_end.ask(request).unwrap();
    head_end.hear(&meter.receive(MANAGES, &asked)?)
}

/// A transfer of these keys of `new`, wrapped under the KEK that the head-end believes in.
pub(crate) fn transfer(head_end: &HeadEnd, new: &Keys, ids: &[KeyId]) -> Request {
    let wrapped = |id: &KeyId| (*id, wrap::wrap(&head_end.keys.kek, new.key(*id)).unwrap());
    Request::transfer(0, &ids.iter().map(wrapped).collect::<Vec<_>>())
}

pub(crate) fn result_of(response: Option<Response>) -> Option<u8> {
    match response? {
        Response::Acted { result, .. } | Response::Set { result, .. } => Some(result),
        Response::Got { got, .. } => Some(got.err().unwrap_or(0)),
    }
}
