//! Changing blocks: read, verify, decide, MAC, commit, publish. A change never builds on anything
//! that was not verified first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::store::{
    AuditedStore, BlockChange, IndexEntry, RecordChange, SealedSecret, StoreError,
    sites::{Divergent, RoleRow},
};
use kms_core::{
    BlockNo, ClearKey, Epoch, Fingerprint, Kcv, KeyId, KeyKind, Position, Protection, Record,
    RecordKey, SealedKek, StoredRecord, SystemTitle,
    audit::AuditEntry,
    block::{
        BlockMark,
        extending::{Extension, Staged},
        keys::{BlockKeys, WRAP_KEY_LEN},
        rotating::rewrite,
        verified::Verified,
    },
    counters::{Line, LineName},
    fact::{BlockSecrets, Fact, FactName},
    record::Tombstone,
};

use super::{
    error::KeyringError,
    identities::Identities,
    opening::{Opener, Unsealed},
    publishing::{Changed, publish},
    turns::Turn,
};

/// A block under change: no other writer of this process has it. Dropped without
/// [`Writer::commit`], it leaves no trace.
pub struct Change {
    unsealed: Unsealed,
    staged: Staged,
    turn: Turn,
    /// Seals that come with it.
    seals: Vec<SealedSecret>,
    /// All of the block comes under this secret, and the fact says so.
    under: Option<(Unsealed, BlockSecrets)>,
}

/// The keys of a block as a change found it, whose turn was given back: whoever works long with them keeps nobody waiting.
/// What is made with them is held against the block's secret before it is stored.
pub struct KeysOfBlock {
    block: BlockNo,
    unsealed: Unsealed,
}

impl KeysOfBlock {
    /// The block.
    pub fn block(&self) -> BlockNo {
        self.block
    }

    /// The version of the block's secret that they are of.
    pub fn secret_version(&self) -> u32 {
        self.unsealed.secret_version
    }

    pub(super) fn keys(&self) -> &BlockKeys {
        &self.unsealed.keys
    }

    pub(super) fn wrap_key(&self) -> &[u8] {
        wrap_key(&self.unsealed)
    }
}

