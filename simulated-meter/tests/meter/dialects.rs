//! Each way of a meter shows in what comes back, or in the keys that it has afterwards.

use crate::common::{
    CHALLENGE, CUSTOMER, MANAGES, PUBLIC, associate, exchange, keys, one_setup, order, pair,
    pair_of_suite, result_of, transfer,
};
use simulated_meter::{
    AfterTransfer, Answer, Applies, Arrays, Association, ClassVersion, CounterOnNewKey, Dialect,
    HeadEnd, KeyId, Keys, Lock, Mechanism, Meter, Policy, PowerLoss, ResultWord, SetupOf, Value,
    acse,
    frame::{Envelope, Frame, control},
    service::{CLOCK, Exception, LABEL, Request, Response, counter_of, result, setup_of},
};

const BOOK: Dialect = Dialect::BY_THE_BOOK;
const BOTH: [KeyId; 2] = [KeyId::Unicast, KeyId::Authentication];

fn new_keys() -> Keys {
    keys(0, 0x80)
}

fn get(id: u8) -> Request {
    Request::Get { id, at: LABEL }
}

fn open_pair(dialect: Dialect) -> (Meter, HeadEnd) {
    let (mut meter, mut head_end) = pair(dialect);
    assert!(associate(&mut meter, &mut head_end));
    (meter, head_end)
}

/// Sends both keys; the meter's answer as it is on the wire.
fn transferred(meter: &mut Meter, head_end: &mut HeadEnd) -> Vec<u8> {
    let request = transfer(head_end, &new_keys(), &BOTH);
    let asked = head_end.ask(&request).unwrap();
    meter.receive(MANAGES, &asked).unwrap()
}

/// A head-end that has the new GUEK and GAK, and counts as it did.
fn with_new(head_end: &HeadEnd) -> HeadEnd {
    let mut keys = new_keys();
    keys.kek.clone_from(&head_end.keys.kek);
    keys.broadcast.clone_from(&head_end.keys.broadcast);
    HeadEnd { keys, ..head_end.clone() }
}

fn has_new(meter: &Meter) -> bool {
    let (has, new) = (meter.keys(0).unwrap(), new_keys());
    assert_eq!(has.unicast == new.unicast, has.authentication == new.authentication);
    has.unicast == new.unicast
}

#[test]
fn every_combination_is_there_once_and_the_first_is_by_the_book() {
    let all: std::collections::BTreeSet<_> = Dialect::all().collect();
    assert_eq!(all.len(), Dialect::COUNT as usize);
    assert_eq!(Dialect::all().next(), Some(BOOK));
    // 11 fields with 28 values: one of each is the book's.
    assert_eq!(Dialect::one_at_a_time().len(), 1 + 17);
    let two = Dialect::two_at_a_time();
    assert!(Dialect::one_at_a_time().iter().all(|it| two.contains(it)));
}

#[test]
fn the_answer_to_a_transfer_is_under_old_new_or_no_keys() {
    for answer in [Answer::Old, Answer::New, Answer::Plain] {
        let (mut meter, mut head_end) = open_pair(Dialect { answer, ..BOOK });
        let said = transferred(&mut meter, &mut head_end);
        let new = with_new(&head_end);
        let found = match (head_end.opens(&said), new.opens(&said), Response::read(&said)) {
            (Some(_), None, None) => Answer::Old,
            (None, Some(_), None) => Answer::New,
            (None, None, Some(_)) => Answer::Plain,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, answer);
        assert!(has_new(&meter));
    }
}

#[test]
fn a_result_may_say_the_opposite_of_what_was_done() {
    for (dialect, says, does) in [
        (ResultWord::True, result::SUCCESS, true),
        (ResultWord::OkNotApplied, result::SUCCESS, false),
        (ResultWord::NotOkApplied, result::OTHER, true),
    ] {
        let (mut meter, mut head_end) = open_pair(Dialect { result: dialect, ..BOOK });
        let said = transferred(&mut meter, &mut head_end);
        assert_eq!(result_of(head_end.hear(&said)), Some(says), "{dialect:?}");
        assert_eq!(has_new(&meter), does, "{dialect:?}");
        meter.reboot();
        assert_eq!(has_new(&meter), does, "{dialect:?}");
    }
}

