//! The ledger on what really goes over the wire, and the link that loses it.

use crate::common::{
    CHALLENGE, CLIENT, MANAGES, METER, associate, keys, pair, pair_of_suite, result_of, transfer,
};
use simulated_meter::{
    Answer, Dialect, Direction, Finding, HeadEnd, KeyId, Ledger, Link, Losses, Meter, Policy,
    frame::{Envelope, Under, control, seal},
    hls,
    service::{LABEL, REPLY_TO_HLS, Request},
    {Value, acse},
};

const GET: Request = Request::Get { id: 1, at: LABEL };

fn ledger(suite: u8) -> Ledger {
    let mut ledger = Ledger::default();
    for first in [0, 0x80] {
        let keys = keys(suite, first);
        ledger.learn_encryption(METER, &keys.unicast);
        ledger.learn_encryption(METER, &keys.broadcast);
        ledger.learn_authentication(METER, &keys.authentication);
    }
    ledger
}

fn findings(ledger: &mut Ledger, from: [u8; 8], apdu: &[u8]) -> Vec<Finding> {
    ledger.read(METER, from, apdu).iter().map(|it| it.finding).collect()
}

/// Passes 1 to 4 and a GET, all read by the ledger: what it found, message by message.
fn watched(ledger: &mut Ledger, meter: &mut Meter, head_end: &mut HeadEnd) -> Vec<Vec<Finding>> {
    let mut found = Vec::new();
    let opening = head_end.associate(CHALLENGE);
    let accepted = meter.receive(MANAGES, &opening).unwrap();
    let asked = head_end.answer(&accepted).unwrap();
    let answer = meter.receive(MANAGES, &asked).unwrap();
    let get = head_end.ask(&GET).unwrap();
    let got = meter.receive(MANAGES, &get).unwrap();
    for (from, apdu) in [
        (CLIENT, &opening),
        (METER, &accepted),
        (CLIENT, &asked),
        (METER, &answer),
        (CLIENT, &get),
        (METER, &got),
    ] {
        found.push(findings(ledger, from, apdu));
    }
    found
}

#[test]
fn a_session_uses_each_nonce_once_the_inner_ones_included() {
    use Finding::Fresh;
    for suite in [0, 1, 2] {
        for envelope in [
            Envelope::Glo,
            Envelope::GeneralGlo,
            Envelope::GeneralCiphering { transaction: vec![7] },
        ] {
            let (mut meter, mut head_end) = pair_of_suite(Dialect::BY_THE_BOOK, suite);
            head_end.envelope = envelope;
            let mut ledger = ledger(suite);
            let found = watched(&mut ledger, &mut meter, &mut head_end);
            let expected =
                [vec![], vec![], vec![Fresh; 2], vec![Fresh; 2], vec![Fresh], vec![Fresh]];
            assert_eq!(found, expected);
            assert_eq!((ledger.pairs(), ledger.reused()), (6, 0));
        }
    }
}

#[test]
fn under_encryption_alone_it_finds_the_key_by_the_sense() {
    let dialect = Dialect { policy: Policy::Encrypted, ..Dialect::BY_THE_BOOK };
    let (mut meter, mut head_end) = pair(dialect);
    head_end.control = control::ENCRYPTED;
    let mut ledger = ledger(0);
    let found = watched(&mut ledger, &mut meter, &mut head_end);
    assert_eq!(found[2..].concat(), [Finding::Fresh; 6]);
    let pushed = meter.push(0).unwrap();
    assert_eq!(findings(&mut ledger, METER, &pushed), [Finding::Fresh]);
    // A ledger that has seen nothing yet finds the same key as for a push with a tag.
    let key = |apdu: &[u8]| self::ledger(0).read(METER, METER, apdu)[0].key.unwrap();
    assert_eq!(key(&pushed), key(&pair(Dialect::BY_THE_BOOK).0.push(0).unwrap()));
    head_end.counter -= 1;
    let other = Request::Set { id: 1, at: LABEL, value: Value::Text(b"x".to_vec()) };
    let asked = head_end.ask(&other).unwrap();
    assert_eq!(findings(&mut ledger, CLIENT, &asked), [Finding::Twice]);
}

#[test]
fn another_text_under_the_same_counter_is_found_both_ways_and_the_same_bytes_are_not() {
    let (mut meter, mut head_end) = pair(Dialect::BY_THE_BOOK);
    let mut ledger = ledger(0);
    assert!(associate(&mut meter, &mut head_end));
    let mut twin = meter.clone();
    let asked = head_end.ask(&GET).unwrap();
    assert_eq!(findings(&mut ledger, CLIENT, &asked), [Finding::Fresh]);
    assert_eq!(findings(&mut ledger, CLIENT, &asked), [Finding::SentAgain]);
    // The control that has to be red: a retry that takes its counter once more.
    head_end.counter -= 1;
    let retried = head_end.ask(&transfer(&head_end, &keys(0, 0x80), &[KeyId::Unicast])).unwrap();
    assert_eq!(findings(&mut ledger, CLIENT, &retried), [Finding::Twice]);
    // Two meters of one past answer two different things.
    let of_one = meter.receive(MANAGES, &asked).unwrap();
    let of_other = twin.receive(MANAGES, &retried).unwrap();
    assert_eq!(findings(&mut ledger, METER, &of_one), [Finding::Fresh]);
    assert_eq!(findings(&mut ledger, METER, &of_other), [Finding::Twice]);
    assert_eq!(ledger.reused(), 2);
}

