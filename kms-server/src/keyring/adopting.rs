//! Taking over a peer's blocks: each is held against ours, which was verified, and becomes the peer's, or nothing of
//! it is used. What is taken over is in the database and in memory when this returns.

use std::sync::Arc;

use futures_util::future::join_all;

use super::{
    error::KeyringError,
    opening::{Opener, Unsealed},
    publishing::{Changed, publish},
    turns::Turn,
};
use crate::store::{
    AuditedStore, IndexEntry, RecordChange, StoreError,
    sites::{BlockAdoption, Divergent},
};
use kms_core::{
    BlockNo, Head, Record, RecordKey, StoredRecord,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    block::{BlockMark, accepting::NotAccepted, verified::Verified},
    site::role::SignedRoleRecord,
};

/// Our blocks that are read and verified at the same time: as many as the database reads at once.
const READ_AT_ONCE: usize = 4;

/// A block that came from a peer, all pieces of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The peer's head.
    pub head: Head,
    /// Its records: those that changed, or all.
    pub records: Vec<StoredRecord>,
    /// These are all records of the block.
    pub is_whole: bool,
}

/// What became of a block that came from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Ours is as the peer's already: nothing was written.
    Nothing,
    /// It is taken over.
    Adopted {
        /// The number of records that are new here.
        records: usize,
        /// The number of ours that the peer never had: kept for people to decide about.
        set_aside: usize,
    },
    /// Nothing of it was used.
    NotAccepted(NotAccepted),
    /// Nothing of it was used, although it came as a whole.
    Refused(String),
    /// Ours can't be read now: it may be taken over later.
    NotYet(String),
    /// Another server of this site has changed ours meanwhile.
    Conflict,
}

/// A block that came, and where it stands here now; `None`: ours can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The block.
    pub block: BlockNo,
    /// Its state here.
    pub stored: Option<BlockMark>,
    /// What became of it.
    pub taken: Taken,
}

/// Bytes of our own blocks, as they stand, that are held for one transaction.
const OWN_BYTES_MAX: usize = 32 << 20;

/// Takes a peer's blocks over. It can write nothing else.
#[derive(Clone)]
pub struct Adopter {
    pub(super) opener: Arc<Opener>,
    commits: Arc<dyn AuditedStore>,
}

/// A block that came, and nobody else changes ours.
struct Held {
    arrived: Arrived,
    turn: Turn,
}

/// A block for which a step was found.
struct Step {
    changed: Changed,
    adoption: BlockAdoption,
    outcome: Outcome,
}

impl Adopter {
    /// Over the same blocks as `opener`; they change only through `commits`.
    pub(super) fn new(opener: Arc<Opener>, commits: Arc<dyn AuditedStore>) -> Self {
        Self { opener, commits }
    }

    /// The same, changing them through `commits`.
    #[cfg(test)]
    pub(crate) fn through(&self, commits: Arc<dyn AuditedStore>) -> Self {
        Self { opener: Arc::clone(&self.opener), commits }
    }

    /// Takes these blocks over, as many in one transaction as fit: those that are accepted, and none of which anything is
    /// wrong. `roles` were verified. `entry` goes into the audit log with them, and bears their states.
    ///
    /// Of several blocks, one that can't be read now or that another server of this site has changed keeps no other one
    /// waiting. Of one alone, that is an error: on [`StoreError::Conflict`] another server was first. Runs to its end even if the future is
    /// dropped: what is stored has to become resident.
    pub async fn adopt(
        &self,
        arrived: Vec<Arrived>,
        roles: &[SignedRoleRecord],
        entry: AuditEntry,
    ) -> Result<Vec<Outcome>, KeyringError> {
        let (this, roles) = (self.clone(), roles.to_vec());
        let task = tokio::spawn(async move { this.adopt_to_the_end(arrived, &roles, entry).await });
        let lost =
            |lost: tokio::task::JoinError| StoreError::Unreachable { reason: lost.to_string() };
        task.await.map_err(lost)?
    }

    /// Keeps what was decided of records that were set aside.
    pub async fn keep_decided(
        &self,
        decided: Vec<Divergent>,
        entry: AuditEntry,
    ) -> Result<(), KeyringError> {
        Ok(self.commits.put_divergence(decided, vec![entry]).await?)
    }

