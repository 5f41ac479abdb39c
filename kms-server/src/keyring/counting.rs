//! What transmit counters stand on: counter lines as they are stored, verified, and the MACs of a block's marks. The rules of
//! both are in `kms_core::counters`.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    error::{KeyringError, SharedError},
    opening::Opener,
};
use kms_core::{
    BlockNo, DomainRecord, Epoch, Position, Record, StoredRecord,
    block::{BlockMark, keys::BlockKeys, local::LocalKey},
    counters::{Line, LineName, allocator::Mark, mark::StoredMark},
    site::role::Standing,
};

/// Reads lines, and MACs marks. It changes nothing.
pub struct Counting {
    opener: Arc<Opener>,
}

/// A block's lines, of one moment.
pub struct Lines {
    /// The state of the block.
    pub mark: BlockMark,
    /// Each line, and where it was written last.
    pub lines: BTreeMap<LineName, (Line, Position)>,
    /// Records of the block that are not what was written: each may have been a line.
    pub damaged: usize,
}

/// A mark that this site did not write: it was changed outside this service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the mark of block {0}'s counters was changed outside this service")]
pub struct MarkChanged(pub BlockNo);

/// The reason why nothing can be said of a mark.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// It is not ours.
    #[error(transparent)]
    Changed(#[from] MarkChanged),
    /// Its block does not open.
    #[error(transparent)]
    Block(#[from] SharedError),
}

impl Counting {
    /// Over the same blocks as `opener`.
    pub(super) fn new(opener: Arc<Opener>) -> Self {
        Self { opener }
    }

    /// The domain, and the site of it that this is.
    pub fn domain(&self) -> &DomainRecord {
        &self.opener.domain
    }

    /// Who writes, as this process knows.
    pub fn standing(&self) -> Standing {
        self.opener.role.now()
    }

    /// Whether this epoch began while this process ran: all that was ever reserved in it was reserved since.
    pub fn began_here(&self, epoch: Epoch) -> bool {
        self.opener.role.began_here(epoch)
    }

    /// The block of a line.
    pub fn block_of(&self, name: &LineName) -> BlockNo {
        name.block(self.opener.resident.blocks())
    }

    /// The lines of a block as they are stored, verified with all of it.
    pub async fn lines(&self, block: BlockNo) -> Result<Lines, KeyringError> {
        let (_, verified) = self.opener.verified(block).await?;
        let lines = verified.lines().map(|(line, position)| (line.name, (line, position)));
        let (mark, damaged) = (verified.mark(), verified.damaged().len());
        Ok(Lines { mark, lines: lines.collect(), damaged })
    }

    /// The lines among these records that are what was written in this block.
    pub async fn authentic(
        &self,
        block: BlockNo,
        records: &[StoredRecord],
    ) -> Result<Vec<Line>, MarkError> {
        let (keys, secret_version) = self.keys_of(block).await?;
        let mut scratch = Vec::with_capacity(128);
        let ours = records.iter().filter(|record| {
            record.secret_version == secret_version
                && keys.record_is_authentic(block, record, &mut scratch)
        });
        let lines = ours.filter_map(|record| match Record::decode(&record.body) {
            Ok(Record::Line(line)) if self.block_of(&line.name) == block => Some(line),
            _ => None,
        });
        Ok(lines.collect())
    }

    /// A mark with its MAC.
    pub async fn seal(&self, mark: Mark) -> Result<StoredMark, MarkError> {
        let (key, secret_version) = self.key_of(mark.block).await?;
        Ok(StoredMark::sealed(mark, secret_version, &key))
    }

    /// Refuses a mark that this site did not write.
    pub async fn check(&self, stored: &StoredMark) -> Result<(), MarkError> {
        let block = stored.mark.block;
        let (key, secret_version) = self.key_of(block).await?;
        let is_ours = match stored.secret_version == secret_version {
            true => stored.is_authentic(&key),
            false => self.is_of_other_secret(stored, secret_version).await?,
        };
        if is_ours { Ok(()) } else { Err(MarkChanged(block).into()) }
    }

    /// Whether this site wrote a mark while its block was under another secret, which is still there.
    async fn is_of_other_secret(
        &self,
        stored: &StoredMark,
        present: u32,
    ) -> Result<bool, MarkError> {
        let others = self.opener.others(stored.mark.block, present).await.map_err(Arc::new)?;
        let site = &self.opener.domain.site;
        let mut its = others.iter().filter(|other| other.secret_version == stored.secret_version);
        Ok(its.any(|other| stored.is_authentic(&LocalKey::of(&other.keys, site))))
    }

    /// Whether this site wrote a mark, as far as can be told without opening its block.
    pub fn is_authentic_here(&self, stored: &StoredMark) -> bool {
        let table = self.opener.resident.table(stored.mark.block);
        let keys = table.filter(|table| table.secret_version() == stored.secret_version);
        let domain = &self.opener.domain;
        let keys = keys.as_ref().and_then(|table| BlockKeys::new(domain.domain, table.subkeys()?));
        keys.is_some_and(|keys| stored.is_authentic(&LocalKey::of(&keys, &domain.site)))
    }

    /// The block's `local` key: derived for each use from what is resident.
    async fn key_of(&self, block: BlockNo) -> Result<(LocalKey, u32), MarkError> {
        let (keys, secret_version) = self.keys_of(block).await?;
        Ok((LocalKey::of(&keys, &self.opener.domain.site), secret_version))
    }

    async fn keys_of(&self, block: BlockNo) -> Result<(BlockKeys, u32), MarkError> {
        let table = self.opener.open(block).await?;
        let domain = self.opener.domain.domain;
        let keys = table.subkeys().and_then(|bytes| BlockKeys::new(domain, bytes));
        Ok((keys.ok_or(MarkChanged(block))?, table.secret_version()))
    }
}
