//! Each site's copy of the other one's audit log.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may")]

use std::sync::{Arc, Mutex};

use kms_core::{
    Epoch,
    audit::{
        AuditEvent, AuditOutcome, AuditedCall, ChainTip, NodeId, SiteKeys, Subject,
        copying::{Ends, Piece},
        room::{PIECE_EVENTS, UNSIGNED_CHAINS_MAX},
    },
    site::peer::{FormerSigner, SignedPeer},
};

use super::{
    forks::put_back,
    home::at_two_homes,
    lying::{Lies, beside_a_liar},
    pair::{Network, Running, again, entry, eventually, in_step, promote, sites},
    restored::above,
    site_common::{Site, call, id, meter},
    two_sites::fence,
};
use crate::{
    app::Beside,
    replication::{AuditAsked, AuditSaid, Grounds, PeerError},
    store::{AuditStore as _, peer_audit::PeerAuditStore as _, sites::PeerStep},
};

async fn end(site: &Site, node: NodeId) -> ChainTip {
    let chains = site.measured.audit_chains().await.unwrap();
    *chains.iter().find(|tip| tip.node == node).unwrap()
}

/// Waits until `there` has a copy of the chain of `site` as it is now.
async fn copied(site: &Site, there: &Site) -> ChainTip {
    let mut tip = end(site, site.node).await;
    eventually("the chain is copied", async || {
        tip = end(site, site.node).await;
        let copies = there.measured.peer_chains(&site.domain.site).await.unwrap();
        copies.iter().any(|copy| copy.tip == tip)
    })
    .await;
    tip
}

#[test]
fn who_did_what_at_a_site_that_is_lost_is_read_and_verified_at_the_other_one() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let runs = (
            Running::start(Arc::clone(&a), &network).await,
            Running::start(Arc::clone(&b), &network).await,
        );
        for n in 1..4 {
            a.add(meter(n)).await;
        }
        let meter_id = kms_core::MeterId::new(&id(2)).unwrap();
        a.lifecycle.delete(&call("Meters/DeleteMeter"), &meter_id).await.unwrap();
        in_step(&a, &b).await;
        // The end is signed behind its event, when the copy has the event already.
        copied(&a, &b).await;
        a.audit.verify(a.node).await.unwrap().unwrap();
        let copies = &runs.1.auditing;
        eventually("its signed head is there too", async || {
            copies.verify(a.node).await.unwrap().is_some_and(|found| found.heads > 0)
        })
        .await;
        copied(&b, &a).await;
        runs.0.cut().await;
        let tip = end(&a, a.node).await;
        let found = copies.verify(a.node).await.unwrap().unwrap();
        assert_eq!((found.broken, found.tip), (None, tip));
        let page = copies.page(a.node, 0, 1_000).await.unwrap().unwrap();
        let events = page.events.iter().map(|event| AuditEvent::decode(&event.body).unwrap());
        let about = |event: &AuditEvent| {
            let verb = event.entry.call.verb.as_str() == "Meters/DeleteMeter";
            verb && event.entry.subject.meter_id.as_ref() == Some(&meter_id)
        };
        assert_eq!(events.filter(about).count(), 1);
        // It stands when that site is replaced, and is none of ours.
        promote(&b).await;
        assert_eq!(copies.ends().await.unwrap(), (vec![tip], Some(a.node)));
        assert!(b.audit.chains().await.unwrap().iter().all(|own| own.node != a.node));
        assert_eq!(runs.1.status.all().faults.iter().find(|it| it.contains("audit")), None);
        runs.1.cut().await;
    });
}

