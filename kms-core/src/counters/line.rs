//! Counter lines. An invocation counter is counter epoch (8 bits) ‖ sequence (24 bits). The counter epoch is the site's
//! epoch plus the line's offset, which is even: so its parity names the site, two sites that both transmit never use
//! one twice, and whoever is promoted goes on above.

use crate::{BlockCount, BlockNo, Epoch, Fingerprint, SystemTitle};

/// The number of sequences of a counter epoch.
pub const SEQUENCES: u32 = 1 << 24;

/// What an invocation counter must be unique in: a key's value, and the originator whose title begins the nonce. One
/// value may be the key of many meters in many blocks, so a line has a record of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineName {
    /// Identity of the key's value.
    pub fingerprint: Fingerprint,
    /// The first 8 bytes of the nonce.
    pub originator: SystemTitle,
}

impl LineName {
    /// The block of its record, for as long as the domain lives: that of all lines of the key's value.
    pub fn block(&self, blocks: BlockCount) -> BlockNo {
        let [a, b, c, d, e, f, g, h, ..] = self.fingerprint.0;
        blocks.block_of(&SystemTitle::new([a, b, c, d, e, f, g, h]))
    }
}

/// The distance from a site's epoch to a line's counter epoch. Even, and never lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(i64);

/// A counter epoch that does not fit into its 8 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCounterEpoch {
    /// They are used up.
    #[error("epoch {} with the line's offset {offset} is above counter epoch 255: the key is to be replaced", epoch.0)]
    UsedUp {
        /// The site's epoch.
        epoch: Epoch,
        /// The line's offset.
        offset: i64,
    },
    /// The site's epoch is from before the line was made.
    #[error("epoch {} with the line's offset {offset} is below counter epoch 0: the line is newer", epoch.0)]
    Before {
        /// The site's epoch.
        epoch: Epoch,
        /// The line's offset.
        offset: i64,
    },
}

impl Offset {
    /// An offset as it is stored; `None`: it is odd.
    pub const fn new(offset: i64) -> Option<Self> {
        if offset % 2 == 0 { Some(Self(offset)) } else { None }
    }

    /// The number itself.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The counter epoch of a site that writes in this epoch.
    pub fn counter_epoch(self, epoch: Epoch) -> Result<u8, NoCounterEpoch> {
        let sum = i128::from(epoch.0) + i128::from(self.0);
        u8::try_from(sum).map_err(|_| match sum < 0 {
            true => NoCounterEpoch::Before { epoch, offset: self.0 },
            false => NoCounterEpoch::UsedUp { epoch, offset: self.0 },
        })
    }

    /// The offset with which the counter epoch of this epoch is the lowest of its parity that is not below `least`.
    pub fn from_least(epoch: Epoch, least: u16) -> Result<Self, NoCounterEpoch> {
        let counter = u64::from(least) + ((u64::from(least) ^ epoch.0) & 1);
        let offset = i128::from(counter) - i128::from(epoch.0);
        let before = NoCounterEpoch::Before { epoch, offset: i64::MIN };
        let offset = Self(i64::try_from(offset).map_err(|_| before)?);
        offset.counter_epoch(epoch).map(|_| offset)
    }

    /// The next higher one.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(2))
    }
}

/// A counter line, as its record tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its name.
    pub name: LineName,
    /// `None`: of an imported key whose inherited counter nobody has declared. It can't transmit.
    pub offset: Option<Offset>,
}

impl Line {
    /// The counter epochs that one authenticated counter of a meter may raise a line by. Beyond them two people say
    /// so: a single wrong reading must not burn the space.
    pub const STEP_MAX: u8 = 2;

    /// The line of a key that was made here, for a meter that resets its counter with the key: as low as the parity of
    /// the epoch allows.
    pub fn of_new_key(name: LineName, epoch: Epoch) -> Result<Self, NoCounterEpoch> {
        Ok(Self { name, offset: Some(Offset::from_least(epoch, 0)?) })
    }

    /// The line of a key that was made here, for a meter that keeps its counter or of which nobody knows: above all
    /// that the line of the former key has used.
    pub fn after(name: LineName, former: Offset, epoch: Epoch) -> Result<Self, NoCounterEpoch> {
        let offset = former.next();
        offset.counter_epoch(epoch).map(|_| Self { name, offset: Some(offset) })
    }

    /// The line of an imported key, of which nothing is known.
    pub const fn undeclared(name: LineName) -> Self {
        Self { name, offset: None }
    }

    /// The line, above the last invocation counter that the key was used with elsewhere. No room left: the meter needs
    /// another key first.
    pub fn declared(self, inherited: u32, epoch: Epoch) -> Result<Self, NoCounterEpoch> {
        let above = Offset::from_least(epoch, counter_epoch_of(inherited) + 1)?;
        Ok(Self { offset: self.offset.max(Some(above)), ..self })
    }

    /// The line, above an authenticated counter of the meter, if that is above what we use in this epoch. `None`: there
    /// is nothing to raise, or the step is longer than [`Line::STEP_MAX`].
    pub fn raised(self, heard: u32, epoch: Epoch) -> Option<Self> {
        let used = self.offset?.counter_epoch(epoch).ok()?;
        let step = counter_epoch_of(heard).checked_sub(u16::from(used))?;
        if step > u16::from(Self::STEP_MAX) {
            return None;
        }
        self.declared(heard, epoch).ok()
    }

