//! A read-only replica in the place of the other site: whoever asks it for a promise is told, or refused.

#![allow(clippy::unwrap_used, reason = "tests may")]

use std::sync::Arc;

use kms_core::{
    BlockNo, Epoch, Verdict,
    ports::{CounterWitness as _, Replicated, ReplicationGate as _},
    site::{changing, role::Role},
};

use super::{
    home::at_two_homes,
    pair::{Network, Running, beside, entry, in_step, with_replica},
    site_common::{call, meter, push},
};
use crate::{
    keyring::{NotChanged, Wish},
    lifecycle::{ImportRules, LifecycleError},
    replication::{Config, Confirming, Grounds, MarksAsked, PeersMemory},
};

const PLAIN: &[u8] = b"\x0f\x00";

#[test]
fn invariant_4_a_replica_has_what_was_written_and_confirms_nothing_of_it() {
    at_two_homes(async |north, east| {
        let (a, c) = with_replica(north, east).await;
        let network = Network::new();
        // Somebody has given the writer the replica's address for the other site's.
        let north = Running::start_towards(Arc::clone(&a), &network, network.south).await;
        let east = Running::start(Arc::clone(&c), &network).await;
        let rules = ImportRules::default();
        let import = call("Meters/ImportMeters");
        let imports = a.lifecycle.import(&import, vec![meter(1)], rules);
        let states = imports.await.unwrap().states;
        in_step(&a, &c).await;
        assert_eq!(c.verdict(&push(1, PLAIN)).await, Verdict::Ok);
        assert_eq!(north.gate.replicated(&states).await, Replicated::No);
        // What is asked for is there: it is the name alone that is in the way.
        let (grounds, _) = beside(&a, &network, network.south);
        let config = Config { peer: "east".to_owned(), ..grounds.config.clone() };
        let named = Confirming::new(&Grounds { config, ..grounds });
        assert_eq!(named.replicated(&states).await, Replicated::Yes);
        east.cut().await;
        north.cut().await;
    });
}

#[test]
fn invariant_3_a_replica_remembers_no_counter_for_anybody() {
    at_two_homes(async |north, east| {
        let (a, c) = with_replica(north, east).await;
        let network = Network::new();
        let east = Running::start(Arc::clone(&c), &network).await;
        let (grounds, _) = beside(&a, &network, network.south);
        let asked = Some(BlockNo(0));
        assert!(
            PeersMemory::new(&grounds, Arc::clone(&a.keyring.roles))
                .ask(Vec::new(), asked)
                .await
                .is_none()
        );
        // Nor by its own name: it says so itself.
        let config = Config { peer: "east".to_owned(), ..grounds.config.clone() };
        let named = Grounds { config, ..grounds };
        assert!(
            PeersMemory::new(&named, Arc::clone(&a.keyring.roles))
                .ask(Vec::new(), asked)
                .await
                .is_none()
        );
        let card = named.cards.now().await.unwrap();
        let refused = named.peer.exchange_marks(card, MarksAsked::default()).await.unwrap_err();
        assert!(refused.to_string().contains("READ_ONLY_REPLICA"), "{refused}");
        east.cut().await;
    });
}

#[test]
fn invariant_7_nothing_makes_a_replica_write() {
    at_two_homes(async |north, east| {
        let (a, c) = with_replica(north, east).await;
        a.add(meter(1)).await;
        let before = c.store.role().await.unwrap();
        assert!(!before.writes, "not even in the epoch of the founder");
        for (is_lost, above) in [(false, None), (true, None), (true, Some(Epoch(9)))] {
            let wish = Wish { expected: Epoch(2), is_lost, above };
            let refused = c.keyring.roles.promote(wish, entry("Site/Promote"), 5).await;
            let refused = refused.unwrap_err();
            let is_replica = matches!(refused, NotChanged::Standing(changing::NotChanged::Replica));
            assert!(is_replica, "{refused}");
        }
        assert_eq!(c.store.role().await.unwrap(), before);
        assert_eq!(c.keyring.roles.look().await.unwrap().role, Role::Replica);
        let rules = ImportRules::default();
        let refused = c.lifecycle.import(&call("Meters/ImportMeters"), vec![meter(2)], rules).await;
        assert!(matches!(refused, Err(LifecycleError::NotPrimary { .. })), "{refused:?}");
    });
}
