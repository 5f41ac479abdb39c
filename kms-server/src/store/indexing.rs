//! The effect of a commit on the indexes over meters (id and title of the living, key fingerprints of all),
//! decided before any database is told: shared by all implementations.
//!
//! First all of the dead go, then the living come: an id that one block frees may be taken by another
//! in the same commit, in whatever order the blocks stand.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    BlockChange, IndexEntry, RecordChange, StoreError,
    sites::{BlockAdoption, Divergent},
};
use kms_core::{BlockNo, Fingerprint, FormerKey, Record, RecordKey};

impl IndexEntry {
    /// The entry for a record.
    pub fn of(record: &Record) -> Self {
        match record {
            Record::Meter(meter) => Self::Meter {
                meter_id: meter.meter_id.clone(),
                fingerprints: meter
                    .keys
                    .iter()
                    .filter(|key| key.kind.is_cipher_key())
                    .map(|key| key.fingerprint)
                    .collect(),
                former: fingerprints_of(&meter.former),
            },
            Record::Tombstone(tombstone) => {
                Self::Tombstone { former: fingerprints_of(&tombstone.keys) }
            }
            Record::Line(_) | Record::Fact(_) => Self::Nothing,
        }
    }
}

/// Those of cipher keys, and those of which nobody knows what they were.
fn fingerprints_of(former: &[FormerKey]) -> Vec<Fingerprint> {
    let is_cipher = |key: &&FormerKey| key.was.is_none_or(|was| was.kind.is_cipher_key());
    former.iter().filter(is_cipher).map(|key| key.fingerprint).collect()
}

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

/// The outcome of `adoptions`, for their records.
pub(super) fn adopted<'a>(adoptions: impl IntoIterator<Item = &'a BlockAdoption>) -> Outcome<'a> {
    adoptions
        .into_iter()
        .flat_map(|adoption| {
            let block = adoption.head.block;
            adoption.records.iter().map(move |record| ((block, record.record.key), record))
        })
        .collect()
}

/// The keys that go with `adoptions`.
pub(super) fn gone(adoptions: &[BlockAdoption]) -> Vec<(BlockNo, RecordKey)> {
    let of = |adoption: &BlockAdoption| {
        let block = adoption.head.block;
        adoption.gone.iter().map(move |key| (block, *key)).collect::<Vec<_>>()
    };
    adoptions.iter().flat_map(of).collect()
}

/// What `adoptions` set aside of what `site` wrote.
pub(super) fn divergent(adoptions: &[BlockAdoption], site: &str, at_ms: u64) -> Vec<Divergent> {
    let of = |adoption: &BlockAdoption| {
        let block = adoption.head.block;
        let divergent = adoption.set_aside.iter().map(move |record| Divergent {
            block,
            record: record.clone(),
            site: site.to_owned(),
            at_ms,
            decided: None,
        });
        divergent.collect::<Vec<_>>()
    };
    adoptions.iter().flat_map(of).collect()
}

/// The titles that records with these keys are about.
pub(super) fn titles<'a>(keys: impl IntoIterator<Item = &'a RecordKey>) -> Vec<Title> {
    let titles: BTreeSet<Title> = keys.into_iter().filter_map(title_of).collect();
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
#[derive(Clone)]
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

fn values(fingerprints: &[Fingerprint]) -> Fingerprints {
    fingerprints.iter().map(|fingerprint| fingerprint.0).collect()
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
        for record in &change.records {
            let IndexEntry::Tombstone { .. } = &record.index else { continue };
            let Some(title) = title_of(&record.record.key) else { continue };
            // A tombstone in another block is not this meter's.
            if old.get(&title).is_some_and(|entry| entry.block == change.head.block) {
                dead.extend(old.remove_entry(&title));
            }
        }
    }
    dead
}

/// A meter that lives on: its entry, and the values that it had before, which are not lost with a key.
pub(super) struct Living {
    entry: Entry,
    former: Fingerprints,
}

