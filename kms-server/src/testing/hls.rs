//! HLS authentication: four passes with a meter made by hand, and all that is refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use dlms::{
    CipheredApdu, Envelope as Form, FreshCounter, GeneralCipheringAad, Keys, Protection,
    ServiceTag, Side, Suite, SystemTitle,
    hls::{self, Exchange, SecretMechanism},
};
use kms_core::{
    KeyKind, KeyState, MeterId, MeterPolicy, MinimumProtection, ProfileName, SecuritySetup,
    Verdict, audit::NodeId, counters::refusal::Refusal, life::choosing::Place, moment::Moment,
    ports::Clock,
};

use super::{
    home::{Home, at_home, profiles_for_hls},
    site_common::{
        BOTH, GAK, GUEK, Options, Site, call, id, in_hsm, key, meter_with, title, value,
    },
    transmitting::declare,
};
use crate::{
    associations::{
        Action, Answered, Asked, Associations, Begin, Begun, Given, GivenAnswer, Handle, Mechanism,
        NotAssociated, Verified,
    },
    ciphering::Named,
    lifecycle::{NewKey, NewMeter},
    transmitting::{
        Envelope, NotForwarded, Origin, OtherNodes, Outcome, Plain, ProtectedBatch, Transmitting,
        Whose,
    },
};

pub(super) const CLIENT: SystemTitle = SystemTitle::new(*b"AMIHES\x00\x01");
pub(super) const STOC: &[u8] = b"P6wRJ21F";
const SECRET: &[u8] = b"the HLS secret";
pub(super) const HES: &str = "hes-1";
pub(super) const GMAC: Mechanism = Mechanism::Gmac;

pub(super) const ORIGIN: Origin<'static> = Origin {
    caller: HES,
    roles: Vec::new(),
    call: "Ciphering/AnswerHlsChallenge",
    request_id: "",
    until: None,
};

/// Moved by the test.
#[derive(Default)]
struct Time(AtomicU64);

impl Clock for Time {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn now(&self) -> Moment {
        Moment::from_ms(self.unix_ms())
    }
}

pub(super) struct World {
    pub(super) site: Site,
    pub(super) sending: Arc<Transmitting>,
    pub(super) open: Associations,
    time: Arc<Time>,
}

pub(super) async fn world(home: &Home) -> World {
    let time = Arc::new(Time::default());
    let clock: Arc<dyn Clock> = time.clone();
    let options =
        Options { profiles: profiles_for_hls(), clock: Some(clock), ..Options::default() };
    let site = Site::with(home, options).await;
    let sending = Arc::new(site.transmitting(true, None));
    let open = site.associations(Arc::clone(&sending), profiles_for_hls());
    World { site, sending, open, time }
}

/// Meter `n` of a profile, with these keys beside GUEK and GAK.
pub(super) fn of_profile(n: u64, profile: &str, more: Vec<NewKey>) -> NewMeter {
    let policy = MeterPolicy {
        client_title: Some(CLIENT),
        // The answer itself bears no ciphertext, and is none the worse for it.
        minimum_protection: MinimumProtection::AuthenticatedEncrypted,
        profile: Some(ProfileName::new(profile).unwrap()),
        ..MeterPolicy::default()
    };
    let mut keys = vec![key(KeyKind::Guek, value(n, GUEK)), key(KeyKind::Gak, value(n, GAK))];
    keys.extend(more);
    meter_with(n, keys, policy)
}

fn with_secret(n: u64, profile: &str, secret: &[u8]) -> NewMeter {
    of_profile(n, profile, vec![key(KeyKind::HlsSecret, secret.to_vec())])
}

pub(super) fn wanted(n: u64, mechanism: Mechanism) -> Begin<'static> {
    Begin {
        whose: Whose::Title(title(n)),
        setup: SecuritySetup(0),
        client: 0,
        mechanism,
        suite: None,
        challenge_len: 16,
        versions: (0, 0),
    }
}

