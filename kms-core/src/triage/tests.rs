//! Each cause, and that it is named for nothing else.

use dlms::{
    CipheredApdu, Envelope, FreshCounter, GeneralCipheringAad, KeySet, Keys, Protection,
    SecurityControl, Suite, frame::FrameKind, protect,
};
use proptest::prelude::*;

use super::*;

const TITLE: SystemTitle = SystemTitle::new(*b"AMI\0\0\0\0\x01");
const GUEK: [u8; 16] = [0x11; 16];
const GAK: [u8; 16] = [0x22; 16];
const FIT: Fit =
    Fit { setup: 0, encryption_key_version: 2, authentication_key_version: 3, is_current: true };

fn frame(counter: u32, found: Found) -> Frame {
    Frame { layers: Vec::new(), counter, found }
}

fn frames(found: impl IntoIterator<Item = Found>) -> Vec<Frame> {
    (100..).zip(found).map(|(counter, found)| frame(counter, found)).collect()
}

/// Cause, confidence and size of the sample.
fn causes(frames: &[Frame]) -> Vec<(Cause, Confidence, usize)> {
    let findings = conclude(frames, &[FIT, Fit { encryption_key_version: 9, ..FIT }]);
    findings
        .iter()
        .map(|finding| (finding.cause, finding.confidence, finding.frames.len()))
        .collect()
}

fn fails(under: u32) -> Found {
    Found::Fails(Some(Plausible(under)))
}

fn opens() -> Found {
    Found::Opens(FIT, Standing::NoFloor)
}

use Confidence::{Certain, Likely, Possible};

#[test]
fn a_gak_is_wrong_when_one_encryption_key_looks_right_on_three_counters_at_least() {
    let three = frames([fails(0b10), fails(0b11), fails(0b10)]);
    assert_eq!(causes(&three), [(Cause::GakWrong, Likely, 3)]);
    let findings = conclude(&three, &[FIT, Fit { encryption_key_version: 9, ..FIT }]);
    let fit = findings[0].fit.unwrap();
    assert_eq!((fit.encryption_key_version, fit.authentication_key_version), (9, 0));
    // No one key looks right on all.
    assert_eq!(
        causes(&frames([fails(1), fails(2), fails(3)])),
        [(Cause::Unexplained, Possible, 3)]
    );
    assert_eq!(causes(&frames([fails(1), fails(1)])), [(Cause::Unexplained, Possible, 2)]);
    // One of four may be another's; two may not.
    let seven = |odd: usize| frames((0..7).map(|n| fails(u32::from(n >= odd))));
    assert_eq!(causes(&seven(1)), [(Cause::GakWrong, Likely, 7)]);
    assert_eq!(causes(&seven(2)), [(Cause::Unexplained, Possible, 7)]);
    assert_eq!(causes(&seven(5)), [(Cause::Unexplained, Possible, 7)]);
    assert_eq!(causes(&seven(6)), [(Cause::GuekWrong, Likely, 7)]);
    // One frame, sent again and again, or with other bytes under the same nonce, is one.
    let same = [fails(1), fails(1), fails(1)].map(|found| frame(7, found));
    assert_eq!(causes(&same), [(Cause::Unexplained, Possible, 3)]);
}

#[test]
fn an_encryption_key_is_wrong_when_none_looks_right_on_any_of_three() {
    assert_eq!(causes(&frames([fails(0), fails(0), fails(0)])), [(Cause::GuekWrong, Likely, 3)]);
    assert_eq!(causes(&frames([fails(0), fails(0)])), [(Cause::Unexplained, Possible, 2)]);
    assert_eq!(
        causes(&frames([fails(0), fails(0), fails(1)])),
        [(Cause::Unexplained, Possible, 3)]
    );
    // Encryption only, let through by policy: the same.
    let open = |under| Found::Unauthenticated(Plausible(under));
    assert_eq!(causes(&frames([open(0), open(0), open(0)])), [(Cause::GuekWrong, Likely, 3)]);
    assert_eq!(causes(&frames([open(1), open(1), open(1)])), [(Cause::NothingWrong, Possible, 3)]);
    assert_eq!(causes(&frames([open(0)])), [(Cause::NothingWrong, Possible, 1)]);
}

#[test]
fn what_is_not_judged_is_not_explained() {
    let not = || Found::Fails(None);
    assert_eq!(causes(&frames([not(), not(), not()])), [(Cause::Unexplained, Possible, 3)]);
    let mixed = frames([not(), fails(0), fails(0), fails(0)]);
    assert_eq!(causes(&mixed), [(Cause::GuekWrong, Likely, 3)]);
}

