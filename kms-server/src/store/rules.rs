//! Rules that a commit must obey before any database is asked: shared by all implementations.

use std::collections::BTreeSet;

use super::{BlockChange, ChainLink, StoreError};
use kms_core::{Position, Sequence};

/// A block stands in a commit once.
pub const BLOCK_ONCE: &str = "a block stands in a commit only once";
/// No number is left out, none is taken twice.
pub const GAPLESS: &str = "its records are numbered from the old sequence + 1, without a gap";
/// The head is at its last change.
pub const HEAD_SEQUENCE: &str = "its head's sequence is the old one plus the number of records";
/// Epochs only rise, from the old head through the records to the new head.
pub const EPOCH_FALLS: &str = "its epochs never fall";
/// Databases have signed numbers.
pub const NUMBER_FITS: &str = "its epochs and sequences are below 2^63";
/// The head's count is the number of records in the database.
pub const COUNT: &str = "its head counts its records, tombstones included";
/// A seal is never overwritten.
pub const SEAL_ONCE: &str = "a secret version has one seal for each KEK, and it never changes";

/// Every commit has an event.
pub const NOTHING_SAID: &str = "nothing is said of a change";

/// Checks everything that can be known without the database.
pub fn check(changes: &[BlockChange]) -> Result<(), StoreError> {
    let mut seen = BTreeSet::new();
    for change in changes {
        let rule =
            if seen.insert(change.head.block) { broken_rule(change) } else { Some(BLOCK_ONCE) };
        if let Some(rule) = rule {
            return Err(StoreError::Rule { block: change.head.block, rule });
        }
    }
    Ok(())
}

/// Checks that there are events, and that they follow the end of the chain without a gap: a fault in our
/// code if not.
pub fn check_audit(link: &ChainLink<'_>) -> Result<(), StoreError> {
    if link.events.is_empty() {
        return Err(StoreError::AuditNotWritten { reason: NOTHING_SAID.to_owned() });
    }
    let follows = link.events.iter().zip(1u64..).all(|(event, at)| {
        event.node == link.behind.node && event.sequence == link.behind.sequence + at
    });
    if follows { Ok(()) } else { Err(StoreError::AuditMoved(link.behind.node)) }
}

/// The first rule that `change` breaks by itself.
fn broken_rule(change: &BlockChange) -> Option<&'static str> {
    const MOST: u64 = i64::MAX as u64;
    let head = change.head.position;
    if head.epoch.0 > MOST || head.sequence.0 > MOST {
        return Some(NUMBER_FITS);
    }
    let mut last = change.expected.unwrap_or_default();
    for change in &change.records {
        let next = change.record.position;
        if Some(next.sequence) != following(last) {
            return Some(GAPLESS);
        }
        if next.epoch < last.epoch {
            return Some(EPOCH_FALLS);
        }
        last = next;
    }
    if head.sequence != last.sequence {
        return Some(HEAD_SEQUENCE);
    }
    (head.epoch < last.epoch).then_some(EPOCH_FALLS)
}

fn following(position: Position) -> Option<Sequence> {
    position.sequence.0.checked_add(1).map(Sequence)
}
