//! Changing blocks: read, verify, decide, MAC, commit, publish. A change never builds on anything
//! that was not verified first.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::store::{BlockChange, IndexEntry, RecordChange, StoreError};
use kms_core::{
    BlockNo, ClearKey, Fingerprint, Head, Kcv, KeyId, KeyKind, Position, Protection, Record,
    RecordKey, SealedKek, Sequence, StoredRecord, SystemTitle, audit::AuditEntry,
    freshness::BlockMark, record::Tombstone,
};

use super::{
    Keyring, KeyringError,
    block_keys::{self, BlockKeys},
    opening::{Unsealed, Verified},
};

/// The `wrap` key, the first of the subkeys, in bytes.
pub(super) const WRAP_KEY_LEN: usize = 32;

/// A block under change: no other writer of this process has it. Dropped without
/// [`Keyring::commit`], it leaves no trace.
pub struct Change {
    block: BlockNo,
    unsealed: Unsealed,
    head: Head,
    records: BTreeMap<RecordKey, StoredRecord>,
    damaged: Vec<RecordKey>,
    staged: BTreeMap<RecordKey, Record>,
    _only_writer: OwnedMutexGuard<()>,
}

/// A clear key as its record will have it.
#[derive(Clone, Debug)]
pub struct WrappedValue {
    /// Wrapped or sealed, as its kind and protection demand.
    pub wrapped: Vec<u8>,
    /// Absent for secrets of free length.
    pub kcv: Option<Kcv>,
    /// Identity of the value.
    pub fingerprint: Fingerprint,
}

impl Change {
    /// Which block.
    pub fn block(&self) -> BlockNo {
        self.block
    }

    /// The block's `wrap` key, where it lies in the arena.
    pub(super) fn wrap_key(&self) -> &[u8] {
        self.unsealed.subkeys.bytes().get(..WRAP_KEY_LEN).unwrap_or_default()
    }

    /// The block's subkeys, expanded.
    pub(super) fn keys(&self) -> &BlockKeys {
        &self.unsealed.keys
    }

    /// The record of this meter as it stands, staged changes included.
    pub fn record(&self, title: &SystemTitle) -> Result<Option<Record>, KeyringError> {
        let key = RecordKey::meter(title);
        if let Some(staged) = self.staged.get(&key) {
            return Ok(Some(staged.clone()));
        }
        read_record(self.block, title, self.records.get(&key), &self.damaged)
    }

    /// Under which keys the block has damaged records with this title: those of a wrong MAC, and an
    /// authentic one that can't be read.
    pub fn damaged_keys(&self, title: &SystemTitle) -> Vec<RecordKey> {
        let wrong = self.damaged.iter().filter(|key| key.system_title() == *title).copied();
        let mut keys: Vec<RecordKey> = wrong.collect();
        let key = RecordKey::meter(title);
        let unreadable = |record: &StoredRecord| Record::decode(&record.body).is_err();
        if !keys.contains(&key) && self.records.get(&key).is_some_and(unreadable) {
            keys.push(key);
        }
        keys
    }

    /// Whether the block has a record under this key, of whatever kind.
    pub fn has(&self, key: &RecordKey) -> bool {
        self.records.contains_key(key)
    }

    /// Stages a tombstone in the place of a record that can't be read.
    pub fn bury(&mut self, key: RecordKey, tombstone: Tombstone) {
        self.staged.insert(key, Record::Tombstone(tombstone));
    }

    /// Stages a record: written by [`Keyring::commit`].
    pub fn put(&mut self, record: Record) {
        self.staged.insert(record.key(), record);
    }

    /// Whether anything is staged.
    pub fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    /// The identity of a secret of free length of this meter.
    pub fn secret_fingerprint(&self, title: &SystemTitle, secret: &ClearKey) -> Fingerprint {
        self.unsealed.keys.secret_fingerprint(title, secret)
    }

    /// The head that results, and the records that lead to it, in sequence order.
    fn seal_records(&self, keyring: &Keyring) -> Result<(Head, Vec<StoredRecord>), KeyringError> {
        let old = self.head.position;
        let (keys, secret_version) = (&self.unsealed.keys, self.unsealed.secret_version);
        let mut position = Position { epoch: keyring.domain.epoch, sequence: old.sequence };
        let mut scratch = Vec::with_capacity(512);
        let mut records = Vec::with_capacity(self.staged.len());
        for (key, record) in &self.staged {
            position.sequence = Sequence(position.sequence.0 + 1);
            // One that has no encoding is not written: the block stays as it is.
            let body = record.encode().map_err(|source| KeyringError::TooLong {
                system_title: key.system_title(),
                source,
            })?;
            let mut stored =
                StoredRecord { key: *key, position, secret_version, body, mac: [0; 16] };
            stored.mac = keys.record_mac(self.block, &stored, &mut scratch);
            records.push(stored);
        }
        let mut macs: BTreeMap<_, _> =
            self.records.iter().map(|(key, record)| (*key, &record.mac)).collect();
        macs.extend(records.iter().map(|record| (record.key, &record.mac)));
        let mut head = Head {
            block: self.block,
            secret_version,
            position,
            count: macs.len() as u32,
            digest: block_keys::digest(macs.into_values()),
            mac: [0; 16],
        };
        head.mac = keys.head_mac(&head);
        Ok((head, records))
    }
}