#[test]
fn once_a_tag_has_verified_nothing_is_said_of_how_decipherments_begin() {
    let genuine = [
        opens(),
        Found::OtherSetup(FIT),
        Found::OtherSite(FIT),
        Found::Compromised(FIT),
        Found::Exchanged(FIT),
        Found::OtherHeaderRule(FIT),
        Found::OtherTitle(TITLE),
    ];
    for genuine in genuine {
        for under in [0, 1] {
            let all = frames([genuine.clone(), fails(under), fails(under), fails(under)]);
            let causes = causes(&all);
            assert!(causes.contains(&(Cause::SuspectedTamper, Possible, 3)), "{causes:?}");
            let judged = [Cause::GakWrong, Cause::GuekWrong, Cause::Unexplained];
            assert!(!causes.iter().any(|(cause, ..)| judged.contains(cause)), "{causes:?}");
        }
    }
}

#[test]
fn tampering_is_likely_where_the_lines_checksum_held_and_possible_where_there_is_none() {
    let layered = |kind| Frame { layers: vec![kind], ..frame(7, fails(0)) };
    for (kind, confidence) in [
        (FrameKind::Hdlc, Likely),
        (FrameKind::MBus, Likely),
        (FrameKind::Wrapper, Possible),
        (FrameKind::Llc, Possible),
    ] {
        let causes = causes(&[frame(1, opens()), layered(kind)]);
        assert!(causes.contains(&(Cause::SuspectedTamper, confidence, 1)), "{causes:?}");
    }
    // Nothing opens: nobody knows that the keys are right.
    assert!(!causes(&[layered(FrameKind::Hdlc)]).iter().any(|it| it.0 == Cause::SuspectedTamper));
}

#[test]
fn a_message_below_the_floor_is_a_replay_or_the_meter_counts_anew() {
    let standing = |standing| causes(&frames([Found::Opens(FIT, standing)]));
    let below = |seen| Standing::Below { floor: 9, seen };
    assert_eq!(standing(Standing::New), [(Cause::NothingWrong, Certain, 1)]);
    assert_eq!(standing(Standing::NoFloor), [(Cause::NothingWrong, Certain, 1)]);
    assert_eq!(standing(Standing::Taken), [(Cause::Replay, Certain, 1)]);
    assert_eq!(standing(Standing::OtherTaken), [(Cause::CounterReset, Certain, 1)]);
    assert_eq!(standing(below(Some(true))), [(Cause::Replay, Likely, 1)]);
    assert_eq!(standing(below(Some(false))), [(Cause::Overtaken, Likely, 1)]);
    let far = [(Cause::Replay, Possible, 1), (Cause::CounterReset, Possible, 1)];
    assert_eq!(standing(below(None)), far);
    assert_eq!(standing(Standing::Unknown), [(Cause::Unavailable, Certain, 1)]);
}

#[test]
fn what_one_frame_shows_is_certain_and_named_once_for_all_of_a_kind() {
    let staged = Fit { is_current: false, ..FIT };
    let rows = [
        (Found::Opens(staged, Standing::New), Cause::OtherVersionFits, Certain),
        (Found::OtherSetup(FIT), Cause::OtherSetupFits, Certain),
        (Found::OtherSite(FIT), Cause::OtherSiteFits, Certain),
        (Found::Compromised(FIT), Cause::CompromisedFits, Certain),
        (Found::Exchanged(FIT), Cause::KeysExchanged, Certain),
        (Found::OtherHeaderRule(FIT), Cause::HeaderRule, Certain),
        (Found::OtherTitle(TITLE), Cause::WrongTitle, Certain),
        (Found::OtherMeter { title: TITLE, opens: true }, Cause::OtherMetersFrame, Certain),
        (Found::OtherMeter { title: TITLE, opens: false }, Cause::OtherMetersFrame, Likely),
        (Found::StrangeTitle(TITLE), Cause::OtherMetersFrame, Possible),
        (Found::NoGak(Plausible(1)), Cause::GakMissing, Certain),
        (Found::NoKey(KeyKind::Gbek), Cause::NoKey, Certain),
        (Found::OtherSuite(KeyKind::Guek), Cause::SuiteMismatch, Certain),
        (Found::Policy, Cause::PolicyRefuses, Certain),
        (Found::Unavailable("x".into()), Cause::Unavailable, Certain),
        (Found::FailsWithoutClientTitle, Cause::ClientTitleMissing, Possible),
    ];
    for (found, cause, confidence) in rows {
        let two = frames([found.clone(), found]);
        assert_eq!(causes(&two), [(cause, confidence, 2)]);
    }
    let beside = frames([opens(), Found::FailsWithoutClientTitle]);
    assert!(causes(&beside).contains(&(Cause::ClientTitleMissing, Likely, 1)));
}

#[test]
fn the_surest_and_most_frequent_cause_comes_first_and_a_frame_around_it_last() {
    let layers = vec![FrameKind::Hdlc];
    let framed = Frame { layers, ..frame(1, Found::Exchanged(FIT)) };
    let all = [framed, frame(2, fails(0)), frame(3, Found::Policy), frame(4, Found::Policy)];
    let order: Vec<Cause> = causes(&all).iter().map(|it| it.0).collect();
    let expected =
        [Cause::PolicyRefuses, Cause::KeysExchanged, Cause::SuspectedTamper, Cause::Framed];
    assert_eq!(order, expected);
}

