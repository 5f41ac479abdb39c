//! The damage that this process knows of: records that are not what was written, and meter ids of which the
//! database's index says something else than the records. Both are told as faults until they are gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kms_core::{BlockNo, MeterId, SystemTitle};

/// Damaged records that are kept by title, of a block; the others are counted.
const TITLES_A_BLOCK: usize = 16;

/// Damaged records that the status names; the others are counted.
const NAMED: usize = 20;

/// Meter ids kept about which the index lies; further ones are counted in the metric only.
const LIES_MAX: usize = 64;

/// One damaged record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DamagedRecord {
    /// The block that has it.
    pub block: BlockNo,
    /// The title that it stands under. The title itself may be what was changed.
    pub system_title: SystemTitle,
}

impl fmt::Display for DamagedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the record of meter {} in block {} was changed outside this service: restore the \
             database, or bury the meter (`ami-tool meter bury --system-title {} --block {}`)",
            self.system_title, self.block, self.system_title, self.block
        )
    }
}

/// The database's index says of an id what the records do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexLie {
    /// The id.
    pub meter_id: MeterId,
    /// The title that the index has for it.
    pub system_title: SystemTitle,
}

impl fmt::Display for IndexLie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the index of meter ids says that {} has system title {}, and the record there says \
             otherwise: the database was changed outside this service",
            self.meter_id, self.system_title
        )
    }
}

/// For the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DamageStatus {
    /// Damaged records known, in all blocks.
    pub records: u64,
    /// The first of them, by block and title.
    pub named: Vec<DamagedRecord>,
    /// Ids that the index has wrong, as far as they were met.
    pub lies: Vec<IndexLie>,
    /// The number of times that the index was found wrong, since start.
    pub lies_met: u64,
}

/// Bounded by the number of blocks.
#[derive(Default)]
pub(super) struct Damage {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    blocks: BTreeMap<BlockNo, OfBlock>,
    lies: BTreeMap<MeterId, SystemTitle>,
    lies_met: u64,
}

/// Of one block, whether it is open or not.
#[derive(Default)]
struct OfBlock {
    /// Their MAC is not right.
    changed: Titles,
    /// Their MAC is right, and they can't be read or their keys don't open.
    unreadable: Titles,
}

#[derive(Default)]
struct Titles {
    count: u64,
    first: BTreeSet<SystemTitle>,
}

impl Titles {
    fn of(titles: &[SystemTitle]) -> Self {
        let first = titles.iter().take(TITLES_A_BLOCK).copied().collect();
        Self { count: titles.len() as u64, first }
    }
}

impl Damage {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block was verified: these of its records have a wrong MAC, and no others.
    pub(super) fn set_changed(&self, block: BlockNo, titles: &[SystemTitle]) {
        self.set(block, titles, |of, titles| of.changed = titles);
    }

    /// A block's table was built: these of its records have the right MAC and are of no use.
    pub(super) fn set_unreadable(&self, block: BlockNo, titles: &[SystemTitle]) {
        self.set(block, titles, |of, titles| of.unreadable = titles);
    }

    /// Whether records of this block are damaged.
    pub(super) fn is_in(&self, block: BlockNo) -> bool {
        self.known().blocks.contains_key(&block)
    }

    fn set(&self, block: BlockNo, titles: &[SystemTitle], put: impl FnOnce(&mut OfBlock, Titles)) {
        let mut known = self.known();
        if titles.is_empty() && !known.blocks.contains_key(&block) {
            return;
        }
        let of = known.blocks.entry(block).or_default();
        put(of, Titles::of(titles));
        if of.changed.count + of.unreadable.count == 0 {
            known.blocks.remove(&block);
        }
    }

    /// Whether a meter that is found nowhere may be one of the damaged records.
    pub(super) fn is_any(&self) -> bool {
        !self.known().blocks.is_empty()
    }

    /// Remembers that the index is wrong about this id.
    pub(super) fn note_lie(&self, meter_id: &MeterId, system_title: SystemTitle) {
        let mut known = self.known();
        known.lies_met += 1;
        if known.lies.len() < LIES_MAX || known.lies.contains_key(meter_id) {
            let before = known.lies.insert(meter_id.clone(), system_title);
            if before != Some(system_title) {
                tracing::error!(%meter_id, %system_title, "the index of meter ids is wrong about this one");
            }
        }
    }

    /// The index is right about this id.
    pub(super) fn forget_lie(&self, meter_id: &MeterId) {
        let mut known = self.known();
        if !known.lies.is_empty() {
            known.lies.remove(meter_id);
        }
    }

    pub(super) fn status(&self) -> DamageStatus {
        let known = self.known();
        let named = known.blocks.iter().flat_map(|(block, of)| {
            let titles = of.changed.first.iter().chain(&of.unreadable.first);
            titles.map(|title| DamagedRecord { block: *block, system_title: *title })
        });
        let lie = |(id, title): (&MeterId, &SystemTitle)| IndexLie {
            meter_id: id.clone(),
            system_title: *title,
        };
        DamageStatus {
            records: known.blocks.values().map(|of| of.changed.count + of.unreadable.count).sum(),
            named: named.take(NAMED).collect(),
            lies: known.lies.iter().map(lie).collect(),
            lies_met: known.lies_met,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn title(n: u8) -> SystemTitle {
        SystemTitle::new([n; 8])
    }

    #[test]
    fn damage_is_counted_named_and_forgotten_when_it_is_gone() {
        let damage = Damage::default();
        assert!(!damage.is_any());
        let many: Vec<_> = (0..40).map(title).collect();
        damage.set_changed(BlockNo(3), &many);
        damage.set_unreadable(BlockNo(1), &[title(7)]);
        let status = damage.status();
        assert_eq!(status.records, 41);
        assert_eq!(status.named[0], DamagedRecord { block: BlockNo(1), system_title: title(7) });
        assert_eq!(status.named.len(), 1 + TITLES_A_BLOCK);
        damage.set_changed(BlockNo(3), &[]);
        assert_eq!(damage.status().records, 1);
        damage.set_changed(BlockNo(1), &[]);
        assert!(damage.is_any(), "what can't be read is another matter than a wrong MAC");
        damage.set_unreadable(BlockNo(1), &[]);
        assert!(!damage.is_any());
    }

    #[test]
    fn ids_that_the_index_has_wrong_are_bounded_and_forgotten_one_by_one() {
        let damage = Damage::default();
        let id = |n: usize| MeterId::new(&format!("m{n}")).unwrap();
        for n in 0..2 * LIES_MAX {
            damage.note_lie(&id(n), title(1));
        }
        let status = damage.status();
        assert_eq!((status.lies.len(), status.lies_met), (LIES_MAX, 2 * LIES_MAX as u64));
        damage.forget_lie(&id(0));
        assert_eq!(damage.status().lies.len(), LIES_MAX - 1);
    }
}