/// What a verified block says of a title.
fn read_record(
    block: BlockNo,
    title: &SystemTitle,
    stored: Option<&StoredRecord>,
    damaged: &[RecordKey],
) -> Result<Option<Record>, KeyringError> {
    let system_title = *title;
    let Some(stored) = stored else {
        // It may be one of those whose key was changed.
        return match damaged.len() {
            0 => Ok(None),
            damaged => Err(KeyringError::RecordMissing { block, system_title, damaged }),
        };
    };
    if damaged.contains(&stored.key) {
        return Err(KeyringError::RecordDamaged { block, system_title });
    }
    let record = Record::decode(&stored.body);
    record.map(Some).map_err(|_| KeyringError::RecordDamaged { block, system_title })
}

fn index_of(record: &Record) -> IndexEntry {
    match record {
        Record::Meter(meter) => IndexEntry::Meter {
            meter_id: meter.meter_id.clone(),
            fingerprints: meter
                .keys
                .iter()
                .filter(|key| key.kind.is_cipher_key())
                .map(|key| key.fingerprint)
                .collect(),
        },
        Record::Tombstone(_) => IndexEntry::Tombstone,
    }
}

impl Keyring {
    /// Takes blocks for change, in ascending order so that two callers never wait for each other in
    /// a circle.
    pub async fn change(&self, blocks: &[BlockNo]) -> Result<Vec<Change>, KeyringError> {
        let mut blocks = blocks.to_vec();
        blocks.sort_unstable();
        blocks.dedup();
        let mut changes = Vec::with_capacity(blocks.len());
        for block in blocks {
            let only_writer = self.writer(block).await;
            changes.push(self.begin(block, only_writer).await?);
        }
        Ok(changes)
    }

    /// Commits what is staged: all blocks or none, on disk when this returns. On
    /// [`StoreError::Conflict`] another process was first: take the blocks again and decide anew.
    ///
    /// `entries` go into the audit log in the same transaction, and alone if nothing is staged.
    pub async fn commit(
        &self,
        changes: Vec<Change>,
        entries: Vec<AuditEntry>,
    ) -> Result<(), KeyringError> {
        let changes: Vec<Change> = changes.into_iter().filter(|c| !c.is_empty()).collect();
        let sealed: Vec<_> =
            changes.iter().map(|change| change.seal_records(self)).collect::<Result<_, _>>()?;
        let commits: Vec<BlockChange> = changes
            .iter()
            .zip(&sealed)
            .map(|(change, (head, records))| BlockChange {
                expected: Some(change.head.position),
                head: head.clone(),
                seals: Vec::new(),
                records: change
                    .staged
                    .values()
                    .zip(records)
                    .map(|(record, stored)| RecordChange {
                        record: stored.clone(),
                        index: index_of(record),
                    })
                    .collect(),
            })
            .collect();
        if commits.is_empty() && entries.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.commits.commit(commits, entries).await {
            if matches!(error, StoreError::Unreachable { .. }) {
                // The change may be there: what is resident may be older than what is stored.
                self.memory().suspect.extend(changes.iter().map(Change::block));
            }
            return Err(error.into());
        }
        self.publish_committed(changes, sealed);
        Ok(())
    }