/// The field's most frequent reuse: one counter for the answer and for the action that carries it.
#[test]
fn the_inner_and_the_outer_nonce_of_pass_three_must_not_be_one() {
    for plain_around in [false, true] {
        let (mut meter, head_end) = pair(Dialect::BY_THE_BOOK);
        let mut ledger = ledger(0);
        let opening = head_end.associate(CHALLENGE);
        let accepted = meter.receive(MANAGES, &opening).unwrap();
        findings(&mut ledger, CLIENT, &opening);
        findings(&mut ledger, METER, &accepted);
        let challenge = acse::Opening::read(&accepted).unwrap().challenge;
        let under = Under {
            encryption: &head_end.keys.unicast,
            authentication: &head_end.keys.authentication,
            originator: CLIENT,
        };
        let answer = hls::answer(under, 0, 5, &challenge).unwrap();
        let act = Request::Act { id: 1, at: REPLY_TO_HLS, argument: Some(Value::Octets(answer)) };
        if plain_around {
            // In a plain action it is seen by the challenge alone; then the counter is used once more.
            assert_eq!(findings(&mut ledger, CLIENT, &act.write()), [Finding::Fresh]);
            let get = seal(&Envelope::Glo, (0x30, 5), under, METER, &GET.write()).unwrap();
            assert_eq!(findings(&mut ledger, CLIENT, &get), [Finding::Twice]);
        } else {
            let asked = seal(&Envelope::Glo, (0x30, 5), under, METER, &act.write()).unwrap();
            assert_eq!(findings(&mut ledger, CLIENT, &asked), [Finding::Fresh, Finding::Twice]);
        }
    }
}

#[test]
fn one_counter_under_two_keys_and_of_two_sides_is_no_reuse_and_strangers_are_named() {
    let mut ledger = ledger(0);
    for first in [0, 0x80] {
        let (_, mut head_end) = pair(Dialect::BY_THE_BOOK);
        head_end.keys = keys(0, first);
        head_end.counter = 9;
        let asked = head_end.ask(&GET).unwrap();
        assert_eq!(findings(&mut ledger, CLIENT, &asked), [Finding::Fresh]);
        let mut of_meter = HeadEnd { title: METER, meter: CLIENT, counter: 9, ..head_end.clone() };
        let said = of_meter.ask(&GET).unwrap();
        assert_eq!(findings(&mut ledger, METER, &said), [Finding::Fresh]);
        head_end.keys = keys(0, 0x40);
        assert_eq!(findings(&mut ledger, CLIENT, &head_end.ask(&GET).unwrap()), [Finding::Unread]);
    }
    assert_eq!((ledger.unread(), ledger.reused(), ledger.pairs()), (2, 0, 4));
    assert_eq!(findings(&mut ledger, CLIENT, b"\xcb\x7f nothing"), []);
    assert_eq!(findings(&mut ledger, CLIENT, b""), []);
}

/// A transfer that is retried with the same wrapped bytes: the meter has the new key already, and goes on counting.
#[test]
fn a_retried_transfer_repeats_no_nonce_of_the_meter() {
    let ways = [Answer::Old, Answer::New];
    for answer in ways {
        let (mut meter, mut head_end) = pair(Dialect { answer, ..Dialect::BY_THE_BOOK });
        let mut ledger = ledger(0);
        assert!(associate(&mut meter, &mut head_end));
        let request = transfer(&head_end, &keys(0, 0x80), &[KeyId::Unicast]);
        let said = meter.receive(MANAGES, &head_end.ask(&request).unwrap()).unwrap();
        findings(&mut ledger, METER, &said);
        let mut new = head_end.clone();
        new.keys.unicast = keys(0, 0x80).unicast;
        for _ in 0..3 {
            let said = meter.receive(MANAGES, &new.ask(&request).unwrap()).unwrap();
            assert_eq!(result_of(new.hear(&said)), Some(0));
            assert_eq!(findings(&mut ledger, METER, &said), [Finding::Fresh]);
        }
    }
}

#[test]
fn a_link_loses_doubles_and_delays_by_its_seed_both_ways() {
    let run = |seed, losses| {
        let mut link = Link::new(seed, losses);
        let mut arrived = Vec::new();
        for number in 0..500u16 {
            let direction = if number % 2 == 0 { Direction::ToMeter } else { Direction::FromMeter };
            link.send(direction, number.to_be_bytes().to_vec());
            arrived.extend(link.step());
        }
        link.heal();
        while !link.is_idle() {
            arrived.extend(link.step());
        }
        arrived
    };
    let all = run(1, Losses::default());
    assert_eq!(all.len(), 500);
    assert!(all.is_sorted_by_key(|it| it.1.clone()));
    let count = |of: &[(Direction, Vec<u8>)], way| of.iter().filter(|it| it.0 == way).count();
    for way in [Direction::ToMeter, Direction::FromMeter] {
        let lost = run(1, Losses { lost: 300, ..Losses::default() });
        assert!((1..250).contains(&count(&lost, way)));
        let doubled = run(1, Losses { doubled: 300, ..Losses::default() });
        assert!((251..500).contains(&count(&doubled, way)));
        let late = run(1, Losses { late: 300, ..Losses::default() });
        assert_eq!(count(&late, way), 250);
        assert!(!late.is_sorted_by_key(|it| it.1.clone()));
    }
    let losses = Losses { lost: 50, doubled: 50, late: 50 };
    assert_eq!(run(7, losses), run(7, losses));
    assert_ne!(run(7, losses), run(8, losses));
}
