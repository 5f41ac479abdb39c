//! Blocks as they are stored, believed or refused (invariant 5). Whoever holds a [`Verified`] may build on it.

use std::collections::BTreeMap;

use crate::{
    BlockNo, Head, Position, Record, RecordKey, RecordMac, StoredRecord, SystemTitle,
    block::BlockMark,
    counters::{Line, LineName},
    freshness::{Freshness, NotFresh},
};

use super::{
    Digest,
    keys::{BlockKeys, digest},
};

/// A block of which head, freshness, digest and records were verified; of one that was [read in part](super::known),
/// the others of its records earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub(super) head: Head,
    /// In key order.
    pub(super) records: Vec<StoredRecord>,
    /// In key order, too.
    pub(super) damaged: Vec<RecordKey>,
    /// The records that were not read this time, as they are [known](super::known); in key order.
    unread: Vec<Leaf>,
}

/// A record in its block's digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) key: RecordKey,
    pub(super) mac: RecordMac,
}

impl Leaf {
    pub(super) fn of(record: &StoredRecord) -> Self {
        Self { key: record.key, mac: record.mac }
    }
}

/// The reason why nothing of a block is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The head's MAC is wrong.
    #[error("its head was changed outside this service")]
    Head,
    /// There are more or fewer records than the head says.
    #[error("a record was added or removed outside this service")]
    Count,
    /// Two records have one key, or they are out of order.
    #[error("its records are not in key order")]
    Order,
    /// The records' MACs are not those that the head was made over.
    #[error("its records are not those that its head was made for")]
    Digest,
    /// It is authentic, and older than one that is known.
    #[error("it went back from {newest} to {found}")]
    Older {
        /// The position of the newest state that is known.
        newest: Position,
        /// The position of this one.
        found: Position,
    },
    /// It is authentic, and so was another one at the same place.
    #[error("at {0} it has other records than it had there before")]
    Forked(Position),
}

/// The reason why a verified block does not say what it has of a meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The meter's record is not what was written.
    #[error("its record was changed outside this service")]
    Damaged,
    /// There is none, and one of so many damaged records may have been it: a key is under its MAC, too.
    #[error("there is none, and {0} of its block's records were changed outside this service")]
    OneOfDamaged(usize),
    /// There is one, and it was not asked for when the block was read in part.
    #[error("its record was not read")]
    NotRead,
}

impl Verified {
    /// Verifies a block of our own store, all of it; `freshness` remembers where it stands.
    pub fn of(
        head: Head,
        records: Vec<StoredRecord>,
        keys: &BlockKeys,
        freshness: &Freshness,
    ) -> Result<Self, Refused> {
        check_head(&head, &records, keys)?;
        let mark = BlockMark { block: head.block, position: head.position, digest: head.digest };
        freshness.admit(&mark).map_err(|error| match error {
            NotFresh::Older(newest) => Refused::Older { newest, found: head.position },
            NotFresh::Forked => Refused::Forked(head.position),
        })?;
        Ok(Self::with_damage(head, records, keys))
    }

    /// Verifies a block that is not stored here, as a peer's whole one: all of it but its age. It is for who
    /// calls to hold it against what is known; nothing is remembered of it.
    pub fn of_any_age(
        head: Head,
        records: Vec<StoredRecord>,
        keys: &BlockKeys,
    ) -> Result<Self, Refused> {
        check_head(&head, &records, keys)?;
        Ok(Self::with_damage(head, records, keys))
    }

    /// A record whose body alone was changed takes out its own meter and no other.
    fn with_damage(head: Head, records: Vec<StoredRecord>, keys: &BlockKeys) -> Self {
        let mut scratch = Vec::with_capacity(512);
        let authentic = |record: &StoredRecord, scratch: &mut Vec<u8>| {
            record.position <= head.position
                && record.secret_version == head.secret_version
                && keys.record_is_authentic(head.block, record, scratch)
        };
        let wrong = records.iter().filter(|record| !authentic(record, &mut scratch));
        let damaged = wrong.map(|record| record.key).collect();
        Self { head, records, damaged, unread: Vec::new() }
    }

