//! A seeded world that drives the state machines of `kms-core` through disasters: two sites that write and a replica, two
//! nodes each over one database a site, and a network that loses, delays, reorders, repeats and changes what it carries.
//! The machines are those of the service, unchanged; what is simulated is all around them.
//!
//! A seed says everything: the same history comes out of it in every build. `docs/design/simulator.md` tells what is
//! modelled, and what is not.

mod acting;
mod chance;
mod counting;
mod events;
mod evidence;
mod fault;
mod mutation;
mod net;
mod proofs;
mod proving;
mod realm;
mod replicating;
mod roles;
mod site;
mod truth;
mod world;

pub use fault::{Fault, Hit, Hits};
pub use mutation::Mutation;
pub use realm::{NoRealm, Realm};
pub use truth::Broken;

use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

/// What to simulate.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of the first history; the next ones count up from it.
    pub seed: u64,
    /// The number of histories.
    pub histories: u64,
    /// Events of each.
    pub events: usize,
    /// A rule that the world breaks.
    pub mutation: Option<Mutation>,
    /// Further histories follow until so many counters went out. Unless it is 0, many go out at a time.
    pub counters: u64,
}

/// What came out of histories without a fault of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How often each fault hit what.
    pub hits: Hits,
    /// Histories that were run.
    pub histories: u64,
    /// Counters that were given out.
    pub counters: u64,
    /// Those of them on a key value that meters of different blocks share.
    pub shared: u64,
    /// Times that a node said `READY` of the site that follows, after a step.
    pub ready: u64,
}

impl Report {
    fn with(mut self, other: &Self) -> Self {
        self.hits.add(&other.hits);
        self.histories += other.histories;
        self.counters += other.counters;
        self.shared += other.shared;
        self.ready += other.ready;
        self
    }
}

/// A history in which an invariant was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{broken}\nafter {events} events: SEED={seed} EVENTS={events} {how}")]
pub struct Failure {
    /// The seed that brings it back.
    pub seed: u64,
    /// Events after which it shows, and not after one less.
    pub events: usize,
    /// What was broken.
    pub broken: Broken,
    /// The rest of the command.
    pub how: &'static str,
    /// What happened until then, a line each.
    pub story: Vec<String>,
}

/// What the processors share.
#[derive(Debug, Default)]
struct Shared {
    /// The next history.
    next: AtomicU64,
    /// The first that failed.
    failed: AtomicU64,
    /// Counters that went out.
    counters: AtomicU64,
}

impl Plan {
    /// Runs all histories, or up to the first that fails, on all processors.
    pub fn run(&self, realm: &Realm) -> Result<Report, Failure> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let shared = Shared { failed: AtomicU64::new(u64::MAX), ..Shared::default() };
        let parts: Vec<(Report, Option<(u64, Broken)>)> = std::thread::scope(|scope| {
            let part = || self.run_part(realm, &shared);
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(part)).collect();
            running.into_iter().filter_map(|running| running.join().ok()).collect()
        });
        // The first by its seed, whichever was found first.
        let broken = parts.iter().filter_map(|(_, broken)| broken.clone()).min_by_key(|it| it.0);
        match broken {
            Some((seed, broken)) => Err(self.shortest(realm, seed, broken)),
            None => Ok(parts.iter().fold(Report::default(), |sum, (part, _)| sum.with(part))),
        }
    }

    /// Takes one history after the other, up to the first that somebody saw fail.
    fn run_part(&self, realm: &Realm, shared: &Shared) -> (Report, Option<(u64, Broken)>) {
        let mut report = Report::default();
        loop {
            let taken = shared.next.fetch_add(1, Ordering::Relaxed);
            let is_enough = shared.counters.load(Ordering::Relaxed) >= self.counters;
            let is_over = taken >= self.histories && is_enough;
            if is_over || taken > shared.failed.load(Ordering::Relaxed) {
                return (report, None);
            }
            let seed = self.seed.wrapping_add(taken);
            let mut world = self.world(realm, seed);
            if let Err(broken) = live(&mut world, self.events) {
                shared.failed.fetch_min(taken, Ordering::Relaxed);
                return (report, Some((seed, broken)));
            }
            shared.counters.fetch_add(world.truth.counters, Ordering::Relaxed);
            report.hits.add(&world.hits);
            report.histories += 1;
            report.counters += world.truth.counters;
            report.shared += world.truth.shared;
            report.ready += world.proving.said;
        }
    }

    fn world<'a>(&self, realm: &'a Realm, seed: u64) -> World<'a> {
        let mut world = World::new(realm, seed, self.mutation);
        world.many = self.counters > 0;
        world.busy |= world.many;
        world
    }

    /// A short beginning of a history that fails as well, while the one that is an event shorter does not.
    fn shortest(&self, realm: &Realm, seed: u64, broken: Broken) -> Failure {
        let fails = |events: usize| live(&mut self.world(realm, seed), events).err();
        let (mut well, mut failing) = (None, (self.events, broken));
        while let events = well.map_or(0, |well| well + 1)
            && events < failing.0
        {
            let middle = events + (failing.0 - events) / 2;
            match fails(middle) {
                Some(broken) => failing = (middle, broken),
                None => well = Some(middle),
            }
        }
        let (events, broken) = failing;
        let mut world = self.world(realm, seed);
        world.story = Some(Vec::new());
        let _ = live(&mut world, events);
        let how = match world.many {
            true => "COUNTERS=1 make allocate",
            false => "HISTORIES=1 make simulate",
        };
        Failure { seed, events, broken, how, story: world.story.unwrap_or_default() }
    }
}

fn live(world: &mut World<'_>, events: usize) -> Result<(), Broken> {
    world.begin()?;
    (0..events).try_for_each(|_| world.step())?;
    world.settle()
}
