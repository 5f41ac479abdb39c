//! The effect of a commit on the indexes over meters (id and title of the living, key fingerprints of all),
//! decided before any database is told: shared by all implementations.
//!
//! First all of the dead go, then the living come: an id that one block frees may be taken by another
//! in the same commit, in whatever order the blocks stand.

use std::collections::{BTreeMap, BTreeSet};

use super::{BlockChange, IndexEntry, RecordChange, StoreError};
use kms_core::{BlockNo, RecordKey};

/// The change that counts for each record: of several changes of one record the last.
pub(super) type Outcome<'a> = BTreeMap<(BlockNo, RecordKey), &'a RecordChange>;

/// The outcome of `changes`.
pub(super) fn outcome<'a>(changes: impl IntoIterator<Item = &'a BlockChange>) -> Outcome<'a> {
    changes
        .into_iter()
        .flat_map(|change| {
            let block = change.head.block;
            change.records.iter().map(move |record| ((block, record.record.key), record))
        })
        .collect()
}

/// The titles that `outcome` is about.
pub(super) fn titles(outcome: &Outcome<'_>) -> Vec<Title> {
    let titles: BTreeSet<Title> = outcome.keys().filter_map(|(_, key)| title_of(key)).collect();
    titles.into_iter().collect()
}

/// The title that a meter's record is indexed under; none for what is no meter's.
fn title_of(key: &RecordKey) -> Option<Title> {
    key.system_title().filter(|_| key.is_meter()).map(|title| *title.as_bytes())
}

/// A system title's bytes.
pub(super) type Title = [u8; 8];
pub(super) type Fingerprints = BTreeSet<[u8; 16]>;

/// The index's entry for one meter, as it is or is to be.
pub(super) struct Entry {
    pub(super) meter_id: String,
    pub(super) block: BlockNo,
    pub(super) fingerprints: Fingerprints,
}

/// Fingerprints as they stand side by side in a column.
pub(super) fn unpack(column: &[u8]) -> Result<Fingerprints, StoreError> {
    let (fingerprints, rest) = column.as_chunks::<16>();
    if rest.is_empty() {
        Ok(fingerprints.iter().copied().collect())
    } else {
        Err(StoreError::Damaged("a meter's fingerprints are cut off".into()))
    }
}

impl Entry {
    /// The column that [`unpack`] reads.
    pub(super) fn packed(&self) -> Vec<u8> {
        self.fingerprints.iter().flatten().copied().collect()
    }
}

/// Takes those out of `old` that `changes` bury.
pub(super) fn take_dead<'a>(
    old: &mut BTreeMap<Title, Entry>,
    changes: impl IntoIterator<Item = &'a BlockChange>,
) -> BTreeMap<Title, Entry> {
    let mut dead = BTreeMap::new();
    for change in changes {
        for record in change.records.iter().filter(|record| record.index == IndexEntry::Tombstone) {
            let Some(title) = title_of(&record.record.key) else { continue };
            // A tombstone in another block is not this meter's.
            if old.get(&title).is_some_and(|entry| entry.block == change.head.block) {
                dead.extend(old.remove_entry(&title));
            }
        }
    }
    dead
}

/// The index's entries for those that live on. Within one commit, too, an id and a title are
/// one meter's.
pub(super) fn living(outcome: &Outcome<'_>) -> Result<BTreeMap<Title, Entry>, StoreError> {
    let mut living = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for ((block, key), change) in outcome {
        let IndexEntry::Meter { meter_id, fingerprints } = &change.index else { continue };
        let fingerprints = fingerprints.iter().map(|fingerprint| fingerprint.0).collect();
        let entry = Entry { meter_id: meter_id.as_str().to_owned(), block: *block, fingerprints };
        if !ids.insert(meter_id) {
            return Err(id_taken(meter_id.as_str()));
        }
        let Some(title) = title_of(key) else { continue };
        if living.insert(title, entry).is_some() {
            return Err(title_taken(&title));
        }
    }
    Ok(living)
}

/// The rows that change.
#[derive(Default)]
pub(super) struct Plan<'a> {
    pub(super) new: Vec<(Title, &'a Entry)>,
    pub(super) changed: Vec<(Title, &'a Entry)>,
    pub(super) lost: Vec<([u8; 16], Title)>,
    pub(super) gained: Vec<([u8; 16], Title)>,
}

impl<'a> Plan<'a> {
    /// Those of the dead stay: a value is known again whoever brings it.
    pub(super) fn of(
        old: &BTreeMap<Title, Entry>,
        living: &'a BTreeMap<Title, Entry>,
    ) -> Result<Self, StoreError> {
        let mut plan = Self::default();
        for (title, entry) in living {
            plan.meter(title, old.get(title), entry)?;
        }
        Ok(plan)
    }

    fn meter(
        &mut self,
        title: &Title,
        old: Option<&Entry>,
        entry: &'a Entry,
    ) -> Result<(), StoreError> {
        let Some(old) = old else {
            self.new.push((*title, entry));
            self.gained.extend(entry.fingerprints.iter().map(|gained| (*gained, *title)));
            return Ok(());
        };
        // A record keeps its meter for life: under another id it would be another meter's.
        if old.meter_id != entry.meter_id || old.block != entry.block {
            return Err(title_taken(title));
        }
        if old.fingerprints != entry.fingerprints {
            self.changed.push((*title, entry));
            let lost = old.fingerprints.difference(&entry.fingerprints);
            self.lost.extend(lost.map(|lost| (*lost, *title)));
            let gained = entry.fingerprints.difference(&old.fingerprints);
            self.gained.extend(gained.map(|gained| (*gained, *title)));
        }
        Ok(())
    }
}

pub(super) fn id_taken(meter_id: &str) -> StoreError {
    StoreError::Taken { what: "meter id", value: meter_id.to_owned() }
}

pub(super) fn title_taken(title: &Title) -> StoreError {
    StoreError::Taken { what: "system title", value: hex::encode_upper(title) }
}