#[test]
fn a_chain_that_is_cut_at_its_site_is_a_fault_at_the_other_one_which_keeps_what_it_has() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let (node, database) = (a.node, a.database.clone());
        // The database as it is now, with what its chain says so far.
        a.store.close().await;
        let before = std::fs::read(&database).unwrap();
        drop(a);
        let first = Running::start(again(north, "north", None).await, &network).await;
        let other = Running::start(Arc::clone(&b), &network).await;
        let site = Arc::clone(&first.site);
        for n in 2..5 {
            site.add(meter(n)).await;
        }
        let tip = copied(&site, &b).await;
        let later = site.node;
        assert_ne!(node, later);
        first.cut().await;
        put_back(site, &before).await;
        let first = Running::start(again(north, "north", None).await, &network).await;
        eventually("the cut is told", async || {
            let faults = other.status.all().faults;
            faults
                .iter()
                .any(|it| it.contains(&later.to_string()) && it.contains("cut off the end"))
        })
        .await;
        let kept = b.measured.peer_chains("north").await.unwrap();
        let kept = kept.iter().find(|copy| copy.tip.node == later).unwrap();
        assert_eq!((kept.tip, kept.broken_in.is_some()), (tip, true));
        let found = other.auditing.verify(later).await.unwrap().unwrap();
        assert_eq!((found.broken, found.tip), (None, tip));
        first.cut().await;
        other.cut().await;
    });
}

/// What a site says of audit chains, with the faults that are told of it afterwards.
fn faults(grounds: &Grounds) -> Vec<String> {
    let faults = grounds.status.all().faults;
    faults.into_iter().filter(|fault| fault.contains("audit chain")).collect()
}

/// Only so much of each chain.
fn cut(sequence: u64) -> impl Fn(AuditAsked, AuditSaid) -> Result<AuditSaid, PeerError> {
    let last = Mutex::new([0; 32]);
    move |_, mut said| {
        let event = said.piece.events.iter().find(|event| event.sequence == sequence);
        let hash = {
            let mut last = last.lock().unwrap();
            *last = event.map_or(*last, |event| event.hash);
            *last
        };
        for tip in said.chains.iter_mut().filter(|tip| tip.sequence > sequence) {
            (tip.sequence, tip.hash) = (sequence, hash);
        }
        said.piece.events.retain(|event| event.sequence <= sequence);
        said.piece.heads.retain(|head| head.tip.sequence <= sequence);
        Ok(said)
    }
}

#[test]
fn a_cut_of_a_chain_is_told_whatever_epoch_its_site_names_until_its_token_signed_a_promotion() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        for n in 1..4 {
            a.add(meter(n)).await;
        }
        let running = Running::start(Arc::clone(&a), &network).await;
        let (_, honest) = beside_a_liar(&b, &network, Lies::default());
        honest.auditing.look().await.unwrap();
        // Later it gives less, and names an epoch that nobody was promoted to.
        for named in [9, 99] {
            let audit = Box::new(move |asked, said| {
                let mut said = cut(2)(asked, said)?;
                said.card.epoch = Epoch(named);
                Ok(said)
            });
            let lies = Lies { audit, ..Lies::default() };
            let (grounds, Beside { auditing, .. }) = beside_a_liar(&b, &network, lies);
            auditing.look().await.unwrap();
            assert!(faults(&grounds)[0].contains("cut off the end"), "{:?}", faults(&grounds));
        }
        let kept = b.measured.peer_chains("north").await.unwrap().remove(0);
        assert_eq!(kept.broken_in, Some(Epoch(2)));
        let lies = || Lies { audit: Box::new(cut(2)), ..Lies::default() };
        let told = async |is_told: bool| {
            let (grounds, Beside { auditing, .. }) = beside_a_liar(&b, &network, lies());
            auditing.look().await.unwrap();
            assert_eq!(!faults(&grounds).is_empty(), is_told, "{:?}", faults(&grounds));
        };
        // That this site was promoted says nothing of the other one's chain; that the other one was, does.
        let ours = promote(&b).await;
        fence(&a, ours).await;
        told(true).await;
        assert_eq!(above(&a).await, Epoch(4));
        let theirs = a.store.role_records().await.unwrap().pop().unwrap();
        fence(&b, theirs).await;
        told(false).await;
        running.cut().await;
    });
}

