//! Evidence that a site which follows hands to the one that writes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    KeyKind, KeyState, ProfileName, StateReason, Verdict,
    counters::allocator::Purpose,
    ports::{EvidenceCourier as _, MetersMessage},
};

use super::{
    home::at_two_homes,
    pair::{Network, Running, beside, eventually, in_step, sites},
    rotation::{evidence, received, rotating, stage, state, transfer},
    site_common::{GAK, GUEK, push_with, title, value},
    transmitting::{declare, plain, send},
};
use crate::{
    ciphering::Named,
    replication::{Grounds, Handing},
    transmitting::Plain,
};

const PLAIN: &[u8] = b"\x0f\x00";
const PROVED: (KeyState, StateReason, bool) = (KeyState::Active, StateReason::Evidence, true);

/// Two sites that know what is staged for meter 1, and that key as the meter has taken it.
async fn staged(
    north: &super::home::Home,
    south: &super::home::Home,
) -> (Network, Running, Running, Vec<u8>) {
    let (a, b) = sites(north, south).await;
    let network = Network::new();
    let mut meter = rotating(1);
    meter.policy.as_mut().unwrap().profile = Some(ProfileName::new("strict").unwrap());
    a.add(meter).await;
    let north = Running::start(a, &network).await;
    let south = Running::start(b, &network).await;
    in_step(&north.site, &south.site).await;
    declare(&north.transmitting, 1, None).await.unwrap();
    stage(&north.lifecycle, 1, KeyKind::Guek).await;
    eventually("counters are given out", async || {
        send(&north.transmitting, plain(1)).await.0.verdict == Verdict::Ok
    })
    .await;
    let on = (&*north.lifecycle, &*north.transmitting);
    let (_, apdu) = transfer(on, 1, KeyKind::Guek, None).await.unwrap();
    let (new, _) = received(1, &apdu, (&value(1, GUEK), &value(1, GAK)));
    in_step(&north.site, &south.site).await;
    (network, north, south, new)
}

fn of(n: u64, apdu: Vec<u8>) -> MetersMessage {
    MetersMessage { title: title(n), apdu: apdu.into() }
}

/// The way of a site to the other one.
fn way(from: &Running, network: &Network) -> Grounds {
    let to = if from.site.domain.site == "north" { network.south } else { network.north };
    beside(&from.site, network, to).0
}

#[test]
fn what_a_meter_shows_to_the_site_that_follows_is_proved_at_the_one_that_writes() {
    at_two_homes(async |north, south| {
        let (network, north, south, new) = staged(north, south).await;
        let courier = Arc::new(Handing::new(&way(&south, &network)));
        let heard = Arc::clone(&south.site.evidence);
        let task = tokio::spawn(Arc::clone(&south.lifecycle).take_evidence(heard, courier));
        let first = push_with(1, 0x30, &new, &value(1, GAK), PLAIN);
        assert_eq!(south.site.verdict(&first).await, Verdict::Ok);
        eventually("the site that writes has it", async || evidence(&north.site).await == 1).await;
        assert_eq!(state(&north.site, 1, KeyKind::Guek, 2).await, PROVED);
        // No floor has risen by it: the message may still come here.
        let (outcome, _) = north.site.open(&first, Named::InApdu).await;
        assert_eq!((outcome.verdict, outcome.duplicate), (Verdict::Ok, false));
        assert!(south.site.evidence.take(10).is_empty(), "it was handed over");
        task.abort();
        south.cut().await;
        north.cut().await;
    });
}

#[test]
fn the_site_that_writes_believes_nothing_but_a_tag_of_the_meters_own() {
    at_two_homes(async |north, south| {
        let (network, north, south, new) = staged(north, south).await;
        let (gak, way) = (value(1, GAK), way(&south, &network));
        let hand = async |messages| {
            let card = way.cards.now().await.unwrap();
            way.peer.hand_evidence(card, messages).await
        };
        let good = push_with(1, 0x30, &new, &gak, PLAIN);
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        // Ours, under the new key, thrown back.
        let reply = dlms::hls::reply(0xC1, b"f(StoC) of sixteen");
        let ours = Plain { apdu: &reply, purpose: Purpose::Hls, versions: (2, 1), ..plain(1) };
        let (sent, ours) = send(&north.transmitting, ours).await;
        assert_eq!((sent.verdict, sent.encryption_key_version), (Verdict::Ok, 2));
        let messages = vec![
            of(1, forged),
            of(1, ours),
            of(2, good.clone()),
            of(1, push_with(1, 0x30, &value(1, GUEK), &gak, PLAIN)),
            of(1, push_with(1, 0x20, &new, &gak, PLAIN)),
            of(1, PLAIN.to_vec()),
        ];
        assert!(hand(messages).await.unwrap().writes);
        assert_eq!(evidence(&north.site).await, 0);
        // More than are taken at once, and longer ones.
        assert!(hand(vec![of(1, good.clone()); MetersMessage::AT_ONCE + 1]).await.is_err());
        assert!(hand(vec![of(1, vec![0; MetersMessage::LEN_MAX + 1])]).await.is_err());
        assert!(hand(vec![of(1, Vec::new())]).await.is_err());
        assert_eq!(evidence(&north.site).await, 0);
        // What is good is taken among whatever else.
        assert!(hand(vec![of(3, PLAIN.to_vec()), of(1, good)]).await.unwrap().writes);
        assert_eq!(evidence(&north.site).await, 1);
        south.cut().await;
        north.cut().await;
    });
}

#[test]
fn a_site_that_does_not_write_takes_none_and_one_that_writes_hands_none_over() {
    at_two_homes(async |north, south| {
        let (network, north, south, new) = staged(north, south).await;
        let push = of(1, push_with(1, 0x30, &new, &value(1, GAK), PLAIN));
        let to_south = way(&north, &network);
        let card = to_south.cards.now().await.unwrap();
        let theirs = to_south.peer.hand_evidence(card, vec![push.clone()]).await.unwrap();
        assert!(!theirs.writes && south.site.evidence.take(10).is_empty());
        assert!(!Handing::new(&to_south).hand(vec![push.clone()]).await);
        // Without the other site it waits here, and is not lost.
        let to_north = way(&south, &network);
        north.cut().await;
        assert!(!Handing::new(&to_north).hand(vec![push.clone()]).await);
        assert_eq!(south.site.verdict(&push.apdu).await, Verdict::Ok);
        let courier = Arc::new(Handing::new(&to_north));
        let heard = Arc::clone(&south.site.evidence);
        let task = tokio::spawn(Arc::clone(&south.lifecycle).take_evidence(heard, courier));
        eventually("it is put back", async || !south.site.evidence.take(10).is_empty()).await;
        task.abort();
        south.cut().await;
    });
}
