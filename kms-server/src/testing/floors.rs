//! Receive floors and device profiles.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockNo, KeyKind, MeterId, MeterPolicy, ProfileName, RefusalCode, Verdict,
    floors::{FloorPlace, FloorRow},
    ports::FloorSink as _,
};

use super::{
    home::{Home, at_home, at_two_homes, profiles},
    pair::{Network, Running, in_step, sites},
    site_common::{
        GAK, GUEK, Options, Site, call, id, in_hsm, key, meter, meter_with, push, value,
    },
};
use crate::{
    ciphering::{Item, Named, OpenedBatch, Want},
    lifecycle::{ImportRules, LifecycleError, NewKey, NewMeter},
    store::floors::FloorRun,
};

const PLAIN: &[u8] = b"\x0f\x00\x00\x00\x01";

async fn site(home: &Home) -> Site {
    let options = Options { profiles: profiles(), blocks: 1, ..Options::default() };
    Site::with(home, options).await
}

fn of_profile(n: u64, name: &str, guek: NewKey) -> NewMeter {
    let policy =
        MeterPolicy { profile: Some(ProfileName::new(name).unwrap()), ..MeterPolicy::default() };
    meter_with(n, vec![guek, key(KeyKind::Gak, value(n, GAK))], policy)
}

fn floored(n: u64, name: &str) -> NewMeter {
    of_profile(n, name, key(KeyKind::Guek, value(n, GUEK)))
}

async fn open(site: &Site, apdus: &[&[u8]]) -> OpenedBatch {
    let items: Vec<Item<'_>> =
        apdus.iter().map(|apdu| Item { apdu, named: Named::InApdu, setup: None }).collect();
    site.ciphering.open_batch(&items, Want::Plaintext).await
}

fn told(opened: &OpenedBatch) -> Vec<(Verdict, bool, u32)> {
    let lengths = opened.lengths.iter();
    let outcomes = opened.outcomes.iter().zip(lengths);
    outcomes.map(|(outcome, len)| (outcome.verdict, outcome.duplicate, *len)).collect()
}

const NEW: (Verdict, bool, u32) = (Verdict::Ok, false, 5);
const AGAIN: (Verdict, bool, u32) = (Verdict::Ok, true, 5);
const OLD: (Verdict, bool, u32) = (Verdict::Replayed, false, 0);

#[test]
fn invariant_5_a_replay_comes_back_without_its_plaintext_and_a_call_sent_again_as_a_duplicate() {
    at_home(async |home| {
        let site = site(home).await;
        site.add(floored(1, "strict")).await;
        site.add(floored(2, "without")).await;
        site.add(of_profile(3, "strict", in_hsm(key(KeyKind::Guek, value(3, GUEK))))).await;
        site.add(meter(4)).await;
        let apdus = |n| [push(n, PLAIN), push(n, b"\x0f\x00\x00\x00\x02"), push(n, PLAIN)];
        let all = [apdus(1), apdus(2), apdus(3), apdus(4)];
        let [one, two, three, four] = &all;
        // The middle ones are overtaken.
        let batch: Vec<&[u8]> =
            [one, two, three, four].iter().flat_map(|of| [&of[0][..], &of[2], &of[1]]).collect();
        let opened = open(&site, &batch).await;
        let wanted = [NEW, NEW, OLD, NEW, NEW, NEW, NEW, NEW, OLD, NEW, NEW, NEW];
        assert_eq!(told(&opened), wanted);
        // What was withheld is not there, and everything else is, in its place.
        let other = b"\x0f\x00\x00\x00\x02".as_slice();
        let plains = [PLAIN, PLAIN, PLAIN, PLAIN, other, PLAIN, PLAIN, PLAIN, PLAIN, other];
        assert_eq!(opened.plaintexts, plains.concat());
        let refused = &opened.outcomes[2];
        assert!(
            refused.reason.as_ref().unwrap().contains("below the receive floor"),
            "{refused:?}"
        );
        assert_eq!((refused.encryption_key_version, refused.authentication_key_version), (0, 0));
        // The whole call again: harmless, and said to be the same.
        let again = open(&site, &batch).await;
        let wanted = [AGAIN, AGAIN, OLD, NEW, NEW, NEW, AGAIN, AGAIN, OLD, NEW, NEW, NEW];
        assert_eq!(told(&again), wanted);
        assert_eq!(again.plaintexts, plains.concat());
        // A check of the MIC says the same, and what does not verify raises nothing.
        let mut forged = push(1, PLAIN);
        *forged.last_mut().unwrap() ^= 1;
        let next = push(1, PLAIN);
        assert_eq!(site.verdict(&forged).await, Verdict::MicFailure);
        let items = [&one[1], &next].map(|apdu| Item { apdu, named: Named::InApdu, setup: None });
        let checked = site.ciphering.open_batch(&items, Want::Verdict).await;
        assert_eq!(checked.outcomes[0].verdict, Verdict::Replayed);
        assert_eq!(checked.outcomes[1].verdict, Verdict::Ok);
    });
}

