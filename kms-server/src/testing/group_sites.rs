//! Broadcast groups: two GAKs in flight, members that can't be brought the key, what is compromised, and two sites.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::{collections::BTreeSet, sync::Arc};

use dlms::KeySet;
use kms_core::{
    Fingerprint, KeyKind, RefusalCode, TransferResult, Verdict,
    block::withdrawing::learnt,
    fact::{Fact, FactName},
    life::grouping::MemberState,
    record::Record,
};

use super::{
    groups::{
        Has, KEK, SHARED, broadcast, code, confirm, declare, finish, group, ids, join, member,
        name, newest, place, rotate, states, transfer,
    },
    home::{at_home, at_two_homes},
    pair::{Network, Running, eventually, in_step, promote, sites},
    site_common::{GAK, GUEK, Site, call, key, push_with, title, value},
};
use crate::transmitting::Transmitting;

async fn field(site: &Site, sending: &Transmitting, numbers: &[u64]) {
    for n in numbers {
        site.add(member(*n)).await;
        declare(sending, *n, KeySet::Unicast).await;
    }
    site.lifecycle.create_group(&call("Groups/CreateGroup"), &group()).await.unwrap();
    join(&site.lifecycle, numbers).await;
    declare(sending, numbers[0], KeySet::Broadcast).await;
}

#[test]
fn the_groups_own_gak_changes_at_all_members_and_broadcasts_are_heard_meanwhile() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let sending = site.transmitting(true, None);
        field(&site, &sending, &[1, 2]).await;
        let on = &site.lifecycle;
        let mut meters = [Has::of_factory(), Has::of_factory()];
        let old = meters[0].gak.clone();
        rotate(on, KeyKind::Gak).await.unwrap();
        // One key of a group at a time.
        assert_eq!(code(&rotate(on, KeyKind::Gbek).await.unwrap_err()), RefusalCode::GroupState);
        for (at, n) in [(0, 1), (1, 2)] {
            let new = transfer((on, &sending), (n, KeyKind::Gak), &old).await;
            for changed in [false, true] {
                if changed {
                    meters[at].gak = new.clone();
                }
                let sent = broadcast(on, &sending).await;
                assert!(
                    meters.iter_mut().all(|meter| meter.hears(&sent.messages)),
                    "{n} {changed}"
                );
            }
            // It proves itself by what it sends.
            let push = push_with(n, 0x30, &value(n, GUEK), &new, b"\x0f\x00");
            assert_eq!(site.verdict(&push).await, Verdict::Ok);
            let shown = site.evidence.take(10);
            assert_eq!(site.lifecycle.take_shown(&shown).await.unwrap().len(), 1);
        }
        assert_eq!(meters[0].gak, meters[1].gak, "one value");
        let sent = broadcast(on, &sending).await;
        assert_eq!((sent.messages.len(), sent.messages[0].reaches), (1, 2));
        let ended = finish(on, KeyKind::Gak, &[]).await.unwrap();
        assert_eq!(ended.in_flight(KeyKind::Gak).count(), 1);
        // Who comes now has to have that GAK.
        site.add(member(3)).await;
        assert_eq!(join(on, &[3]).await.refused[0].1.code, RefusalCode::UnfitForGroup);
    });
}