    /// A block of which these records alone were read. Of it nothing is damaged, as far as is known.
    pub(super) fn in_part(head: Head, records: Vec<StoredRecord>, unread: Vec<Leaf>) -> Self {
        Self { head, records, damaged: Vec::new(), unread }
    }

    /// Whether all of its records were read.
    pub fn is_whole(&self) -> bool {
        self.unread.is_empty()
    }

    /// Whether it says all that there is to say under this key: its record was read, or there is none.
    pub fn was_read(&self, key: &RecordKey) -> bool {
        self.unread.binary_search_by_key(key, |leaf| leaf.key).is_err()
    }

    /// All records, read or not, in key order.
    pub(super) fn leaves(&self) -> Vec<Leaf> {
        self.leaves_with(&[], &[])
    }

    fn leaves_with(&self, new: &[StoredRecord], gone: &[RecordKey]) -> Vec<Leaf> {
        let mut new: Vec<Leaf> = new.iter().map(Leaf::of).collect();
        new.sort_by_key(|leaf| leaf.key);
        let stays = |leaf: &Leaf| {
            !gone.contains(&leaf.key) && new.binary_search_by_key(&leaf.key, |new| new.key).is_err()
        };
        let read = self.records.iter().map(Leaf::of);
        let mut leaves: Vec<Leaf> = read.chain(self.unread.iter().copied()).filter(stays).collect();
        leaves.extend(new);
        // Three runs that are in order already.
        leaves.sort_by_key(|leaf| leaf.key);
        leaves
    }

    /// Its head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Its number.
    pub fn block(&self) -> BlockNo {
        self.head.block
    }

    /// Its state, to be remembered.
    pub fn mark(&self) -> BlockMark {
        let Head { block, position, digest, .. } = self.head;
        BlockMark { block, position, digest }
    }

    /// The records that are not what was written although the block's digest holds.
    pub fn damaged(&self) -> &[RecordKey] {
        &self.damaged
    }

    /// The titles that [`Verified::damaged`] ones stand under, each of which may be what was changed.
    pub fn damaged_titles(&self) -> Vec<SystemTitle> {
        self.damaged.iter().filter_map(RecordKey::system_title).collect()
    }

    /// All records that were read and are what was written, in key order.
    pub fn authentic(&self) -> impl Iterator<Item = &StoredRecord> {
        self.records.iter().filter(|record| !self.is_damaged(&record.key))
    }

    /// Whether there is a record under this key, damaged or not.
    pub fn has(&self, key: &RecordKey) -> bool {
        self.stored(key).is_some() || !self.was_read(key)
    }

    /// The answer where none was read under this key.
    fn has_none<T>(&self, key: &RecordKey) -> Result<Option<T>, Unreadable> {
        match self.damaged.len() {
            _ if !self.was_read(key) => Err(Unreadable::NotRead),
            0 => Ok(None),
            damaged => Err(Unreadable::OneOfDamaged(damaged)),
        }
    }

    /// The record of a meter; `None`: it has none here.
    pub fn record(&self, title: &SystemTitle) -> Result<Option<Record>, Unreadable> {
        let key = RecordKey::meter(title);
        let Some(stored) = self.stored(&key) else { return self.has_none(&key) };
        if self.is_damaged(&stored.key) {
            return Err(Unreadable::Damaged);
        }
        match Record::decode(&stored.body) {
            Ok(Record::Line(_) | Record::Fact(_)) | Err(_) => Err(Unreadable::Damaged),
            Ok(record) => Ok(Some(record)),
        }
    }

    /// A counter line. One that can't be read is not to be made anew: what it said of the counters counts.
    pub fn line(&self, name: &LineName) -> Result<Option<Line>, Unreadable> {
        let key = RecordKey::line(name);
        let Some(stored) = self.stored(&key) else { return self.has_none(&key) };
        match Record::decode(&stored.body) {
            Ok(Record::Line(line)) if line.name == *name && !self.is_damaged(&stored.key) => {
                Ok(Some(line))
            }
            _ => Err(Unreadable::Damaged),
        }
    }

