//! Keys of many meters staged in one call: each is what it would be if it had been staged alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::collections::BTreeSet;

use kms_core::{
    KeyKind, KeyState, MeterId, Protection, RefusalCode, StateReason, Verdict,
    audit::{AuditEvent, Detail},
    counters::{allocator::Purpose, refusal::Refusal as NotSent},
    life::staging::Wish,
    ports::Proved,
};

use super::{
    home::{Home, at_home, at_two_homes},
    pair::{Network, Running, eventually, in_step, sites},
    rotation::{code, evidence, place, received, rotating, stage, state, transfer, wish},
    site_common::{GAK, GUEK, Options, Site, call, id, push_with, value},
    transmitting::{declare, send},
};
use crate::{
    lifecycle::{ImportRules, Lifecycle, LifecycleError, NewMeter, StagedKey},
    transmitting::Plain,
};

const PLAIN: &[u8] = b"\x0f\x00";
/// More than the token makes in two calls.
const MANY: u64 = 300;

type Outcomes = Vec<Result<StagedKey, LifecycleError>>;

fn meter_id(n: u64) -> MeterId {
    MeterId::new(&id(n)).unwrap()
}

fn wanted(meters: impl IntoIterator<Item = u64>, kind: KeyKind) -> Vec<(MeterId, Wish)> {
    meters.into_iter().map(|n| (meter_id(n), wish(kind))).collect()
}

async fn stage_all(on: &Lifecycle, wanted: &[(MeterId, Wish)]) -> Outcomes {
    on.stage_keys(&call("Rotation/StageKey"), wanted).await
}

async fn with_meters(home: &Home, meters: impl Iterator<Item = u64>) -> Site {
    let profiles = super::home::profiles();
    let options = Options { arena_bytes: 4 << 20, profiles, ..Options::default() };
    let site = Site::with(home, options).await;
    let lines: Vec<NewMeter> = meters.map(rotating).collect();
    let results = site.import(lines, ImportRules::default()).await;
    assert!(results.iter().all(|result| result.outcome.is_ok()));
    site.keyring.refresher.warm_up().await;
    site
}

/// The meters and versions of which the audit log says that a key was staged.
async fn said(site: &Site) -> Vec<(String, u64)> {
    let (mut staged, mut after) = (Vec::new(), 0);
    loop {
        let events = site.store.audit_events(&site.node, after, 500).await.unwrap();
        for event in &events {
            after = event.sequence;
            let entry = AuditEvent::decode(&event.body).unwrap().entry;
            let number = |wanted: Detail| {
                let found = entry.details.iter().find(|(detail, _)| *detail == wanted);
                found.map(|(_, number)| *number)
            };
            if entry.call.verb.as_str() == "Rotation/StageKey"
                && number(Detail::KeysAdded) == Some(1)
            {
                let meter = entry.subject.meter_id.clone().unwrap();
                assert!(entry.subject.block.is_some() && entry.subject.system_title.is_some());
                staged.push((meter.to_string(), number(Detail::KeyVersion).unwrap()));
            }
        }
        if events.is_empty() {
            return staged;
        }
    }
}