    async fn adopt_to_the_end(
        &self,
        mut arrived: Vec<Arrived>,
        roles: &[SignedRoleRecord],
        entry: AuditEntry,
    ) -> Result<Vec<Outcome>, KeyringError> {
        arrived.sort_by_key(|block| block.head.block);
        let (mut outcomes, mut held) = (Vec::new(), Vec::<Held>::new());
        for arrived in arrived {
            let block = arrived.head.block;
            let twice = held.last().is_some_and(|last| last.arrived.head.block == block);
            if twice || block.0 >= self.opener.resident.blocks().get() {
                let taken = Taken::Refused("it came twice at once, or there is none".to_owned());
                outcomes.push(Outcome { block, stored: None, taken });
                continue;
            }
            // In order, like everybody who takes more than one. Held until it is written, and by nobody who waits for
            // a peer.
            held.push(Held { arrived, turn: self.opener.turns.take(block).await });
        }
        outcomes.extend(self.decide_all(held, roles, entry).await?);
        Ok(outcomes)
    }

    /// Decides about these and writes, as often as what stands here of them fills a transaction.
    async fn decide_all(
        &self,
        held: Vec<Held>,
        roles: &[SignedRoleRecord],
        entry: AuditEntry,
    ) -> Result<Vec<Outcome>, KeyringError> {
        let is_alone = held.len() == 1;
        let (mut outcomes, mut steps, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut held = held.into_iter();
        loop {
            let some: Vec<Held> = held.by_ref().take(READ_AT_ONCE).collect();
            let is_last = some.is_empty();
            let blocks: Vec<BlockNo> = some.iter().map(|held| held.arrived.head.block).collect();
            let decided = join_all(some.into_iter().map(|held| self.decide(held, roles))).await;
            for (block, decided) in blocks.into_iter().zip(decided) {
                match decided {
                    Ok(Ok(step)) => {
                        bytes += step.bytes();
                        steps.push(step);
                    }
                    Ok(Err(outcome)) => outcomes.push(outcome),
                    Err(error) if is_alone => return Err(error),
                    Err(error) => outcomes.push(not_yet(block, &error)),
                }
            }
            if is_last || bytes > OWN_BYTES_MAX {
                bytes = 0;
                let last = steps.last().map(|step| step.outcome.block);
                match self.write_all(std::mem::take(&mut steps), &entry).await {
                    Ok(written) => outcomes.extend(written),
                    Err(error) if is_alone => return Err(error),
                    // Of several that came, one was left to write: it has an outcome, too.
                    Err(error) => outcomes.extend(last.map(|block| not_written(block, &error))),
                }
            }
            if is_last {
                return Ok(outcomes);
            }
        }
    }

    /// Writes these in one transaction; if that fails, one by one, so that one of them keeps no other one waiting. The
    /// error is that of one alone.
    async fn write_all(
        &self,
        mut steps: Vec<Step>,
        entry: &AuditEntry,
    ) -> Result<Vec<Outcome>, KeyringError> {
        let is_alone = steps.len() == 1;
        match self.write(&mut steps, entry.clone()).await {
            Ok(outcomes) => return Ok(outcomes),
            Err(error) if is_alone => return Err(error),
            Err(error) => tracing::debug!(%error, "blocks are taken over one by one"),
        }
        let (mut outcomes, mut in_a_row) = (Vec::new(), 0);
        for step in steps {
            let block = step.outcome.block;
            // Two in a row say that it is none of the blocks.
            if in_a_row == 2 {
                let taken = Taken::NotYet("others could not be written".to_owned());
                outcomes.push(Outcome { block, stored: None, taken });
                continue;
            }
            match self.write(&mut vec![step], entry.clone()).await {
                Ok(written) => {
                    in_a_row = 0;
                    outcomes.extend(written);
                }
                Err(error) => {
                    let outcome = not_written(block, &error);
                    in_a_row += usize::from(outcome.taken != Taken::Conflict);
                    outcomes.push(outcome);
                }
            }
        }
        Ok(outcomes)
    }

    async fn decide(
        &self,
        Held { arrived, turn }: Held,
        roles: &[SignedRoleRecord],
    ) -> Result<Result<Step, Outcome>, KeyringError> {
        let block = arrived.head.block;
        let asked: Vec<RecordKey> = arrived.records.iter().map(|record| record.key).collect();
        let ours = match arrived.is_whole {
            // It may mend what is damaged here, wherever that is.
            true => self.opener.verified(block).await,
            false => self.opener.verified_for(block, &asked).await,
        };
        let (unsealed, ours) = match ours {
            Ok(ours) => ours,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                let taken = Taken::Refused(format!("ours can't be read: {error}"));
                return Ok(Err(Outcome { block, stored: None, taken }));
            }
        };
        let stored = Some(ours.mark());
        let came = (arrived, ours, unsealed);
        match self.step(came, roles).await? {
            Ok(Some((adoption, verified, records, unsealed))) => {
                let set_aside = adoption.set_aside.len();
                let taken = Taken::Adopted { records, set_aside };
                let outcome = Outcome { block, stored: Some(verified.mark()), taken };
                let changed = changed(verified, unsealed, turn);
                Ok(Ok(Step { changed, adoption, outcome }))
            }
            Ok(None) => Ok(Err(Outcome { block, stored, taken: Taken::Nothing })),
            Err(taken) => Ok(Err(Outcome { block, stored, taken })),
        }
    }