#[test]
fn a_key_counts_at_once_at_release_or_after_a_restart() {
    let at = |applies| open_pair(Dialect { applies, ..BOOK });
    let (mut meter, mut head_end) = at(Applies::AtOnce);
    transferred(&mut meter, &mut head_end);
    assert!(has_new(&meter) && meter.waiting(0).is_empty());

    let (mut meter, mut head_end) = at(Applies::AtRelease);
    transferred(&mut meter, &mut head_end);
    assert!(!has_new(&meter));
    assert_eq!(meter.waiting(0).len(), 2);
    // The association goes on under the old keys.
    assert!(exchange(&mut meter, &mut head_end, &get(1)).is_some());
    let mut restarted = meter.clone();
    restarted.lose_power();
    assert!(!has_new(&restarted) && restarted.waiting(0).is_empty());
    assert_eq!(meter.receive(MANAGES, &acse::RELEASE).unwrap(), acse::RELEASED);
    assert!(has_new(&meter) && meter.waiting(0).is_empty());

    let (mut meter, mut head_end) = at(Applies::AfterReboot);
    transferred(&mut meter, &mut head_end);
    meter.receive(MANAGES, &acse::RELEASE).unwrap();
    assert!(!has_new(&meter));
    assert_eq!(meter.waiting(0).len(), 2);
    meter.reboot();
    assert!(has_new(&meter));
}

/// GAK first and then GUEK, as many head-ends do it: the second does not push the first out.
#[test]
fn keys_that_come_one_after_the_other_wait_together() {
    for applies in [Applies::AtRelease, Applies::AfterReboot] {
        let (mut meter, mut head_end) = open_pair(Dialect { applies, ..BOOK });
        for id in [KeyId::Authentication, KeyId::Unicast] {
            let request = transfer(&head_end, &new_keys(), &[id]);
            assert_eq!(result_of(exchange(&mut meter, &mut head_end, &request)), Some(0));
        }
        meter.receive(MANAGES, &acse::RELEASE).unwrap();
        meter.reboot();
        assert!(has_new(&meter), "{applies:?}");
    }
}

#[test]
fn a_power_loss_may_bring_old_keys_back_and_an_orderly_restart_does_not() {
    for (power_loss, new) in [(PowerLoss::Keeps, true), (PowerLoss::Reverts, false)] {
        let (mut meter, mut head_end) = open_pair(Dialect { power_loss, ..BOOK });
        transferred(&mut meter, &mut head_end);
        let mut orderly = meter.clone();
        meter.lose_power();
        assert_eq!(has_new(&meter), new, "{power_loss:?}");
        orderly.reboot();
        orderly.lose_power();
        assert!(has_new(&orderly));
    }
}

/// A GUEK that is right, and a GAK under another KEK.
fn half_right(head_end: &HeadEnd) -> Request {
    let Request::Act { id, at, argument: Some(Value::Array(mut items)) } =
        transfer(head_end, &new_keys(), &BOTH)
    else {
        panic!("no transfer")
    };
    let mut other = head_end.clone();
    other.keys.kek = keys(0, 0x40).kek;
    let Request::Act { argument: Some(Value::Array(wrong)), .. } =
        transfer(&other, &new_keys(), &BOTH)
    else {
        panic!("no transfer")
    };
    items[1] = wrong[1].clone();
    Request::Act { id, at, argument: Some(Value::Array(items)) }
}

#[test]
fn several_keys_are_taken_all_or_one_by_one_or_the_first_alone() {
    for (arrays, of_half, of_both) in [
        (Arrays::Atomic, (result::OTHER, false, false), (result::SUCCESS, true, true)),
        (Arrays::ElementWise, (result::OTHER, true, false), (result::SUCCESS, true, true)),
        (Arrays::FirstAlone, (result::OTHER, true, false), (result::OTHER, true, false)),
    ] {
        let seen = |request: fn(&HeadEnd) -> Request| {
            let (mut meter, mut head_end) = open_pair(Dialect { arrays, ..BOOK });
            let request = request(&head_end);
            let said = result_of(exchange(&mut meter, &mut head_end, &request)).unwrap();
            let (has, new) = (meter.keys(0).unwrap(), new_keys());
            (said, has.unicast == new.unicast, has.authentication == new.authentication)
        };
        assert_eq!(seen(half_right), of_half, "{arrays:?}");
        assert_eq!(seen(|it| transfer(it, &new_keys(), &BOTH)), of_both, "{arrays:?}");
    }
}

