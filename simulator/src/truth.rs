//! What really happened, which no site knows, and what must not have. Each check names the invariant of DESIGN §7 that it
//! is of.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use kms_core::{
    BlockNo, Epoch, Position, Record,
    block::BlockMark,
    counters::{LineName, Offset},
    site::role::RoleRecord,
};

use crate::site::{Database, Place, SITES, State, Write};

/// An invariant that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invariant {invariant}: {what}")]
pub struct Broken {
    /// Its number in DESIGN §7.
    pub invariant: u8,
    /// What happened.
    pub what: String,
}

impl Broken {
    /// Of an invariant.
    pub(crate) fn of(invariant: u8, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}

/// A write that somebody was told of.
#[derive(Clone, Copy, Debug)]
struct Told {
    replicated: bool,
    /// It was lost where both databases were rolled back, or by the only one that had it.
    excused: bool,
    /// Rollbacks of each site before it was told.
    rollbacks: [u32; SITES],
}

/// A line as the meters see it.
#[derive(Clone, Copy, Debug)]
struct Seen {
    counter: u32,
    epoch: Epoch,
}

/// The counters of a line that went out, as runs: the first of each, and the one behind its last.
#[derive(Debug, Default)]
struct Used(BTreeMap<u32, u64>);

impl Used {
    /// Whether it is a new one.
    fn insert(&mut self, counter: u32) -> bool {
        let next = u64::from(counter) + 1;
        let before = self.0.range(..=counter).next_back().map(|(start, end)| (*start, *end));
        let start = match before {
            Some((_, end)) if end >= next => return false,
            Some((start, end)) if end == u64::from(counter) => start,
            _ => counter,
        };
        let behind = u32::try_from(next).ok().and_then(|next| self.0.remove(&next));
        self.0.insert(start, behind.unwrap_or(next));
        true
    }
}

type StateKey = (BlockNo, Position, [u8; 32]);

/// All that really happened.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// All states that some writer wrote.
    states: BTreeMap<StateKey, Rc<State>>,
    /// The state at each place: there is one.
    places: BTreeMap<(BlockNo, Position), [u8; 32]>,
    writers: BTreeMap<Epoch, usize>,
    told: BTreeMap<Write, Told>,
    /// Rollbacks of each site before a head was written.
    written: BTreeMap<Write, [u32; SITES]>,
    /// Times that a site's database was rolled back.
    pub(crate) rollbacks: [u32; SITES],
    /// The highest epoch that anybody ever took.
    pub(crate) epoch: Epoch,
    /// Role records that were signed.
    pub(crate) signed: Vec<RoleRecord>,
    /// The highest epoch that a site was told of by its signed record.
    pub(crate) told_of: [Epoch; SITES],
    used: BTreeMap<LineName, Used>,
    seen: BTreeMap<LineName, Seen>,
    /// The highest offset that each line was ever written with.
    offsets: BTreeMap<LineName, Offset>,
    /// Counters that were given out.
    pub(crate) counters: u64,
    /// Those of them on a key value that meters of different blocks share.
    pub(crate) shared: u64,
}

impl Truth {
    /// A state that its writer wrote.
    pub(crate) fn write(&mut self, site: usize, state: &Rc<State>) -> Result<(), Broken> {
        let mark = state.mark();
        let epoch = mark.position.epoch;
        if *self.writers.entry(epoch).or_insert(site) != site {
            return Err(Broken::of(7, format!("two sites wrote in epoch {}", epoch.0)));
        }
        if epoch < self.told_of[site] {
            let told = self.told_of[site].0;
            let what = format!("site {site} wrote in epoch {}, and knew of {told}", epoch.0);
            return Err(Broken::of(7, what));
        }
        let digest = *self.places.entry((mark.block, mark.position)).or_insert(mark.digest);
        if digest != mark.digest {
            let what = format!("block {} has two states at {}", mark.block, mark.position);
            return Err(Broken::of(7, what));
        }
        let write = Write { block: mark.block, position: mark.position };
        self.written.insert(write, self.rollbacks);
        self.states.insert(key_of(&mark), Rc::clone(state));
        self.epoch = self.epoch.max(epoch);
        for record in &state.records {
            if let Ok(Record::Line(line)) = Record::decode(&record.body)
                && let Some(offset) = line.offset
            {
                let known = self.offsets.entry(line.name).or_insert(offset);
                *known = offset.max(*known);
            }
        }
        Ok(())
    }

    /// The highest offset that a line was ever written with.
    pub(crate) fn offset_of(&self, name: &LineName) -> Option<Offset> {
        self.offsets.get(name).copied()
    }

    /// The state that was taken over is one that somebody wrote, byte for byte.
    pub(crate) fn known(&self, taken: &State) -> Result<Rc<State>, Broken> {
        let mark = taken.mark();
        let state = self.states.get(&key_of(&mark));
        let state =
            state.filter(|state| state.head == taken.head && state.records == taken.records);
        state.cloned().ok_or_else(|| {
            let what =
                format!("block {} at {} is not what anybody wrote", mark.block, mark.position);
            Broken::of(5, what)
        })
    }