    /// All counter lines of a whole block that are what was written, and where each was written last.
    pub fn lines(&self) -> impl Iterator<Item = (Line, Position)> {
        let others = self.authentic().filter(|record| !record.key.is_meter());
        others.filter_map(|record| match Record::decode(&record.body) {
            Ok(Record::Line(line)) if RecordKey::line(&line.name) == record.key => {
                Some((line, record.position))
            }
            _ => None,
        })
    }

    /// The number of records whose keys begin with this byte, damaged or not.
    pub fn count_of(&self, kind: u8) -> usize {
        let is_it = |leaf: &&Leaf| leaf.key.as_bytes().first() == Some(&kind);
        self.leaves().iter().filter(is_it).count()
    }

    /// The record under this key, of whatever kind this release knows.
    pub fn stands(&self, key: &RecordKey) -> Result<Option<Record>, Unreadable> {
        let Some(stored) = self.stored(key) else { return self.has_none(key) };
        match Record::decode(&stored.body) {
            Ok(record) if record.key() == *key && !self.is_damaged(key) => Ok(Some(record)),
            _ => Err(Unreadable::Damaged),
        }
    }

    /// Whether this very record stands.
    pub fn is_stored(&self, record: &StoredRecord) -> bool {
        self.stored(&record.key) == Some(record)
    }

    /// The keys under which there are records of this title that can't be read: those of a wrong MAC, and an
    /// authentic one of no schema that we know.
    pub fn unreadable(&self, title: &SystemTitle) -> Vec<RecordKey> {
        let wrong = self.damaged.iter().filter(|key| key.system_title() == Some(*title)).copied();
        let mut keys: Vec<RecordKey> = wrong.collect();
        let key = RecordKey::meter(title);
        let strange = |record: &StoredRecord| {
            let read = Record::decode(&record.body);
            matches!(read, Ok(Record::Line(_) | Record::Fact(_)) | Err(_))
        };
        if !keys.contains(&key) && self.stored(&key).is_some_and(strange) {
            keys.push(key);
        }
        keys
    }

    pub(super) fn stored(&self, key: &RecordKey) -> Option<&StoredRecord> {
        let at = self.records.binary_search_by_key(key, |record| record.key).ok()?;
        self.records.get(at)
    }

    /// This block with these records in the place of those of their keys, without the ones under `gone`, and
    /// with this head. Nothing is verified here: who calls it made them, or has verified them.
    #[must_use]
    pub(super) fn replaced(self, head: Head, new: Vec<StoredRecord>, gone: &[RecordKey]) -> Self {
        let mut records: BTreeMap<_, _> =
            self.records.into_iter().map(|record| (record.key, record)).collect();
        records.retain(|key, _| !gone.contains(key));
        let (mut damaged, mut unread) = (self.damaged, self.unread);
        damaged.retain(|key| !gone.contains(key) && !new.iter().any(|record| record.key == *key));
        records.extend(new.into_iter().map(|record| (record.key, record)));
        unread.retain(|leaf| !gone.contains(&leaf.key) && !records.contains_key(&leaf.key));
        Self { head, records: records.into_values().collect(), damaged, unread }
    }

    /// The number of records that [`Verified::replaced`] would have, and the digest over all.
    pub(super) fn counted_with(&self, new: &[StoredRecord], gone: &[RecordKey]) -> (u32, Digest) {
        let leaves = self.leaves_with(new, gone);
        (leaves.len() as u32, digest(leaves.iter().map(|leaf| &leaf.mac)))
    }

    /// Whether the record under this key is one of [`Verified::damaged`].
    pub(super) fn is_damaged(&self, key: &RecordKey) -> bool {
        self.damaged.binary_search(key).is_ok()
    }
}

fn check_head(head: &Head, records: &[StoredRecord], keys: &BlockKeys) -> Result<(), Refused> {
    if !keys.head_is_authentic(head) {
        return Err(Refused::Head);
    }
    if records.len() != head.count as usize {
        return Err(Refused::Count);
    }
    if !records.is_sorted_by(|a, b| a.key < b.key) {
        return Err(Refused::Order);
    }
    if digest(records.iter().map(|record| &record.mac)) != head.digest {
        return Err(Refused::Digest);
    }
    Ok(())
}