#[test]
fn a_new_guek_begins_the_counters_again_or_does_not_and_a_gak_never_does() {
    for (counter, ids, begins_again) in [
        (CounterOnNewKey::Reset, &BOTH[..], true),
        (CounterOnNewKey::Keep, &BOTH[..], false),
        (CounterOnNewKey::Reset, &[KeyId::Authentication][..], false),
    ] {
        let (mut meter, mut head_end) = open_pair(Dialect { counter, ..BOOK });
        let request = transfer(&head_end, &new_keys(), ids);
        assert_eq!(result_of(exchange(&mut meter, &mut head_end, &request)), Some(0));
        let mut new = with_new(&head_end);
        if ids.len() == 1 {
            new.keys.unicast.clone_from(&head_end.keys.unicast);
        }
        new.counter = 0;
        let asked = new.ask(&get(1)).unwrap();
        let said = meter.receive(MANAGES, &asked).unwrap();
        let floor = Exception::read(&said);
        assert_eq!(floor, (!begins_again).then_some(Exception::Counter(head_end.counter)));
        let pushed = Frame::read(&meter.push(0).unwrap()).unwrap().counter;
        assert_eq!(pushed <= 1, begins_again, "{pushed}");
    }
}

#[test]
fn a_counter_that_is_too_far_or_too_low_is_told_what_is_expected() {
    for (largest_step, too_far) in [(None, None), (Some(50), Some(Exception::Counter(3)))] {
        let (mut meter, mut head_end) = open_pair(Dialect { largest_step, ..BOOK });
        assert_eq!(head_end.counter, 3);
        head_end.counter = 54;
        let said = meter.receive(MANAGES, &head_end.ask(&get(1)).unwrap()).unwrap();
        assert_eq!(Exception::read(&said), too_far);
        let expected = if too_far.is_some() { 3 } else { 55 };
        head_end.counter = expected;
        assert!(exchange(&mut meter, &mut head_end, &get(1)).is_some());
        head_end.counter -= 1;
        let asked = head_end.ask(&get(1)).unwrap();
        let said = meter.receive(MANAGES, &asked).unwrap();
        assert_eq!(said[..3], [0xd8, 1, 6]);
        assert_eq!(Exception::read(&said), Some(Exception::Counter(expected + 1)));
    }
}

/// Only what is genuine raises the floor: a forger can't burn a meter's counters.
#[test]
fn a_forged_counter_raises_no_floor() {
    let (mut meter, mut head_end) = open_pair(BOOK);
    let mut forged = head_end.clone();
    forged.keys.authentication[0] ^= 1;
    forged.counter = u32::MAX - 1;
    let said = meter.receive(MANAGES, &forged.ask(&get(1)).unwrap()).unwrap();
    assert_eq!(Exception::read(&said), Some(Exception::Deciphering));
    assert!(exchange(&mut meter, &mut head_end, &get(1)).is_some());
}

#[test]
fn the_association_stays_or_is_gone_behind_a_transfer() {
    for (after_transfer, stays) in [(AfterTransfer::Stays, true), (AfterTransfer::Drops, false)] {
        let (mut meter, mut head_end) = open_pair(Dialect { after_transfer, ..BOOK });
        transferred(&mut meter, &mut head_end);
        assert_eq!(meter.is_open(MANAGES), stays);
        let mut new = with_new(&head_end);
        let heard = exchange(&mut meter, &mut new, &get(1));
        assert_eq!(heard.is_some(), stays);
        assert!(associate(&mut meter, &mut new));
    }
    // What was to count at release counts then.
    let applies = Applies::AtRelease;
    let (mut meter, mut head_end) =
        open_pair(Dialect { after_transfer: AfterTransfer::Drops, applies, ..BOOK });
    transferred(&mut meter, &mut head_end);
    assert!(has_new(&meter));
}

#[test]
fn who_fails_too_often_waits_even_with_the_right_keys() {
    let lock = Lock { failures: 3, seconds: 60 };
    for (lock, locked) in [(None, false), (Some(lock), true)] {
        let (mut meter, mut head_end) = pair(Dialect { lock, ..BOOK });
        let mut wrong = HeadEnd { keys: new_keys(), ..head_end.clone() };
        for _ in 0..2 {
            assert!(!associate(&mut meter, &mut wrong));
        }
        // Success in between begins the count again.
        assert!(associate(&mut meter, &mut head_end));
        wrong.counter = head_end.counter;
        for _ in 0..3 {
            assert_eq!(meter.locked_until(), 0);
            assert!(!associate(&mut meter, &mut wrong));
        }
        head_end.counter = wrong.counter;
        assert_eq!(associate(&mut meter, &mut head_end), !locked);
        meter.reboot();
        assert_eq!(associate(&mut meter, &mut head_end), !locked);
        meter.pass(60);
        assert!(associate(&mut meter, &mut head_end));
    }
}