    /// Builds the tables of what was just committed. If one can't be built (the arena is full), its
    /// block is closed: the next who asks opens it, or hears why not.
    fn publish_committed(&self, changes: Vec<Change>, sealed: Vec<(Head, Vec<StoredRecord>)>) {
        let mut tables = Vec::with_capacity(changes.len());
        let mut writers = Vec::with_capacity(changes.len());
        for (mut change, (head, records)) in changes.into_iter().zip(sealed) {
            let block = change.block;
            let (position, digest) = (head.position, head.digest);
            self.freshness.know(&BlockMark { block, position, digest });
            change.records.extend(records.into_iter().map(|record| (record.key, record)));
            let records = change.records.into_values().collect();
            // A damaged record that was buried is one no more.
            change.damaged.retain(|key| !change.staged.contains_key(key));
            let titles: Vec<_> = change.damaged.iter().map(RecordKey::system_title).collect();
            self.damage.set_changed(block, &titles);
            let verified = Verified { head, records, damaged: change.damaged };
            let table = match self.build(&verified, change.unsealed, false) {
                Ok(table) => Some(Arc::new(table)),
                Err(error) => {
                    tracing::warn!(block = block.0, %error, "a changed block is closed");
                    None
                }
            };
            tables.push((block, table));
            writers.push(change._only_writer);
        }
        self.publish(tables);
        // Only now may the next writer, or an opening, look at these blocks.
        drop(writers);
    }

    /// The record of this meter as it is stored, verified with all of its block.
    pub async fn read(&self, title: &SystemTitle) -> Result<Option<Record>, KeyringError> {
        let read = self.read_of(self.block_of(title), std::slice::from_ref(title)).await?;
        read.into_iter().next().unwrap_or(Ok(None))
    }

    /// The records of these meters of one block, read and verified once: an answer a title. `Err` as a
    /// whole: nothing of the block can be read.
    pub async fn read_of(
        &self,
        block: BlockNo,
        titles: &[SystemTitle],
    ) -> Result<Vec<Result<Option<Record>, KeyringError>>, KeyringError> {
        let (_, Verified { records, damaged, .. }) = self.verified(block).await?;
        let read = |title: &SystemTitle| {
            let key = RecordKey::meter(title);
            let at = records.binary_search_by_key(&key, |record| record.key).ok();
            read_record(block, title, at.map(|at| &records[at]), &damaged)
        };
        Ok(titles.iter().map(read).collect())
    }

    async fn begin(
        &self,
        block: BlockNo,
        only_writer: OwnedMutexGuard<()>,
    ) -> Result<Change, KeyringError> {
        let (unsealed, Verified { head, records, damaged }) = self.verified(block).await?;
        Ok(Change {
            block,
            unsealed,
            head,
            records: records.into_iter().map(|record| (record.key, record)).collect(),
            damaged,
            staged: BTreeMap::new(),
            _only_writer: only_writer,
        })
    }

    /// Wraps a clear key for its meter's record: under the block's `wrap` key, a sealed KEK in the
    /// token, or, if of free length, sealed under the block's `seal` key.
    pub async fn wrap(
        &self,
        change: &Change,
        title: &SystemTitle,
        id: &KeyId,
        (kind, protection): (KeyKind, Protection),
        value: ClearKey,
    ) -> Result<WrappedValue, KeyringError> {
        let block = change.block;
        let keys = &change.unsealed.keys;
        let unfit = || KeyringError::Damaged {
            block,
            what: format!("a {kind} of {} bytes can't be wrapped", value.len()),
        };
        if !kind.is_cipher_key() {
            let token = |source| KeyringError::Token { block, source };
            let random = self.hsm.random(12).await.map_err(token)?;
            let nonce = random.first_chunk().copied().ok_or_else(unfit)?;
            let wrapped = keys.seal_secret(title, id, &value, nonce).map_err(|_| unfit())?;
            let fingerprint = keys.secret_fingerprint(title, &value);
            return Ok(WrappedValue { wrapped, kcv: None, fingerprint });
        }
        let (fingerprint, kcv) = self.identify(&value).ok_or_else(unfit)?;
        let wrapped = match protection {
            Protection::Memory => keys.wrap_key(&value).map_err(|_| unfit())?,
            Protection::Hsm => {
                let under = match kind {
                    KeyKind::Kek => SealedKek::MeterKek,
                    _ => SealedKek::Use,
                };
                self.hsm
                    .wrap(under, value)
                    .await
                    .map_err(|source| KeyringError::Token { block, source })?
            }
        };
        Ok(WrappedValue { wrapped, kcv: Some(kcv), fingerprint })
    }

    /// Waits until no other task of this process changes or opens the block.
    pub(super) async fn writer(&self, block: BlockNo) -> OwnedMutexGuard<()> {
        let lock = {
            let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
            forget_idle(&mut writers);
            Arc::clone(writers.entry(block).or_default())
        };
        lock.lock_owned().await
    }
}

/// Keeps the map of writers small: drops locks that nobody holds or waits for.
fn forget_idle(writers: &mut HashMap<BlockNo, Arc<tokio::sync::Mutex<()>>>) {
    const MANY: usize = 8192;
    if writers.len() > MANY {
        writers.retain(|_, lock| Arc::strong_count(lock) > 1);
    }
}
