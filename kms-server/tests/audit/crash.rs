//! kill -9 in the middle: an acknowledged change has its event, and no event stands without its change.

use std::{path::Path, time::Duration};

use kms_core::{
    BlockNo, Position, Sequence,
    audit::{ChainTip, Verifier},
};
use kms_server::{
    audit::{Audit, Config, Parts},
    store::{AuditedStore as _, ReadStore as _},
};

use super::kill_common::run_and_kill;
use super::store_contract::Scene;
use super::support::{
    NODE, Place, Signer, Witness, begin_table, decode, entry, events, open_store, place,
};

const CHILD: &str = "KMS_TEST_AUDIT_OF_CHILD";
const KILLS: u64 = 12;
const BLOCK: u32 = 5;

/// Not a test of its own: the process that is killed.
#[tokio::test]
async fn child_commits_audited_changes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let store = open_store(Path::new(&path)).await;
    let second = Duration::from_secs(1);
    let signer = Signer::new();
    begin_table(&*store, &signer).await;
    let hsm = kms_server::hsm::Hsm::new(signer, 2, second, second);
    let clock = std::sync::Arc::new(kms_server::app::SystemClock::new());
    let witness = std::sync::Arc::new(Witness::default());
    let parts = Parts { store: store.clone(), hsm, clock, witness };
    let audit = Audit::open(Config::default(), place(), parts).await.unwrap();
    assert_eq!(audit.status().fault, None);
    let mut done =
        store.block(BlockNo(BLOCK)).await.unwrap().map_or(0, |b| b.head.position.sequence.0);
    // A scene that has come as far as the database.
    let mut scene = Scene::default();
    for serial in 0..done {
        scene.change(BLOCK, serial).unwrap();
    }
    loop {
        let change = scene.change(BLOCK, done).unwrap();
        // The change's number stands in its event.
        audit.commit(vec![change], vec![entry(done + 1)]).await.unwrap();
        done += 1;
        println!("\nacknowledged {done}");
    }
}

#[tokio::test]
async fn invariant_10_after_kill_9_changes_and_their_events_are_the_same() {
    let place = Place::new();
    let mut acknowledged = 0;
    for kill in 0..KILLS {
        let delay = Duration::from_millis(5 + kill * 37 % 96);
        acknowledged = run_and_kill(
            "crash::child_commits_audited_changes_until_it_is_killed",
            CHILD,
            &place.path,
            delay,
        )
        .max(acknowledged);
        let store = open_store(&place.path).await;
        let changes = store.block(BlockNo(BLOCK)).await.unwrap();
        let changes = changes.map_or(Sequence(0), |block| {
            let Position { sequence, .. } = block.head.position;
            assert_eq!(block.records.len() as u64, sequence.0);
            sequence
        });
        assert!(changes.0 >= acknowledged, "{acknowledged} acknowledged, {changes:?} there");
        let events = events(&store).await;
        let mut verifier = Verifier::new(ChainTip::empty(NODE), place.signer.key());
        events.iter().for_each(|event| drop(verifier.event(event).unwrap()));
        let of_changes: Vec<u64> = decode(&events)
            .iter()
            .filter(|event| event.entry.call.caller.as_str() == "operator")
            .map(|event| event.entry.at_ms)
            .collect();
        assert_eq!(of_changes, (1..=changes.0).collect::<Vec<_>>(), "after kill {kill}");
        store.close().await;
    }
    assert!(acknowledged > KILLS, "the child got nothing done");
}