#[test]
fn keys_of_many_meters_are_staged_sent_and_shown_as_those_of_one_and_each_is_in_the_audit_log() {
    at_home(async |home| {
        let site = with_meters(home, 1..=MANY).await;
        let sending = site.transmitting(true, None);
        for n in [1, MANY] {
            declare(&sending, n, None).await.unwrap();
        }
        let wishes = wanted(1..=MANY, KeyKind::Guek);
        let outcomes = stage_all(&site.lifecycle, &wishes).await;
        let mut seen = BTreeSet::new();
        for (outcome, (id, _)) in outcomes.iter().zip(&wishes) {
            let staged = outcome.as_ref().unwrap();
            assert_eq!(staged.meter.meter_id, *id);
            assert_eq!(
                (staged.key.version, staged.key.state, staged.already, &staged.proved),
                (2, KeyState::PreActive, false, &Proved::NotApplicable)
            );
            assert_eq!(staged.meter, site.lifecycle.get(id).await.unwrap().record);
            assert!(seen.insert(staged.key.fingerprint.0) && seen.len() <= wishes.len());
        }
        let mut entries = said(&site).await;
        entries.sort();
        let mut due: Vec<_> = wishes.iter().map(|(id, _)| (id.to_string(), 2)).collect();
        due.sort();
        assert_eq!(entries, due);
        // What the meter is sent is what it then shows.
        for n in [1, MANY] {
            let on = (&site.lifecycle, &sending);
            let (_, apdu) = transfer(on, n, KeyKind::Guek, None).await.unwrap();
            let (new, _) = received(n, &apdu, (&value(n, GUEK), &value(n, GAK)));
            let push = push_with(n, 0x30, &new, &value(n, GAK), PLAIN);
            assert_eq!(site.verdict(&push).await, Verdict::Ok);
        }
        assert_eq!(evidence(&site).await, 2);
        let shown = (KeyState::Active, StateReason::Evidence, true);
        assert_eq!(state(&site, MANY, KeyKind::Guek, 2).await, shown);
    });
}

#[test]
fn asked_again_the_answer_is_the_same_key_whether_it_was_staged_alone_or_among_others() {
    at_home(async |home| {
        let site = with_meters(home, 1..=20).await;
        // Somebody stopped after some: whole calls, and one meter alone.
        let before = stage_all(&site.lifecycle, &wanted([3, 5, 7], KeyKind::Guek)).await;
        let alone = stage(&site.lifecycle, 9, KeyKind::Guek).await;
        let all = stage_all(&site.lifecycle, &wanted(1..=20, KeyKind::Guek)).await;
        for (n, outcome) in (1..).zip(&all) {
            let staged = outcome.as_ref().unwrap();
            assert_eq!(staged.already, [3, 5, 7, 9].contains(&n), "{n}");
        }
        for (n, first) in [3, 5, 7].into_iter().zip(&before) {
            let again = all[n - 1].as_ref().unwrap();
            assert_eq!(again.key, first.as_ref().unwrap().key);
        }
        assert_eq!(all[8].as_ref().unwrap().key, alone.key);
        let again = stage(&site.lifecycle, 1, KeyKind::Guek).await;
        assert_eq!((again.key.id, again.already), (all[0].as_ref().unwrap().key.id, true));
        assert_eq!(said(&site).await.len(), 20);
    });
}

#[test]
fn one_bad_meter_fails_no_other_of_its_call() {
    at_home(async |home| {
        let site = with_meters(home, 1..=9).await;
        let strange = site.keyring.records.block_of(&super::site_common::title(4));
        let mut wishes = wanted(1..=9, KeyKind::Guek);
        // Nobody's; deleted; a kind that no transfer carries; a KEK that is compromised.
        wishes.push((meter_id(77), wish(KeyKind::Guek)));
        let deleted = call("Meters/DeleteMeter");
        site.lifecycle.delete(&deleted, &meter_id(2)).await.unwrap();
        wishes[2].1 = wish(KeyKind::HlsSecret);
        let compromise = call("Rotation/CompromiseKey");
        let kek = (place(KeyKind::Kek), 1);
        site.lifecycle.compromise_key(&compromise, &meter_id(6), kek).await.unwrap();
        // One whose KEK is none: the token says so of its key alone.
        let mut changes = site.keyring.writer.change(&[strange]).await.unwrap();
        let title = super::site_common::title(4);
        let Some(kms_core::Record::Meter(mut record)) = changes[0].record(&title).unwrap() else {
            panic!()
        };
        let kek = record.keys.iter_mut().find(|key| key.kind == KeyKind::Kek).unwrap();
        kek.wrapped[3] ^= 1;
        changes[0].put(kms_core::Record::Meter(record));
        site.keyring.writer.commit(changes, vec![super::pair::entry("Test")]).await.unwrap();

        let mut outcomes = stage_all(&site.lifecycle, &wishes).await;
        assert!(matches!(outcomes.pop().unwrap(), Err(LifecycleError::NotFound(_))));
        for (n, outcome) in (1..).zip(outcomes) {
            match (n, outcome) {
                (2, Err(LifecycleError::NotFound(_))) => {}
                (3, Err(why)) => assert_eq!(code(why), RefusalCode::NotTransferable),
                (4, Err(why)) => assert_eq!(code(why), RefusalCode::NotTaken),
                (6, Err(why)) => assert_eq!(code(why), RefusalCode::KekCompromised),
                (_, outcome) => assert_eq!(outcome.unwrap().key.version, 2, "{n}"),
            }
        }
        assert_eq!(said(&site).await.len(), 5);
    });
}