#[test]
fn version_0_takes_no_kek_and_version_1_does() {
    for (class, says) in [(ClassVersion::V0, result::OTHER), (ClassVersion::V1, result::SUCCESS)] {
        let (mut meter, mut head_end) = open_pair(Dialect { class, ..BOOK });
        let request = transfer(&head_end, &new_keys(), &[KeyId::Kek]);
        assert_eq!(result_of(exchange(&mut meter, &mut head_end, &request)), Some(says));
        let taken = meter.keys(0).unwrap().kek == new_keys().kek;
        assert_eq!(taken, class == ClassVersion::V1);
        // The next transfer is wrapped under whichever it is.
        if taken {
            head_end.keys.kek = new_keys().kek;
        }
        let request = transfer(&head_end, &new_keys(), &BOTH);
        assert_eq!(result_of(exchange(&mut meter, &mut head_end, &request)), Some(0));
        assert!(has_new(&meter));
    }
}

#[test]
fn what_is_less_protected_than_the_policy_is_refused_and_pushes_have_just_that() {
    for (policy, due) in [
        (Policy::Nothing, 0),
        (Policy::Authenticated, control::AUTHENTICATED),
        (Policy::Encrypted, control::ENCRYPTED),
        (Policy::Both, control::AUTHENTICATED | control::ENCRYPTED),
    ] {
        let (mut meter, mut head_end) = open_pair(Dialect { policy, ..BOOK });
        for bits in [0x10, 0x20, 0x30] {
            head_end.control = bits;
            let said = meter.receive(MANAGES, &head_end.ask(&get(7)).unwrap()).unwrap();
            let label = Response::Got { id: 7, got: Ok(Value::Text(b"as delivered".to_vec())) };
            let taken = (bits & due == due).then_some(label);
            assert_eq!(head_end.hear(&said), taken, "{policy:?} {bits:x}");
        }
        let plain = meter.receive(MANAGES, &get(7).write()).unwrap();
        assert_eq!(Response::read(&plain).is_some(), due == 0);
        let pushed = meter.push(0).unwrap();
        let sealed = Frame::read(&pushed);
        assert_eq!(sealed.as_ref().map_or(0, |it| it.control), due);
        let plain = if due == 0 { pushed } else { head_end.opens(&pushed).unwrap() };
        assert_eq!(plain[0], 0x0f);
    }
}

/// Without a tag, other keys show by nonsense alone, and no key of two is told from no key of one.
#[test]
fn encryption_alone_does_not_tell_a_wrong_gak() {
    let (mut meter, mut head_end) = open_pair(Dialect { policy: Policy::Encrypted, ..BOOK });
    head_end.control = control::ENCRYPTED;
    head_end.keys.authentication = new_keys().authentication;
    assert!(exchange(&mut meter, &mut head_end, &get(1)).is_some());
    head_end.keys.unicast = new_keys().unicast;
    for envelope in [Envelope::Glo, Envelope::GeneralGlo] {
        head_end.envelope = envelope;
        let said = meter.receive(MANAGES, &head_end.ask(&get(1)).unwrap()).unwrap();
        assert_eq!(Exception::read(&said), Some(Exception::Deciphering));
    }
}

#[test]
fn every_form_and_every_suite_is_answered_alike() {
    let general = Envelope::GeneralCiphering { transaction: b"01234567".to_vec() };
    for suite in [0, 1, 2] {
        for envelope in [Envelope::Glo, Envelope::GeneralGlo, general.clone()] {
            let (mut meter, mut head_end) = pair_of_suite(BOOK, suite);
            assert!(associate(&mut meter, &mut head_end));
            head_end.envelope = envelope;
            let new = keys(suite, 0x80);
            let request = transfer(&head_end, &new, &BOTH);
            let asked = head_end.ask(&request).unwrap();
            let said = meter.receive(MANAGES, &asked).unwrap();
            assert_eq!(Frame::read(&said).unwrap().envelope, head_end.envelope);
            assert_eq!(result_of(head_end.hear(&said)), Some(0));
            assert_eq!(meter.keys(0).unwrap().unicast, new.unicast);
            let another = head_end.control ^ 3;
            let said = meter
                .receive(MANAGES, &HeadEnd { control: another, ..head_end }.ask(&get(1)).unwrap());
            assert_eq!(Exception::read(&said.unwrap()), Some(Exception::Deciphering));
        }
    }
}

