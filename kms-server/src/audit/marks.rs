//! Marks of blocks in events: where each changed block stands after a change.

use std::collections::HashMap;

use kms_core::{BlockCount, Head, audit::AuditEntry, block::BlockMark};

/// The state that a head says its block is in.
pub(super) fn mark_of(head: &Head) -> BlockMark {
    BlockMark { block: head.block, position: head.position, digest: head.digest }
}

/// Each changed block's mark goes to an entry about a meter in it, else to the first.
pub(super) fn say_where_blocks_stand(
    heads: &[&Head],
    entries: &mut [AuditEntry],
    blocks: BlockCount,
) {
    let block_of = |entry: &AuditEntry| {
        let subject = &entry.subject;
        subject.block.or_else(|| subject.system_title.map(|title| blocks.block_of(&title)))
    };
    let mut places: HashMap<_, usize> = HashMap::new();
    for (at, entry) in entries.iter_mut().enumerate() {
        entry.heads.clear();
        if let Some(block) = block_of(entry) {
            places.entry(block).or_insert(at);
        }
    }
    for head in heads {
        let at = places.get(&head.block).copied().unwrap_or(0);
        if let Some(entry) = entries.get_mut(at) {
            entry.heads.push(mark_of(head));
        }
    }
}
