//! Verdicts.

#![allow(clippy::unwrap_used, reason = "tests may")]

use kms_core::{
    KeyKind, MeterId, MeterPolicy, SecuritySetup, SystemTitle, Verdict, life::choosing::Place,
};

use super::{
    home::at_home,
    site_common::{GAK, GUEK, Site, call, id, in_hsm, key, meter, push, push_with, title, value},
};
use crate::{
    ciphering::{Item, Named, Want},
    lifecycle::{ImportRules, NewMeter},
};

const PLAIN: &[u8] = b"\x0f\x00\x00\x00\x01";

/// Meter `n`, its GUEK in the token only.
fn in_token(n: u64) -> NewMeter {
    let guek = in_hsm(key(KeyKind::Guek, value(n, GUEK)));
    NewMeter { keys: vec![guek, key(KeyKind::Gak, value(n, GAK))], ..meter(n) }
}

#[test]
fn a_batch_of_all_sorts_has_a_verdict_an_item_in_order() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        site.add(in_token(2)).await;
        let (good, of_token, stranger) = (push(1, PLAIN), push(2, PLAIN), push(3, PLAIN));
        let mut forged = push(1, PLAIN);
        *forged.last_mut().unwrap() ^= 1;
        let apdus: [&[u8]; 5] = [&good, b"\x00", &of_token, &forged, &stranger];
        let item = |apdu| Item { apdu, named: Named::InApdu, setup: None };
        let items: Vec<_> = apdus.into_iter().map(item).collect();
        let opened = site.ciphering.open_batch(&items, Want::Plaintext).await;
        let verdicts: Vec<_> = opened.outcomes.iter().map(|outcome| outcome.verdict).collect();
        let wanted = [
            Verdict::Ok,
            Verdict::Malformed,
            Verdict::Ok,
            Verdict::MicFailure,
            Verdict::UnknownMeter,
        ];
        assert_eq!(verdicts, wanted);
        assert_eq!(opened.plaintexts, [PLAIN, PLAIN].concat());
        assert_eq!(opened.lengths, [5, 0, 5, 0, 0]);
        let only = site.ciphering.open_batch(&items, Want::Verdict).await;
        assert_eq!(only.outcomes, opened.outcomes);
        assert!(only.plaintexts.is_empty());
    });
}

#[test]
fn only_items_of_a_token_that_is_away_are_unavailable() {
    at_home(async |home| {
        let site = Site::new(home).await;
        site.add(meter(1)).await;
        site.add(in_token(2)).await;
        home.token.go_away("pulled out");
        assert_eq!(site.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        let (outcome, plaintext) = site.open(&push(2, PLAIN), Named::InApdu).await;
        assert_eq!(outcome.verdict, Verdict::Unavailable);
        assert!(outcome.reason.unwrap().contains("pulled out") && plaintext.is_empty());
        home.token.come_back();
        assert_eq!(site.verdict(&push(2, PLAIN)).await, Verdict::Ok);
    });
}

#[test]
fn a_cold_block_opens_for_its_items_by_title_and_by_id() {
    at_home(async |home| {
        Site::new(home).await.add(meter(1)).await;
        for named in [Named::InApdu, Named::Title(title(1)), Named::Id(&id(1))] {
            let cold = Site::new(home).await;
            let (outcome, plaintext) = cold.open(&push(1, PLAIN), named).await;
            assert_eq!((outcome.verdict, plaintext.as_slice()), (Verdict::Ok, PLAIN), "{named:?}");
        }
        let cold = Site::new(home).await;
        let (outcome, _) = cold.open(&push(1, PLAIN), Named::Id("nobody")).await;
        assert_eq!(outcome.verdict, Verdict::Unavailable, "not all blocks are open");
    });
}

#[test]
fn keys_in_each_others_place_are_told_and_open_nothing() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let keys = vec![key(KeyKind::Guek, value(1, GAK)), key(KeyKind::Gak, value(1, GUEK))];
        let exchanged = NewMeter { keys, ..meter(1) };
        let result = site.import(vec![exchanged], ImportRules::default()).await.remove(0);
        assert!(result.outcome.is_ok(), "{result:?}");
        let apdu = push_with(1, 0x30, &value(1, GUEK), &value(1, GAK), PLAIN);
        let item = Item { apdu: &apdu, named: Named::InApdu, setup: None };
        assert_eq!(site.verdict(&apdu).await, Verdict::MicFailure);
        assert!(site.ciphering.is_exchanged(&item, title(1)));
        let other = push_with(1, 0x30, &value(9, GUEK), &value(9, GAK), PLAIN);
        let item = Item { apdu: &other, ..item };
        assert!(!site.ciphering.is_exchanged(&item, title(1)));
    });
}

#[test]
fn a_meter_in_grace_opens_under_either_key_and_what_is_to_be_said_of_the_newer_is_said() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let policy = MeterPolicy {
            client_title: Some(SystemTitle::new(*b"AMIHES\x00\x01")),
            ..MeterPolicy::default()
        };
        site.add(NewMeter { policy: Some(policy), ..meter(1) }).await;
        let newer = vec![key(KeyKind::Guek, value(1, 20)), key(KeyKind::Gak, value(1, 21))];
        site.add_versions(NewMeter { keys: newer, ..meter(1) }).await;
        let (gueks, gaks) = ([value(1, GUEK), value(1, 20)], [value(1, GAK), value(1, 21)]);
        let each = async |wanted: Verdict| {
            for (guek, gak) in [(1, 1), (0, 1), (1, 0), (0, 0)] {
                let push = push_with(1, 0x30, &gueks[guek], &gaks[gak], PLAIN);
                let (outcome, plain) = site.open(&push, Named::InApdu).await;
                let versions = (guek as u16 + 1, gak as u16 + 1);
                let found = (outcome.encryption_key_version, outcome.authentication_key_version);
                let verdict = if guek == 1 { wanted } else { Verdict::Ok };
                assert_eq!((outcome.verdict, found), (verdict, versions));
                assert_eq!(plain == PLAIN, verdict == Verdict::Ok);
                // Of the setup that it is of, and of no other.
                let of = |setup| Item { apdu: &push, named: Named::InApdu, setup: Some(setup) };
                let items = [of(SecuritySetup(0)), of(SecuritySetup(1))];
                let opened = site.ciphering.open_batch(&items, Want::Verdict).await;
                let verdicts = [0, 1].map(|at| opened.outcomes[at].verdict);
                assert_eq!(verdicts, [verdict, Verdict::NoUsableKey]);
            }
            let mut forged = push_with(1, 0x30, &gueks[1], &gaks[1], PLAIN);
            *forged.last_mut().unwrap() ^= 1;
            assert_eq!(site.verdict(&forged).await, Verdict::MicFailure);
        };
        each(Verdict::Ok).await;
        let id = MeterId::new(&id(1)).unwrap();
        let second = (Place { setup: SecuritySetup(0), kind: KeyKind::Guek }, 2);
        let compromise = call("Rotation/CompromiseKey");
        site.lifecycle.compromise_key(&compromise, &id, second).await.unwrap();
        each(Verdict::CompromisedKey).await;
    });
}