#[test]
fn a_member_that_can_not_be_brought_the_key_is_named_and_keeps_no_other_from_it() {
    at_home(async |home| {
        let site = Site::new(home).await;
        let sending = site.transmitting(true, None);
        let mut without = member(1);
        without.keys.retain(|key| key.kind != KeyKind::Kek);
        site.add(without).await;
        for n in [2, 3] {
            site.add(member(n)).await;
            declare(&sending, n, KeySet::Unicast).await;
        }
        let on = &site.lifecycle;
        on.create_group(&call("Groups/CreateGroup"), &group()).await.unwrap();
        join(on, &[1, 2, 3]).await;
        declare(&sending, 1, KeySet::Broadcast).await;
        let rotated = rotate(on, KeyKind::Gbek).await.unwrap();
        assert_eq!(rotated.brought.staged.len(), 2);
        assert_eq!(rotated.brought.refused.len(), 1);
        assert_eq!(rotated.brought.refused[0].0, ids(&[1])[0]);
        assert_eq!(rotated.brought.refused[0].1.code, RefusalCode::NoKek);
        let gak = value(SHARED, GAK);
        for n in [2, 3] {
            transfer((on, &sending), (n, KeyKind::Gbek), &gak).await;
            confirm(on, (n, KeyKind::Gbek), TransferResult::Success).await;
        }
        let sent = broadcast(on, &sending).await;
        assert_eq!(sent.messages.len(), 2, "the one that stayed hears the former one");
        for wrong in [&[][..], &[2], &[1, 2]] {
            let refused = finish(on, KeyKind::Gbek, wrong).await.unwrap_err();
            assert_eq!(code(&refused), RefusalCode::MembersNotNamed);
        }
        finish(on, KeyKind::Gbek, &[1]).await.unwrap();
        let sent = broadcast(on, &sending).await;
        assert_eq!((sent.messages.len(), sent.not_reached.len()), (1, 1));
        assert_eq!(sent.not_reached[0].title, title(1));
        // It gets a KEK, and the same value.
        let mut kek = member(1);
        kek.keys = vec![key(KeyKind::Kek, value(1, KEK))];
        site.add_versions(kek).await;
        assert_eq!(join(on, &[1]).await.staged, 1);
        assert_eq!(newest(&site, &[1, 2, 3], KeyKind::Gbek).await.len(), 1);
        // What somebody says is compromised protects no broadcast, at whichever member he said so.
        let version = (place(KeyKind::Gbek), 2);
        let compromise = call("Rotation/CompromiseKey");
        on.compromise_key(&compromise, &ids(&[3])[0], version).await.unwrap();
        let sent = broadcast(on, &sending).await;
        assert_eq!((sent.messages.len(), sent.not_reached.len()), (0, 3));
    });
}

#[test]
fn the_site_that_takes_over_goes_on_with_the_same_value() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        for n in [1, 2] {
            a.add(member(n)).await;
        }
        let north = Running::start(a, &network).await;
        let south = Running::start(b, &network).await;
        in_step(&north.site, &south.site).await;
        for n in [1, 2] {
            declare(&north.transmitting, n, KeySet::Unicast).await;
        }
        let on = &*north.lifecycle;
        on.create_group(&call("Groups/CreateGroup"), &group()).await.unwrap();
        join(on, &[1, 2]).await;
        declare(&north.transmitting, 1, KeySet::Broadcast).await;
        let rotated = rotate(on, KeyKind::Gbek).await.unwrap();
        assert_eq!(rotated.proved, kms_core::ports::Proved::Yes);
        eventually("counters are given out", async || {
            let sent = broadcast(on, &north.transmitting).await;
            sent.messages[0].outcome.verdict == Verdict::Ok
        })
        .await;
        let gak = value(SHARED, GAK);
        let new = transfer((on, &north.transmitting), (1, KeyKind::Gbek), &gak).await;
        confirm(on, (1, KeyKind::Gbek), TransferResult::Success).await;
        let before = broadcast(on, &north.transmitting).await;
        in_step(&north.site, &south.site).await;
        let site = Arc::clone(&south.site);
        south.cut().await;
        north.cut().await;
        promote(&site).await;
        let on = &site.lifecycle;
        assert_eq!(states(on).await, [MemberState::ConfirmedByResult, MemberState::Staged]);
        // Asked again it is the value that the first site had made, and what waits for a member is that key.
        let again = rotate(on, KeyKind::Gbek).await.unwrap();
        assert_eq!((again.already, again.value), (true, rotated.value));
        let Fingerprint(value_of) = rotated.value.fingerprint;
        assert_eq!(newest(&site, &[1, 2], KeyKind::Gbek).await, BTreeSet::from([value_of]));
        let record = on.get_by_title(&title(2)).await.unwrap().record;
        let staged = place(KeyKind::Gbek).staged(&record).unwrap().life.transfer.clone().unwrap();
        let mut waits = vec![0; 16];
        dlms::key_wrap::unwrap(&value(2, KEK), &staged.wrapped, &mut waits).unwrap();
        assert_eq!(waits, new);
        let mut one = Has { gbek: new, ..Has::of_factory() };
        let mut two = Has::of_factory();
        assert!(one.hears(&before.messages) && two.hears(&before.messages));
        // What the fenced site alone wrote of the group merges, and nobody has to decide.
        let theirs = Record::Fact(Fact::Group(on.group(&name()).await.unwrap()));
        let mut alone = on.group(&name()).await.unwrap();
        alone.add(title(77));
        alone.members.retain(|known| *known != title(2));
        let merged = learnt(&Record::Fact(Fact::Group(alone)), Some(&theirs)).unwrap();
        let Fact::Group(merged) = merged else { panic!("a group") };
        assert_eq!(merged.members.len(), 3);
        assert_eq!(merged.name, name());
        assert_ne!(FactName::of_group(&name()).kind, FactName::FILE);
    });
}