#[test]
fn events_that_a_site_has_signed_and_does_not_give_are_named() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        for n in 1..4 {
            a.add(meter(n)).await;
        }
        a.audit.sign_table(true).await;
        let running = Running::start(Arc::clone(&a), &network).await;
        let lies = Lies { audit: Box::new(cut(2)), ..Lies::default() };
        let (grounds, liar) = beside_a_liar(&b, &network, lies);
        liar.witnessing.look().await.unwrap();
        for look in 1..=Ends::GRACE {
            assert_eq!(faults(&grounds), Vec::<String>::new(), "before look {look}");
            liar.auditing.look().await.unwrap();
        }
        let told = faults(&grounds).remove(0);
        assert!(told.contains("is withheld") && told.contains(&a.node.to_string()), "{told}");
        // An honest site is not: all of it comes.
        let (grounds, honest) = beside_a_liar(&b, &network, Lies::default());
        for _ in 0..=Ends::GRACE {
            honest.auditing.look().await.unwrap();
        }
        assert_eq!(faults(&grounds), Vec::<String>::new());
        running.cut().await;
    });
}

#[test]
fn invariant_12_a_piece_that_is_longer_than_agreed_is_named_and_nothing_of_it_is_kept() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        let running = Running::start(Arc::clone(&a), &network).await;
        let audit = Box::new(|_, mut said: AuditSaid| {
            let events = said.piece.events.clone();
            let times = PIECE_EVENTS / events.len().max(1) + 1;
            said.piece.events = (0..times).flat_map(|_| events.clone()).collect();
            Ok(said)
        });
        let (grounds, liar) = beside_a_liar(&b, &network, Lies { audit, ..Lies::default() });
        liar.auditing.look().await.unwrap();
        let told = faults(&grounds);
        assert!(told[0].contains("more than a piece may have"), "{told:?}");
        assert_eq!(b.measured.peer_chains("north").await.unwrap(), []);
        // It says nothing of the chain: what comes as agreed is copied.
        let (grounds, honest) = beside_a_liar(&b, &network, Lies::default());
        honest.auditing.look().await.unwrap();
        assert_eq!(faults(&grounds), Vec::<String>::new());
        assert_eq!(b.measured.peer_chains("north").await.unwrap()[0].tip, end(&a, a.node).await);
        running.cut().await;
    });
}

#[test]
fn invariant_12_chains_that_a_site_makes_up_take_a_bounded_number_of_places() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        a.audit.sign_table(true).await;
        let running = Running::start(Arc::clone(&a), &network).await;
        // Any number of chains, each of one event that no token has signed.
        let made_up = |n: u16| {
            let mut node = [7; 16];
            node[..2].copy_from_slice(&n.to_be_bytes());
            let made = AuditedCall::new("eve", "Meters/GetMeter");
            let made = made.entry(1, Subject::NONE, AuditOutcome::Done);
            ChainTip::empty(NodeId(node)).append(made)
        };
        let audit = Box::new(move |asked: AuditAsked, mut said: AuditSaid| {
            let ours = said.chains.clone();
            said.chains = (0..2_000).map(|n| made_up(n).0).chain(ours).collect();
            let asked = asked.node.filter(|_| asked.after == 0);
            let event = (0..2_000).map(|n| made_up(n).1).find(|event| Some(event.node) == asked);
            said.piece.events.extend(event);
            Ok(said)
        });
        let (grounds, liar) = beside_a_liar(&b, &network, Lies { audit, ..Lies::default() });
        liar.witnessing.look().await.unwrap();
        for _ in 0..16 {
            liar.auditing.look().await.unwrap();
        }
        let told = faults(&grounds);
        assert!(told.iter().any(|it| it.contains("has signed nothing of 64")), "{told:?}");
        let copies = b.measured.peer_chains("north").await.unwrap();
        assert_eq!(copies.len(), UNSIGNED_CHAINS_MAX + 1);
        let tip = end(&a, a.node).await;
        assert!(copies.iter().any(|copy| copy.tip == tip), "what the token has signed has a place");
        running.cut().await;
    });
}