/// Those that live on. Within one commit, too, an id and a title are one meter's.
pub(super) fn living(outcome: &Outcome<'_>) -> Result<BTreeMap<Title, Living>, StoreError> {
    let mut living = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for ((block, key), change) in outcome {
        let IndexEntry::Meter { meter_id, fingerprints, former } = &change.index else { continue };
        let (fingerprints, former) = (values(fingerprints), values(former));
        let entry = Entry { meter_id: meter_id.as_str().to_owned(), block: *block, fingerprints };
        if !ids.insert(meter_id) {
            return Err(id_taken(meter_id.as_str()));
        }
        let Some(title) = title_of(key) else { continue };
        if living.insert(title, Living { entry, former }).is_some() {
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
        living: &'a BTreeMap<Title, Living>,
    ) -> Result<Self, StoreError> {
        let mut plan = Self::default();
        for (title, living) in living {
            plan.meter(title, old.get(title), living)?;
        }
        Ok(plan)
    }

    fn meter(
        &mut self,
        title: &Title,
        old: Option<&Entry>,
        Living { entry, former }: &'a Living,
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
            let lost = lost.filter(|lost| !former.contains(*lost));
            self.lost.extend(lost.map(|lost| (*lost, *title)));
            let gained = entry.fingerprints.difference(&old.fingerprints);
            self.gained.extend(gained.map(|gained| (*gained, *title)));
        }
        Ok(())
    }
}

/// The rows that change when blocks are adopted. A title's row follows from the state of its own block and
/// from nothing else: so in whatever order blocks come, it is the writer's at last. Two rows may have one
/// id until then.
#[derive(Default)]
pub(super) struct Adopted {
    pub(super) put: Vec<(Title, Entry)>,
    pub(super) dead: Vec<Title>,
    pub(super) lost: Vec<([u8; 16], Title)>,
    pub(super) gained: Vec<([u8; 16], Title)>,
}

impl Adopted {
    /// `old` has the entries of all titles that `adoptions` speak of.
    pub(super) fn of<'a>(
        old: &BTreeMap<Title, Entry>,
        adoptions: impl IntoIterator<Item = &'a BlockAdoption>,
    ) -> Self {
        let mut plan = Self::default();
        for adoption in adoptions {
            let block = adoption.head.block;
            for key in &adoption.gone {
                plan.gone(key, block, old);
            }
            for RecordChange { record, index } in &adoption.records {
                let Some(title) = title_of(&record.key) else { continue };
                plan.record(title, block, index, old.get(&title));
            }
        }
        plan
    }

    /// A record that the peer never had: nobody else knows these values of this meter.
    fn gone(&mut self, key: &RecordKey, block: BlockNo, old: &BTreeMap<Title, Entry>) {
        let Some(title) = title_of(key) else { return };
        let Some(entry) = old.get(&title).filter(|entry| entry.block == block) else { return };
        self.dead.push(title);
        self.lost.extend(entry.fingerprints.iter().map(|lost| (*lost, title)));
    }

    fn record(&mut self, title: Title, block: BlockNo, index: &IndexEntry, old: Option<&Entry>) {
        let known: Fingerprints = match index {
            IndexEntry::Nothing => return,
            IndexEntry::Tombstone { former } => {
                if old.is_some_and(|entry| entry.block == block) {
                    self.dead.push(title);
                }
                values(former)
            }
            IndexEntry::Meter { meter_id, fingerprints, former } => {
                let fingerprints = values(fingerprints);
                let known = &fingerprints | &values(former);
                let is_there = old.is_some_and(|old| {
                    old.meter_id == meter_id.as_str()
                        && old.block == block
                        && old.fingerprints == fingerprints
                });
                if !is_there {
                    let meter_id = meter_id.as_str().to_owned();
                    self.put.push((title, Entry { meter_id, block, fingerprints }));
                }
                known
            }
        };
        let there = old.map(|old| old.fingerprints.clone()).unwrap_or_default();
        self.lost.extend(there.difference(&known).map(|lost| (*lost, title)));
        self.gained.extend(known.difference(&there).map(|gained| (*gained, title)));
    }
}

pub(super) fn id_taken(meter_id: &str) -> StoreError {
    StoreError::Taken { what: "meter id", value: meter_id.to_owned() }
}

pub(super) fn title_taken(title: &Title) -> StoreError {
    StoreError::Taken { what: "system title", value: hex::encode_upper(title) }
}
