//! Writing: with its change or not at all, in one chain however many write, and nothing secret.

use std::sync::Arc;

use kms_core::{
    Verdict,
    audit::{AuditEvent, AuditOutcome, AuditedCall, ChainTip, Detail, Verifier},
};
use kms_server::{
    audit::AuditError,
    store::{AuditedStore, ReadStore as _, StoreError},
};

use super::store_contract::Scene;
use super::support::{NODE, Place, decode, entry, events, tamper, title};

/// Makes every write of an event fail, until it is dropped.
const NO_ROOM: &str = "CREATE TRIGGER full BEFORE INSERT ON audit_events \
                       BEGIN SELECT RAISE(ABORT, 'no room'); END";
const ROOM: &str = "DROP TRIGGER full";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_writers_of_changes_and_reads_make_one_chain() {
    let place = Place::new();
    let (store, audit) = place.start().await;
    let tasks: Vec<_> = (0..8u32)
        .map(|writer| {
            let audit = Arc::clone(&audit);
            tokio::spawn(async move {
                let mut scene = Scene::default();
                for n in 0..50u64 {
                    let serial = u64::from(writer) * 1_000 + n;
                    let change = scene.change(writer, serial).unwrap();
                    // Of the change two events: they stand side by side.
                    let said = vec![entry(serial), entry(serial)];
                    audit.commit(vec![change], said).await.unwrap();
                    audit.record(entry(serial + 500)).await.unwrap();
                    // Refused: leaves no gap.
                    let stale = Scene::default().change(writer, serial).unwrap();
                    let refused = audit.commit(vec![stale], vec![entry(9)]).await;
                    assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let events = events(&store).await;
    assert_eq!(events.len(), 1 + 8 * 50 * 3);
    let mut verifier = Verifier::new(ChainTip::empty(NODE), place.signer.key());
    events.iter().for_each(|event| drop(verifier.event(event).unwrap()));
    assert_eq!(verifier.tip().sequence, audit.status().sequence);
    let said = decode(&events);
    // The first of the two says where the block stands then.
    let is_pair = |two: &&[AuditEvent]| {
        let mut first = two[0].entry.clone();
        let marked = std::mem::take(&mut first.heads).len() == 1;
        marked && first == two[1].entry
    };
    assert_eq!(said.windows(2).filter(is_pair).count(), 8 * 50);
    assert_eq!(store.count_meters().await.unwrap(), 8 * 50);
}

#[tokio::test]
async fn invariant_10_what_cannot_be_recorded_is_refused_and_nothing_has_changed() {
    let place = Place::new();
    let (store, audit) = place.start().await;
    let mut scene = Scene::default();
    let change = scene.change(3, 1).unwrap();
    tamper(&place.path, NO_ROOM).await;
    let refused = audit.commit(vec![change.clone()], vec![entry(1)]).await;
    assert!(
        matches!(&refused, Err(StoreError::AuditNotWritten { reason }) if reason.contains("no room")),
        "{refused:?}"
    );
    let refused = audit.record(entry(1)).await;
    assert!(matches!(refused, Err(AuditError::NotWritable(_))), "{refused:?}");
    // A change with nothing said of it is refused as well.
    tamper(&place.path, ROOM).await;
    assert!(audit.commit(vec![change.clone()], Vec::new()).await.is_err());
    assert!(store.heads().await.unwrap().is_empty());
    assert_eq!(events(&store).await.len(), 1);
    // With room again, all goes on, without a gap.
    audit.commit(vec![change], vec![entry(1)]).await.unwrap();
    assert_eq!((store.heads().await.unwrap().len(), events(&store).await.len()), (1, 2));
    assert!(audit.verify(NODE).await.unwrap().unwrap().broken.is_none());
}

#[tokio::test]
async fn a_commit_whose_caller_gives_up_runs_to_its_end() {
    let place = Place::new();
    let (store, audit) = place.start().await;
    let mut given_up = 0;
    for round in 0..200u64 {
        let change = Scene::default().change(round as u32, round).unwrap();
        let commit = audit.commit(vec![change.clone()], vec![entry(round)]);
        let patience = std::time::Duration::from_micros(round * 13 % 1_500);
        if tokio::time::timeout(patience, commit).await.is_err() {
            given_up += 1;
        }
    }
    assert!(given_up > 10, "{given_up} given up");
    audit.record(entry(1)).await.unwrap();
    // What was given up runs to its end.
    let mut tip = audit.follow();
    let all = tip.wait_for(|tip| tip.sequence == 1 + 200 + 1);
    tokio::time::timeout(std::time::Duration::from_secs(60), all).await.unwrap().unwrap();
    assert_eq!((store.heads().await.unwrap().len(), events(&store).await.len()), (200, 202));
    assert!(audit.verify(NODE).await.unwrap().unwrap().broken.is_none());
}

fn number(entry: &kms_core::audit::AuditEntry, detail: Detail) -> u64 {
    entry.details.iter().filter(|(of, _)| *of == detail).map(|(_, number)| number).sum()
}

#[tokio::test]
async fn the_record_of_traffic_adds_up_and_waits_for_a_log_that_cannot_be_written() {
    let place = Place::new();
    let (store, audit) = place.start().await;
    let hour = std::time::Duration::from_secs(3_600);
    let batch = |n: u64| {
        (0..1_024).map(move |i| {
            let verdict =
                if (i + n).is_multiple_of(10) { Verdict::MicFailure } else { Verdict::Ok };
            (Some(title(i)), verdict)
        })
    };
    for n in 0..5 {
        audit.count("hes", "Ciphering/DecryptBatch", batch(n));
    }
    tamper(&place.path, NO_ROOM).await;
    audit.sum_up(hour).await;
    tamper(&place.path, ROOM).await;
    for n in 5..10 {
        audit.count("hes", "Ciphering/DecryptBatch", batch(n));
    }
    audit.sum_up(hour).await;
    audit.sum_up(hour).await;
    let said = decode(&events(&store).await);
    let traffic: Vec<_> = said.iter().map(|event| &event.entry).skip(1).collect();
    assert_eq!(traffic.len(), 2, "one for each verdict");
    let items: u64 = traffic.iter().map(|entry| number(entry, Detail::Items)).sum();
    assert_eq!(items, 10 * 1_024);
    let forged = traffic.iter().find(|e| number(e, Detail::Verdict) == 3).unwrap();
    assert_eq!(number(forged, Detail::Items), 1_024);
    assert_eq!(forged.outcome, AuditOutcome::refused("MIC_FAILURE"));
    for entry in traffic {
        let by_block: u64 = entry.blocks.iter().map(|(_, items)| items).sum();
        assert_eq!(by_block, number(entry, Detail::Items));
    }
}

#[tokio::test]
async fn a_caller_that_asks_for_what_it_is_not_granted_does_not_fill_the_log() {
    let place = Place::new();
    let (store, audit) = place.start().await;
    for _ in 0..500 {
        audit.record_refusal(AuditedCall::new("hes", "Meters/DeleteMeter"), "NOT_GRANTED").await;
    }
    assert_eq!(events(&store).await.len(), 2);
    audit.sum_up(std::time::Duration::from_secs(60)).await;
    let said = decode(&events(&store).await);
    let counted: u64 = said.iter().map(|event| number(&event.entry, Detail::Items)).sum();
    assert_eq!((said.len(), counted), (3, 500));
    assert_eq!(said[2].entry.outcome, AuditOutcome::refused("NOT_GRANTED"));
}

#[tokio::test]
async fn refusals_for_one_reason_are_not_counted_as_those_for_another() {
    let place = Place::new();
    let (store, audit) = place.start().await;
    let words = ["NOT_GRANTED", "SECOND_PERSON_NEEDED"];
    for word in words.into_iter().cycle().take(20) {
        audit.record_refusal(AuditedCall::new("hes", "Meters/DeleteMeter"), word).await;
    }
    audit.sum_up(std::time::Duration::from_secs(60)).await;
    let said = decode(&events(&store).await);
    for word in words {
        let of_word =
            said.iter().filter(|event| event.entry.outcome == AuditOutcome::refused(word));
        let numbers: Vec<u64> = of_word.map(|it| number(&it.entry, Detail::Items)).collect();
        assert_eq!(numbers, [1, 9], "{word}");
    }
}
