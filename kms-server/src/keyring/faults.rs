//! Faults of blocks, while they last: told in the status, tried again in time, and never a reason
//! for the rest to stop. Bounded by the number of blocks.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    damage::Damage,
    error::{KeyringError, SharedError},
};
use kms_core::{BlockNo, ProfileName, moment::Moment};

/// Faults of rows, by block; `None`: of some that are no block's.
pub(super) type Rows = BTreeMap<Option<BlockNo>, String>;

/// The time for which a failed opening is not tried again, so that a flood of APDUs for a block that can't be
/// opened does not become a flood of HSM calls and queries.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Profiles that are remembered as unknown.
const PROFILES_MAX: usize = 16;

/// Faults that a status names one by one; the rest is counted.
const NAMED_MAX: usize = 8;

/// The faults that this process knows of.
#[derive(Default)]
pub(super) struct Faults {
    known: Mutex<Known>,
    /// Records and ids that are not what was written.
    pub(super) damage: Damage,
}

#[derive(Default)]
struct Known {
    /// The faults that the last look at all positions found.
    rows: Rows,
    /// Why a block could not be read or changed, until it can.
    lasting: BTreeMap<BlockNo, String>,
    /// When an opening last failed, and why.
    failed: HashMap<BlockNo, (Moment, SharedError)>,
    /// Blocks whose last commit ended unknown: to be read again.
    suspect: HashSet<BlockNo>,
    /// There was no room for the whole fleet.
    too_small: Option<SharedError>,
    /// Profiles that meters name and this site does not have.
    unknown_profiles: BTreeSet<ProfileName>,
}

impl Faults {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An opening failed just now.
    pub(super) fn note_failed(&self, now: Moment, block: BlockNo, error: SharedError) {
        self.known().failed.insert(block, (now, error));
    }

    /// A block was opened.
    pub(super) fn forget_failed(&self, block: BlockNo) {
        self.known().failed.remove(&block);
    }

    /// Why a block is not to be tried again yet.
    pub(super) fn failed_just_now(&self, now: Moment, block: BlockNo) -> Option<SharedError> {
        let known = self.known();
        let (at, error) = known.failed.get(&block)?;
        (now < *at + RETRY_AFTER).then(|| Arc::clone(error))
    }

    /// Whether the last opening of a block failed.
    pub(super) fn has_failed(&self, block: BlockNo) -> bool {
        self.known().failed.contains_key(&block)
    }

    /// Blocks whose opening failed for a reason that may pass by itself.
    pub(super) fn failed_for_now(&self) -> Vec<BlockNo> {
        let known = self.known();
        let passing = known.failed.iter().filter(|(_, (_, error))| error.is_transient());
        passing.map(|(block, _)| *block).collect()
    }

