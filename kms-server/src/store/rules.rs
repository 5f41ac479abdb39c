//! Rules that a commit must obey before any database is asked: shared by all implementations.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BlockChange, ChainLink, StoreError,
    sites::{BlockAdoption, RoleRow, RoleStep},
};
use kms_core::{
    BlockNo, Epoch, Head, Position, RecordKey, Sequence,
    audit::AuditEvent,
    counters::{allocator::Mark, mark::StoredMark},
    site::role::RoleRecord,
};

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

/// An adoption is about one block.
pub const BLOCK_SAME: &str = "a block is adopted in the place of itself";
/// A record is replaced, or goes, once.
pub const RECORD_ONCE: &str = "a record stands in an adoption only once";
/// The peer's head is over all of its records.
pub const RECORD_BEHIND: &str = "no record of a peer is beyond its head";
/// A block never goes back.
pub const HEAD_BACK: &str = "an adopted head is not behind the one that it replaces";
/// At one place there is one state.
pub const HEAD_FORKED: &str = "an adopted head at the same place has the same digest";
/// Within an epoch one site writes.
pub const ASIDE_WITHIN: &str = "records are set aside only where the epoch rises";
/// A promotion changes no record.
pub const ROLE_RECORDS: &str = "a change of role changes no record and no secret of a block";
/// A promotion is of a site.
pub const ROLE_BLOCKS: &str = "a site that begins to write takes all of its blocks into its epoch";
/// What was signed stays so.
pub const ROLE_TABLE: &str = "heads that change with a role are signed for with it";
/// A role follows from a record.
pub const ROLE_RECORD: &str = "a change of role follows from a record of its epoch";

/// A mark that is missing is a fault from the beginning of an epoch on.
pub const ROLE_MARKS: &str =
    "a site that begins to write marks where the counters of each of its blocks begin";

/// What was reserved stays so.
pub const MARK_FALLS: &str = "a mark of counters rises, and its term with it";

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

/// The time of the first of these events.
pub fn said_at(link: &ChainLink<'_>) -> Result<u64, StoreError> {
    let first = link.events.first().and_then(|event| AuditEvent::decode(&event.body).ok());
    let unreadable =
        || StoreError::AuditNotWritten { reason: "its event can't be read".to_owned() };
    first.map(|event| event.entry.at_ms).ok_or_else(unreadable)
}

/// Checks what can be known of adoptions without the database.
pub fn check_adoptions(adoptions: &[BlockAdoption]) -> Result<(), StoreError> {
    let mut seen = BTreeSet::new();
    for adoption in adoptions {
        let block = adoption.head.block;
        let rule = if seen.insert(block) { broken_adoption(adoption) } else { Some(BLOCK_ONCE) };
        if let Some(rule) = rule {
            return Err(StoreError::Rule { block, rule });
        }
    }
    Ok(())
}

/// Checks what can be known of a change of role without the database.
pub fn check_role(step: &RoleStep) -> Result<(), StoreError> {
    check(&step.blocks)?;
    let broken = |block, rule| Err(StoreError::Rule { block, rule });
    for BlockChange { expected, head, seals, records } in &step.blocks {
        if expected.is_none() || !seals.is_empty() || !records.is_empty() {
            return broken(head.block, ROLE_RECORDS);
        }
        if head.position.epoch != step.now.epoch {
            return broken(head.block, ROLE_BLOCKS);
        }
    }
    let RoleStep { expected, now, record, blocks, marks, table, .. } = step;
    let first = BlockNo(0);
    if step.is_past() {
        return Ok(());
    }
    if now.writes == blocks.is_empty() {
        return broken(first, ROLE_BLOCKS);
    }
    let begins = |change: &BlockChange, stored: &StoredMark| {
        stored.mark == Mark::first(change.head.block, now.epoch)
    };
    let all_begin = blocks.iter().zip(marks).all(|(change, stored)| begins(change, stored));
    if blocks.len() != marks.len() || !all_begin {
        return broken(first, ROLE_MARKS);
    }
    if now.writes != table.is_some() {
        return broken(first, ROLE_TABLE);
    }
    if now.epoch < expected.epoch {
        return broken(first, EPOCH_FALLS);
    }
    if record.record.epoch > now.epoch || (now.writes && record.record.epoch != now.epoch) {
        return broken(first, ROLE_RECORD);
    }
    if !fits(Position { epoch: now.epoch, sequence: Sequence(0) }) {
        return broken(first, NUMBER_FITS);
    }
    Ok(())
}

/// Checks that `blocks` takes all blocks that are there into another epoch, and nothing else.
/// [`StoreError::Conflict`] if one is not where it is expected.
pub fn check_promoted(
    blocks: &[BlockChange],
    left: &[BlockNo],
    there: &BTreeMap<BlockNo, Head>,
) -> Result<(), StoreError> {
    for BlockChange { expected, head, .. } in blocks {
        let block = head.block;
        let old = there.get(&block).filter(|old| Some(old.position) == *expected);
        let old = old.ok_or(StoreError::Conflict(block))?;
        let content = |head: &Head| (head.secret_version, head.count, head.digest);
        if content(old) != content(head) {
            return Err(StoreError::Rule { block, rule: ROLE_RECORDS });
        }
    }
    let changed = blocks.iter().map(|change| change.head.block);
    let changed: BTreeSet<BlockNo> = changed.chain(left.iter().copied()).collect();
    match there.keys().find(|block| !changed.contains(block)) {
        Some(block) => Err(StoreError::Rule { block: *block, rule: ROLE_BLOCKS }),
        None => Ok(()),
    }
}

