//! HLS answers of meters as evidence of their keys.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use kms_core::{KeyKind, KeyState, StateReason, Verdict};

use super::{
    hls::{BARE, GMAC, World, world},
    hls_pairs::{Pair, compromise, meters_answer, rotating, taken},
    home::at_home,
    rotation::{evidence, state},
    site_common::{GAK, GUEK, push_with, value},
};
use crate::associations::{Asked, Begun};

/// An association in which our answer has gone out.
async fn answered(it: &World, versions: (u16, u16)) -> (Begun, Vec<u8>) {
    let begun = it.begin(1, GMAC).await;
    let answered = it.answer(&begun, Asked { versions, ..BARE }).await;
    assert_eq!(answered.outcome.verdict, Verdict::Ok);
    (begun, answered.bytes)
}

/// The meter's answer under this pair, and what came of it.
async fn round(it: &World, pair: Pair<'_>, counter: u32) -> (Verdict, Vec<u8>) {
    let (begun, _) = answered(it, (0, 0)).await;
    let answer = meters_answer(pair, &begun.challenge, counter);
    (it.verify_under(&begun, &answer, (0, 0)).await.unwrap().verdict, answer)
}

const WAITS: (KeyState, StateReason, bool) = (KeyState::PreActive, StateReason::Staged, false);
const PROVED: (KeyState, StateReason, bool) = (KeyState::Active, StateReason::Evidence, true);

#[test]
fn an_answer_to_our_challenge_proves_both_keys_that_wait() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "without").await;
        let (new, gak) = (taken(&it, KeyKind::Guek).await, taken(&it, KeyKind::Gak).await);
        let kinds = [KeyKind::Guek, KeyKind::Gak];
        assert_eq!(round(&it, (&new, &gak), 5).await.0, Verdict::Ok);
        for kind in kinds {
            assert_eq!(state(&it.site, 1, kind, 2).await, WAITS, "it is written a moment later");
        }
        assert_eq!(evidence(&it.site).await, 2);
        for kind in kinds {
            assert_eq!(state(&it.site, 1, kind, 2).await, PROVED);
        }
        // It answers under them from now on.
        let begun = it.begin(1, GMAC).await;
        let outcome = it.answer(&begun, BARE).await.outcome;
        assert_eq!((outcome.encryption_key_version, outcome.authentication_key_version), (2, 2));
    });
}

#[test]
fn one_key_of_a_pair_is_proved_alone() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "without").await;
        let (new, _) = (taken(&it, KeyKind::Guek).await, taken(&it, KeyKind::Gak).await);
        assert_eq!(round(&it, (&new, &value(1, GAK)), 5).await.0, Verdict::Ok);
        assert_eq!(evidence(&it.site).await, 1);
        assert_eq!(state(&it.site, 1, KeyKind::Guek, 2).await, PROVED);
        assert_eq!(state(&it.site, 1, KeyKind::Gak, 2).await, WAITS);
    });
}

#[test]
fn a_replayed_reflected_or_refused_answer_and_one_under_old_keys_prove_nothing() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "strict").await;
        let new = taken(&it, KeyKind::Guek).await;
        let (old, gak) = (value(1, GUEK), value(1, GAK));
        // Under the old keys.
        assert_eq!(round(&it, (&old, &gak), 50).await.0, Verdict::Ok);
        // Our own answer under the new one, thrown back.
        let (begun, ours) = answered(&it, (2, 1)).await;
        let verified = it.verify_under(&begun, &ours, (0, 0)).await.unwrap();
        assert_eq!(verified.verdict, Verdict::MicFailure);
        // Our challenge, thrown back for us to answer it.
        let begun = it.begin(1, GMAC).await;
        let asked = Asked { challenge: &begun.challenge, versions: (2, 1), ..BARE };
        assert_eq!(it.answer(&begun, asked).await.outcome.verdict, Verdict::PolicyRefused);
        // To another challenge of ours, which the meter did answer, and nobody has given us.
        let (asked, _) = answered(&it, (0, 0)).await;
        let recorded = meters_answer((&new, &gak), &asked.challenge, 60);
        let (begun, _) = answered(&it, (0, 0)).await;
        let verified = it.verify_under(&begun, &recorded, (0, 0)).await.unwrap();
        assert_eq!(verified.verdict, Verdict::MicFailure);
        // Under the new key, named as made with the old one.
        let (begun, _) = answered(&it, (0, 0)).await;
        let answer = meters_answer((&new, &gak), &begun.challenge, 61);
        let verified = it.verify_under(&begun, &answer, (1, 1)).await.unwrap();
        assert_eq!(verified.verdict, Verdict::MicFailure);
        assert_eq!(evidence(&it.site).await, 0);
        assert_eq!(state(&it.site, 1, KeyKind::Guek, 2).await, WAITS);
        // The same challenge still proves it, once, and then says nothing more.
        let verified = it.verify_under(&asked, &recorded, (0, 0)).await.unwrap();
        assert_eq!(verified.verdict, Verdict::Ok);
        assert!(it.verify_under(&asked, &recorded, (0, 0)).await.is_err());
        assert_eq!(evidence(&it.site).await, 1);
    });
}

#[test]
fn an_answer_that_its_floor_refuses_proves_nothing() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "strict").await;
        let gak = value(1, GAK);
        let new = taken(&it, KeyKind::Guek).await;
        let push = push_with(1, 0x30, &new, &gak, b"\x0F\x00");
        assert_eq!(it.site.verdict(&push).await, Verdict::Ok);
        assert_eq!(it.site.evidence.take(10).len(), 1, "it is lost here");
        assert_eq!(round(&it, (&new, &gak), 0).await.0, Verdict::Replayed);
        assert_eq!(evidence(&it.site).await, 0);
        assert_eq!(state(&it.site, 1, KeyKind::Guek, 2).await, WAITS);
    });
}

#[test]
fn what_verifies_under_a_compromised_gak_proves_no_guek() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "without").await;
        let new = taken(&it, KeyKind::Guek).await;
        compromise(&it, KeyKind::Gak, 1).await;
        let pair = (&new[..], &value(1, GAK)[..]);
        assert_eq!(round(&it, pair, 5).await.0, Verdict::CompromisedKey);
        assert_eq!(evidence(&it.site).await, 0);
        assert_eq!(state(&it.site, 1, KeyKind::Guek, 2).await, WAITS);
    });
}

#[test]
fn what_verifies_under_a_compromised_guek_proves_no_gak() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "without").await;
        let new = taken(&it, KeyKind::Gak).await;
        compromise(&it, KeyKind::Guek, 1).await;
        let pair = (&value(1, GUEK)[..], &new[..]);
        assert_eq!(round(&it, pair, 5).await.0, Verdict::CompromisedKey);
        assert_eq!(evidence(&it.site).await, 0);
        assert_eq!(state(&it.site, 1, KeyKind::Gak, 2).await, WAITS);
    });
}
