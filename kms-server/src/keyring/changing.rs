//! Changing blocks: read, verify, decide, MAC, commit, publish. A change never builds on anything
//! that was not verified first.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::store::{BlockChange, IndexEntry, RecordChange, StoreError};
use kms_core::{
    BlockNo, ClearKey, Fingerprint, Kcv, KeyId, KeyKind, Protection, Record, RecordKey, SealedKek,
    StoredRecord, SystemTitle,
    audit::AuditEntry,
    block::{
        extending::{Extension, Staged, TooLong},
        keys::{BlockKeys, WRAP_KEY_LEN},
    },
    record::Tombstone,
};

use super::{Keyring, KeyringError, opening::Unsealed};

/// A block under change: no other writer of this process has it. Dropped without
/// [`Keyring::commit`], it leaves no trace.
pub struct Change {
    unsealed: Unsealed,
    staged: Staged,
    only_writer: OwnedMutexGuard<()>,
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
        self.staged.base().block()
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
        let record = self.staged.record(title);
        record.map_err(|why| KeyringError::unreadable(self.block(), *title, why))
    }

    /// Under which keys the block has damaged records with this title: those of a wrong MAC, and an
    /// authentic one that can't be read.
    pub fn damaged_keys(&self, title: &SystemTitle) -> Vec<RecordKey> {
        self.staged.base().unreadable(title)
    }

    /// Whether the block has a record under this key, of whatever kind.
    pub fn has(&self, key: &RecordKey) -> bool {
        self.staged.base().has(key)
    }

    /// Stages a tombstone in the place of a record that can't be read.
    pub fn bury(&mut self, key: RecordKey, tombstone: Tombstone) {
        self.staged.bury(key, tombstone);
    }

    /// Stages a record: written by [`Keyring::commit`].
    pub fn put(&mut self, record: Record) {
        self.staged.put(record);
    }

    /// Whether anything is staged.
    pub fn is_empty(&self) -> bool {
        self.staged.is_empty()
    }

    /// The identity of a secret of free length of this meter.
    pub fn secret_fingerprint(&self, title: &SystemTitle, secret: &ClearKey) -> Fingerprint {
        self.unsealed.keys.secret_fingerprint(title, secret)
    }

    /// What the store is to do, so that the block becomes what `extension` of it is.
    fn commit_of(&self, extension: &Extension) -> BlockChange {
        let both = self.staged.records().zip(&extension.records);
        let change = |(record, stored): (&Record, &StoredRecord)| RecordChange {
            record: stored.clone(),
            index: index_of(record),
        };
        BlockChange {
            expected: Some(self.staged.base().head().position),
            head: extension.head.clone(),
            seals: Vec::new(),
            records: both.map(change).collect(),
        }
    }
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
        let epoch = self.domain.epoch;
        let seal = |change: &Change| change.staged.seal(&change.unsealed.keys, epoch);
        let sealed: Vec<Extension> = changes.iter().map(seal).collect::<Result<_, TooLong>>()?;
        let commits: Vec<BlockChange> =
            changes.iter().zip(&sealed).map(|(change, new)| change.commit_of(new)).collect();
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
    fn publish_committed(&self, changes: Vec<Change>, sealed: Vec<Extension>) {
        let mut tables = Vec::with_capacity(changes.len());
        let mut writers = Vec::with_capacity(changes.len());
        for (Change { unsealed, staged, only_writer }, extension) in changes.into_iter().zip(sealed)
        {
            // A damaged record that was buried is one no more.
            let verified = staged.extended(extension);
            let block = verified.block();
            self.freshness.know(&verified.mark());
            self.damage.set_changed(block, &verified.damaged_titles());
            let table = match self.build(&verified, unsealed, false) {
                Ok(table) => Some(Arc::new(table)),
                Err(error) => {
                    tracing::warn!(block = block.0, %error, "a changed block is closed");
                    None
                }
            };
            tables.push((block, table));
            writers.push(only_writer);
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
        let (_, verified) = self.verified(block).await?;
        let read = |title: &SystemTitle| {
            let record = verified.record(title);
            record.map_err(|why| KeyringError::unreadable(block, *title, why))
        };
        Ok(titles.iter().map(read).collect())
    }

    async fn begin(
        &self,
        block: BlockNo,
        only_writer: OwnedMutexGuard<()>,
    ) -> Result<Change, KeyringError> {
        let (unsealed, verified) = self.verified(block).await?;
        Ok(Change { unsealed, staged: Staged::on(verified), only_writer })
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
        let block = change.block();
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
