//! Our own changes of a block: staged on what was verified, then numbered and MACed, all or none.

use std::collections::BTreeMap;

use crate::{
    Epoch, Head, Position, Record, RecordKey, Sequence, StoredRecord, SystemTitle,
    counters::{Line, LineName},
    record::{RecordTooLong, Tombstone},
};

use super::{
    keys::BlockKeys,
    verified::{Unreadable, Verified},
};

/// A verified block and what is to be changed in it. Dropped, it leaves no trace.
#[derive(Debug)]
pub struct Staged {
    base: Verified,
    records: BTreeMap<RecordKey, Record>,
}

/// The step from one state of a block to its next: the records that changed, and the head over all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The new head.
    pub head: Head,
    /// In the order of their numbers.
    pub records: Vec<StoredRecord>,
}

/// A record that has no encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {why}")]
pub struct TooLong {
    /// The record's.
    pub key: RecordKey,
    /// The part that is too long, and its length.
    pub why: RecordTooLong,
}

impl Staged {
    /// Nothing is staged yet.
    pub fn on(base: Verified) -> Self {
        Self { base, records: BTreeMap::new() }
    }

    /// The block as it stands, without what is staged.
    pub fn base(&self) -> &Verified {
        &self.base
    }

    /// Whether nothing is staged.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The record of a meter, staged changes included.
    pub fn record(&self, title: &SystemTitle) -> Result<Option<Record>, Unreadable> {
        match self.records.get(&RecordKey::meter(title)) {
            Some(staged) => Ok(Some(staged.clone())),
            None => self.base.record(title),
        }
    }

    /// A counter line, staged changes included.
    pub fn line(&self, name: &LineName) -> Result<Option<Line>, Unreadable> {
        match self.records.get(&RecordKey::line(name)) {
            Some(Record::Line(staged)) => Ok(Some(*staged)),
            _ => self.base.line(name),
        }
    }

    /// The record under this key, of whatever kind this release knows, staged changes included.
    pub fn stands(&self, key: &RecordKey) -> Result<Option<Record>, Unreadable> {
        match self.records.get(key) {
            Some(staged) => Ok(Some(staged.clone())),
            None => self.base.stands(key),
        }
    }

    /// Stages a record.
    pub fn put(&mut self, record: Record) {
        self.records.insert(record.key(), record);
    }

    /// Stages a tombstone in the place of a record that can't be read.
    pub fn bury(&mut self, key: RecordKey, tombstone: Tombstone) {
        self.records.insert(key, Record::Tombstone(tombstone));
    }

    /// The staged records, in the order in which they are numbered.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Numbers and MACs what is staged. One record that has no encoding is a refusal of all.
    pub fn seal(&self, keys: &BlockKeys, epoch: Epoch) -> Result<Extension, TooLong> {
        let Head { block, secret_version, position: before, .. } = self.base.head;
        let mut position = Position { epoch, sequence: before.sequence };
        let mut scratch = Vec::with_capacity(512);
        let mut records = Vec::with_capacity(self.records.len());
        for (key, record) in &self.records {
            position.sequence = Sequence(position.sequence.0 + 1);
            let body = record.encode().map_err(|why| TooLong { key: *key, why })?;
            let mut stored =
                StoredRecord { key: *key, position, secret_version, body, mac: [0; 16] };
            stored.mac = keys.record_mac(block, &stored, &mut scratch);
            records.push(stored);
        }
        let (count, digest) = self.base.counted_with(&records, &[]);
        let mut head = Head { block, secret_version, position, count, digest, mac: [0; 16] };
        head.mac = keys.head_mac(&head);
        Ok(Extension { head, records })
    }

    /// The block once `extension`, which [`Staged::seal`] made of it, is stored.
    #[must_use]
    pub fn extended(self, extension: Extension) -> Verified {
        let Extension { head, records } = extension;
        self.base.replaced(head, records, &[])
    }
}