pub(super) const BARE: Asked<'static> =
    Asked { challenge: STOC, said: None, action: None, versions: (0, 0) };
pub(super) const CARRIED: Asked<'static> = Asked {
    action: Some(Action {
        invoke_id_and_priority: 0xC1,
        envelope: Envelope::Service,
        protection: (true, true),
    }),
    ..BARE
};

pub(super) const fn any_pair(answer: GivenAnswer<'_>) -> Given<'_> {
    Given { answer, versions: (0, 0) }
}

impl World {
    pub(super) async fn begin(&self, n: u64, mechanism: Mechanism) -> Begun {
        self.open.begin(HES, wanted(n, mechanism)).await.unwrap().unwrap()
    }

    pub(super) async fn answer(&self, begun: &Begun, asked: Asked<'_>) -> Answered {
        self.open.answer(&ORIGIN, begun.handle, asked).await.unwrap()
    }

    pub(super) async fn verify(&self, begun: &Begun, answer: GivenAnswer<'_>) -> Verified {
        self.open.verify(HES, begun.handle, any_pair(answer)).await.unwrap()
    }
}

/// As meter `n` has it.
fn keys_of(n: u64, with: impl FnOnce(&Keys<'_>)) {
    let (guek, gak) = (value(n, GUEK), value(n, GAK));
    with(&Keys { encryption: &guek, authentication: &gak });
}

pub(super) fn fresh(counter: u32) -> FreshCounter {
    FreshCounter::promise_never_used_under_this_key_and_title(counter)
}

/// f(CtoS) of meter `n`.
fn meters_answer(n: u64, challenge: &[u8], counter: u32) -> Vec<u8> {
    let mut answer = Vec::new();
    keys_of(n, |keys| {
        let made = hls::compute(Suite::Suite0, &title(n), fresh(counter), keys, challenge);
        answer.extend_from_slice(&made.unwrap());
    });
    answer
}

/// The glo-action-response of meter `n` that carries it.
fn response(n: u64, answer: &[u8], counter: u32) -> Vec<u8> {
    let len = answer.len() as u8;
    let plain = [&[0xC7, 0x01, 0xC1, 0x00, 0x01, 0x00, 0x09, len], answer].concat();
    let mut apdu = Vec::new();
    keys_of(n, |keys| {
        let protection = Protection {
            envelope: Form::Service(ServiceTag::try_from(0xCF).unwrap()),
            security_control: BOTH,
            originator: title(n),
            keys: *keys,
            gc_aad: GeneralCipheringAad::Spec,
        };
        dlms::protect(&protection, fresh(counter), &plain, &mut apdu).unwrap();
    });
    apdu
}

/// The plaintext of what went out to meter `n`.
fn read_by_meter(n: u64, apdu: &[u8]) -> (Vec<u8>, u32) {
    let apdu = CipheredApdu::parse(apdu).unwrap();
    let mut out = Vec::new();
    keys_of(n, |keys| apdu.open(keys, &CLIENT, GeneralCipheringAad::Spec, &mut out).unwrap());
    (out, apdu.invocation_counter())
}

#[test]
fn invariant_3_mechanism_5_takes_two_counters_of_one_line_and_the_meters_lower_one_is_no_replay() {
    at_home(async |home| {
        let it = world(home).await;
        it.site.add(of_profile(1, "strict", vec![])).await;
        declare(&it.sending, 1, None).await.unwrap();
        let mut seen = Vec::new();
        for round in 1..4 {
            let begun = it.begin(1, GMAC).await;
            assert_eq!((begun.client_title, begun.challenge.len()), (CLIENT, 16));
            let answered = it.answer(&begun, CARRIED).await;
            assert_eq!(answered.outcome.verdict, Verdict::Ok, "{answered:?}");
            let (plain, outer) = read_by_meter(1, &answered.bytes);
            let answer = plain.strip_prefix(&hls::reply(0xC1, &[0; 17])[..15]).unwrap();
            let mut inner = 0;
            keys_of(1, |keys| {
                inner = hls::verify(Suite::Suite0, &CLIENT, keys, STOC, answer).unwrap();
            });
            assert_eq!((answered.answer_counter, answered.action_counter), (inner, outer));
            seen.extend([inner, outer]);
            // The meter's own answer: its counter is below that of the APDU around it.
            let answer = meters_answer(1, &begun.challenge, 10 * round);
            let apdu = response(1, &answer, 10 * round + 1);
            let verified = it.verify(&begun, GivenAnswer::Carried(&apdu)).await;
            assert_eq!(verified.verdict, Verdict::Ok, "{verified:?}");
            assert_eq!((verified.encryption_key_version, verified.secret_version), (1, 0));
            let counters = (verified.answer_counter, verified.carrier_counter);
            assert_eq!(counters, (10 * round, 10 * round + 1));
            // Both have raised the floor.
            let old = response(1, b"12345678", 10 * round);
            let named = Named::Title(title(1));
            assert_eq!(it.site.open(&old, named).await.0.verdict, Verdict::Replayed);
        }
        assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
    });
}

#[test]
fn each_step_is_taken_once_in_order_and_by_who_began() {
    at_home(async |home| {
        let it = world(home).await;
        it.site.add(of_profile(1, "without", vec![])).await;
        declare(&it.sending, 1, None).await.unwrap();
        let begun = it.begin(1, GMAC).await;
        let answer = meters_answer(1, &begun.challenge, 5);
        let verify = async |caller| {
            it.open.verify(caller, begun.handle, any_pair(GivenAnswer::Bare(&answer))).await
        };
        assert!(matches!(verify(HES).await, Err(NotAssociated::OutOfOrder(_))));
        // Somebody else's.
        let other = Origin { caller: "hes-2", ..ORIGIN };
        let refused = it.open.answer(&other, begun.handle, BARE).await;
        assert_eq!(refused.unwrap_err(), NotAssociated::Unknown);
        assert_eq!(it.answer(&begun, BARE).await.outcome.verdict, Verdict::Ok);
        let again = Asked { challenge: b"Q6wRJ21F", ..BARE };
        let refused = it.open.answer(&ORIGIN, begun.handle, again).await;
        assert!(matches!(refused, Err(NotAssociated::OutOfOrder(_))), "{refused:?}");
        assert_eq!(verify("hes-2").await, Err(NotAssociated::Unknown));
        assert_eq!(verify(HES).await.unwrap().verdict, Verdict::Ok);
        assert_eq!(verify(HES).await, Err(NotAssociated::Unknown), "its challenge is used up");
        assert_eq!(it.open.open(), 0);
        // Another node's.
        let node = NodeId([7; 16]);
        let elsewhere = Handle { node, ..begun.handle };
        let refused = it.open.answer(&ORIGIN, elsewhere, BARE).await;
        assert_eq!(refused.unwrap_err(), NotAssociated::OfAnotherNode(node));
        let refused = it.open.verify(HES, elsewhere, any_pair(GivenAnswer::Bare(&answer))).await;
        assert_eq!(refused.unwrap_err(), NotAssociated::OfAnotherNode(node));
    });
}

#[test]
fn a_challenge_is_good_for_two_minutes() {
    at_home(async |home| {
        let it = world(home).await;
        it.site.add(of_profile(1, "without", vec![])).await;
        declare(&it.sending, 1, None).await.unwrap();
        let pass = |ms| it.time.0.fetch_add(ms, Ordering::SeqCst);
        let begun = it.begin(1, GMAC).await;
        assert_eq!(begun.expires_in_ms, 120_000);
        pass(119_999);
        assert_eq!(it.answer(&begun, BARE).await.outcome.verdict, Verdict::Ok);
        pass(1);
        let answer = meters_answer(1, &begun.challenge, 5);
        let late = it.open.verify(HES, begun.handle, any_pair(GivenAnswer::Bare(&answer))).await;
        assert_eq!(late, Err(NotAssociated::Unknown));
        assert_eq!(it.open.open(), 0);
    });
}

#[test]
fn a_challenge_that_is_a_command_or_our_own_is_not_answered_and_costs_no_counter() {
    at_home(async |home| {
        let it = world(home).await;
        it.site.add(of_profile(1, "without", vec![])).await;
        it.site.add(with_secret(2, "without", SECRET)).await;
        declare(&it.sending, 1, None).await.unwrap();
        let begun = it.begin(1, GMAC).await;
        let waiting = it.begin(2, Mechanism::Manufacturer).await;
        let command = *b"\xC3\x01\xC1\x00\x46\x00\x00\x60\x03\x00\xFF\x01\x01\x11\x00";
        let part = [&b"0123456789ABCDEF"[..], &waiting.challenge].concat();
        let said = Asked { said: Some(Mechanism::Secret(SecretMechanism::Md5)), ..BARE };
        for (asked, why) in [
            (Asked { challenge: &command, ..BARE }, "read as an APDU"),
            (Asked { challenge: &begun.challenge, ..BARE }, "one of ours"),
            (Asked { challenge: &part, ..BARE }, "one of ours"),
            (said, "another mechanism"),
        ] {
            let refused = it.answer(&begun, asked).await;
            assert_eq!(refused.outcome.verdict, Verdict::PolicyRefused, "{refused:?}");
            assert!(refused.bytes.is_empty() && refused.outcome.reason.unwrap().contains(why));
        }
        let short = it.answer(&begun, Asked { challenge: b"1234567", ..BARE }).await;
        assert_eq!(short.outcome.verdict, Verdict::Malformed);
        // Nothing was given out, so it may go on.
        assert_eq!(it.answer(&begun, BARE).await.answer_counter & 0x00FF_FFFF, 1);
    });
}

#[test]
fn an_answer_under_what_is_known_to_others_says_so_and_moves_no_floor() {
    at_home(async |home| {
        let it = world(home).await;
        it.site.add(of_profile(1, "strict", vec![])).await;
        it.site.add(with_secret(2, "without", SECRET)).await;
        declare(&it.sending, 1, None).await.unwrap();
        for (n, kind) in [(1, KeyKind::Guek), (2, KeyKind::HlsSecret)] {
            let named =
                (MeterId::new(&id(n)).unwrap(), (Place { setup: SecuritySetup(0), kind }, 1));
            let call = call("Rotation/CompromiseKey");
            let compromised = it.site.lifecycle.compromise_key(&call, &named.0, named.1);
            assert_eq!(compromised.await.unwrap().said, KeyState::Compromised);
        }
        let floors = || it.site.ciphering.floors_before(title(1), SecuritySetup(0));
        let before = format!("{:?}", floors().await.unwrap());
        // It is answered all the same: the successor has to be brought through an association.
        let begun = it.begin(1, GMAC).await;
        assert_eq!(it.answer(&begun, BARE).await.outcome.verdict, Verdict::Ok);
        let apdu = response(1, &meters_answer(1, &begun.challenge, 1_000), 1_001);
        let verified = it.verify(&begun, GivenAnswer::Carried(&apdu)).await;
        let told = (verified.verdict, verified.encryption_key_version, verified.answer_counter);
        assert_eq!(told, (Verdict::CompromisedKey, 1, 1_000));
        assert_eq!(format!("{:?}", floors().await.unwrap()), before);
        let mechanism = SecretMechanism::Md5;
        let begun = it.begin(2, Mechanism::Secret(mechanism)).await;
        assert_eq!(it.answer(&begun, BARE).await.outcome.verdict, Verdict::Ok);
        let exchange = Exchange {
            client: CLIENT,
            server: title(2),
            client_challenge: &begun.challenge,
            server_challenge: STOC,
        };
        let answer = hls::compute_with_secret(mechanism, SECRET, &exchange, Side::Server);
        let bytes = answer.unwrap().as_bytes().to_vec();
        let verified = it.verify(&begun, GivenAnswer::Bare(&bytes)).await;
        assert_eq!((verified.verdict, verified.secret_version), (Verdict::CompromisedKey, 1));
    });
}

#[test]
fn an_answer_that_does_not_verify_ends_the_association() {
    at_home(async |home| {
        let it = world(home).await;
        it.site.add(of_profile(1, "strict", vec![])).await;
        declare(&it.sending, 1, None).await.unwrap();
        let begun = async || {
            let begun = it.begin(1, GMAC).await;
            assert_eq!(it.answer(&begun, BARE).await.outcome.verdict, Verdict::Ok);
            begun
        };
        let other = it.begin(1, GMAC).await.challenge;
        for bad in [0, 4, 16] {
            let begun = begun().await;
            let mut answer = meters_answer(1, &begun.challenge, 100);
            answer[bad] ^= 1;
            let verified = it.verify(&begun, GivenAnswer::Bare(&answer)).await;
            assert_eq!(verified.verdict, Verdict::MicFailure, "{bad}");
            answer[bad] ^= 1;
            let again =
                it.open.verify(HES, begun.handle, any_pair(GivenAnswer::Bare(&answer))).await;
            assert_eq!(again, Err(NotAssociated::Unknown), "{bad}");
        }
        // The answer to another challenge, of another meter, of our own side.
        for answer in [
            meters_answer(1, &other, 100),
            meters_answer(2, &other, 100),
            it.answer(&it.begin(1, GMAC).await, BARE).await.bytes,
        ] {
            let verified = it.verify(&begun().await, GivenAnswer::Bare(&answer)).await;
            assert_eq!(verified.verdict, Verdict::MicFailure);
        }
        // An APDU that is no answer, one that does not open, one below its answer.
        let counter_trap = async |inner, outer| {
            let begun = begun().await;
            let apdu = response(1, &meters_answer(1, &begun.challenge, inner), outer);
            it.verify(&begun, GivenAnswer::Carried(&apdu)).await
        };
        assert_eq!(counter_trap(202, 201).await.verdict, Verdict::Replayed);
        assert_eq!(counter_trap(203, 203).await.verdict, Verdict::Ok, "some use one for both");
        assert_eq!(counter_trap(150, 204).await.verdict, Verdict::Replayed, "it was used");
        let refused = response(1, b"", 205);
        let verified = it.verify(&begun().await, GivenAnswer::Carried(&refused)).await;
        assert_eq!(verified.verdict, Verdict::MicFailure);
        let mut forged = response(1, b"1234567812345678x", 206);
        forged[10] ^= 1;
        let verified = it.verify(&begun().await, GivenAnswer::Carried(&forged)).await;
        assert_eq!(verified.verdict, Verdict::MicFailure);
    });
}

#[test]
fn a_bare_answer_is_held_against_the_floor_of_when_its_challenge_was_issued() {
    at_home(async |home| {
        let it = world(home).await;
        it.site.add(of_profile(1, "strict", vec![])).await;
        declare(&it.sending, 1, None).await.unwrap();
        let named = Named::Title(title(1));
        assert_eq!(it.site.open(&response(1, b"", 50), named).await.0.verdict, Verdict::Ok);
        for (inner, outer, verdict) in [(51, 53, Verdict::Ok), (53, 60, Verdict::Replayed)] {
            let begun = it.begin(1, GMAC).await;
            it.answer(&begun, BARE).await;
            let answer = meters_answer(1, &begun.challenge, inner);
            // The caller opens the APDU himself, which raises the floor.
            let apdu = response(1, &answer, outer);
            assert_eq!(it.site.open(&apdu, named).await.0.verdict, Verdict::Ok);
            let verified = it.verify(&begun, GivenAnswer::Bare(&answer)).await;
            assert_eq!(verified.verdict, verdict, "{verified:?}");
        }
    });
}

#[test]
fn mechanisms_with_a_secret_answer_and_verify_under_the_meters_own() {
    at_home(async |home| {
        let it = world(home).await;
        it.site.add(with_secret(1, "without", SECRET)).await;
        it.site.add(with_secret(2, "chained", SECRET)).await;
        for (n, mechanism, made_by) in [
            (1, Mechanism::Manufacturer, SecretMechanism::Aes128Ecb),
            (2, Mechanism::Manufacturer, SecretMechanism::Aes128Cbc),
            (1, Mechanism::Secret(SecretMechanism::Md5), SecretMechanism::Md5),
            (1, Mechanism::Secret(SecretMechanism::Sha1), SecretMechanism::Sha1),
            (1, Mechanism::Secret(SecretMechanism::Sha256), SecretMechanism::Sha256),
        ] {
            let begun = it.begin(n, mechanism).await;
            let stoc: Vec<u8> = (0x30..0x50).collect();
            let exchange = Exchange {
                client: CLIENT,
                server: title(n),
                client_challenge: &begun.challenge,
                server_challenge: &stoc,
            };
            let by_hand = |secret: &[u8], side| {
                let made = hls::compute_with_secret(made_by, secret, &exchange, side).unwrap();
                made.as_bytes().to_vec()
            };
            let answered = it.answer(&begun, Asked { challenge: &stoc, ..BARE }).await;
            assert_eq!(answered.bytes, by_hand(SECRET, Side::Client), "{mechanism:?}");
            assert_eq!((answered.answer_counter, answered.secret_version), (0, 1));
            let answer = by_hand(SECRET, Side::Server);
            let verified = it.verify(&begun, GivenAnswer::Bare(&answer)).await;
            assert_eq!((verified.verdict, verified.secret_version), (Verdict::Ok, 1));
            // Another secret's answer.
            let begun = it.begin(n, mechanism).await;
            it.answer(&begun, Asked { challenge: &stoc, ..BARE }).await;
            let exchange = Exchange { client_challenge: &begun.challenge, ..exchange };
            let other = hls::compute_with_secret(made_by, b"another", &exchange, Side::Server);
            let verified = it.verify(&begun, GivenAnswer::Bare(other.unwrap().as_bytes())).await;
            assert_eq!(verified.verdict, Verdict::MicFailure, "{mechanism:?}");
        }
    });
}

#[test]
fn keys_that_are_missing_in_the_token_or_serve_two_ends_are_told_at_the_beginning() {
    at_home(async |home| {
        let it = world(home).await;
        it.site.add(of_profile(1, "without", vec![])).await;
        let hsm = in_hsm(key(KeyKind::Guek, value(2, GUEK)));
        let policy = of_profile(2, "without", vec![]).policy.unwrap();
        it.site.add(meter_with(2, vec![hsm, key(KeyKind::Gak, value(2, GAK))], policy)).await;
        it.site.add(with_secret(3, "without", &value(3, GUEK))).await;
        it.site.add(with_secret(4, "without", b"longer than the sixteen of a key")).await;
        let padded = [&value(5, GUEK)[..8], &[0; 8]].concat();
        let more = vec![key(KeyKind::HlsSecret, padded[..8].to_vec())];
        let five = NewMeter {
            keys: vec![key(KeyKind::Guek, padded), key(KeyKind::Gak, value(5, GAK))],
            ..of_profile(5, "without", vec![])
        };
        it.site
            .add(NewMeter {
                keys: five.keys.into_iter().chain(more).collect(),
                ..of_profile(5, "without", vec![])
            })
            .await;
        let none = NewMeter { policy: None, ..of_profile(6, "without", vec![]) };
        it.site.add(none).await;
        let refused = async |n, mechanism| {
            let outcome = it.open.begin(HES, wanted(n, mechanism)).await.unwrap().unwrap_err();
            (outcome.verdict, outcome.refusal)
        };
        let two = Mechanism::Manufacturer;
        assert_eq!(refused(9, GMAC).await, (Verdict::UnknownMeter, None));
        assert_eq!(refused(1, two).await, (Verdict::NoUsableKey, None));
        assert_eq!(refused(2, GMAC).await, (Verdict::Unsupported, None));
        assert_eq!(refused(3, two).await, (Verdict::PolicyRefused, None));
        assert_eq!(refused(4, two).await, (Verdict::NoUsableKey, None));
        assert_eq!(refused(5, two).await, (Verdict::PolicyRefused, None), "padded with zeros");
        let no_title = (Verdict::NoUsableKey, Some(Refusal::NoClientTitle));
        assert_eq!(refused(6, GMAC).await, no_title);
        assert_eq!(it.open.open(), 0);
        // Hashes give no key away that they are made with.
        it.begin(3, Mechanism::Secret(SecretMechanism::Sha256)).await;
        // A counter that nobody declared: nothing goes out, and the answer may be asked for once it is.
        let begun = it.begin(1, GMAC).await;
        let refused = it.answer(&begun, CARRIED).await;
        assert_eq!(refused.outcome.refusal, Some(Refusal::CounterUndeclared));
        assert!(refused.bytes.is_empty());
        declare(&it.sending, 1, None).await.unwrap();
        assert_eq!(it.answer(&begun, CARRIED).await.outcome.verdict, Verdict::Ok);
    });
}

/// The way to the other node of this process.
struct Way(Arc<Transmitting>);

#[async_trait::async_trait]
impl OtherNodes for Way {
    async fn protect(
        &self,
        _: NodeId,
        origin: &Origin<'_>,
        items: &[Plain<'_>],
    ) -> Result<ProtectedBatch, NotForwarded> {
        assert_eq!((origin.caller, origin.call), (HES, ORIGIN.call));
        Ok(self.0.protect_batch(items).await)
    }
}

#[test]
fn what_another_node_holds_the_counters_of_is_answered_through_it_with_both_counters_of_its_range()
{
    at_home(async |home| {
        let options = || Options { profiles: profiles_for_hls(), ..Options::default() };
        let (site, other) = (Site::with(home, options()).await, Site::with(home, options()).await);
        for n in [1, 2] {
            site.add(of_profile(n, "without", vec![])).await;
        }
        let holder = Arc::new(site.transmitting_among(true, None, true));
        declare(&holder, 1, None).await.unwrap();
        declare(&holder, 2, None).await.unwrap();
        super::transmitting::counter(&holder, 1).await;
        super::transmitting::counter(&holder, 2).await;
        let asked = other.transmitting_among(true, None, true);
        let forwarding = Arc::new(asked.with_nodes(Arc::new(Way(Arc::clone(&holder)))));
        let alone = Arc::new(other.transmitting_among(true, None, true));
        let it = async |sending: &Arc<Transmitting>, n| {
            let open = other.associations(Arc::clone(sending), Arc::default());
            let begun = open.begin(HES, wanted(n, GMAC)).await.unwrap().unwrap();
            open.answer(&ORIGIN, begun.handle, CARRIED).await.unwrap()
        };
        let answered = it(&forwarding, 1).await;
        assert_eq!(answered.outcome.verdict, Verdict::Ok, "{answered:?}");
        assert_eq!(answered.answer_counter + 1, answered.action_counter);
        let (_, outer) = read_by_meter(1, &answered.bytes);
        assert_eq!(outer, answered.action_counter);
        assert_eq!(super::transmitting::counter(&holder, 1).await, outer + 1);
        // Where nobody says where that node is, it is named.
        let refused: Outcome = it(&alone, 2).await.outcome;
        assert_eq!(refused.refusal, Some(Refusal::HeldByAnotherNode));
        assert!(refused.reason.unwrap().contains(&holder.node().to_string()));
    });
}