fn pushed(counter: u32, plain: &[u8]) -> Vec<u8> {
    let protection = Protection {
        envelope: Envelope::GeneralGlo(Some(TITLE)),
        security_control: SecurityControl::authenticated_encryption(Suite::Suite0),
        originator: TITLE,
        keys: Keys { encryption: &GUEK, authentication: &GAK },
        gc_aad: GeneralCipheringAad::Spec,
    };
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(counter);
    let mut out = Vec::new();
    protect(&protection, counter, plain, &mut out).unwrap();
    out
}

const PUSH: &[u8] = b"\x0F\0\0\0\x01\0\x02\x01\x12\0\x01";

#[test]
fn a_trial_says_whether_keys_fit_and_leaves_nothing_behind() {
    let bytes = pushed(1, PUSH);
    let apdu = CipheredApdu::parse(&bytes).unwrap();
    let mut trial = trial::Trial::of(&apdu);
    let keys = |encryption, authentication| Keys { encryption, authentication };
    let rule = GeneralCipheringAad::Spec;
    assert!(trial.verifies(&keys(&GUEK, &GAK), &TITLE, rule));
    assert!(!trial.verifies(&keys(&GAK, &GUEK), &TITLE, rule));
    assert_eq!(trial.looks_right(&GUEK, &TITLE), Some(true));
    assert_eq!(trial.looks_right(&GAK, &TITLE), Some(false));
    assert_eq!(apdu.key_set(), KeySet::Unicast);
}

#[test]
fn what_carries_an_apdu_is_taken_off_and_what_is_wrong_with_it_is_named() {
    let one = pushed(1, PUSH);
    let cause = |bytes: &[u8]| match framing::take_off(bytes) {
        Ok(taken) => framing::read(&taken.apdu).err().map(|bad| bad.cause),
        Err(bad) => Some(bad.cause),
    };
    assert_eq!(cause(&one), None);
    for end in 1..one.len() {
        assert_eq!(cause(&one[..end]), Some(Cause::Truncated), "{end}");
    }
    let three = [pushed(1, PUSH), pushed(2, PUSH), pushed(3, PUSH)].concat();
    let bad = framing::read(&three).unwrap_err();
    assert_eq!(
        (bad.cause, &*bad.reason),
        (Cause::SeveralApdus, "3 APDUs stand one after the other")
    );
    assert_eq!(cause(&three[..three.len() - 1]), Some(Cause::Malformed));
    assert_eq!(cause(&[&one[..], &[0]].concat()), Some(Cause::Malformed));
    let wrapped = [&[0, 1, 0, 1, 0, 16, 0, one.len() as u8][..], &one].concat();
    assert_eq!(framing::take_off(&wrapped).unwrap().layers, [FrameKind::Wrapper]);
    assert_eq!(cause(&wrapped), None);
    assert_eq!(cause(&wrapped[..wrapped.len() - 1]), Some(Cause::Truncated));
    assert_eq!(cause(&[&wrapped[..], &wrapped].concat()), Some(Cause::SeveralApdus));
    assert_eq!(cause(&[0x0F, 0, 0, 0, 1, 0]), Some(Cause::NotCiphered));
    assert_eq!(cause(b"/KFM5KAIFA-METER\r\n"), Some(Cause::NotCiphered));
    assert_eq!(cause(&[0xAA; 20]), Some(Cause::Malformed));
    // SC B0: compressed.
    let mut compressed = one.clone();
    compressed[11] = 0xB0;
    assert_eq!(cause(&compressed), Some(Cause::Unsupported));
    let mut hdlc = vec![0x7E, 0xA0, 0x08, 3, 3, 3, 0, 0, 0x7E];
    hdlc[2] = 7;
    assert_eq!(cause(&hdlc), Some(Cause::FrameDamaged));
}

proptest! {
    #[test]
    fn bytes_from_outside_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), tag in prop::sample::select(vec![0xDBu8, 0xDD, 0xC8, 0x7E, 0x68, 0])) {
        let _ = framing::read(&bytes);
        let tagged = [&[tag][..], &bytes].concat();
        if let Ok(taken) = framing::take_off(&tagged) {
            let _ = framing::read(&taken.apdu);
        }
    }

    /// Of random bytes under a wrong key, so few look right that three together are no accident.
    #[test]
    fn a_wrong_key_seldom_looks_right(keys in prop::collection::vec(any::<[u8; 16]>(), 400)) {
        let bytes = pushed(1, PUSH);
        let apdu = CipheredApdu::parse(&bytes).unwrap();
        let mut trial = trial::Trial::of(&apdu);
        let right = keys.iter().filter(|key| trial.looks_right(&key[..], &TITLE) == Some(true)).count();
        // One in fifty is eight; forty are more than ten standard deviations away.
        prop_assert!(right < 40, "{right}");
    }
}