#[test]
fn several_keys_of_one_meter_and_one_key_twice_are_staged_as_one_after_the_other() {
    at_home(async |home| {
        let site = with_meters(home, 1..=3).await;
        let mut wishes = wanted(1..=3, KeyKind::Guek);
        let in_token = Wish { protection: Some(Protection::Hsm), ..wish(KeyKind::Gak) };
        wishes.extend((1..=3).map(|n| (meter_id(n), in_token.clone())));
        wishes.extend(wanted([2, 1], KeyKind::Guek));
        let outcomes: Vec<_> =
            stage_all(&site.lifecycle, &wishes).await.into_iter().map(Result::unwrap).collect();
        let already: Vec<bool> = outcomes.iter().map(|it| it.already).collect();
        assert_eq!(already, [false, false, false, false, false, false, true, true]);
        assert_eq!(
            (outcomes[6].key.id, outcomes[7].key.id),
            (outcomes[1].key.id, outcomes[0].key.id)
        );
        assert_eq!(outcomes[4].key.protection, Protection::Hsm);
        let record = site.lifecycle.get(&meter_id(1)).await.unwrap().record;
        for kind in [KeyKind::Guek, KeyKind::Gak] {
            assert_eq!(place(kind).staged(&record).unwrap().version, 2);
        }
    });
}

/// get-request-normal of the clock's time.
const CLOCK: &[u8] = b"\xC0\x01\xC1\x00\x08\x00\x00\x01\x00\x00\xFF\x02\x00";

#[test]
fn the_lines_of_keys_staged_together_begin_where_those_of_one_would() {
    at_home(async |home| {
        let site = with_meters(home, 1..=4).await;
        let sending = site.transmitting(true, None);
        for n in [1, 2, 4] {
            declare(&sending, n, Some(0x0300_0005)).await.unwrap();
        }
        let resets = super::home::profiles().iter().next().unwrap().name.clone();
        let policy = rotating(1).policy.unwrap();
        let policy = kms_core::MeterPolicy { profile: Some(resets), ..policy };
        site.lifecycle.set_policy(&call("Meters/SetPolicy"), &meter_id(1), &policy).await.unwrap();
        stage_all(&site.lifecycle, &wanted(1..=3, KeyKind::Guek)).await;
        stage(&site.lifecycle, 4, KeyKind::Guek).await;
        let probe = |n| Plain {
            apdu: CLOCK,
            purpose: Purpose::Probe,
            versions: (2, 1),
            ..super::transmitting::plain(n)
        };
        let mut epochs = Vec::new();
        for n in [1, 2, 4] {
            epochs.push(send(&sending, probe(n)).await.0.invocation_counter >> 24);
        }
        assert_eq!(epochs, [0, 6, 6]);
        assert_eq!(send(&sending, probe(3)).await.0.refusal, Some(NotSent::CounterUndeclared));
    });
}