#[test]
fn a_broadcast_is_heard_under_its_own_key_and_counter_and_is_not_answered() {
    let (mut meter, mut head_end) = open_pair(BOOK);
    let mut to_all = head_end.clone();
    to_all.control |= control::BROADCAST;
    to_all.envelope = Envelope::GeneralGlo;
    to_all.counter = 1_000_000;
    let set = |text: &[u8]| Request::Set { id: 1, at: LABEL, value: Value::Text(text.to_vec()) };
    let asked = to_all.ask(&set(b"from one to all")).unwrap();
    assert_eq!(meter.receive(MANAGES, &asked), None);
    assert_eq!(meter.label(), b"from one to all");
    // Not twice, not under the unicast key, and the unicast counter knows nothing of it.
    let again = set(b"again");
    to_all.counter -= 1;
    assert_eq!(meter.receive(MANAGES, &to_all.ask(&again).unwrap()), None);
    to_all.keys.broadcast.clone_from(&head_end.keys.unicast);
    assert_eq!(meter.receive(MANAGES, &to_all.ask(&again).unwrap()), None);
    assert_eq!(meter.label(), b"from one to all");
    assert!(exchange(&mut meter, &mut head_end, &get(1)).is_some());
}

#[test]
fn a_public_client_reads_counter_and_clock_and_no_more() {
    let (mut meter, head_end) = open_pair(BOOK);
    let mut ask = |at| {
        let said = meter.receive(PUBLIC, &Request::Get { id: 1, at }.write()).unwrap();
        match Response::read(&said) {
            Some(Response::Got { got, .. }) => got,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(counter_of(0)), Ok(Value::U32(head_end.counter)));
    assert_eq!(ask(counter_of(9)), Err(result::UNDEFINED));
    assert!(matches!(ask(CLOCK), Ok(Value::Octets(time)) if time.len() == 12));
    assert_eq!(ask(LABEL), Err(result::DENIED));
    let set = Request::Set { id: 1, at: LABEL, value: Value::Text(Vec::new()) };
    let said = meter.receive(PUBLIC, &set.write()).unwrap();
    assert_eq!(Response::read(&said), Some(Response::Set { id: 1, result: result::DENIED }));
    let said = meter.receive(PUBLIC, &transfer(&head_end, &new_keys(), &BOTH).write()).unwrap();
    assert_eq!(result_of(Response::read(&said)), Some(result::DENIED));
    assert_eq!(meter.receive(99, &get(1).write()), None);
}

#[test]
fn the_clock_is_set_and_a_setup_tells_of_itself() {
    let (mut meter, mut head_end) = open_pair(BOOK);
    let time = Value::Octets([0x07, 0xe8, 2, 29, 4, 14, 34, 56, 0xff, 0x80, 0, 0].to_vec());
    let set = Request::Set { id: 1, at: CLOCK, value: time };
    assert_eq!(result_of(exchange(&mut meter, &mut head_end, &set)), Some(0));
    assert_eq!(meter.clock(), 1_709_217_296);
    for (index, expected) in [
        (2, Value::Enum(0x6c)),
        (3, Value::Enum(0)),
        (4, Value::Octets(head_end.title.to_vec())),
        (5, Value::Octets(meter.title().to_vec())),
    ] {
        let asked = Request::Get { id: 1, at: setup_of(0, index) };
        let heard = exchange(&mut meter, &mut head_end, &asked);
        assert_eq!(heard, Some(Response::Got { id: 1, got: Ok(expected) }));
    }
}

/// Keys of a customer port travel over the management association, wrapped under the port's own KEK.
#[test]
fn who_manages_changes_keys_of_other_setups_and_nobody_else_does() {
    let port = SetupOf { instance: 1, suite: 0, keys: keys(0, 0x40), first_counter: 1 };
    let own = one_setup(0, keys(0, 0)).remove(0);
    let mut ordered = order(BOOK, vec![own, port]);
    let customer = *b"CII\x00\x00\x00\x00\x02";
    ordered.associations.push(Association {
        client: CUSTOMER,
        title: customer,
        setup: Some(1),
        mechanism: Mechanism::PreEstablished,
        manages: false,
    });
    let mut meter = Meter::new(ordered);
    let mut head_end = HeadEnd::new(crate::common::CLIENT, meter.title(), 0, keys(0, 0));
    assert!(associate(&mut meter, &mut head_end));
    let at = |setup: u8, kek: &[u8]| {
        let mut wrapping = head_end.clone();
        wrapping.keys.kek = kek.to_vec();
        match transfer(&wrapping, &new_keys(), &BOTH) {
            Request::Act { id, argument, .. } => {
                Request::Act { id, at: setup_of(setup, 2), argument }
            }
            other => other,
        }
    };
    let (wrong, right) = (at(1, &keys(0, 0).kek), at(1, &keys(0, 0x40).kek));
    let foreign = at(0, &keys(0, 0).kek);
    assert_eq!(result_of(exchange(&mut meter, &mut head_end, &wrong)), Some(result::OTHER));
    assert_eq!(meter.keys(1), Some(&keys(0, 0x40)));
    assert_eq!(result_of(exchange(&mut meter, &mut head_end, &right)), Some(result::SUCCESS));
    assert_eq!(meter.keys(1).unwrap().unicast, new_keys().unicast);
    // The association's own keys are what they were, the port's client uses its new ones.
    assert!(exchange(&mut meter, &mut head_end, &get(1)).is_some());
    let mut port = HeadEnd::new(customer, meter.title(), 0, new_keys());
    let said = meter.receive(CUSTOMER, &port.ask(&foreign).unwrap()).unwrap();
    assert_eq!(result_of(port.hear(&said)), Some(result::DENIED));
    assert_eq!(meter.keys(0), Some(&keys(0, 0)));
}

#[test]
fn a_dedicated_key_is_used_once_it_came_under_the_global_one() {
    let (mut meter, head_end) = pair(BOOK);
    let mut dedicated = head_end.clone();
    dedicated.keys.unicast = vec![0x5a; 16];
    dedicated.envelope = Envelope::Ded;
    dedicated.counter = 0;
    let mut global = head_end.clone();
    let sealed = simulated_meter::frame::seal(
        &Envelope::Glo,
        (0x30, 1),
        simulated_meter::frame::Under {
            encryption: &head_end.keys.unicast,
            authentication: &head_end.keys.authentication,
            originator: head_end.title,
        },
        head_end.meter,
        &acse::initiate_with(&dedicated.keys.unicast),
    );
    let mut opening = acse::Opening::read(&head_end.associate(CHALLENGE)).unwrap();
    opening.user = sealed.unwrap();
    let accepted = meter.receive(MANAGES, &opening.write()).unwrap();
    let user = acse::Opening::read(&accepted).unwrap().user;
    assert_eq!(head_end.opens(&user).unwrap(), acse::INITIATED);
    global.counter = 2;
    let said = meter.receive(MANAGES, &global.answer(&accepted).unwrap()).unwrap();
    assert!(global.confirmed(CHALLENGE, &said));
    let said = meter.receive(MANAGES, &dedicated.ask(&get(1)).unwrap()).unwrap();
    assert_eq!(said[0], 0xd4);
    assert_eq!(result_of(dedicated.hear(&said)), Some(0));
    // In the clear it is everybody's.
    opening.user = acse::initiate_with(&[0x5a; 16]);
    let said = meter.receive(MANAGES, &opening.write()).unwrap();
    assert_eq!(acse::Opening::read(&said).unwrap().result, Some(1));
}

/// Whatever comes in, the answer is bytes or silence.
#[test]
fn bytes_from_outside_do_not_panic() {
    let (mut meter, mut head_end) = open_pair(BOOK);
    let mut chance = simulated_meter::Chance::new(3);
    let good = [
        head_end.associate(CHALLENGE),
        head_end.ask(&transfer(&head_end, &new_keys(), &BOTH)).unwrap(),
        transfer(&head_end, &new_keys(), &BOTH).write(),
        acse::RELEASE.to_vec(),
    ];
    for round in 0..40_000 {
        let mut apdu = good[round % good.len()].clone();
        for _ in 0..=chance.below(3) {
            let at = chance.below(apdu.len() as u64) as usize;
            apdu[at] = chance.number() as u8;
        }
        apdu.truncate(1 + chance.below(apdu.len() as u64) as usize);
        for client in [MANAGES, PUBLIC] {
            meter.receive(client, &apdu);
        }
    }
    assert!(!has_new(&meter));
}