    /// Blocks that something is wrong with that does not pass by itself, in order.
    pub(super) fn lasting(&self) -> Vec<BlockNo> {
        let known = self.known();
        let failed = known.failed.iter().filter(|(_, (_, error))| !error.is_transient());
        let both = known.lasting.keys().chain(failed.map(|(block, _)| block));
        both.copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Remembers why a block can't be read or changed, if that does not pass by itself.
    pub(super) fn note_lasting<T>(
        &self,
        block: BlockNo,
        outcome: Result<T, KeyringError>,
    ) -> Result<T, KeyringError> {
        match &outcome {
            Ok(_) => _ = self.known().lasting.remove(&block),
            Err(error) if error.is_transient() => {}
            Err(error) => {
                let before = self.known().lasting.insert(block, error.to_string());
                if before.is_none_or(|before| before != error.to_string()) {
                    tracing::error!(block = block.0, %error, "a block is at fault");
                }
            }
        }
        outcome
    }

    /// A meter names a profile that this site does not have. Said once, and a fault for as long as the process runs:
    /// profiles are read at the start.
    pub(super) fn note_unknown_profile(&self, name: &ProfileName) {
        let mut known = self.known();
        if known.unknown_profiles.len() < PROFILES_MAX && !known.unknown_profiles.contains(name) {
            tracing::error!(profile = %name, "a meter names a device profile that this site does not have");
            known.unknown_profiles.insert(name.clone());
        }
    }

    /// The profiles that meters name and this site does not have.
    pub(super) fn unknown_profiles(&self) -> Vec<ProfileName> {
        self.known().unknown_profiles.iter().cloned().collect()
    }

    /// The arena had no room: told as a fault until every block is open.
    pub(super) fn note_no_room(&self, block: BlockNo, needed: usize) {
        let mut known = self.known();
        if size_of_missing(known.too_small.as_deref()).is_none_or(|before| before < needed) {
            known.too_small = Some(Arc::new(KeyringError::ArenaFull { block, needed }));
        }
    }

    /// The size of what had no room, if anything had none.
    pub(super) fn no_room_for(&self) -> Option<usize> {
        size_of_missing(self.known().too_small.as_deref())
    }

    /// There is room for all blocks; whether there was none before.
    pub(super) fn forget_no_room(&self) -> bool {
        self.known().too_small.take().is_some()
    }

    /// Commits of these blocks ended unknown: what is resident may be older than what is stored.
    pub(super) fn suspect(&self, blocks: impl IntoIterator<Item = BlockNo>) {
        self.known().suspect.extend(blocks);
    }

    /// Blocks whose last commit ended unknown.
    pub(super) fn suspects(&self) -> Vec<BlockNo> {
        self.known().suspect.iter().copied().collect()
    }

    /// A block whose last commit ended unknown was read again.
    pub(super) fn clear_suspect(&self, block: BlockNo) {
        let mut known = self.known();
        known.suspect.remove(&block);
        known.failed.remove(&block);
    }

    /// The faults that a look at all rows found replace the earlier ones; a new one goes to the log.
    pub(super) fn set_rows(&self, rows: Rows) {
        let mut known = self.known();
        for (block, what) in rows.iter().filter(|(block, what)| known.rows.get(block) != Some(what))
        {
            let block = block.map(|block| block.0);
            tracing::error!(block, what, "a row is not as it was written");
        }
        known.rows = rows;
    }

    /// The faults, a sentence each; of many blocks, the first.
    pub(super) fn sentences(&self) -> Vec<String> {
        let known = self.known();
        let failed = known.failed.iter();
        let mut all: Rows =
            failed.map(|(block, (_, error))| (Some(*block), error.to_string())).collect();
        all.extend(known.lasting.iter().map(|(block, what)| (Some(*block), what.clone())));
        all.extend(known.rows.iter().map(|(block, what)| (*block, what.clone())));
        let mut sentences: Vec<String> = all.into_values().take(NAMED_MAX).collect();
        sentences.extend(known.too_small.as_ref().map(ToString::to_string));
        sentences
    }

    /// The number of blocks that something is wrong with.
    pub(super) fn blocks(&self) -> u32 {
        let known = self.known();
        let named = known.rows.keys().flatten().chain(known.lasting.keys());
        named.chain(known.failed.keys()).collect::<BTreeSet<_>>().len() as u32
    }

    /// Whether a meter that is found nowhere may be one whose record is damaged: then nobody can say
    /// that there is no such meter.
    pub(super) fn may_hide_a_meter(&self) -> bool {
        self.damage.is_any() || self.has_lasting()
    }

    fn has_lasting(&self) -> bool {
        let known = self.known();
        let mut failed = known.failed.values();
        !known.rows.is_empty()
            || !known.lasting.is_empty()
            || failed.any(|(_, error)| !error.is_transient())
    }
}

fn size_of_missing(error: Option<&KeyringError>) -> Option<usize> {
    match error? {
        KeyringError::ArenaFull { needed, .. } => Some(*needed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::from_ms(1_000);

    fn full() -> SharedError {
        Arc::new(KeyringError::ArenaFull { block: BlockNo(1), needed: 64 })
    }

    fn broken(block: u32) -> KeyringError {
        KeyringError::NotSealedForUs(BlockNo(block))
    }

    #[test]
    fn a_failed_opening_is_left_alone_for_a_tenth_of_a_second() {
        let faults = Faults::default();
        faults.note_failed(NOW, BlockNo(1), full());
        let soon = NOW + Duration::from_millis(99);
        assert!(faults.failed_just_now(soon, BlockNo(1)).is_some());
        assert!(faults.failed_just_now(soon, BlockNo(2)).is_none());
        assert!(faults.failed_just_now(NOW + RETRY_AFTER, BlockNo(1)).is_none());
        assert!(faults.has_failed(BlockNo(1)), "it is still a fault");
        faults.forget_failed(BlockNo(1));
        assert!(faults.failed_just_now(NOW, BlockNo(1)).is_none());
    }

    #[test]
    fn what_passes_and_what_lasts_are_kept_apart() {
        let faults = Faults::default();
        faults.note_failed(NOW, BlockNo(1), full());
        assert!(!faults.may_hide_a_meter());
        faults.note_failed(NOW, BlockNo(4), Arc::new(broken(4)));
        faults.note_lasting::<()>(BlockNo(2), Err(broken(2))).unwrap_err();
        faults
            .note_lasting::<()>(BlockNo(3), Err(KeyringError::RolledBack("old".into())))
            .unwrap_err();
        assert_eq!(faults.failed_for_now(), [BlockNo(1)]);
        assert_eq!(faults.lasting(), [BlockNo(2), BlockNo(4)]);
        assert_eq!(faults.blocks(), 3);
        assert!(faults.may_hide_a_meter());
        faults.note_lasting(BlockNo(2), Ok(())).unwrap();
        assert_eq!(faults.lasting(), [BlockNo(4)]);
    }

    #[test]
    fn a_block_is_named_once_and_of_many_the_first() {
        let faults = Faults::default();
        for block in 0..20 {
            faults.note_failed(NOW, BlockNo(block), Arc::new(broken(block)));
        }
        faults.set_rows([(Some(BlockNo(0)), "its row is gone".to_owned())].into());
        faults.note_no_room(BlockNo(6), 32);
        faults.note_no_room(BlockNo(7), 64);
        faults.note_no_room(BlockNo(8), 48);
        let sentences = faults.sentences();
        assert_eq!(sentences.len(), NAMED_MAX + 1);
        assert_eq!(sentences[0], "its row is gone");
        assert!(sentences[NAMED_MAX].contains("block 7 needs 64 bytes"), "the largest counts");
        assert_eq!(faults.no_room_for(), Some(64));
        assert!(faults.forget_no_room());
        assert!(!faults.forget_no_room());
    }

    #[test]
    fn a_suspect_is_one_until_it_was_read_again() {
        let faults = Faults::default();
        faults.suspect([BlockNo(1), BlockNo(2)]);
        faults.note_failed(NOW, BlockNo(1), full());
        faults.clear_suspect(BlockNo(1));
        assert_eq!(faults.suspects(), [BlockNo(2)]);
        assert!(!faults.has_failed(BlockNo(1)));
    }
}
