//! Somebody changes the database while the service is down, or while it runs.

use std::sync::Arc;

use kms_core::audit::{AuditEvent, What};
use kms_server::store::ReadStore as _;
use kms_server::{
    audit::{Audit, AuditError},
    store::AuditStore as _,
};

use super::support::{NODE, Place, decode, entry, events, tamper};

/// 20 events, signed, 5 more that are not.
async fn written(place: &Place) {
    let (store, audit) = place.start().await;
    for n in 0..18 {
        audit.record(entry(n)).await.unwrap();
    }
    audit.close().await;
    drop(audit);
    store.close().await;
    let (store, audit) = place.start().await;
    for n in 0..4 {
        audit.record(entry(100 + n)).await.unwrap();
    }
    assert_eq!((audit.status().sequence, audit.status().signed), (25, 20));
    store.close().await;
}

async fn found_at_start(statement: &str) -> Option<String> {
    let place = Place::new();
    written(&place).await;
    tamper(&place.path, statement).await;
    let (store, audit) = place.start().await;
    let fault = audit.status().fault;
    match &fault {
        None => audit.record(entry(1)).await.unwrap(),
        Some(_) => refuses(&audit).await,
    }
    // Reading goes on either way.
    assert!(audit.page(NODE, 0, 10).await.unwrap().is_some());
    store.close().await;
    fault
}

async fn refuses(audit: &Audit) {
    let before = audit.status().sequence;
    assert!(matches!(audit.record(entry(1)).await, Err(AuditError::NotWritable(_))));
    assert_eq!(audit.status().sequence, before);
}

#[tokio::test]
async fn an_untouched_log_starts_without_a_fault() {
    assert_eq!(found_at_start("SELECT 1").await, None);
}

#[tokio::test]
async fn a_log_whose_end_was_changed_while_nobody_looked_starts_with_a_fault() {
    const TIP: &str = "UPDATE audit_chains SET sequence = (SELECT MAX(sequence) FROM audit_events), \
                       hash = (SELECT hash FROM audit_events ORDER BY sequence DESC LIMIT 1)";
    let cut_behind = |kept: u32| format!("DELETE FROM audit_events WHERE sequence > {kept};");
    for (statement, says) in [
        // Unsigned events gone; the row that says where the chain ends is still there.
        (cut_behind(24), "cut off"),
        (cut_behind(21), "cut off"),
        // That row changed as well, signed events gone.
        (cut_behind(19) + TIP, "cut off"),
        (cut_behind(0) + "DELETE FROM audit_chains", "cut off"),
        // The heads in the database too: the witness remembers.
        (cut_behind(19) + TIP + "; DELETE FROM audit_checkpoints", "cut off"),
        ("UPDATE audit_events SET body = X'01' WHERE sequence = 23".into(), "not the event"),
        ("UPDATE audit_events SET hash = zeroblob(32) WHERE sequence = 20".into(), "signed"),
        ("UPDATE audit_events SET body = X'01' WHERE sequence = 20".into(), "changed"),
        ("DELETE FROM audit_events WHERE sequence = 22".into(), "missing"),
        ("UPDATE audit_chains SET sequence = 24".into(), "missing"),
        ("UPDATE audit_chains SET hash = zeroblob(32)".into(), "signed head says otherwise"),
        ("UPDATE audit_checkpoints SET signature = zeroblob(64)".into(), "not signed by"),
        ("UPDATE audit_checkpoints SET at_ms = 1".into(), "not signed by"),
    ] {
        let fault = found_at_start(&statement).await;
        let fault = fault.unwrap_or_else(|| panic!("{statement} was not found"));
        assert!(fault.contains(says), "{statement}: {fault}");
    }
}

#[tokio::test]
async fn a_whole_check_finds_what_lies_deeper_and_the_end_that_was_cut_while_the_service_runs() {
    for (statement, first, what) in [
        ("UPDATE audit_events SET body = X'01' WHERE sequence = 3", 3, What::NotAnEvent),
        ("UPDATE audit_events SET hash = zeroblob(32) WHERE sequence = 3", 3, What::Changed),
        ("DELETE FROM audit_events WHERE sequence = 1", 1, What::OutOfOrder),
        // Not signed yet when it was cut; the service knows where it left the chain.
        ("DELETE FROM audit_events WHERE sequence > 25", 26, What::TailCut),
    ] {
        let place = Place::new();
        written(&place).await;
        let (store, audit) = place.start().await;
        assert_eq!(audit.status().sequence, 26);
        let good = audit.verify(NODE).await.unwrap().unwrap();
        assert_eq!((good.tip.sequence, good.broken), (26, None));
        audit.record(entry(5)).await.unwrap();
        tamper(&place.path, statement).await;
        let found = audit.verify(NODE).await.unwrap().unwrap().broken.expect(statement);
        assert_eq!((found.sequence, found.what), (first, what), "{statement}");
        store.close().await;
    }
}

#[tokio::test]
async fn a_chain_that_somebody_else_moves_is_a_fault_and_nothing_is_written_behind_it() {
    let place = Place::new();
    let (store, audit) = place.start().await;
    audit.record(entry(1)).await.unwrap();
    tamper(&place.path, "UPDATE audit_chains SET hash = zeroblob(32)").await;
    refuses(&audit).await;
    assert!(audit.status().fault.unwrap().contains("does not end where"));
    refuses(&audit).await;
    assert_eq!(events(&store).await.len(), 2);
}

#[tokio::test]
async fn a_signature_that_fails_is_told_and_made_up_for() {
    use std::sync::atomic::Ordering;
    let place = Place::new();
    let (store, audit) = place.start().await;
    place.signer.away.store(true, Ordering::SeqCst);
    assert!(audit.verify(NODE).await.unwrap().unwrap().broken.is_none());
    assert!(audit.status().fault.unwrap().contains("can't be signed"));
    // Not being able to sign does not keep anything from being written.
    audit.record(entry(1)).await.unwrap();
    place.signer.away.store(false, Ordering::SeqCst);
    audit.close().await;
    let status = audit.status();
    assert_eq!((status.fault, status.signed), (None, status.sequence));
    let head = store.last_audit_checkpoint(&NODE).await.unwrap().unwrap();
    assert!(head.is_signed_by(&audit.keys()));
    let said: Vec<AuditEvent> = decode(&events(&store).await);
    let verbs: Vec<&str> = said.iter().map(|event| event.entry.call.verb.as_str()).collect();
    assert_eq!(verbs, ["Server/Start", "Meters/GetMeter", "Server/Stop"]);
    drop(Arc::clone(&audit));
}
