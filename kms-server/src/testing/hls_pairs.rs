//! HLS authentication under a pair of keys that is named, or found: the meter may have taken a key that was staged, fallen
//! back, or hold one that is known to others.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use dlms::{Keys, Suite, hls};
use kms_core::{KeyKind, KeyState, MeterId, Verdict};

use super::{
    hls::{BARE, CARRIED, CLIENT, GMAC, HES, STOC, World, fresh, of_profile, wanted, world},
    home::at_home,
    rotation::{place, received, stage, transfer},
    site_common::{GAK, GUEK, call, id, key, title, value},
    transmitting::declare,
};
use crate::{
    associations::{Asked, Begin, Begun, Given, GivenAnswer, Mechanism, NotAssociated, Verified},
    lifecycle::NewMeter,
};

/// Keys as a meter has them.
pub(super) type Pair<'a> = (&'a [u8], &'a [u8]);

pub(super) const fn keys((encryption, authentication): Pair<'_>) -> Keys<'_> {
    Keys { encryption, authentication }
}

/// f(CtoS) of meter 1 under these keys.
pub(super) fn meters_answer(pair: Pair<'_>, challenge: &[u8], counter: u32) -> Vec<u8> {
    let made = hls::compute(Suite::Suite0, &title(1), fresh(counter), &keys(pair), challenge);
    made.unwrap().to_vec()
}

/// Meter 1, which has a KEK and is sent to.
pub(super) async fn rotating(it: &World, profile: &str) {
    let kek = key(KeyKind::Kek, value(1, 9));
    it.site.add(of_profile(1, profile, vec![kek])).await;
    declare(&it.sending, 1, None).await.unwrap();
}

/// What is staged of this kind, as the meter has taken it.
pub(super) async fn taken(it: &World, kind: KeyKind) -> Vec<u8> {
    stage(&it.site.lifecycle, 1, kind).await;
    let on = (&it.site.lifecycle, &*it.sending);
    let (_, apdu) = transfer(on, 1, kind, None).await.unwrap();
    received(1, &apdu, (&value(1, GUEK), &value(1, GAK))).0
}

pub(super) async fn compromise(it: &World, kind: KeyKind, version: u16) {
    let (call, meter) = (call("Rotation/CompromiseKey"), MeterId::new(&id(1)).unwrap());
    let said = it.site.lifecycle.compromise_key(&call, &meter, (place(kind), version)).await;
    assert_eq!(said.unwrap().said, KeyState::Compromised);
}

impl World {
    async fn begin_under(&self, versions: (u16, u16)) -> Begun {
        let wanted = Begin { versions, ..wanted(1, GMAC) };
        self.open.begin(HES, wanted).await.unwrap().unwrap()
    }

    pub(super) async fn verify_under(
        &self,
        begun: &Begun,
        answer: &[u8],
        versions: (u16, u16),
    ) -> Result<Verified, NotAssociated> {
        let given = Given { answer: GivenAnswer::Bare(answer), versions };
        self.open.verify(HES, begun.handle, given).await
    }
}

fn found(verified: &Verified) -> (Verdict, u16, u16) {
    (verified.verdict, verified.encryption_key_version, verified.authentication_key_version)
}

#[test]
fn a_meter_that_took_the_new_keys_is_authenticated_under_them_before_anything_else_shows_it() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "strict").await;
        let (old, old_gak) = (value(1, GUEK), value(1, GAK));
        let (new, new_gak) = (taken(&it, KeyKind::Guek).await, taken(&it, KeyKind::Gak).await);
        let all = [
            ((1, 1), (&old[..], &old_gak[..])),
            ((1, 2), (&old, &new_gak)),
            ((2, 1), (&new, &old_gak)),
            ((2, 2), (&new, &new_gak)),
        ];
        for (counter, (versions, pair)) in (1..).zip(all) {
            // Named at the beginning, or by the answer.
            for by_answer in [false, true] {
                let begun = it.begin_under(if by_answer { (0, 0) } else { versions }).await;
                let named = if by_answer { versions } else { (0, 0) };
                let answered = it.answer(&begun, Asked { versions: named, ..BARE }).await;
                let outcome = &answered.outcome;
                assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:?}");
                let made = (outcome.encryption_key_version, outcome.authentication_key_version);
                assert_eq!(made, versions);
                hls::verify(Suite::Suite0, &CLIENT, &keys(pair), STOC, &answered.bytes).unwrap();
                let counter = 2 * counter + u32::from(by_answer);
                let answer = meters_answer(pair, &begun.challenge, counter);
                let named = if by_answer { versions } else { (0, 0) };
                let verified = it.verify_under(&begun, &answer, named).await.unwrap();
                assert_eq!(found(&verified), (Verdict::Ok, versions.0, versions.1));
            }
        }
        // Who names none is answered under what is preferred, as ever.
        let answered = it.answer(&it.begin_under((0, 0)).await, CARRIED).await;
        assert_eq!(answered.outcome.encryption_key_version, 1);
        // An answer under another pair than the one that is named is none.
        let begun = it.begin_under((2, 2)).await;
        it.answer(&begun, BARE).await;
        let answer = meters_answer((&new, &new_gak), &begun.challenge, 100);
        let verified = it.verify_under(&begun, &answer, (2, 1)).await.unwrap();
        assert_eq!(found(&verified), (Verdict::MicFailure, 0, 0));
        assert_eq!(
            it.verify_under(&begun, &answer, (2, 2)).await,
            Err(NotAssociated::Unknown),
            "it was judged"
        );
    });
}

