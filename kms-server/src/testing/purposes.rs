//! What a message is said to be for, and what it is.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use dlms::{
    KeySet,
    class64::{TransferredKey, key_transfer},
    hls,
};
use kms_core::{
    KeyKind, Verdict,
    counters::{allocator::Purpose, refusal::Refusal},
};

use super::{
    hls::world,
    hls_pairs::{compromise, rotating, taken},
    home::at_home,
    transmitting::{plain, send},
};
use crate::transmitting::{Envelope, Plain, refuse_claimed};

#[test]
fn a_staged_or_compromised_key_protects_what_it_is_for_and_no_callers_word_changes_that() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "without").await;
        taken(&it, KeyKind::Guek).await;
        let mut transfer = Vec::new();
        let what = (TransferredKey::GlobalUnicastEncryption, &[9; 24][..]);
        key_transfer(0xC1, 0, what, &mut transfer);
        let reply = hls::reply(0xC1, b"f(StoC) of sixteen");
        let get = plain(1).apdu;
        let longer = [&reply[..], get].concat();
        let of = |apdu, purpose, versions| Plain { apdu, purpose, versions, ..plain(1) };
        let (key, other) = (Purpose::KeyTransfer, Purpose::Hls);
        // Under what is staged.
        for (apdu, purpose) in
            [(get, key), (get, other), (&reply, key), (&transfer, other), (&longer, other)]
        {
            let (outcome, apdu) = send(&it.sending, of(apdu, purpose, (2, 1))).await;
            let said = (outcome.verdict, outcome.refusal);
            assert_eq!(said, (Verdict::PolicyRefused, Some(Refusal::PurposeMismatch)));
            assert!(apdu.is_empty());
        }
        let first = send(&it.sending, of(&reply, other, (2, 1))).await.0;
        assert_eq!((first.verdict, first.encryption_key_version), (Verdict::Ok, 2));
        let next = send(&it.sending, of(&transfer, key, (2, 1))).await.0;
        assert_eq!((next.verdict, next.encryption_key_version), (Verdict::Ok, 2));
        assert_eq!(next.invocation_counter, first.invocation_counter + 1, "refusals cost none");
        // Under what was compromised, named or not.
        compromise(&it, KeyKind::Guek, 1).await;
        for versions in [(0, 0), (1, 1)] {
            for purpose in [key, other] {
                let refused = send(&it.sending, of(get, purpose, versions)).await.0;
                assert_eq!(refused.refusal, Some(Refusal::PurposeMismatch));
            }
            assert_eq!(send(&it.sending, of(&reply, other, versions)).await.0.verdict, Verdict::Ok);
        }
    });
}

#[test]
fn what_others_share_transfers_no_key_and_answers_no_challenge() {
    at_home(async |home| {
        let it = world(home).await;
        rotating(&it, "without").await;
        let reply = hls::reply(0xC1, b"f(StoC) of sixteen");
        for envelope in [Envelope::GeneralGlo, Envelope::HlsAnswer] {
            let (key_set, purpose) = (KeySet::Broadcast, Purpose::Hls);
            let item = Plain { apdu: &reply, key_set, purpose, envelope, ..plain(1) };
            let refused = send(&it.sending, item).await.0;
            assert_ne!(refused.verdict, Verdict::Ok);
        }
    });
}

#[test]
fn who_says_that_he_transfers_keys_is_sent_to_the_call_that_builds_them() {
    let items = [plain(1), Plain { purpose: Purpose::KeyTransfer, ..plain(2) }];
    assert!(refuse_claimed(&items[..1]).is_none());
    let refused = refuse_claimed(&items).unwrap();
    assert_eq!((refused.lengths, refused.apdus), (vec![0, 0], vec![]));
    for outcome in refused.outcomes {
        assert_eq!(outcome.refusal, Some(Refusal::PurposeMismatch));
        assert!(outcome.reason.unwrap().contains("NextTransfer"));
    }
}
