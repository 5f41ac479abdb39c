//! What an association takes before and behind its four passes.

use crate::common::{
    CHALLENGE, CLIENT, MANAGES, METER, associate, exchange, keys, pair, result_of, transfer,
};
use simulated_meter::{
    Applies, Dialect, HeadEnd, KeyId, Meter, Value, acse,
    frame::{Envelope, Under},
    hls,
    service::{Exception, LABEL, REPLY_TO_HLS, Request, Response, result},
};

const BOOK: Dialect = Dialect::BY_THE_BOOK;
const GET: Request = Request::Get { id: 1, at: LABEL };

fn challenge_of(meter: &mut Meter, head_end: &HeadEnd) -> Vec<u8> {
    let accepted = meter.receive(MANAGES, &head_end.associate(CHALLENGE)).unwrap();
    acse::Opening::read(&accepted).unwrap().challenge
}

/// Pass 3 with an inner counter of one's own, in a ciphered action or a plain one.
fn pass_three(head_end: &HeadEnd, challenge: &[u8], inner: u32) -> Request {
    let under = Under {
        encryption: &head_end.keys.unicast,
        authentication: &head_end.keys.authentication,
        originator: CLIENT,
    };
    let answer = hls::answer(under, 0, inner, challenge).unwrap();
    Request::Act { id: 1, at: REPLY_TO_HLS, argument: Some(Value::Octets(answer)) }
}

#[test]
fn nothing_is_served_before_and_between_the_passes() {
    let (mut meter, mut head_end) = pair(BOOK);
    for _ in 0..2 {
        let said = meter.receive(MANAGES, &head_end.ask(&GET).unwrap()).unwrap();
        assert_eq!(Exception::read(&said), Some(Exception::NotAllowed));
        challenge_of(&mut meter, &head_end);
        let said = meter.receive(MANAGES, &GET.write()).unwrap();
        assert_eq!(Exception::read(&said), Some(Exception::NotAllowed));
    }
    assert!(associate(&mut meter, &mut head_end));
    assert_eq!(result_of(exchange(&mut meter, &mut head_end, &GET)), Some(0));
    meter.receive(MANAGES, &acse::RELEASE).unwrap();
    let said = meter.receive(MANAGES, &head_end.ask(&GET).unwrap()).unwrap();
    assert_eq!(Exception::read(&said), Some(Exception::NotAllowed));
    assert!(associate(&mut meter, &mut head_end));
    meter.lose_power();
    assert!(!meter.is_open(MANAGES));
}

#[test]
fn the_inner_counter_of_pass_three_is_held_against_the_floor_before_the_outer_one() {
    for (inner, taken) in [(9, false), (10, true), (11, true)] {
        let (mut meter, mut head_end) = pair(BOOK);
        assert!(associate(&mut meter, &mut head_end));
        head_end.counter = 9;
        assert!(exchange(&mut meter, &mut head_end, &GET).is_some());
        let challenge = challenge_of(&mut meter, &head_end);
        head_end.counter = 12;
        let asked = pass_three(&head_end, &challenge, inner);
        let answered = result_of(exchange(&mut meter, &mut head_end, &asked));
        assert_eq!(answered, Some(if taken { 0 } else { result::OTHER }), "{inner}");
        assert_eq!(meter.is_open(MANAGES), taken);
    }
}

#[test]
fn pass_three_in_plain_is_taken_once_and_raises_the_floor() {
    let (mut meter, mut head_end) = pair(BOOK);
    let challenge = challenge_of(&mut meter, &head_end);
    let asked = pass_three(&head_end, &challenge, 5).write();
    let said = meter.receive(MANAGES, &asked).unwrap();
    assert_eq!(result_of(Response::read(&said)), Some(0));
    assert!(meter.is_open(MANAGES));
    head_end.counter = 5;
    let said = meter.receive(MANAGES, &head_end.ask(&GET).unwrap()).unwrap();
    assert_eq!(Exception::read(&said), Some(Exception::Counter(6)));
    let said = meter.receive(MANAGES, &asked).unwrap();
    assert_eq!(Exception::read(&said), Some(Exception::NotAllowed));
}

/// Else a client's own answer, sent back to it, would be the meter's.
#[test]
fn a_challenge_is_never_the_clients_own_and_never_one_before() {
    let (mut meter, head_end) = pair(BOOK);
    meter.challenge_next(CHALLENGE);
    let first = challenge_of(&mut meter, &head_end);
    assert_ne!(first, CHALLENGE);
    assert_ne!(challenge_of(&mut meter, &head_end), first);
    // Too short, too long, another mechanism, another client's title: no pass 2.
    let asked = acse::Opening::read(&head_end.associate(CHALLENGE)).unwrap();
    for wrong in [
        acse::Opening { challenge: vec![1; 7], ..asked.clone() },
        acse::Opening { challenge: vec![1; 65], ..asked.clone() },
        acse::Opening { mechanism: Some(2), ..asked.clone() },
        acse::Opening { title: Some(METER), ..asked },
    ] {
        let said = meter.receive(MANAGES, &wrong.write()).unwrap();
        assert_eq!(acse::Opening::read(&said).unwrap().result, Some(1));
    }
}

/// A head-end that was killed releases nothing; its next association ends the old one.
#[test]
fn a_new_association_ends_the_old_one_and_keys_that_waited_for_that_count() {
    let (mut meter, mut head_end) = pair(Dialect { applies: Applies::AtRelease, ..BOOK });
    assert!(associate(&mut meter, &mut head_end));
    let request = transfer(&head_end, &keys(0, 0x80), &[KeyId::Unicast]);
    assert_eq!(result_of(exchange(&mut meter, &mut head_end, &request)), Some(0));
    let mut new = head_end.clone();
    new.keys.unicast = keys(0, 0x80).unicast;
    assert!(!associate(&mut meter.clone(), &mut head_end));
    assert!(associate(&mut meter, &mut new));
}

#[test]
fn a_strangers_title_opens_nothing() {
    let (mut meter, mut head_end) = pair(BOOK);
    assert!(associate(&mut meter, &mut head_end));
    let mut stranger = HeadEnd { title: *b"HES\x00\x00\x00\x00\x02", ..head_end.clone() };
    for envelope in
        [Envelope::Glo, Envelope::GeneralGlo, Envelope::GeneralCiphering { transaction: vec![1] }]
    {
        stranger.envelope = envelope;
        let said = meter.receive(MANAGES, &stranger.ask(&GET).unwrap()).unwrap();
        assert_eq!(Exception::read(&said), Some(Exception::Deciphering));
    }
    // Nor does one that was put before what is genuine.
    let mut renamed = HeadEnd { envelope: Envelope::GeneralGlo, ..head_end.clone() };
    let mut asked = renamed.ask(&GET).unwrap();
    asked[9] ^= 3;
    let said = meter.receive(MANAGES, &asked).unwrap();
    assert_eq!(Exception::read(&said), Some(Exception::Deciphering));
    // The form promises a service; another one inside is not that.
    let mut asked = head_end.ask(&GET).unwrap();
    asked[0] = 0xcb;
    let said = meter.receive(MANAGES, &asked).unwrap();
    assert_eq!(Exception::read(&said), Some(Exception::Deciphering));
}
