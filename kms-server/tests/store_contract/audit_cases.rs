//! The cases of the audit log.

use std::sync::Arc;

use super::{
    Seen,
    made_up::{Scene, meter},
    refused, same,
};
use kms_core::audit::{
    AuditEntry, AuditOutcome, AuditedCall, ChainTip, Checkpoint, NodeId, StoredEvent, Subject,
};
use kms_server::store::{ChainLink, StoreError, WriteStore};

type Store = Arc<dyn WriteStore>;
type Outcome = Result<(), Seen>;

const NODE: NodeId = NodeId([0xFF; 16]);

/// The time of [`super::Said`]'s event.
pub(super) const SAID_AT: u64 = 1_234;

/// Something to say.
pub(super) fn entry() -> AuditEntry {
    AuditedCall::new("x", "y").entry(SAID_AT, Subject::NONE, AuditOutcome::Done)
}

/// The next `count` events of a chain, and where they lead.
fn next(behind: ChainTip, count: u64) -> (ChainTip, Vec<StoredEvent>) {
    let mut tip = behind;
    let events = (0..count).map(|n| {
        let entry = AuditedCall::new("x", "y").entry(n, Subject::NONE, AuditOutcome::Done);
        let (next, event) = tip.append(entry);
        tip = next;
        event
    });
    let events = events.collect();
    (tip, events)
}

fn moved(error: &StoreError) -> bool {
    matches!(error, StoreError::AuditMoved(NODE))
}

async fn append(store: &Store, behind: ChainTip, count: u64) -> Result<ChainTip, Seen> {
    let (tip, events) = next(behind, count);
    store.commit(&[], ChainLink { behind, events: &events }).await?;
    Ok(tip)
}

pub(super) async fn audit_events_come_back_byte_for_byte_page_by_page(store: Store) -> Outcome {
    same(store.audit_chains().await?, Vec::new())?;
    same(store.audit_events(&NODE, 0, 9).await?, Vec::new())?;
    let (tip, events) = next(ChainTip::empty(NODE), 200);
    let link = ChainLink { behind: ChainTip::empty(NODE), events: &events };
    store.commit(&[], link).await?;
    // A chain of another node does not mix with it.
    let other = append(&store, ChainTip::empty(NodeId([0; 16])), 3).await?;
    same(store.audit_chains().await?, vec![other, tip])?;
    for page in [1, 7, 200, 1_000] {
        let mut found: Vec<StoredEvent> = Vec::new();
        loop {
            let after = found.last().map_or(0, |event| event.sequence);
            let some = store.audit_events(&NODE, after, page).await?;
            if some.is_empty() {
                break;
            }
            found.extend(some);
        }
        same(found, events.clone())?;
    }
    same(store.audit_events(&NODE, u64::MAX, 9).await?, Vec::new())
}

pub(super) async fn an_audit_event_stands_only_behind_the_end_of_its_chain(
    store: Store,
) -> Outcome {
    let start = ChainTip::empty(NODE);
    let tip = append(&store, start, 2).await?;
    let (_, good) = next(tip, 2);
    // Begun once more, behind an end that was, behind one that never was, with a gap, out of order.
    let elsewhere = ChainTip { hash: [7; 32], ..tip };
    for (behind, events) in [
        (start, next(start, 1).1),
        (ChainTip { sequence: 1, ..tip }, next(ChainTip { sequence: 1, ..tip }, 1).1),
        (elsewhere, next(elsewhere, 1).1),
        (tip, good[1..].to_vec()),
        (tip, good.iter().rev().cloned().collect()),
    ] {
        let link = ChainLink { behind, events: &events };
        refused(store.commit(&[], link).await, moved)?;
    }
    same(store.audit_chains().await?, vec![tip])?;
    same(store.audit_events(&NODE, 0, 9).await?.len(), 2)?;
    append(&store, tip, 1).await.map(drop)
}

pub(super) async fn a_change_and_its_audit_events_are_there_together_or_not_at_all(
    store: Store,
) -> Outcome {
    let mut scene = Scene::default();
    let start = ChainTip::empty(NODE);
    let (tip, events) = next(start, 2);
    let link = ChainLink { behind: start, events: &events };
    let change = scene.steps(3, 1, &[meter(1, "a", &[])]);
    store.commit(std::slice::from_ref(&change), link).await?;
    same((store.heads().await?.len(), store.audit_events(&NODE, 0, 9).await?.len()), (1, 2))?;
    // The change is refused: no event.
    let (_, events) = next(tip, 1);
    let link = ChainLink { behind: tip, events: &events };
    super::refused_as_conflict(store.commit(&[change], link).await)?;
    // The events are refused: no change.
    let (_, events) = next(start, 1);
    let stale = ChainLink { behind: start, events: &events };
    let second = scene.steps(4, 1, &[meter(2, "b", &[])]);
    refused(store.commit(std::slice::from_ref(&second), stale).await, moved)?;
    same((store.heads().await?.len(), store.audit_events(&NODE, 0, 9).await?.len()), (1, 2))?;
    same(store.audit_chains().await?, vec![tip])?;
    store.commit(&[second], link).await.map_err(Seen::from)
}

pub(super) async fn a_change_of_which_nothing_is_said_is_refused(store: Store) -> Outcome {
    let change = Scene::default().steps(3, 1, &[meter(1, "a", &[])]);
    let link = ChainLink { behind: ChainTip::empty(NODE), events: &[] };
    let unsaid = |error: &StoreError| matches!(error, StoreError::AuditNotWritten { .. });
    refused(store.commit(&[change], link).await, unsaid)?;
    same(store.heads().await?, Vec::new())
}

pub(super) async fn signed_heads_come_back_and_the_last_is_found(store: Store) -> Outcome {
    same(store.last_audit_checkpoint(&NODE).await?, None)?;
    let head = |sequence: u64| Checkpoint {
        tip: ChainTip { node: NODE, sequence, hash: [sequence as u8; 32] },
        at_ms: 1_700_000_000_000 + sequence,
        signature: [0xEE; 64],
    };
    for sequence in [10, 30, 20] {
        store.add_audit_checkpoint(&head(sequence)).await?;
    }
    // A head is never overwritten.
    store.add_audit_checkpoint(&Checkpoint { at_ms: 0, ..head(20) }).await?;
    same(store.audit_checkpoints(&NODE, 0, 9).await?, vec![head(10), head(20), head(30)])?;
    same(store.audit_checkpoints(&NODE, 10, 1).await?, vec![head(20)])?;
    same(store.last_audit_checkpoint(&NODE).await?, Some(head(30)))?;
    same(store.last_audit_checkpoint(&NodeId([0; 16])).await?, None)
}