fn wrap_key(unsealed: &Unsealed) -> &[u8] {
    unsealed.subkeys.bytes().get(..WRAP_KEY_LEN).unwrap_or_default()
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
    /// The block.
    pub fn block(&self) -> BlockNo {
        self.staged.base().block()
    }

    /// The version of the block's secret: what is wrapped under its `wrap` key holds as long as that is the same.
    pub fn secret_version(&self) -> u32 {
        self.staged.base().head().secret_version
    }

    fn of(unsealed: Unsealed, verified: Verified, turn: Turn) -> Self {
        Self { unsealed, staged: Staged::on(verified), turn, seals: Vec::new(), under: None }
    }

    /// The block as it stands.
    pub(super) fn base(&self) -> &Verified {
        self.staged.base()
    }

    /// Its subkeys.
    pub(super) fn unsealed(&self) -> &Unsealed {
        &self.unsealed
    }

    /// A seal comes to be with the change.
    pub(super) fn add_seal(&mut self, seal: SealedSecret) {
        self.seals.push(seal);
    }

    /// All of the block, as it stands, comes under this secret. Nothing else may be staged.
    pub(super) fn rewrite_under(&mut self, unsealed: Unsealed, secrets: BlockSecrets) {
        self.under = Some((unsealed, secrets));
    }

    /// The block's `wrap` key, where it lies in the arena.
    pub(super) fn wrap_key(&self) -> &[u8] {
        wrap_key(&self.unsealed)
    }

    /// Gives the block back, and keeps its keys.
    pub fn into_keys(self) -> KeysOfBlock {
        let Self { unsealed, staged, .. } = self;
        KeysOfBlock { block: staged.base().block(), unsealed }
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

    /// The record under this key as it stands, staged changes included.
    pub fn stands(&self, key: &RecordKey) -> Result<Option<Record>, KeyringError> {
        let record = self.staged.stands(key);
        let title = key.system_title().unwrap_or(SystemTitle::new([0; 8]));
        record.map_err(|why| KeyringError::unreadable(self.block(), title, why))
    }

    /// Whether the change says what stands under this key: its record was read, or there is none.
    pub fn was_read(&self, key: &RecordKey) -> bool {
        self.staged.base().was_read(key)
    }

    /// Whether this very record stands here.
    pub fn is_stored(&self, record: &StoredRecord) -> bool {
        self.staged.base().is_stored(record)
    }

    /// Whether a site of this domain wrote this record, of this block and under the secret that it has now.
    pub fn is_authentic(&self, record: &StoredRecord) -> bool {
        let Self { unsealed, staged, .. } = self;
        record.secret_version == staged.base().head().secret_version
            && record.key.is_well_formed()
            && unsealed.keys.record_is_authentic(self.block(), record, &mut Vec::new())
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

    /// The counter line as it stands, staged changes included.
    pub fn line(&self, name: &LineName) -> Result<Option<Line>, KeyringError> {
        let block = self.block();
        let what = |why| format!("counter line of {}: {why}", name.originator);
        let line = self.staged.line(name);
        line.map_err(|why| KeyringError::Damaged { block, what: what(why) })
    }

    /// All counter lines of the block, as they are stored, and where each was written last.
    pub fn lines(&self) -> Vec<(Line, Position)> {
        self.staged.base().lines().collect()
    }

    /// A fact of the domain, staged changes included; `None`: there is none that can be read. One that was damaged is
    /// written anew: what it would keep from happening is kept from happening by others, too.
    pub fn fact(&self, name: &FactName) -> Option<Fact> {
        match self.staged.stands(&RecordKey::fact(name)) {
            Ok(Some(Record::Fact(fact))) => Some(fact),
            _ => None,
        }
    }

    /// The number of the block's facts of this kind.
    pub fn facts(&self, kind: u8) -> usize {
        self.staged.base().count_of(kind)
    }

    /// Stages a tombstone in the place of a record that can't be read.
    pub fn bury(&mut self, key: RecordKey, tombstone: Tombstone) {
        self.staged.bury(key, tombstone);
    }

    /// Stages a record: written by [`Writer::commit`].
    pub fn put(&mut self, record: Record) {
        self.staged.put(record);
    }

    /// Whether anything is staged.
    pub fn is_empty(&self) -> bool {
        self.staged.is_empty() && self.under.is_none()
    }

    /// The identity of a secret of free length of this meter.
    pub fn secret_fingerprint(&self, title: &SystemTitle, secret: &ClearKey) -> Fingerprint {
        self.unsealed.keys.secret_fingerprint(title, secret)
    }

    /// The step to the block's next state; and the store's change, by which it becomes that.
    fn sealed(&self, epoch: Epoch) -> Result<(Extension, BlockChange), KeyringError> {
        let Some((under, secrets)) = &self.under else {
            let extension = self.staged.seal(&self.unsealed.keys, epoch)?;
            let index = self.staged.records().map(IndexEntry::of);
            let change = self.commit_of(&extension, index);
            return Ok((extension, change));
        };
        let both = (self.unsealed.under(), under.under());
        let rewritten = rewrite(self.staged.base(), both, secrets, epoch);
        let (extension, records) = rewritten.map_err(|why| KeyringError::NotWrapped {
            block: self.block(),
            what: format!("it can't come under another secret: {why}"),
        })?;
        let change = self.commit_of(&extension, records.iter().map(IndexEntry::of));
        Ok((extension, change))
    }

    fn commit_of(
        &self,
        extension: &Extension,
        index: impl Iterator<Item = IndexEntry>,
    ) -> BlockChange {
        let both = index.zip(extension.records.iter().cloned());
        BlockChange {
            expected: Some(self.staged.base().head().position),
            head: extension.head.clone(),
            seals: self.seals.clone(),
            records: both.map(|(index, record)| RecordChange { record, index }).collect(),
        }
    }
}

/// Changes blocks: the only way into the database.
pub struct Writer {
    opener: Arc<Opener>,
    commits: Arc<dyn AuditedStore>,
    identities: Arc<Identities>,
}

/// A key whose value is to be wrapped.
#[derive(Clone, Copy, Debug)]
pub struct KeyToWrap<'a> {
    /// The title of its meter.
    pub system_title: &'a SystemTitle,
    /// The identity of the key.
    pub id: &'a KeyId,
    /// The kind of key.
    pub kind: KeyKind,
    /// Where it may be used.
    pub protection: Protection,
}

impl Writer {
    /// Over the same blocks as `opener`; they change only through `commits`, together with what the audit
    /// log says of it.
    pub(super) fn new(
        opener: Arc<Opener>,
        commits: Arc<dyn AuditedStore>,
        identities: Arc<Identities>,
    ) -> Self {
        Self { opener, commits, identities }
    }

    /// Takes blocks for change, in ascending order so that two callers never wait for each other in
    /// a circle.
    pub async fn change(&self, blocks: &[BlockNo]) -> Result<Vec<Change>, KeyringError> {
        let mut blocks = blocks.to_vec();
        blocks.sort_unstable();
        blocks.dedup();
        let mut changes = Vec::with_capacity(blocks.len());
        for block in blocks {
            let turn = self.opener.turns.take(block).await;
            let (unsealed, verified) = self.opener.verified(block).await?;
            changes.push(Change::of(unsealed, verified, turn));
        }
        Ok(changes)
    }

    /// The same, to change these records alone, and to look at no other one: what a block that was changed here a
    /// while ago has besides is not read again.
    pub async fn change_records(
        &self,
        records: impl IntoIterator<Item = (BlockNo, RecordKey)>,
    ) -> Result<Vec<Change>, KeyringError> {
        let mut blocks = BTreeMap::<BlockNo, BTreeSet<RecordKey>>::new();
        for (block, key) in records {
            blocks.entry(block).or_default().insert(key);
        }
        let mut changes = Vec::with_capacity(blocks.len());
        for (block, keys) in blocks {
            let turn = self.opener.turns.take(block).await;
            let keys: Vec<RecordKey> = keys.into_iter().collect();
            let (unsealed, verified) = self.opener.verified_for(block, &keys).await?;
            changes.push(Change::of(unsealed, verified, turn));
        }
        Ok(changes)
    }

    /// Commits what is staged: all blocks or none, on disk when this returns. On
    /// [`StoreError::Conflict`] another process was first: take the blocks again and decide anew.
    ///
    /// `entries` go into the audit log in the same transaction, and alone if nothing is staged. What comes back are
    /// the states that the blocks have now.
    pub async fn commit(
        &self,
        changes: Vec<Change>,
        entries: Vec<AuditEntry>,
    ) -> Result<Vec<BlockMark>, KeyringError> {
        let changes: Vec<Change> = changes.into_iter().filter(|c| !c.is_empty()).collect();
        let role = self.opener.role.now();
        let epoch = role.epoch;
        if !changes.is_empty() {
            self.check_not_rolled_back()?;
        }
        if !role.writes() && !changes.is_empty() {
            return Err(self.not_writer(epoch));
        }
        let both = changes.iter().map(|change| change.sealed(epoch));
        let (sealed, commits): (Vec<Extension>, Vec<BlockChange>) =
            both.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        if commits.is_empty() && entries.is_empty() {
            return Ok(Vec::new());
        }
        if let Err(error) = self.commits.commit(commits, entries).await {
            if matches!(error, StoreError::Unreachable { .. } | StoreError::Unknown { .. }) {
                // The change may be there: what is resident may be older than what is stored.
                self.opener.faults.suspect(changes.iter().map(Change::block));
            }
            return Err(error.into());
        }
        Ok(self.publish_committed(changes, sealed))
    }

    /// Whether this site changes blocks now.
    pub fn check_writes(&self) -> Result<(), KeyringError> {
        self.check_not_rolled_back()?;
        let role = self.opener.role.now();
        if role.writes() { Ok(()) } else { Err(self.not_writer(role.epoch)) }
    }

    fn not_writer(&self, epoch: Epoch) -> KeyringError {
        match self.opener.role.put_back() {
            Some(why) => KeyringError::PutBack(why),
            None => StoreError::NotWriter(RoleRow { epoch, writes: false }).into(),
        }
    }

    fn check_not_rolled_back(&self) -> Result<(), KeyringError> {
        match self.opener.role.rolled_back() {
            Some(reason) => Err(KeyringError::BehindPeer(reason)),
            None => Ok(()),
        }
    }

    /// Keeps what was set aside, or what was decided of it, with what the audit log says of that.
    pub async fn keep_divergence(
        &self,
        divergent: Vec<Divergent>,
        entry: AuditEntry,
    ) -> Result<(), KeyringError> {
        Ok(self.commits.put_divergence(divergent, vec![entry]).await?)
    }

    /// Publishes what was just committed.
    fn publish_committed(&self, changes: Vec<Change>, sealed: Vec<Extension>) -> Vec<BlockMark> {
        let both = changes.into_iter().zip(sealed);
        let changed =
            both.map(|(Change { unsealed, staged, turn, under, .. }, extension)| Changed {
                verified: staged.extended(extension),
                unsealed: under.map_or(unsealed, |(under, _)| under),
                turn,
            });
        publish(&self.opener, changed.collect())
    }

    /// Wraps a clear key for its meter's record: under the block's `wrap` key, a sealed KEK in the
    /// token, or, if of free length, sealed under the block's `seal` key.
    pub async fn wrap(
        &self,
        change: &Change,
        key: KeyToWrap<'_>,
        value: &ClearKey,
    ) -> Result<WrappedValue, KeyringError> {
        let KeyToWrap { system_title, id, kind, protection } = key;
        let block = change.block();
        let keys = &change.unsealed.keys;
        let token = |said| KeyringError::Token { block, said };
        let unfit = || KeyringError::NotWrapped {
            block,
            what: format!("a {kind} of {} bytes can't be wrapped", value.len()),
        };
        let hsm = &self.opener.hsm;
        if !kind.is_cipher_key() {
            let random = hsm.random(12).await.map_err(token)?;
            let nonce = random.first_chunk().copied().ok_or_else(unfit)?;
            let wrapped = keys.seal_secret(system_title, id, value, nonce);
            let fingerprint = keys.secret_fingerprint(system_title, value);
            let wrapped = wrapped.map_err(|_| unfit())?;
            return Ok(WrappedValue { wrapped, kcv: None, fingerprint });
        }
        let (fingerprint, kcv) = self.identities.identify(value).ok_or_else(unfit)?;
        let wrapped = match protection {
            Protection::Memory => keys.wrap_key(value).map_err(|_| unfit())?,
            Protection::Hsm => {
                // Its own copy: the call to the token may outlive whoever waits for it.
                let value = ClearKey::new(value.expose_clear_key_bytes().to_vec());
                hsm.wrap(SealedKek::of_kind(kind), value).await.map_err(token)?
            }
        };
        Ok(WrappedValue { wrapped, kcv: Some(kcv), fingerprint })
    }
}
