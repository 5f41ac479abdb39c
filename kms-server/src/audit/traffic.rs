//! Crypto traffic in aggregate: (caller, call, verdict, block) → items of one interval.
//!
//! A batch takes its caller's lock once; each item is one multiplication (its block) and one addition
//! in a dense column. A caller has one column for each verdict that occurred.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use super::lock::lock;
use kms_core::{
    BlockCount, BlockNo, Numbered as _, SystemTitle, Verdict,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
};

/// Callers that are counted by name, since the start. Their number is that of the policy's callers; who
/// comes later is counted as [`OTHER`].
const CALLERS_MAX: usize = 256;
/// All callers beyond [`CALLERS_MAX`] together. No certificate's name has parentheses in this service's
/// policies by accident.
const OTHER: &str = "(other)";

pub(super) struct Traffic {
    blocks: BlockCount,
    callers: RwLock<HashMap<Box<str>, Arc<Mutex<Calls>>>>,
}

/// One caller's columns by call: six calls there are.
type Calls = Vec<(&'static str, Columns)>;

/// Items by verdict, then by block; the last place is for items without a title.
type Columns = [Option<Box<[u32]>>; Verdict::COUNT];

/// One column, taken out.
pub(super) struct Counted {
    caller: Box<str>,
    verb: &'static str,
    verdict: Verdict,
    column: Box<[u32]>,
}

impl Traffic {
    pub(super) fn new(blocks: BlockCount) -> Self {
        Self { blocks, callers: RwLock::default() }
    }

    pub(super) fn add(
        &self,
        caller: &str,
        verb: &'static str,
        outcomes: impl Iterator<Item = (Option<SystemTitle>, Verdict)>,
    ) {
        let calls = self.calls(caller);
        let mut calls = lock(&calls);
        let columns = columns(&mut calls, verb);
        let none = self.blocks.get() as usize;
        for (title, verdict) in outcomes {
            let place = title.map_or(none, |title| self.blocks.block_of(&title).0 as usize);
            let column = &mut columns[verdict.index()];
            let column = column.get_or_insert_with(|| vec![0; none + 1].into_boxed_slice());
            if let Some(count) = column.get_mut(place) {
                *count = count.saturating_add(1);
            }
        }
    }

    fn calls(&self, caller: &str) -> Arc<Mutex<Calls>> {
        let callers = self.callers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = callers.get(caller) {
            return Arc::clone(calls);
        }
        drop(callers);
        let mut callers = self.callers.write().unwrap_or_else(PoisonError::into_inner);
        let known = callers.len() < CALLERS_MAX || callers.contains_key(caller);
        Arc::clone(callers.entry(if known { caller } else { OTHER }.into()).or_default())
    }

    /// Takes all that was counted.
    pub(super) fn drain(&self) -> Vec<Counted> {
        let callers = self.callers.read().unwrap_or_else(PoisonError::into_inner);
        let mut drained = Vec::new();
        for (caller, calls) in callers.iter() {
            // The lock is held for pointer moves: no batch waits while anything is added up.
            for (verb, columns) in lock(calls).iter_mut() {
                for (verdict, column) in Verdict::ALL.iter().zip(columns) {
                    if let Some(column) = column.take() {
                        let (caller, verdict) = (caller.clone(), *verdict);
                        drained.push(Counted { caller, verb, verdict, column });
                    }
                }
            }
        }
        drained
    }

    /// Counts on behind what could not be written.
    pub(super) fn put_back(&self, drained: Vec<Counted>) {
        for Counted { caller, verb, verdict, column } in drained {
            let calls = self.calls(&caller);
            let mut calls = lock(&calls);
            match &mut columns(&mut calls, verb)[verdict.index()] {
                Some(now) => {
                    for (now, before) in now.iter_mut().zip(column) {
                        *now = now.saturating_add(before);
                    }
                }
                place => *place = Some(column),
            }
        }
    }
}

fn columns<'a>(calls: &'a mut Calls, verb: &'static str) -> &'a mut Columns {
    let at = calls.iter().position(|(known, _)| *known == verb).unwrap_or_else(|| {
        calls.push((verb, Columns::default()));
        calls.len() - 1
    });
    &mut calls[at].1
}

impl Counted {
    /// The events of one column: the busiest `most` blocks with a row each, the others together. The
    /// sum of `items` over all events is the number of items.
    pub(super) fn entries(&self, now_ms: u64, interval_ms: u64, most: usize) -> Vec<AuditEntry> {
        let Self { caller, verb, verdict, column } = self;
        let Some((without_block, by_block)) = column.split_last() else { return Vec::new() };
        let mut blocks: Vec<(BlockNo, u64)> = (0u32..)
            .zip(by_block)
            .filter(|(_, items)| **items > 0)
            .map(|(block, items)| (BlockNo(block), u64::from(*items)))
            .collect();
        blocks.sort_by_key(|(block, items)| (std::cmp::Reverse(*items), *block));
        let others = blocks.split_off(most.min(blocks.len()));
        let mut others: u64 = others.iter().map(|(_, items)| items).sum();
        let mut without_block = u64::from(*without_block);
        let call = AuditedCall::new(caller, verb);
        let outcome = if verdict.opened() {
            AuditOutcome::Done
        } else {
            AuditOutcome::refused(verdict.word())
        };
        let mut chunks: Vec<&[(BlockNo, u64)]> = blocks.chunks(AuditEntry::BLOCKS_MAX).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        let entry = |chunk: &[(BlockNo, u64)]| {
            let (others, without) =
                (std::mem::take(&mut others), std::mem::take(&mut without_block));
            let items = chunk.iter().map(|(_, items)| items).sum::<u64>() + others + without;
            let mut entry = call
                .entry(now_ms, Subject::NONE, outcome.clone())
                .with(Detail::Items, items)
                .with(Detail::IntervalMs, interval_ms)
                .with(Detail::Verdict, *verdict as u64);
            for (detail, number) in
                [(Detail::ItemsInOtherBlocks, others), (Detail::ItemsWithoutBlock, without)]
            {
                if number > 0 {
                    entry = entry.with(detail, number);
                }
            }
            entry.blocks = chunk.to_vec();
            entry
        };
        chunks.into_iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn title(n: u64) -> SystemTitle {
        SystemTitle::new(n.to_be_bytes())
    }

    fn number(entry: &AuditEntry, detail: Detail) -> u64 {
        entry.details.iter().filter(|(of, _)| *of == detail).map(|(_, number)| number).sum()
    }

    fn entries(traffic: &Traffic, most: usize) -> Vec<AuditEntry> {
        traffic.drain().iter().flat_map(|counted| counted.entries(1, 60_000, most)).collect()
    }

    #[test]
    fn what_is_counted_adds_up_whatever_the_bound() {
        for most in [0, 1, 10, 256, 300, 5_000] {
            let traffic = Traffic::new(BlockCount::new(1_000).unwrap());
            for round in 0..3u64 {
                let ok = (0..5_000).map(|n| (Some(title(n * (round + 1))), Verdict::Ok));
                traffic.add("hes", "Ciphering/DecryptBatch", ok);
                let forged = [(Some(title(7)), Verdict::MicFailure), (None, Verdict::Malformed)];
                traffic.add("hes", "Ciphering/DecryptBatch", forged.into_iter());
                traffic.add("other-hes", "Ciphering/VerifyMic", forged.into_iter());
            }
            let entries = entries(&traffic, most);
            let items: u64 = entries.iter().map(|entry| number(entry, Detail::Items)).sum();
            assert_eq!(items, 3 * (5_000 + 2 + 2));
            for entry in &entries {
                let by_block: u64 = entry.blocks.iter().map(|(_, items)| items).sum();
                let rest = number(entry, Detail::ItemsInOtherBlocks)
                    + number(entry, Detail::ItemsWithoutBlock);
                assert_eq!(by_block + rest, number(entry, Detail::Items), "{entry:?}");
                assert!(entry.blocks.len() <= AuditEntry::BLOCKS_MAX);
            }
            let rows: usize = entries.iter().map(|entry| entry.blocks.len()).sum();
            assert!(rows <= most.min(1_000) + 2 * most.min(1));
            assert!(traffic.drain().is_empty(), "counted once");
        }
    }

    #[test]
    fn a_single_forged_meter_has_its_block_named() {
        let traffic = Traffic::new(BlockCount::DEFAULT);
        traffic.add("hes", "v", std::iter::repeat_n((Some(title(7)), Verdict::MicFailure), 9));
        let entries = entries(&traffic, 256);
        let [entry] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!(entry.blocks, [(BlockCount::DEFAULT.block_of(&title(7)), 9)]);
        assert_eq!(entry.outcome, AuditOutcome::refused("MIC_FAILURE"));
    }

    #[test]
    fn callers_beyond_the_bound_are_counted_together() {
        let traffic = Traffic::new(BlockCount::DEFAULT);
        for n in 0..CALLERS_MAX + 10 {
            traffic.add(&format!("hes-{n}"), "v", [(None, Verdict::Ok)].into_iter());
        }
        let entries = entries(&traffic, 256);
        assert_eq!(entries.len(), CALLERS_MAX + 1);
        let other = entries.iter().find(|entry| entry.call.caller.as_str() == OTHER).unwrap();
        assert_eq!(number(other, Detail::Items), 10);
    }

    #[test]
    fn what_could_not_be_written_is_counted_on() {
        let traffic = Traffic::new(BlockCount::DEFAULT);
        traffic.add("hes", "v", [(Some(title(1)), Verdict::Ok)].into_iter());
        let drained = traffic.drain();
        traffic.add("hes", "v", [(Some(title(1)), Verdict::Ok)].into_iter());
        traffic.put_back(drained);
        assert_eq!(number(&entries(&traffic, 256)[0], Detail::Items), 2);
    }
}
