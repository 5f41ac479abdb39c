//! The cases of the other site's audit chains.

use super::{Seen, audit_cases::entry, same, site_scene::Store};
use kms_core::{
    Epoch,
    audit::{
        ChainTip, Checkpoint, NodeId, StoredEvent,
        copying::{Copied, Piece},
    },
};

type Outcome = Result<(), Seen>;

fn chain(node: NodeId, count: usize) -> Vec<StoredEvent> {
    let (mut tip, mut events) = (ChainTip::empty(node), Vec::new());
    for _ in 0..count {
        let (next, event) = tip.append(entry());
        tip = next;
        events.push(event);
    }
    events
}

fn tip(event: &StoredEvent) -> ChainTip {
    ChainTip { node: event.node, sequence: event.sequence, hash: event.hash }
}

fn head(event: &StoredEvent) -> Checkpoint {
    Checkpoint { tip: tip(event), at_ms: 7, signature: [8; 64] }
}

pub(super) async fn a_copy_of_a_peers_chain_goes_on_from_where_it_ends_and_from_nowhere_else(
    store: Store,
) -> Outcome {
    let (node, other) = (NodeId([1; 16]), NodeId([2; 16]));
    let events = chain(node, 300);
    let nothing = Copied::nothing_of(node);
    let first = Copied { tip: tip(&events[199]), signed: 150, broken_in: None };
    let piece = Piece { events: events[..200].to_vec(), heads: vec![head(&events[149])] };
    same(store.append_peer_audit("south", (&nothing, &first), &piece).await?, true)?;
    // Another server of the site was first.
    same(store.append_peer_audit("south", (&nothing, &first), &piece).await?, false)?;
    let second = Copied { tip: tip(&events[299]), signed: 160, broken_in: None };
    let piece = Piece { events: events[200..].to_vec(), heads: vec![head(&events[159])] };
    let elsewhere = Copied { signed: 151, ..first };
    same(store.append_peer_audit("south", (&elsewhere, &second), &piece).await?, false)?;
    same(store.append_peer_audit("south", (&first, &second), &piece).await?, true)?;
    // A head alone.
    let third = Copied { signed: 300, ..second };
    let piece = Piece { events: Vec::new(), heads: vec![head(&events[299])] };
    same(store.append_peer_audit("south", (&second, &third), &piece).await?, true)?;
    let of_other = chain(other, 1);
    let ours = Copied { tip: tip(&of_other[0]), signed: 0, broken_in: None };
    let piece = Piece { events: of_other, heads: Vec::new() };
    let step = (&Copied::nothing_of(other), &ours);
    same(store.append_peer_audit("north", step, &piece).await?, true)?;

    same(store.peer_chains("south").await?, vec![third])?;
    same(store.peer_chains("north").await?, vec![ours])?;
    same(store.peer_events(&node, 0, 1_000).await?, events.clone())?;
    same(store.peer_events(&node, 198, 2).await?, events[198..200].to_vec())?;
    let heads = vec![head(&events[149]), head(&events[159]), head(&events[299])];
    same(store.peer_checkpoints(&node, 0, 10).await?, heads.clone())?;
    same(store.peer_checkpoints(&node, 150, 1).await?, heads[1..2].to_vec())?;
    // None of it is a chain of our own.
    same(store.audit_chains().await?, Vec::new())
}

pub(super) async fn a_break_of_a_peers_chain_is_noted_with_the_epoch_in_which_it_was_found_first(
    store: Store,
) -> Outcome {
    let node = NodeId([1; 16]);
    let events = chain(node, 1);
    let copy = Copied { tip: tip(&events[0]), signed: 0, broken_in: None };
    let piece = Piece { events, heads: Vec::new() };
    let step = (&Copied::nothing_of(node), &copy);
    same(store.append_peer_audit("south", step, &piece).await?, true)?;
    for epoch in [4, 6, 2] {
        store.note_peer_audit_broken(&node, Epoch(epoch)).await?;
        let noted = Copied { broken_in: Some(Epoch(4)), ..copy };
        same(store.peer_chains("south").await?, vec![noted])?;
    }
    // Of one that was not copied there is nothing to note.
    Ok(store.note_peer_audit_broken(&NodeId([9; 16]), Epoch(4)).await?)
}
