//! A block of a site that was fenced, brought back to its peer: the peer's whole block takes its place, and what the
//! site alone wrote is set aside. It is the answer to [`Forked`](super::accepting::NotAccepted::Forked), never within
//! one epoch, and never without the signed promotion.
//!
//! Nothing is merged and nothing is dropped here: people decide about what was set aside. Two states don't wait for
//! them: keys are [`withdrawn`](super::withdrawing::withdrawn) at contact, and counter lines
//! [`raised`](super::withdrawing::raised).

use std::collections::BTreeSet;

use crate::{Epoch, Head, Record, RecordKey, StoredRecord, fact::FactName};

use super::{lineage::Lineage, reconciling::says_more, verified::Verified};

/// The step from our parted block to the peer's. To be stored in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// The peer's head.
    pub head: Head,
    /// The peer's records that are not here as they are, in the order of their numbers.
    pub records: Vec<StoredRecord>,
    /// The records that are here and not there at the peer at all.
    pub gone: Vec<RecordKey>,
    /// Our records, as they stand, that never became a part of the peer's block; those that are damaged and differ from
    /// the peer's, since nobody can say of which state they are; and all that differ, where we were rolled back.
    pub set_aside: Vec<StoredRecord>,
}

impl Return {
    /// The block once this is stored. `ours` is the one that it was made for.
    #[must_use]
    pub fn returned(self, ours: Verified) -> Verified {
        ours.replaced(self.head, self.records, &self.gone)
    }
}

/// The reason why a block is not brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReturned {
    /// It is another block's.
    #[error("the peer's block is another one")]
    OtherBlock,
    /// It is under another secret.
    #[error("the peer's block is under version {theirs} of its secret, ours under {ours}")]
    SecretVersion {
        /// Ours.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// Its records are not all what its writer wrote: the peer has to mend it first.
    #[error("{0} of the peer's records are not what its writer wrote")]
    Damaged(usize),
    /// Both are of one epoch: within that one site writes, and none comes back.
    #[error("both blocks are of epoch {}: there is nobody to return from", .0.0)]
    OneEpoch(Epoch),
    /// The peer writes in a lower epoch: it is the one that returns.
    #[error("the peer's block is of epoch {}, below our {}", theirs.0, ours.0)]
    LowerEpoch {
        /// Ours.
        ours: Epoch,
        /// The peer's.
        theirs: Epoch,
    },
    /// No promotion that leads from our epoch to the peer's is known.
    #[error("the peer writes in epoch {}, and no promotion to it is known", .0.0)]
    NotPromoted(Epoch),
    /// Ours is not beyond where the promotion found it: what the peer has can be accepted.
    #[error("our block is an ancestor of the peer's: nothing of it has parted")]
    NotForked,
}

/// Brings our block back to the peer's. `theirs` is the peer's whole block, verified under the keys of both; the
/// `lineage` is that of the peer's block, out of its signed promotions.
pub fn bring_back(
    ours: &Verified,
    theirs: Verified,
    lineage: &Lineage,
) -> Result<Return, NotReturned> {
    let (our_version, their_version) = (ours.head().secret_version, theirs.head().secret_version);
    if our_version != their_version {
        return Err(NotReturned::SecretVersion { ours: our_version, theirs: their_version });
    }
    bring_back_under_any(ours, theirs, lineage)
}

/// The same, whatever secret either is under. What is set aside is not such that the peer's site could read it.
pub(super) fn bring_back_under_any(
    ours: &Verified,
    theirs: Verified,
    lineage: &Lineage,
) -> Result<Return, NotReturned> {
    check(ours, &theirs, lineage)?;
    let set_aside = set_aside(ours, &theirs, lineage);
    let there: BTreeSet<RecordKey> = theirs.records.iter().map(|record| record.key).collect();
    let gone = ours.records.iter().map(|record| record.key).filter(|key| !there.contains(key));
    let gone = gone.collect();
    let Verified { head, records, .. } = theirs;
    let news = |record: &StoredRecord| ours.stored(&record.key) != Some(record);
    let mut records: Vec<StoredRecord> = records.into_iter().filter(news).collect();
    records.sort_unstable_by_key(|record| record.position);
    Ok(Return { head, records, gone, set_aside })
}

fn check(ours: &Verified, theirs: &Verified, lineage: &Lineage) -> Result<(), NotReturned> {
    let (our_head, their_head) = (ours.head(), theirs.head());
    if our_head.block != their_head.block {
        return Err(NotReturned::OtherBlock);
    }
    if !theirs.damaged().is_empty() {
        return Err(NotReturned::Damaged(theirs.damaged().len()));
    }
    let (from, to) = (our_head.position.epoch, their_head.position.epoch);
    if from == to {
        return Err(NotReturned::OneEpoch(from));
    }
    if to < from {
        return Err(NotReturned::LowerEpoch { ours: from, theirs: to });
    }
    let found = lineage.fork(from).filter(|_| lineage.epoch() == to);
    let found = found.filter(|found| found.block == our_head.block);
    let found = found.ok_or(NotReturned::NotPromoted(to))?;
    let parted = our_head.position > found.position
        || our_head.position == found.position && our_head.digest != found.digest
        || ours.authentic().any(|record| is_beside(ours, theirs, record));
    if parted { Ok(()) } else { Err(NotReturned::NotForked) }
}

/// What of ours is to be set aside. Of a block that was rolled back before we wrote on, positions say nothing: then
/// all that the peer does not have as it is.
fn set_aside(ours: &Verified, theirs: &Verified, lineage: &Lineage) -> Vec<StoredRecord> {
    let here = ours.mark();
    // Two states at one place: then nothing of ours is known to be of the peer's past.
    let same_place = lineage.fork(here.position.epoch);
    let no_ancestor = same_place.is_some_and(|found| found.position == here.position);
    let is_of_the_past = |record: &StoredRecord| lineage.has(record.position);
    let past = || ours.authentic().filter(|record| is_of_the_past(record));
    let no_past = no_ancestor || past().any(|record| is_beside(ours, theirs, record));
    let alone = |record: &&StoredRecord| {
        // The secret that our block was to come under is nothing that anybody could decide about.
        !is_secrets(&record.key)
            && !is_the_peers(theirs, record)
            && (no_past || ours.is_damaged(&record.key) || !is_of_the_past(record))
    };
    ours.records.iter().filter(alone).cloned().collect()
}

fn is_secrets(key: &RecordKey) -> bool {
    key.as_bytes().first() == Some(&FactName::SECRETS)
}

fn is_the_peers(theirs: &Verified, record: &StoredRecord) -> bool {
    theirs.stored(&record.key) == Some(record)
}

/// Whether the peer's block can't have come from one with this record, which its place alone would not show: no record
/// goes away, each change of one has a higher place, at one place stands one record, and no key of a meter is
/// forgotten.
fn is_beside(ours: &Verified, theirs: &Verified, record: &StoredRecord) -> bool {
    if is_the_peers(theirs, record) {
        return false;
    }
    let Some(later) = theirs.stored(&record.key) else { return true };
    // Of our own epoch we would have it, if the peer's came from ours.
    let here = ours.head().position;
    let is_missing = later.position.epoch == here.epoch && later.position <= here;
    if later.position <= record.position || is_missing {
        return true;
    }
    if theirs.records.iter().any(|it| it.position == record.position) {
        return true;
    }
    let (Ok(was), Ok(is)) = (Record::decode(&record.body), Record::decode(&later.body)) else {
        return false;
    };
    says_more(&was, &is)
}