    /// The line of two that a record of one name says: the higher offset, so that it is above what either site used. An
    /// offset that was set aside counts as well.
    #[must_use]
    pub fn merged(self, other: &Self) -> Self {
        Self { offset: self.offset.max(other.offset), ..self }
    }
}

/// An invocation counter.
pub const fn invocation_counter(counter_epoch: u8, sequence: u32) -> u32 {
    (counter_epoch as u32) << 24 | sequence & (SEQUENCES - 1)
}

fn counter_epoch_of(counter: u32) -> u16 {
    let [epoch, ..] = counter.to_be_bytes();
    u16::from(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> LineName {
        LineName { fingerprint: Fingerprint([7; 16]), originator: SystemTitle::new([9; 8]) }
    }

    fn offset(n: i64) -> Offset {
        Offset::new(n).unwrap()
    }

    #[test]
    fn a_counter_epoch_has_the_parity_of_the_epoch_and_an_end() {
        assert_eq!(offset(0).counter_epoch(Epoch(2)), Ok(2));
        assert_eq!(offset(-300).counter_epoch(Epoch(301)), Ok(1));
        assert_eq!(offset(4).counter_epoch(Epoch(251)), Ok(255));
        let used_up = NoCounterEpoch::UsedUp { epoch: Epoch(252), offset: 4 };
        assert_eq!(offset(4).counter_epoch(Epoch(252)), Err(used_up));
        let before = NoCounterEpoch::Before { epoch: Epoch(298), offset: -300 };
        assert_eq!(offset(-300).counter_epoch(Epoch(298)), Err(before));
        assert!(offset(0).counter_epoch(Epoch(u64::MAX)).is_err());
        assert_eq!((Offset::new(3), Offset::new(-1)), (None, None));
    }

    #[test]
    fn a_new_key_starts_as_low_as_its_parity_allows_however_high_the_epoch_is() {
        for (epoch, counter) in [(2, 0), (3, 1), (1_000_000, 0), (1_000_001, 1)] {
            let line = Line::of_new_key(name(), Epoch(epoch)).unwrap();
            assert_eq!(line.offset.unwrap().counter_epoch(Epoch(epoch)), Ok(counter));
        }
        assert!(Line::of_new_key(name(), Epoch(u64::MAX)).is_err());
    }

    #[test]
    fn a_declared_counter_is_below_all_that_is_used_and_one_without_room_is_refused() {
        let line = Line::undeclared(name());
        for (inherited, epoch, counter) in [
            (0, 2, 2),
            (0x0000_FFFF, 3, 1),
            (0x01FF_FFFF, 2, 2),
            (0x0200_0000, 2, 4),
            (0xFDFF_FFFF, 2, 254),
            (0xFE00_0000, 3, 255),
        ] {
            let offset = line.declared(inherited, Epoch(epoch)).unwrap().offset.unwrap();
            assert_eq!(offset.counter_epoch(Epoch(epoch)), Ok(counter), "{inherited:08X}");
        }
        assert!(line.declared(0xFE00_0000, Epoch(2)).is_err());
        assert!(line.declared(0xFF00_0000, Epoch(3)).is_err());
        // What is declared later never lowers it.
        let high = line.declared(0x1000_0000, Epoch(2)).unwrap();
        assert_eq!(high.declared(0, Epoch(2)), Ok(high));
    }

    #[test]
    fn an_authenticated_counter_raises_by_a_bounded_step_and_a_bogus_one_burns_nothing() {
        let line = Line { name: name(), offset: Some(offset(2)) };
        assert_eq!(line.raised(0x03FF_FFFF, Epoch(2)), None, "we use 4");
        let raised = |heard| line.raised(heard, Epoch(2)).map(|line| line.offset.unwrap().get());
        assert_eq!(
            (raised(0x0400_0000), raised(0x0500_0000), raised(0x0600_0000)),
            (Some(4), Some(4), Some(6))
        );
        assert_eq!((raised(0x0700_0000), raised(0xFFFF_FFFF)), (None, None));
        assert_eq!(Line::undeclared(name()).raised(0, Epoch(2)), None);
    }

    #[test]
    fn offsets_merge_by_maximum_and_a_declared_one_counts_against_none() {
        let [low, high] = [2, 6].map(|n| Line { name: name(), offset: Some(offset(n)) });
        let none = Line::undeclared(name());
        for (a, b, merged) in
            [(low, high, high), (high, low, high), (none, low, low), (low, none, low)]
        {
            assert_eq!(a.merged(&b), merged);
        }
        assert_eq!(none.merged(&none), none);
    }

    #[test]
    fn the_line_of_a_next_key_is_above_the_former_one_until_there_is_no_room() {
        let next = Line::after(name(), offset(4), Epoch(2)).unwrap();
        assert_eq!(next.offset, Some(offset(6)));
        assert!(Line::after(name(), offset(252), Epoch(2)).is_err());
    }

    #[test]
    fn all_lines_of_a_value_are_in_one_block() {
        let blocks = BlockCount::DEFAULT;
        let other = LineName { originator: SystemTitle::new([1; 8]), ..name() };
        assert_eq!(name().block(blocks), other.block(blocks));
    }
}