    /// A state at the start.
    pub(crate) fn found(&mut self, state: &Rc<State>) {
        self.states.insert(key_of(&state.mark()), Rc::clone(state));
    }

    /// A block goes from one state to another: what is lost of it was set aside.
    pub(crate) fn step(
        &self,
        before: &State,
        after: &State,
        aside: &BTreeSet<Position>,
    ) -> Result<(), Broken> {
        if after.head.position < before.head.position {
            let what = format!(
                "block {} went back from {} to {}",
                before.head.block, before.head.position, after.head.position
            );
            return Err(Broken::of(5, what));
        }
        match before
            .history
            .iter()
            .find(|lost| !after.history.contains(lost) && !aside.contains(lost))
        {
            None => Ok(()),
            Some(lost) => Err(Broken::of(
                4,
                format!("what was written at {lost} of block {} is lost", before.head.block),
            )),
        }
    }

    /// Somebody is told that his write is done.
    pub(crate) fn tell(
        &mut self,
        write: Write,
        replicated: bool,
        sites: &[&Database],
    ) -> Result<(), Broken> {
        let rollbacks = self.rollbacks;
        let holders = sites.iter().filter(|site| holds(site, &write)).count();
        let needed = if replicated { 2 } else { 1 };
        let then = self.written.get(&write).copied().unwrap_or(rollbacks);
        let rolled_back = then != rollbacks;
        if holders < needed && !rolled_back {
            let what = format!(
                "the write at {} was told, replicated: {replicated}, and {holders} sites have it",
                write.position
            );
            return Err(Broken::of(4, what));
        }
        // Whoever was rolled back before it told it has lost what was not replicated; both together have lost all.
        let excused = holders == 0 && (!replicated || rolled_back_since(&then, &rollbacks) > 1);
        self.told.insert(write, Told { replicated, excused, rollbacks: then });
        Ok(())
    }

    /// All that was told is somewhere. `rolled_back`: the site whose database this step rolled back.
    pub(crate) fn nothing_is_lost(
        &mut self,
        sites: &[&Database],
        rolled_back: Option<usize>,
    ) -> Result<(), Broken> {
        let rollbacks = self.rollbacks;
        for (write, told) in &mut self.told {
            if told.excused || sites.iter().any(|site| holds(site, write)) {
                continue;
            }
            let sites = rolled_back_since(&told.rollbacks, &rollbacks);
            if rolled_back.is_none() || told.replicated && sites < 2 {
                let what = format!(
                    "the write at {} of block {} was told and is nowhere",
                    write.position, write.block
                );
                return Err(Broken::of(4, what));
            }
            told.excused = true;
        }
        Ok(())
    }

    /// A counter goes out to a meter. `late`: by a node that no longer holds the block, without knowing it.
    pub(crate) fn transmit(
        &mut self,
        at: Place,
        epoch: Epoch,
        name: LineName,
        counter: u32,
        late: bool,
    ) -> Result<(), Broken> {
        self.counters += 1;
        if !self.used.entry(name).or_default().insert(counter) {
            return Err(Broken::of(
                3,
                format!("counter {counter:08X} went out twice, now by {at:?} in epoch {}", epoch.0),
            ));
        }
        let seen = self.seen.entry(name).or_insert(Seen { counter, epoch });
        // Who was replaced is refused by the meter.
        let replaced = epoch < seen.epoch || late && epoch == seen.epoch;
        if !replaced && counter < seen.counter {
            let what = format!(
                "counter {counter:08X} of epoch {} after {:08X} of epoch {}",
                epoch.0, seen.counter, seen.epoch.0
            );
            return Err(Broken::of(3, what));
        }
        if !replaced {
            *seen = Seen { counter: counter.max(seen.counter), epoch };
        }
        Ok(())
    }
}

/// The number of sites whose databases were rolled back in between.
fn rolled_back_since(then: &[u32; SITES], now: &[u32; SITES]) -> usize {
    then.iter().zip(now).filter(|(then, now)| then < now).count()
}

fn key_of(mark: &BlockMark) -> StateKey {
    (mark.block, mark.position, mark.digest)
}

fn holds(site: &Database, write: &Write) -> bool {
    let state = &site.blocks[write.block.0 as usize];
    state.history.contains(&write.position) || site.aside.contains(&(write.block, write.position))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_is_new_once_in_whatever_order_they_come() {
        let (mut used, mut known) = (Used::default(), BTreeSet::new());
        let drawn = (0..4_000_u32).map(|n| n.wrapping_mul(2_654_435_761) % 1_500);
        for counter in drawn.chain([0, u32::MAX, u32::MAX - 1, u32::MAX, 0]) {
            assert_eq!(used.insert(counter), known.insert(counter), "{counter}");
        }
        let runs: u64 = used.0.iter().map(|(start, end)| end - u64::from(*start)).sum();
        assert_eq!(runs, known.len() as u64);
    }
}