#[test]
fn a_site_that_shows_tables_and_refuses_events_is_named() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        let running = Running::start(Arc::clone(&a), &network).await;
        let audit = Box::new(|asked: AuditAsked, said| match asked.node {
            None => Ok(said),
            Some(_) => Err(PeerError::Unreadable("nothing")),
        });
        let lies = Lies { audit, ..Lies::default() };
        let (grounds, liar) = beside_a_liar(&b, &network, lies);
        for n in 1..4 {
            assert_eq!(faults(&grounds), Vec::<String>::new());
            a.add(meter(n)).await;
            a.audit.sign_table(true).await;
            liar.witnessing.look().await.unwrap();
            liar.auditing.look().await.unwrap_err();
        }
        assert!(faults(&grounds)[0].contains("is withheld"), "{:?}", faults(&grounds));
        running.cut().await;
    });
}

#[test]
fn a_chain_that_is_another_one_than_its_token_signed_is_named() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        for n in 1..4 {
            a.add(meter(n)).await;
        }
        a.audit.sign_table(true).await;
        let running = Running::start(Arc::clone(&a), &network).await;
        // The same number of events, told otherwise: chained as ours are, which takes no key.
        let audit = Box::new(|asked: AuditAsked, mut said: AuditSaid| {
            let Some(node) = asked.node else { return Ok(said) };
            let (mut tip, mut events) = (ChainTip::empty(node), Vec::new());
            for event in &said.piece.events {
                let mut entry = AuditEvent::decode(&event.body).unwrap().entry;
                entry.call.caller = AuditedCall::new("nobody", "x/y").caller;
                let (next, event) = tip.append(entry);
                tip = next;
                events.push(event);
            }
            said.piece = Piece { events, heads: Vec::new() };
            Ok(said)
        });
        let lies = Lies { audit, ..Lies::default() };
        let (grounds, liar) = beside_a_liar(&b, &network, lies);
        liar.witnessing.look().await.unwrap();
        liar.auditing.look().await.unwrap();
        let told = faults(&grounds).remove(0);
        assert!(told.contains("a signed head says otherwise"), "{told}");
        running.cut().await;
    });
}

#[test]
fn a_copy_is_verified_under_the_key_that_signed_it_when_its_site_was_enrolled_anew() {
    at_two_homes(async |north, south| {
        let (a, b) = sites(north, south).await;
        let network = Network::new();
        a.add(meter(1)).await;
        a.audit.verify(a.node).await.unwrap().unwrap();
        let running = Running::start(Arc::clone(&a), &network).await;
        let (_, honest) = beside_a_liar(&b, &network, Lies::default());
        honest.auditing.look().await.unwrap();
        // The other site comes back with another token, and with chains of its own.
        let SignedPeer { mut peer, signature: before } = b.store.peers().await.unwrap().remove(0);
        peer.former = vec![FormerSigner { key: peer.signing, until: Epoch(2) }];
        (peer.signing, peer.enrolled_ms) = ([7; 65], 2);
        let key = peer.former[0].key;
        let signature = b.hsm.sign(peer.message()).await.unwrap();
        let entry = entry("Site/EnrolPeer");
        let step = PeerStep { expected: Some(before), now: SignedPeer { peer, signature } };
        b.commits.put_peer(step, vec![entry]).await.unwrap();
        let found = honest.auditing.verify(a.node).await.unwrap().unwrap();
        assert!(found.broken.is_none() && found.heads > 0, "{found:?}");
        assert_eq!(honest.auditing.keys(a.node).await, Ok(SiteKeys::new(key, [[7; 65]])));
        let audit = Box::new(|_, said| Ok(AuditSaid { chains: Vec::new(), ..said }));
        let lies = Lies { audit, ..Lies::default() };
        let (grounds, replaced) = beside_a_liar(&b, &network, lies);
        replaced.auditing.look().await.unwrap();
        assert_eq!(faults(&grounds), Vec::<String>::new());
        running.cut().await;
    });
}