#[test]
fn a_window_takes_what_was_overtaken_once() {
    at_home(async |home| {
        let site = site(home).await;
        site.add(floored(1, "windowed")).await;
        let pushes: Vec<Vec<u8>> = (0..20).map(|_| push(1, PLAIN)).collect();
        assert_eq!(site.verdict(&pushes[15]).await, Verdict::Ok);
        assert_eq!(site.verdict(&pushes[12]).await, Verdict::Ok);
        assert_eq!(site.verdict(&pushes[1]).await, Verdict::Replayed);
        let again = open(&site, &[&pushes[12], &pushes[13], &pushes[16]]).await;
        assert_eq!(told(&again), [AGAIN, NEW, NEW]);
    });
}

#[test]
fn floors_outlive_a_restart_and_are_every_nodes() {
    at_home(async |home| {
        let one = site(home).await;
        one.add(floored(1, "strict")).await;
        let (first, second) = (push(1, PLAIN), push(1, PLAIN));
        assert_eq!(one.verdict(&second).await, Verdict::Ok);
        one.ciphering.floors().flush(false).await;
        assert_eq!(one.ciphering.floors().faults(), Vec::<String>::new());
        let two = site(home).await;
        let opened = open(&two, &[&first, &second, &push(1, PLAIN)]).await;
        assert_eq!(told(&opened), [OLD, AGAIN, NEW]);
        // Each node has a row of its own, and an older one lowers nothing.
        two.ciphering.floors().flush(false).await;
        assert_eq!(two.store.floors(BlockNo(0)).await.unwrap().len(), 2);
        let three = site(home).await;
        assert_eq!(told(&open(&three, &[&second]).await), [OLD]);
    });
}

#[test]
fn invariant_5_a_floor_that_was_changed_in_the_database_is_named_and_lowers_nothing() {
    at_home(async |home| {
        let before = site(home).await;
        before.add(floored(1, "strict")).await;
        before.add(floored(2, "strict")).await;
        let (old, newest) = (push(1, PLAIN), push(1, PLAIN));
        assert_eq!(before.verdict(&newest).await, Verdict::Ok);
        assert_eq!(before.verdict(&push(2, PLAIN)).await, Verdict::Ok);
        before.ciphering.floors().flush(false).await;
        let rows = before.store.floors(BlockNo(0)).await.unwrap();
        let run = |row: &FloorRow| FloorRun { node: row.node, at_ms: 0, ended: false };
        let title = super::site_common::title(1);
        let row = rows.iter().find(|row| row.line.originator == title).unwrap();
        // Every bit of what is stored, and another meter's floor in its place.
        let other = rows.iter().find(|row| row.line.originator != title).unwrap();
        let mut changed: Vec<FloorRow> = (0..row.body.len() * 8)
            .map(|bit| {
                let mut row = row.clone();
                row.body[bit / 8] ^= 1 << (bit % 8);
                row
            })
            .collect();
        changed.push(FloorRow { body: other.body, mac: other.mac, ..row.clone() });
        changed.push(FloorRow { at_ms: row.at_ms + 1, ..row.clone() });
        for broken in [&changed[0], &changed[31], &changed[127], &changed[128], &changed[129]] {
            before.store.put_floors(std::slice::from_ref(broken), &run(broken)).await.unwrap();
            let site = site(home).await;
            // It is not used: what it said is lost, and that is told by name.
            assert_eq!(told(&open(&site, &[&old]).await), [NEW]);
            let faults = site.ciphering.floors().faults();
            assert!(faults[0].contains("was changed in the database"), "{faults:?}");
        }
        // Who has a floor in memory is not moved.
        let opened = open(&before, &[&old, &newest]).await;
        assert_eq!(told(&opened), [OLD, AGAIN]);
    });
}

#[test]
fn a_run_that_ended_without_storing_is_told_and_one_that_stored_is_not() {
    at_home(async |home| {
        let node = || Some((kms_core::audit::NodeId([3; 16]), Arc::default()));
        let start = async || {
            let options =
                Options { profiles: profiles(), blocks: 1, node: node(), ..Options::default() };
            let site = Site::with(home, options).await;
            site.ciphering.floors().begin(None).await;
            site
        };
        let first = start().await;
        assert_eq!(first.ciphering.floors().faults(), Vec::<String>::new());
        drop(first);
        let second = start().await;
        let faults = second.ciphering.floors().faults();
        assert!(faults[0].contains("ended without storing its receive floors"), "{faults:?}");
        second.ciphering.floors().close().await;
        assert_eq!(start().await.ciphering.floors().faults(), Vec::<String>::new());
    });
}