#[test]
fn a_pair_that_carries_nothing_is_refused_and_costs_neither_a_counter_nor_the_challenge() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "without").await;
        let (old, gak) = (value(1, GUEK), value(1, GAK));
        taken(&it, KeyKind::Guek).await;
        for versions in [(3, 1), (2, 3)] {
            let wanted = Begin { versions, ..wanted(1, GMAC) };
            let refused = it.open.begin(HES, wanted).await.unwrap().unwrap_err();
            assert_eq!(refused.verdict, Verdict::NoUsableKey, "{refused:?}");
        }
        let begun = it.begin_under((0, 0)).await;
        let refused = it.answer(&begun, Asked { versions: (3, 1), ..BARE }).await;
        assert_eq!(refused.outcome.verdict, Verdict::NoUsableKey);
        let first = it.answer(&begun, BARE).await;
        assert_eq!(first.outcome.verdict, Verdict::Ok);
        let answer = meters_answer((&old, &gak), &begun.challenge, 5);
        let verified = it.verify_under(&begun, &answer, (3, 1)).await.unwrap();
        assert_eq!(found(&verified), (Verdict::NoUsableKey, 0, 0));
        let verified = it.verify_under(&begun, &answer, (1, 1)).await.unwrap();
        assert_eq!(found(&verified), (Verdict::Ok, 1, 1), "nothing was tried of it before");
        // One that was withdrawn carries nothing any more.
        let meter = MeterId::new(&id(1)).unwrap();
        let staged = stage(&it.site.lifecycle, 1, KeyKind::Gak).await.key.version;
        let destruction = (place(KeyKind::Gak), staged);
        let call = call("Rotation/DestroyKey");
        it.site.lifecycle.destroy_key(&call, &meter, destruction, false).await.unwrap();
        let wanted = Begin { versions: (1, staged), ..wanted(1, GMAC) };
        let refused = it.open.begin(HES, wanted).await.unwrap().unwrap_err();
        assert_eq!(refused.verdict, Verdict::NoUsableKey);
        // No counter was spent but that of the one answer.
        let begun = it.begin_under((0, 0)).await;
        assert_eq!(it.answer(&begun, BARE).await.answer_counter, first.answer_counter + 1);
    });
}

#[test]
fn a_compromised_pair_may_be_named_and_verifies_as_such() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "without").await;
        let (old, gak) = (value(1, GUEK), value(1, GAK));
        compromise(&it, KeyKind::Guek, 1).await;
        for named in [(1, 1), (0, 0)] {
            let begun = it.begin_under(named).await;
            assert_eq!(it.answer(&begun, CARRIED).await.outcome.verdict, Verdict::Ok);
            let answer = meters_answer((&old, &gak), &begun.challenge, 5);
            let verified = it.verify_under(&begun, &answer, named).await.unwrap();
            assert_eq!(found(&verified), (Verdict::CompromisedKey, 1, 1));
        }
    });
}

#[test]
fn all_sixteen_pairs_of_a_meters_live_versions_are_tried() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "without").await;
        for salt in [20, 21, 22] {
            let both = [(KeyKind::Guek, salt), (KeyKind::Gak, salt + 10)];
            let keys = both.map(|(kind, salt)| key(kind, value(1, salt))).to_vec();
            it.site.add_versions(NewMeter { keys, ..of_profile(1, "without", vec![]) }).await;
        }
        // The newest ones answer, and none of their counters was declared.
        declare(&it.sending, 1, None).await.unwrap();
        let (eks, aks) = ([GUEK, 20, 21, 22], [GAK, 30, 31, 32]);
        for (encryption, ek) in (1..).zip(eks) {
            for (authentication, ak) in (1..).zip(aks) {
                let begun = it.begin_under((0, 0)).await;
                it.answer(&begun, BARE).await;
                let pair = (&value(1, ek)[..], &value(1, ak)[..]);
                let answer = meters_answer(pair, &begun.challenge, 5);
                let verified = it.verify_under(&begun, &answer, (0, 0)).await.unwrap();
                assert_eq!(found(&verified), (Verdict::Ok, encryption, authentication));
            }
        }
    });
}

#[test]
fn a_pair_protects_the_apdu_around_an_answer_that_a_secret_makes() {
    at_home(async |home| {
        let it = world(home).await;
        let secret = key(KeyKind::HlsSecret, b"the HLS secret".to_vec());
        let kek = key(KeyKind::Kek, value(1, 9));
        it.site.add(of_profile(1, "without", vec![kek, secret])).await;
        declare(&it.sending, 1, None).await.unwrap();
        let new = taken(&it, KeyKind::Guek).await;
        let md5 = Mechanism::of_number(3).unwrap();
        let wanted = |versions| Begin { versions, ..wanted(1, md5) };
        let begun = it.open.begin(HES, wanted((2, 1))).await.unwrap().unwrap();
        let answered = it.answer(&begun, CARRIED).await;
        assert_eq!((answered.outcome.verdict, answered.secret_version), (Verdict::Ok, 1));
        assert_eq!(answered.outcome.encryption_key_version, 2);
        let apdu = dlms::CipheredApdu::parse(&answered.bytes).unwrap();
        let (gak, mut plain) = (value(1, GAK), Vec::new());
        let rule = dlms::GeneralCipheringAad::Spec;
        apdu.open(&keys((&new, &gak)), &CLIENT, rule, &mut plain).unwrap();
        let refused = it.open.begin(HES, wanted((3, 1))).await.unwrap().unwrap_err();
        assert_eq!(refused.verdict, Verdict::NoUsableKey);
    });
}