    /// Writes these in one transaction. On an error they are all still there.
    async fn write(
        &self,
        steps: &mut Vec<Step>,
        entry: AuditEntry,
    ) -> Result<Vec<Outcome>, KeyringError> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let adoptions: Vec<BlockAdoption> =
            steps.iter().map(|step| step.adoption.clone()).collect();
        let records: usize = adoptions.iter().map(|adoption| adoption.records.len()).sum();
        let aside = adoptions.iter().filter_map(|adoption| aside_entry(adoption, &entry));
        let aside: Vec<AuditEntry> = aside.collect();
        let entry = entry.with(Detail::Items, records as u64);
        let entries = [vec![entry], aside].concat();
        if let Err(error) = self.commits.adopt(adoptions, entries).await {
            if matches!(error, StoreError::Unreachable { .. } | StoreError::Unknown { .. }) {
                // They may be there: what is resident may be older than what is stored.
                self.opener.faults.suspect(steps.iter().map(|step| step.outcome.block));
            }
            return Err(error.into());
        }
        let (mut outcomes, mut changed) = (Vec::new(), Vec::new());
        for step in steps.drain(..) {
            outcomes.push(step.outcome);
            changed.push(step.changed);
        }
        publish(&self.opener, changed);
        Ok(outcomes)
    }
}

impl Step {
    /// The bytes of the block's records, as they are to stand.
    fn bytes(&self) -> usize {
        self.changed.verified.authentic().map(|record| record.body.len()).sum()
    }
}

/// A block that was decided about and could not be written.
fn not_written(block: BlockNo, error: &KeyringError) -> Outcome {
    if matches!(error, KeyringError::Store(StoreError::Conflict(_))) {
        return Outcome { block, stored: None, taken: Taken::Conflict };
    }
    not_yet(block, error)
}

/// Nothing of this block was taken over, and it may be later.
fn not_yet(block: BlockNo, error: &KeyringError) -> Outcome {
    Outcome { block, stored: None, taken: Taken::NotYet(error.to_string()) }
}

/// What is said of the records of a block that are set aside, if any are.
fn aside_entry(adoption: &BlockAdoption, entry: &AuditEntry) -> Option<AuditEntry> {
    let BlockAdoption { head, set_aside, .. } = adoption;
    let digest = kms_core::block::keys::digest(set_aside.iter().map(|record| &record.mac));
    let [a, b, c, d, e, f, g, h, ..] = digest;
    let call = AuditedCall::new(entry.call.caller.as_str(), "Replication/SetAside");
    let subject = Subject { block: Some(head.block), ..Subject::NONE };
    let entry = call
        .entry(entry.at_ms, subject, AuditOutcome::Done)
        .with(Detail::SetAside, set_aside.len() as u64)
        .with(Detail::AsideDigest, u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    (!set_aside.is_empty()).then_some(entry)
}

fn changed(verified: Verified, unsealed: Unsealed, turn: Turn) -> Changed {
    Changed { verified, unsealed, turn }
}

/// What changes when a block becomes the peer's.
pub(super) struct Moved {
    pub(super) head: Head,
    pub(super) records: Vec<StoredRecord>,
    pub(super) gone: Vec<RecordKey>,
    pub(super) set_aside: Vec<StoredRecord>,
}

impl Moved {
    pub(super) fn adoption(self, expected: BlockMark) -> BlockAdoption {
        let Self { head, records, gone, set_aside } = self;
        let change = |record: StoredRecord| {
            // Of a kind or a schema that this release does not know: kept byte for byte, and found by nobody.
            let read = Record::decode(&record.body).ok().filter(|read| read.key() == record.key);
            let index = read.as_ref().map_or(IndexEntry::Nothing, IndexEntry::of);
            RecordChange { record, index }
        };
        let records = records.into_iter().map(change).collect();
        BlockAdoption { expected, head, seals: Vec::new(), records, gone, set_aside }
    }
}