#[test]
fn without_the_stored_floors_nothing_of_a_meter_that_has_them_is_answered() {
    at_home(async |home| {
        let site = site(home).await;
        site.add(floored(1, "strict")).await;
        site.add(meter(2)).await;
        assert_eq!(site.verdict(&push(2, PLAIN)).await, Verdict::Ok);
        site.store.close().await;
        let opened = open(&site, &[&push(1, PLAIN), &push(2, PLAIN)]).await;
        assert_eq!(told(&opened), [(Verdict::Unavailable, false, 0), NEW]);
    });
}

#[test]
fn a_profile_that_the_site_does_not_have_is_refused_and_at_use_the_strictest_holds() {
    at_home(async |home| {
        let site = site(home).await;
        let refused =
            site.import(vec![floored(1, "nobodys")], ImportRules::default()).await.remove(0);
        let refusal = refused.outcome.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::UnknownProfile);
        assert!(refusal.reason.contains("it has strict, windowed, without"), "{}", refusal.reason);
        site.add(floored(1, "without")).await;
        let id = MeterId::new(&id(1)).unwrap();
        let policy = floored(1, "nobodys").policy.unwrap();
        let refused = site.lifecycle.set_policy(&call("Meters/SetPolicy"), &id, &policy).await;
        assert!(
            matches!(&refused, Err(LifecycleError::Refused(refusal)) if refusal.code == RefusalCode::UnknownProfile),
            "{refused:?}"
        );
        // A server whose operator took the profile away: a name, and floors.
        let bare = Site::with(home, Options { blocks: 1, ..Options::default() }).await;
        let (old, newest) = (push(1, PLAIN), push(1, PLAIN));
        assert_eq!(told(&open(&bare, &[&newest, &old]).await), [NEW, OLD]);
        let status = bare.keyring.overview.status();
        assert_eq!(status.unknown_profiles, [ProfileName::new("without").unwrap()]);
        // What the meter has already may be said again.
        let unchanged = bare.import(vec![floored(1, "without")], ImportRules::default()).await;
        assert!(unchanged[0].outcome.is_ok(), "{unchanged:?}");
    });
}

#[test]
fn invariant_5_what_one_site_took_the_other_one_refuses_once_it_was_told() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(floored(1, "strict")).await;
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        let (old, newest) = (push(1, PLAIN), push(1, PLAIN));
        assert_eq!(told(&open(&north.site, &[&old, &newest]).await), [NEW, NEW]);
        north.site.ciphering.floors().flush(false).await;
        let newest_ms = south.flooring.round(0).await.unwrap();
        assert!(newest_ms > 0);
        assert_eq!(told(&open(&south.site, &[&old, &newest]).await), [OLD, AGAIN]);
        // It is stored here as our own, and both tell each other nothing new after that.
        let place = FloorPlace::since(0);
        let floors = south.site.ciphering.floors();
        assert_eq!(floors.stored_after(&place).await.unwrap(), Vec::new());
        floors.flush(false).await;
        let ours = floors.stored_after(&place).await.unwrap();
        north.flooring.round(0).await.unwrap();
        north.site.ciphering.floors().flush(false).await;
        south.flooring.round(0).await.unwrap();
        floors.flush(false).await;
        assert_eq!(floors.stored_after(&place).await.unwrap(), ours);
        // The other way, too: both open what meters send.
        let last = push(1, PLAIN);
        assert_eq!(told(&open(&south.site, &[&last]).await), [NEW]);
        floors.flush(false).await;
        north.flooring.round(newest_ms).await.unwrap();
        assert_eq!(told(&open(&north.site, &[&newest, &last]).await), [AGAIN, AGAIN]);
        // What the peer did not write, or wrote for itself alone, is not used, and told.
        let theirs = north.site.ciphering.floors().stored_after(&place).await.unwrap();
        let mut raised = theirs[0].clone();
        raised.body[0] ^= 0x80;
        let other_block =
            FloorRow { block: BlockNo((raised.block.0 + 1) % 16), ..theirs[0].clone() };
        let no_block = FloorRow { block: BlockNo(16), ..theirs[0].clone() };
        for (site, row) in [
            ("north", &raised),
            ("north", &other_block),
            ("north", &no_block),
            ("south", &theirs[0]),
        ] {
            assert!(floors.take_peers(site, vec![row.clone()]).await.is_err(), "{row:?}");
            let faults = floors.faults();
            assert!(faults[0].contains("the other site's receive floors"), "{faults:?}");
        }
        floors.take_peers("north", theirs).await.unwrap();
        assert_eq!(floors.faults(), Vec::<String>::new());
        assert_eq!(told(&open(&south.site, &[&push(1, PLAIN)]).await), [NEW]);
        north.cut().await;
        south.cut().await;
    });
}
