//! Taking over a peer's blocks: each is held against ours, which was verified, and becomes the peer's, or nothing of
//! it is used. What is taken over is in the database and in memory when this returns.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};

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
    block::{
        BlockMark,
        accepting::{Accepted, Adoption, NotAccepted, PeersBlock, accept},
        returning::{Return, bring_back},
        verified::Verified,
    },
    site::{
        admission::{fork_of, lineage},
        role::SignedRoleRecord,
    },
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

/// Takes a peer's blocks over. It can write nothing else.
#[derive(Clone)]
pub struct Adopter {
    opener: Arc<Opener>,
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

    /// Takes these blocks over in one transaction: those that are accepted, and none of which anything is wrong.
    /// `roles` were verified. `entry` goes into the audit log with them, and bears their states.
    ///
    /// On [`StoreError::Conflict`] another server of this site was first. Runs to its end even if the future is
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
        let decided =
            stream::iter(held).map(|held| self.decide(held, roles)).buffered(READ_AT_ONCE);
        let mut steps = Vec::new();
        for decided in decided.collect::<Vec<_>>().await {
            match decided? {
                Ok(step) => steps.push(step),
                Err(outcome) => outcomes.push(outcome),
            }
        }
        outcomes.extend(self.write(steps, entry).await?);
        Ok(outcomes)
    }

    async fn decide(
        &self,
        Held { arrived, turn }: Held,
        roles: &[SignedRoleRecord],
    ) -> Result<Result<Step, Outcome>, KeyringError> {
        let block = arrived.head.block;
        let (unsealed, ours) = match self.opener.verified(block).await {
            Ok(ours) => ours,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                let taken = Taken::Refused(format!("ours can't be read: {error}"));
                return Ok(Err(Outcome { block, stored: None, taken }));
            }
        };
        let stored = Some(ours.mark());
        match step(arrived, ours, &unsealed, roles) {
            Ok(Some((adoption, verified, records))) => {
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

    async fn write(
        &self,
        steps: Vec<Step>,
        entry: AuditEntry,
    ) -> Result<Vec<Outcome>, KeyringError> {
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let (mut outcomes, mut all, mut adoptions) = (Vec::new(), Vec::new(), Vec::new());
        let mut records = 0;
        for Step { changed, adoption, outcome } in steps {
            records += adoption.records.len();
            outcomes.push(outcome);
            all.push(changed);
            adoptions.push(adoption);
        }
        let aside = adoptions.iter().filter_map(|adoption| aside_entry(adoption, &entry));
        let aside: Vec<AuditEntry> = aside.collect();
        let entry = entry.with(Detail::Items, records as u64);
        let entries = [vec![entry], aside].concat();
        if let Err(error) = self.commits.adopt(adoptions, entries).await {
            if matches!(error, StoreError::Unreachable { .. } | StoreError::Unknown { .. }) {
                // They may be there: what is resident may be older than what is stored.
                self.opener.faults.suspect(outcomes.iter().map(|outcome| outcome.block));
            }
            return Err(error.into());
        }
        publish(&self.opener, all);
        Ok(outcomes)
    }
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

/// The step from our block to the peer's, the block after it, and the number of records that are new; `None`: there
/// is nothing to do.
fn step(
    arrived: Arrived,
    ours: Verified,
    unsealed: &Unsealed,
    roles: &[SignedRoleRecord],
) -> Result<Option<(BlockAdoption, Verified, usize)>, Taken> {
    let Arrived { head, records, is_whole } = arrived;
    let (block, expected) = (head.block, ours.mark());
    let promoted_at = fork_of(roles, block, expected.position.epoch, head.position.epoch);
    let theirs = PeersBlock { head: head.clone(), records: records.clone(), promoted_at };
    match accept(&ours, &unsealed.keys, theirs) {
        Ok(Accepted::Nothing) => Ok(None),
        Ok(Accepted::Adoption(adoption)) => {
            let Adoption { head, records, gone } = adoption.clone();
            let step = Moved { head, records, gone, set_aside: Vec::new() };
            let count = step.records.len();
            Ok(Some((step.adoption(expected), adoption.adopted(ours), count)))
        }
        Err(
            NotAccepted::Forked(_) | NotAccepted::Incomplete(_) | NotAccepted::OlderRecord { .. },
        ) if is_whole && head.position.epoch > expected.position.epoch => {
            let theirs = Verified::of_any_age(head.clone(), in_key_order(records), &unsealed.keys)
                .map_err(|refused| Taken::Refused(format!("the peer's block: {refused}")))?;
            let lineage = lineage(roles, block, head.position.epoch);
            let back = bring_back(&ours, theirs, &lineage)
                .map_err(|why| Taken::Refused(why.to_string()))?;
            let Return { head, records, gone, set_aside } = back.clone();
            let count = records.len();
            let step = Moved { head, records, gone, set_aside };
            Ok(Some((step.adoption(expected), back.returned(ours), count)))
        }
        Err(why) => Err(Taken::NotAccepted(why)),
    }
}

fn in_key_order(mut records: Vec<StoredRecord>) -> Vec<StoredRecord> {
    records.sort_by_key(|record| record.key);
    records
}

/// What changes when a block becomes the peer's.
struct Moved {
    head: Head,
    records: Vec<StoredRecord>,
    gone: Vec<RecordKey>,
    set_aside: Vec<StoredRecord>,
}

impl Moved {
    fn adoption(self, expected: BlockMark) -> BlockAdoption {
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