/// Checks that a site which ends its epoch tells the states that are there: what was committed meanwhile is in none of
/// them. [`StoreError::Conflict`] else.
pub fn check_ended(record: &RoleRecord, there: &BTreeMap<BlockNo, Head>) -> Result<(), StoreError> {
    let is_told = |head: &Head| {
        let told = record.found(head.block).map(|mark| (mark.position, mark.digest));
        told == Some((head.position, head.digest))
    };
    match there.values().find(|head| !is_told(head)) {
        Some(head) => Err(StoreError::Conflict(head.block)),
        None => Ok(()),
    }
}

/// The record counts of the blocks that are `there`, each in the state that its adoption was made for;
/// else [`StoreError::Conflict`].
pub fn counts_of_expected(
    adoptions: &[BlockAdoption],
    there: &BTreeMap<BlockNo, Head>,
) -> Result<BTreeMap<BlockNo, u64>, StoreError> {
    let count = |adoption: &BlockAdoption| {
        let expected = adoption.expected;
        let same = |old: &&Head| (old.position, old.digest) == (expected.position, expected.digest);
        let old = there.get(&expected.block).filter(same);
        let old = old.ok_or(StoreError::Conflict(expected.block))?;
        Ok((expected.block, u64::from(old.count)))
    };
    adoptions.iter().map(count).collect()
}

/// Whether a site in this role may write these heads.
pub fn may_write<'a>(
    row: RoleRow,
    heads: impl IntoIterator<Item = &'a Head>,
) -> Result<(), StoreError> {
    let same = heads.into_iter().all(|head| head.position.epoch == row.epoch);
    if row.writes && same { Ok(()) } else { Err(StoreError::NotWriter(row)) }
}

/// Whether a site in this role may reserve counters of this epoch.
pub fn may_reserve(row: RoleRow, epoch: Epoch) -> Result<(), StoreError> {
    if row.writes && row.epoch == epoch { Ok(()) } else { Err(StoreError::NotWriter(row)) }
}

/// Checks what can be known of a mark without the database.
pub fn check_mark(expected: Option<&StoredMark>, mark: &StoredMark) -> Result<(), StoreError> {
    let block = mark.mark.block;
    if !mark.follows(expected) {
        return Err(StoreError::Rule { block, rule: MARK_FALLS });
    }
    let Mark { epoch, term, .. } = mark.mark;
    if !fits(Position { epoch, sequence: Sequence(term) }) {
        return Err(StoreError::Rule { block, rule: NUMBER_FITS });
    }
    Ok(())
}

/// Whether a site in this role may take these heads over.
pub fn may_adopt<'a>(
    row: RoleRow,
    heads: impl IntoIterator<Item = &'a Head>,
) -> Result<(), StoreError> {
    let known = heads.into_iter().all(|head| head.position.epoch <= row.epoch);
    if known && !row.writes { Ok(()) } else { Err(StoreError::NotWriter(row)) }
}

/// The first rule that `adoption` breaks by itself.
fn broken_adoption(adoption: &BlockAdoption) -> Option<&'static str> {
    let BlockAdoption { expected, head, seals: _, records, gone, set_aside } = adoption;
    if head.block != expected.block {
        return Some(BLOCK_SAME);
    }
    let theirs = records.iter().map(|change| &change.record);
    let positions = theirs.clone().chain(set_aside).map(|record| record.position);
    if ![head.position].into_iter().chain(positions).all(fits) {
        return Some(NUMBER_FITS);
    }
    if head.position < expected.position {
        return Some(HEAD_BACK);
    }
    if head.position == expected.position && head.digest != expected.digest {
        return Some(HEAD_FORKED);
    }
    if theirs.clone().any(|record| record.position > head.position) {
        return Some(RECORD_BEHIND);
    }
    let mut seen: BTreeSet<RecordKey> = BTreeSet::new();
    if !theirs.map(|record| &record.key).chain(gone).all(|key| seen.insert(*key)) {
        return Some(RECORD_ONCE);
    }
    let rises = head.position.epoch > expected.position.epoch;
    (!set_aside.is_empty() && !rises).then_some(ASIDE_WITHIN)
}

/// Whether a database can keep it.
fn fits(position: Position) -> bool {
    const MOST: u64 = i64::MAX as u64;
    position.epoch.0 <= MOST && position.sequence.0 <= MOST
}

/// The first rule that `change` breaks by itself.
fn broken_rule(change: &BlockChange) -> Option<&'static str> {
    let head = change.head.position;
    if !fits(head) {
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