#[test]
fn a_token_that_is_away_says_so_of_each_and_what_was_staged_before_stays() {
    at_home(async |home| {
        let site = with_meters(home, 1..=MANY).await;
        let first = stage_all(&site.lifecycle, &wanted(1..=10, KeyKind::Guek)).await;
        home.token.go_away("pulled out");
        let outcomes = stage_all(&site.lifecycle, &wanted(1..=MANY, KeyKind::Guek)).await;
        for (n, outcome) in (1..).zip(outcomes) {
            let is_staged = matches!(&outcome, Ok(staged) if n <= 10 && staged.already);
            let is_away = matches!(outcome, Err(LifecycleError::Unavailable { .. }));
            assert!(is_staged || is_away, "{n}");
        }
        home.token.come_back();
        let again = stage_all(&site.lifecycle, &wanted(1..=MANY, KeyKind::Guek)).await;
        for (first, again) in first.iter().zip(&again) {
            assert_eq!(first.as_ref().unwrap().key, again.as_ref().unwrap().key);
        }
        assert!(again.iter().all(Result::is_ok));
        assert_eq!(said(&site).await.len(), MANY as usize);
    });
}

#[test]
fn dropped_half_way_what_is_staged_stays_and_the_rest_is_staged_by_who_asks_again() {
    at_home(async |home| {
        let site = with_meters(home, 1..=MANY).await;
        let wishes = wanted(1..=MANY, KeyKind::Guek);
        for pause_ms in [0, 2, 5, 10, 20] {
            let staging = stage_all(&site.lifecycle, &wishes);
            let pause = std::time::Duration::from_millis(pause_ms);
            let _ = tokio::time::timeout(pause, staging).await;
        }
        let mut before = Vec::new();
        for (id, _) in &wishes {
            let record = site.lifecycle.get(id).await.unwrap().record;
            before.push(place(KeyKind::Guek).staged(&record).map(|key| key.id));
        }
        let outcomes = stage_all(&site.lifecycle, &wishes).await;
        for (outcome, before) in outcomes.iter().zip(&before) {
            let staged = outcome.as_ref().unwrap();
            assert!(before.is_none_or(|before| before == staged.key.id));
            assert_eq!(staged.key.version, 2);
        }
        assert_eq!(said(&site).await.len(), MANY as usize);
    });
}

#[test]
fn two_who_stage_the_same_meters_at_one_time_get_the_same_keys() {
    at_home(async |home| {
        let site = with_meters(home, 1..=MANY).await;
        let wishes = wanted(1..=MANY, KeyKind::Guek);
        let one = stage_all(&site.lifecycle, &wishes);
        let other = stage_all(&site.lifecycle, &wishes);
        let (one, other) = tokio::join!(one, other);
        for (one, other) in one.into_iter().zip(other) {
            let (one, other) = (one.unwrap(), other.unwrap());
            assert_eq!(one.key.id, other.key.id);
            assert_ne!(one.already, other.already);
        }
        assert_eq!(said(&site).await.len(), MANY as usize);
    });
}

#[test]
fn keys_staged_together_are_proved_by_the_other_site_or_each_says_that_it_is_not() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let lines = (1..=40).map(rotating).collect();
        a.import(lines, ImportRules::default()).await;
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        let all = stage_all(&north.lifecycle, &wanted(1..=30, KeyKind::Guek)).await;
        for outcome in all {
            assert_eq!(outcome.unwrap().proved, Proved::Yes);
        }
        eventually("the other site has them", async || {
            let meter = south.site.lifecycle.get(&meter_id(30)).await;
            meter.is_ok_and(|it| place(KeyKind::Guek).staged(&it.record).is_some())
        })
        .await;
        south.cut().await;
        let mut wishes = wanted(31..=33, KeyKind::Guek);
        wishes[2].1.allow_unreplicated = true;
        let cut_off = stage_all(&north.lifecycle, &wishes).await;
        for (nth, outcome) in cut_off.into_iter().enumerate() {
            let staged = outcome.unwrap();
            assert!(matches!(staged.proved, Proved::No(_)), "{:?}", staged.proved);
            assert_eq!(staged.check().is_ok(), nth == 2);
        }
        north.cut().await;
    });
}
