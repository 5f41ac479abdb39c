//! A peer's changes of a block, taken over as they are: each record keeps its number and its MAC, and the
//! block has the peer's head afterwards. Both sites derive the same subkeys, so what is equal is equal byte
//! for byte.

use crate::{Head, Position, StoredRecord, SystemTitle};

use super::{Extension, keys::BlockKeys, verified::Verified};

/// What a peer's message comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The block is there already: nothing is to be written (invariant 6).
    Nothing,
    /// To be stored in one transaction: records that are new here, and the peer's head.
    Extension(Extension),
}

/// Why nothing of a peer's message is taken over (invariant 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// The head's MAC is wrong, or it is another block's.
    #[error("the peer's head is not this block's, or was changed on its way")]
    Head,
    /// The peer's block is under another secret: it comes as a whole, to be verified under that one.
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
        /// Where our block stands.
        ours: Position,
        /// Where the peer's does.
        theirs: Position,
    },
    /// One place, two states: both sites wrote.
    #[error("at {0} the peer has other records than we have: the two have parted")]
    Forked(Position),
    /// A record's MAC is wrong, or it says that it came after its head.
    #[error("the record of meter {0} is not what the peer's writer wrote")]
    Record(SystemTitle),
    /// A record that we have in a newer state.
    #[error("the record of meter {system_title} is of {theirs}, ours of {ours}")]
    OlderRecord {
        /// Whose record.
        system_title: SystemTitle,
        /// Of ours.
        ours: Position,
        /// Of the peer's.
        theirs: Position,
    },
    /// Two records of one meter.
    #[error("two records of meter {0}")]
    Twice(SystemTitle),
    /// With these records the block is not the one that the head was made over: some are missing, or the two
    /// have parted.
    #[error("with these records the block is not the one at the peer's {0}: ask for all of it")]
    Incomplete(Position),
}

/// Takes over what a peer says of our block: its head, and the records that changed since a position that we
/// named, or all of them. All or nothing.
pub fn accept(
    ours: &Verified,
    keys: &BlockKeys,
    head: Head,
    records: Vec<StoredRecord>,
) -> Result<Accepted, NotAccepted> {
    check_head(ours.head(), keys, &head)?;
    let is_here = head.position == ours.head().position;
    if is_here && ours.damaged().is_empty() {
        return Ok(Accepted::Nothing);
    }
    let mut news = Vec::with_capacity(records.len());
    let mut scratch = Vec::with_capacity(512);
    for record in records {
        let system_title = record.key.system_title();
        if record.position > head.position
            || record.secret_version != head.secret_version
            || !keys.record_is_authentic(head.block, &record, &mut scratch)
        {
            return Err(NotAccepted::Record(system_title));
        }
        let old = ours.stored(&record.key);
        if let Some(old) = old.filter(|old| record.position < old.position) {
            let (ours, theirs) = (old.position, record.position);
            return Err(NotAccepted::OlderRecord { system_title, ours, theirs });
        }
        // One that we have damaged comes to be what it was.
        if old != Some(&record) {
            news.push(record);
        }
    }
    news.sort_unstable_by_key(|record| record.position);
    check_once(&news)?;
    if is_here && news.is_empty() {
        return Ok(Accepted::Nothing);
    }
    if ours.counted_with(&news) != (head.count, head.digest) {
        return Err(NotAccepted::Incomplete(head.position));
    }
    Ok(Accepted::Extension(Extension { head, records: news }))
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

fn check_once(records: &[StoredRecord]) -> Result<(), NotAccepted> {
    let mut keys: Vec<_> = records.iter().map(|record| record.key).collect();
    keys.sort_unstable();
    let twice = keys.windows(2).find(|pair| pair[0] == pair[1]);
    twice.map_or(Ok(()), |pair| Err(NotAccepted::Twice(pair[0].system_title())))
}
