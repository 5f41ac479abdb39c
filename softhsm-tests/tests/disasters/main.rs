//! Two sites by the real programs through disasters by chance: killed with -9, frozen, parted, promoted with the old
//! primary alive, behind a proxy that breaks connections. What was acknowledged is there, or is known to have been set
//! aside; what was told to be replicated is never set aside; both sites end byte for byte alike.
//!
//! `make disasters` plays a long game; `KILLS`, `PARTITIONS`, `FREEZES` and `SEED` say what it has. `make disasters-full`
//! (`WORLD=full`) plays it on the real parts: each site in a network namespace, one of them two servers over PostgreSQL
//! with a synchronous standby that takes over (`DBFAILOVERS`), the other one SQLite and a token of another vendor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may")]

#[path = "../common/mod.rs"]
mod common;
mod ledger;
#[path = "../../../kms-server/tests/postgres_common/mod.rs"]
mod postgres_common;
mod sites;
mod stored;
mod world;

use std::time::{Duration, Instant};

use common::Numbers;
use ledger::Ledger;
use sites::{Kind, Needs, Sites};
use softhsm_tests::table::{Cell, render};
use world::{Disaster, Found, World};

/// Disasters between two looks at everything.
const BETWEEN_LOOKS: usize = 10;

#[expect(clippy::disallowed_methods, reason = "how long a game is to be played, and which")]
fn word(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str, otherwise: u64) -> u64 {
    word(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// `WORLD`: which game is wanted; `None`: both, for moments.
fn wanted() -> Option<Kind> {
    match word("WORLD").as_deref() {
        None => None,
        Some("simple") => Some(Kind::Simple),
        Some("full") => Some(Kind::Full),
        Some(other) => panic!("WORLD={other}: it is simple or full"),
    }
}

/// The disasters of a game.
struct Game {
    seed: u64,
    left: Vec<Disaster>,
}

impl Game {
    fn of(counts: [(Disaster, &str, u64); 4], is_wanted: bool) -> Self {
        let times = |name, otherwise| if is_wanted { number(name, otherwise) } else { otherwise };
        let each = counts.map(|(what, name, otherwise)| (what, times(name, otherwise)));
        let left = each.iter().flat_map(|(what, times)| (0..*times).map(|_| *what)).collect();
        Self { seed: number("SEED", 1), left }
    }

    async fn play(self, sites: Sites) {
        let Self { seed, mut left } = self;
        let began = Instant::now();
        let mut numbers = Numbers(seed);
        let mut world = World::new(sites);
        let ledger = Ledger::default();
        let writers = world.writers(&ledger);
        let mut found = None;
        while !left.is_empty() {
            for _ in 0..BETWEEN_LOOKS.min(left.len()) {
                let what = left.swap_remove(numbers.below(left.len() as u64) as usize);
                world.befall(what, &mut numbers).await;
            }
            world.heal().await;
            world.until_followed().await;
            ledger.pause().await;
            world.until_in_step().await;
            let looked = world.look(&ledger).await;
            println!("{} disasters left; {looked}", left.len());
            found = Some(looked);
            ledger.go_on();
        }
        ledger.end();
        for writer in writers {
            writer.await.unwrap();
        }
        let found = found.expect("nothing was played");
        println!("{}", report(&world, &found, (seed, began.elapsed())));
        assert!(found.acknowledged > 0, "nothing was written");
        world.stop();
    }
}

/// What was played and what came of it, as a table.
fn report(world: &World, found: &Found, (seed, took): (u64, Duration)) -> String {
    let done = &world.done;
    let mut rows = vec![
        ("sites", format!("{:?}", world.kind())),
        ("seed", seed.to_string()),
        ("took", format!("{} s", took.as_secs())),
    ];
    for (what, times) in &done.disasters {
        let what = match what {
            Disaster::Kill => "kill -9",
            Disaster::Partition => "partitions",
            Disaster::Freeze => "freezes",
            Disaster::DatabaseFailover => "database failovers",
        };
        rows.push((what, times.to_string()));
    }
    rows.extend([
        ("promotions", format!("{}, {} beside a living primary", done.promoted, done.beside)),
        ("promotions refused", done.refused.to_string()),
        ("servers that ended after a failover", done.ended.to_string()),
        ("writes acknowledged", found.acknowledged.to_string()),
        ("of them as replicated", found.replicated.to_string()),
        ("writes refused or not told", found.not_told.to_string()),
        ("set aside, and reported", found.set_aside.to_string()),
        ("lost, or set aside although replicated", "0".to_owned()),
        ("blocks that differ at the end", "0".to_owned()),
    ]);
    let rows: Vec<Vec<Cell>> =
        rows.into_iter().map(|(what, is)| vec![Cell::from(what), Cell::from(is)]).collect();
    render(&[("what", 60), ("times", 60)], &rows, false)
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_4_nothing_acknowledged_is_lost_or_unreported_whatever_befalls_two_sites() {
    if wanted() == Some(Kind::Full) {
        return;
    }
    let counts = [
        (Disaster::Kill, "KILLS", 4),
        (Disaster::Partition, "PARTITIONS", 2),
        (Disaster::Freeze, "FREEZES", 2),
        (Disaster::DatabaseFailover, "", 0),
    ];
    let game = Game::of(counts, true);
    let sites = Sites::simple(game.seed).await;
    game.play(sites).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invariant_4_the_same_over_networks_a_database_that_fails_over_and_tokens_of_two_vendors() {
    let wanted = wanted();
    if wanted == Some(Kind::Simple) {
        return;
    }
    let needs = match (Needs::here(), wanted) {
        (Ok(needs), _) => needs,
        (Err(why), Some(_)) => panic!("{why}"),
        (Err(why), None) => return eprintln!("disasters on real parts: left out: {why}"),
    };
    let counts = [
        (Disaster::Kill, "KILLS", 2),
        (Disaster::Partition, "PARTITIONS", 1),
        (Disaster::Freeze, "FREEZES", 1),
        (Disaster::DatabaseFailover, "DBFAILOVERS", 1),
    ];
    let game = Game::of(counts, wanted.is_some());
    let sites = Sites::full(needs, game.seed).await;
    game.play(sites).await;
}
