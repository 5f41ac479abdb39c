//! A peer's changes of a block, taken over as they are: each record keeps its number and its MAC, and the
//! block has the peer's head afterwards. Both sites derive the same subkeys, so what is equal is equal byte
//! for byte.
//!
//! Our block has to be one that the peer's came from. Within an epoch it is: one site writes. From one epoch to
//! the next it is if it is not beyond where the promotion found the block; what is beyond is ours alone, and
//! would be lost.

use std::collections::BTreeSet;

use crate::{Epoch, Head, Position, RecordKey, StoredRecord, block::BlockMark};

use super::{keys::BlockKeys, verified::Verified};

/// The state of a block at a peer, as the peer says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersBlock {
    /// The peer's head.
    pub head: Head,
    /// The records that changed since a position that we named, or all of them.
    pub records: Vec<StoredRecord>,
    /// The state in which the first promotion after our epoch found the block: out of its signed
    /// record, which was verified. `None`: we know of none.
    pub promoted_at: Option<BlockMark>,
}

/// The outcome for a peer's block that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The block is there already: nothing is to be written (invariant 6).
    Nothing,
    /// To be stored, in one transaction.
    Adoption(Adoption),
}

/// A peer's records and head. Its numbers are the peer's, with gaps where a record changed twice: a store takes
/// it as what it is, and not as a change of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// The peer's head.
    pub head: Head,
    /// Records that are new here, in the order of their numbers.
    pub records: Vec<StoredRecord>,
    /// The records that are damaged here and not there at the peer at all: rows whose key was changed.
    pub gone: Vec<RecordKey>,
}

impl Adoption {
    /// The block once this is stored. `ours` is the one that it was made for.
    #[must_use]
    pub fn adopted(self, ours: Verified) -> Verified {
        ours.replaced(self.head, self.records, &self.gone)
    }
}

/// The reason why nothing of a peer's message is taken over (invariant 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// The head's MAC is wrong, or it is another block's.
    #[error("the peer's head is not this block's, or was changed on its way")]
    Head,
    /// It says that it is under another secret, which nobody has verified: if it is, it comes as a whole and is
    /// verified under that one.
    #[error("the peer's block is under version {theirs} of its secret, ours under {ours}")]
    SecretVersion {
        /// Ours.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// The peer is behind us.
    #[error("the peer stands at {theirs}, behind our {ours}")]
    Behind {
        /// The position of our block.
        ours: Position,
        /// The position of the peer's block.
        theirs: Position,
    },
    /// Both sites wrote: one place and two states, or ours is beyond where the promotion found the block.
    #[error("at {0} the peer's block parted from ours")]
    Forked(Position),
    /// A higher epoch counts with the signed record of its promotion only.
    #[error("the peer writes in epoch {}, and no promotion to it is known", theirs.0)]
    NotPromoted {
        /// The peer's epoch.
        theirs: Epoch,
    },
    /// A record's MAC is wrong, or it says that it came after its head.
    #[error("the record of {0} is not what the peer's writer wrote")]
    Record(RecordKey),
    /// A record that we have in a newer state.
    #[error("the record of {key} is of {theirs}, ours of {ours}")]
    OlderRecord {
        /// The record's.
        key: RecordKey,
        /// Of ours.
        ours: Position,
        /// Of the peer's.
        theirs: Position,
    },
    /// Two records under one key.
    #[error("two records of {0}")]
    Twice(RecordKey),
    /// With these records the block is not the one that the head was made over: some are missing, or the two
    /// have parted.
    #[error("with these records the block is not the one at the peer's {0}: ask for all of it")]
    Incomplete(Position),
}

/// Takes over what a peer says of our block. All or nothing.
pub fn accept(
    ours: &Verified,
    keys: &BlockKeys,
    theirs: PeersBlock,
) -> Result<Accepted, NotAccepted> {
    check_head(ours.head(), keys, &theirs.head)?;
    check_descent(&ours.mark(), &theirs)?;
    let PeersBlock { head, records, promoted_at: _ } = theirs;
    let is_here = head.position == ours.head().position;
    if is_here && ours.damaged().is_empty() {
        return Ok(Accepted::Nothing);
    }
    let said: BTreeSet<RecordKey> = records.iter().map(|record| record.key).collect();
    let is_all = said.len() == head.count as usize;
    let mut news = news(ours, keys, &head, records)?;
    let lost = |key: &&RecordKey| is_all && !said.contains(*key);
    let gone: Vec<RecordKey> = ours.damaged().iter().filter(lost).copied().collect();
    if is_here && news.is_empty() && gone.is_empty() {
        return Ok(Accepted::Nothing);
    }
    if ours.counted_with(&news, &gone) != (head.count, head.digest) {
        return Err(NotAccepted::Incomplete(head.position));
    }
    news.sort_unstable_by_key(|record| record.position);
    Ok(Accepted::Adoption(Adoption { head, records: news, gone }))
}

/// Those of a peer's records that we don't have as they are; all of them are authentic.
fn news(
    ours: &Verified,
    keys: &BlockKeys,
    head: &Head,
    records: Vec<StoredRecord>,
) -> Result<Vec<StoredRecord>, NotAccepted> {
    let (mut news, mut seen) = (Vec::with_capacity(records.len()), BTreeSet::new());
    let mut scratch = Vec::with_capacity(512);
    for record in records {
        let key = record.key;
        if record.position > head.position
            || record.secret_version != head.secret_version
            || !keys.record_is_authentic(head.block, &record, &mut scratch)
        {
            return Err(NotAccepted::Record(key));
        }
        if !seen.insert(record.key) {
            return Err(NotAccepted::Twice(key));
        }
        // A record that is damaged here says nothing, not even where it stands.
        let old = ours.stored(&record.key).filter(|old| !ours.is_damaged(&old.key));
        match old {
            Some(old) if record.position < old.position => {
                let (ours, theirs) = (old.position, record.position);
                return Err(NotAccepted::OlderRecord { key, ours, theirs });
            }
            Some(old) if *old == record => {}
            _ => news.push(record),
        }
    }
    Ok(news)
}

fn check_head(ours: &Head, keys: &BlockKeys, theirs: &Head) -> Result<(), NotAccepted> {
    if theirs.block != ours.block {
        return Err(NotAccepted::Head);
    }
    if theirs.secret_version != ours.secret_version {
        let (ours, theirs) = (ours.secret_version, theirs.secret_version);
        return Err(NotAccepted::SecretVersion { ours, theirs });
    }
    if !keys.head_is_authentic(theirs) {
        return Err(NotAccepted::Head);
    }
    if theirs.position < ours.position {
        return Err(NotAccepted::Behind { ours: ours.position, theirs: theirs.position });
    }
    let is_same = (theirs.digest, theirs.count) == (ours.digest, ours.count);
    if theirs.position == ours.position && !is_same {
        return Err(NotAccepted::Forked(ours.position));
    }
    Ok(())
}

/// Whether the peer's block came from ours.
pub(super) fn check_descent(ours: &BlockMark, theirs: &PeersBlock) -> Result<(), NotAccepted> {
    let epoch = theirs.head.position.epoch;
    if epoch == ours.position.epoch {
        return Ok(());
    }
    let found = theirs.promoted_at.filter(|found| found.block == ours.block);
    let found = found.ok_or(NotAccepted::NotPromoted { theirs: epoch })?;
    let beyond = ours.position > found.position
        || ours.position == found.position && ours.digest != found.digest;
    if beyond { Err(NotAccepted::Forked(found.position)) } else { Ok(()) }
}
